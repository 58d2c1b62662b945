//! The names that berth puts on objects: labels, annotations, finalizers, condition types and reasons. Those
//! under `kubevirt.io` are upstream's, because clients select by them.

/// Label of launcher pods; its value is [`LAUNCHER`].
pub const APP: &str = "kubevirt.io";
/// Value of [`APP`] on launcher pods.
pub const LAUNCHER: &str = "virt-launcher";
/// Label of a launcher pod: UID of its VirtualMachineInstance.
pub const CREATED_BY: &str = "kubevirt.io/created-by";
/// Label of a launcher pod: name of its VirtualMachineInstance.
pub const VM_NAME: &str = "vm.kubevirt.io/name";
/// Label of a launcher pod: the name of its VirtualMachineInstance, or what stands for one that is too long for a label.
pub const VMI_ID: &str = "vmi.kubevirt.io/id";
/// Label of a VirtualMachineInstance and its pod: name of the node that it runs on.
pub const NODE_NAME: &str = "kubevirt.io/nodeName";
/// Label of a node: whether machines may be scheduled on it, `true` or `false`.
pub const SCHEDULABLE: &str = "kubevirt.io/schedulable";
/// Annotation of a node: when its node agent was last alive.
pub const HEARTBEAT: &str = "kubevirt.io/heartbeat";

/// Label of a node: whether its kubelet gives containers CPUs of their own, `true` or `false`.
pub const CPU_MANAGER: &str = "cpumanager";
/// What labels of a node begin with that name the models of processors that guests can have; the value is `true`.
pub const CPU_MODEL_PREFIX: &str = "cpu-model.node.kubevirt.io/";
/// The same for features of the processor.
pub const CPU_FEATURE_PREFIX: &str = "cpu-feature.node.kubevirt.io/";
/// The same for the vendor of the processor.
pub const CPU_VENDOR_PREFIX: &str = "cpu-vendor.node.kubevirt.io/";
/// The same for the model that is nearest to the node's own processor.
pub const HOST_MODEL_PREFIX: &str = "host-model-cpu.node.kubevirt.io/";
/// The same for what `host-model` asks for besides that model.
pub const HOST_FEATURE_PREFIX: &str = "host-model-required-features.node.kubevirt.io/";
/// The same for machine types.
pub const MACHINE_TYPE_PREFIX: &str = "machine-type.node.kubevirt.io/";
/// The same for enlightenments of Hyper-V.
pub const HYPERV_PREFIX: &str = "hyperv.node.kubevirt.io/";
/// Condition of a launcher pod and gate of its readiness: the guest runs and is not paused.
pub const UNPAUSED: &str = "kubevirt.io/virtual-machine-unpaused";
/// Resource of a node and request of a launcher pod: KVM.
pub const DEVICE_KVM: &str = "devices.kubevirt.io/kvm";
/// The same for `/dev/net/tun`, by which taps are opened.
pub const DEVICE_TUN: &str = "devices.kubevirt.io/tun";
/// The same for `/dev/vhost-net`, by which the kernel moves packets of virtio cards.
pub const DEVICE_VHOST_NET: &str = "devices.kubevirt.io/vhost-net";

/// Annotation of a launcher pod: name of its VirtualMachineInstance.
pub const DOMAIN_ANNOTATION: &str = "kubevirt.io/domain";
/// Annotation of a launcher pod: the container that `kubectl logs` and `kubectl exec` mean by default.
pub const DEFAULT_CONTAINER_ANNOTATION: &str = "kubectl.kubernetes.io/default-container";
/// Name of the one container of a launcher pod.
pub const COMPUTE_CONTAINER: &str = "compute";
/// What the names of launcher pods begin with; the machine's name and five random characters follow.
pub const LAUNCHER_PREFIX: &str = "virt-launcher-";

/// Finalizer of a VirtualMachineInstance. Admission sets it on create; the VMI controller takes it off when no
/// pod of the machine is left.
pub const VMI_FINALIZER: &str = "kubevirt.io/foregroundDeleteVirtualMachine";

/// Finalizer of a VirtualMachine. Admission sets it on create; the VM controller takes it off when its
/// VirtualMachineInstance is gone.
pub const VM_FINALIZER: &str = "kubevirt.io/virtualMachineControllerFinalize";
/// Label of a ControllerRevision: UID of the VirtualMachine whose spec it holds.
pub const VM_UID: &str = "kubevirt.io/vm-uid";
/// Annotation of a VirtualMachineInstance: the generation of the VirtualMachine that it was made of.
pub const VM_GENERATION: &str = "kubevirt.io/vm-generation";
/// Annotation of a VirtualMachineInstance: a digest of the template that it was made of.
pub const TEMPLATE_DIGEST: &str = "berth.kubevirt.io/template-digest";

/// Field manager of the controllers.
pub const CONTROLLER_MANAGER: &str = "berth-controller";
/// Field manager of the node agent.
pub const NODE_MANAGER: &str = "berth-node";

/// Condition: the guest runs and its pod is ready.
pub const CONDITION_READY: &str = "Ready";
/// Condition: the machine can move to another node while it runs.
pub const CONDITION_LIVE_MIGRATABLE: &str = "LiveMigratable";
/// Condition: the guest is paused.
pub const CONDITION_PAUSED: &str = "Paused";
/// Condition: an agent answers in the guest.
pub const CONDITION_AGENT_CONNECTED: &str = "AgentConnected";
/// Condition: keys and passwords are in the guest.
pub const CONDITION_CREDENTIALS: &str = "AccessCredentialsSynchronized";
/// Reason: a probe found the guest unwell; the kubelet's word.
pub const REASON_UNHEALTHY: &str = "Unhealthy";
/// Condition of a VirtualMachine: its VirtualMachineInstance could not be made.
pub const CONDITION_FAILURE: &str = "Failure";
/// Condition of a VirtualMachine: its template has changed since it was started.
pub const CONDITION_RESTART_REQUIRED: &str = "RestartRequired";
/// Condition: the last attempt to bring the machine to its spec failed or worked.
pub const CONDITION_SYNCHRONIZED: &str = "Synchronized";
/// Condition: the node has no usable KVM, or the cluster asks for emulation: the guest is emulated in software.
pub const CONDITION_SOFTWARE_EMULATION: &str = "SoftwareEmulation";

/// Reason of `Ready=False`: the guest does not run.
pub const REASON_GUEST_NOT_RUNNING: &str = "GuestNotRunning";
/// Reason of `Ready=False`: there is no launcher pod.
pub const REASON_POD_NOT_EXISTS: &str = "PodNotExists";
/// Reason of `Ready=False`: the launcher pod has a deletion timestamp.
pub const REASON_POD_TERMINATING: &str = "PodTerminating";
/// Reason of `Ready=False`: the launcher pod is not ready.
pub const REASON_POD_NOT_READY: &str = "PodConditionMissing";
/// Reason of `LiveMigratable=False`: a disk is local to the node.
pub const REASON_DISKS_NOT_LIVE_MIGRATABLE: &str = "DisksNotLiveMigratable";
/// Reason of `LiveMigratable=False`: an interface is bound in a way that cannot move.
pub const REASON_INTERFACE_NOT_LIVE_MIGRATABLE: &str = "InterfaceNotLiveMigratable";
/// Reason of `Paused=True`: a user paused the guest.
pub const REASON_PAUSED_BY_USER: &str = "PausedByUser";
/// Reason of `Paused=True`: the guest stopped on a disk error, most often a full disk of the node.
pub const REASON_PAUSED_IO_ERROR: &str = "PausedIOError";
/// Reason of `Synchronized=False` and of events: the machine could not be brought to its spec.
pub const REASON_SYNC_FAILED: &str = "SyncFailed";
/// Reason of events: a volume names a PersistentVolumeClaim that is not there.
pub const REASON_CLAIM_NOT_FOUND: &str = "FailedPvcNotFound";
/// Reason of a condition: a DataVolume is being filled.
pub const REASON_DATA_VOLUME_WAITS: &str = "DataVolumeNotReady";
/// Reason of a condition: a DataVolume could not be filled.
pub const REASON_DATA_VOLUME_FAILED: &str = "DataVolumeError";
/// Reason of `Synchronized=False` and of events: the launcher pod could not be made.
pub const REASON_FAILED_CREATE: &str = "FailedCreate";
/// Reason of events: the launcher pod was made.
pub const REASON_SUCCESSFUL_CREATE: &str = "SuccessfulCreate";
/// Reason of events: the launcher pod was deleted.
pub const REASON_SUCCESSFUL_DELETE: &str = "SuccessfulDelete";
/// Reason of `Synchronized=False` and of events: the container disk's image could not be pulled.
pub const REASON_IMAGE_PULL_FAILED: &str = "ErrImagePull";
/// Reason of `Synchronized=False` and of events: the image was pulled and is no usable container disk.
pub const REASON_IMAGE_INVALID: &str = "InvalidContainerDisk";
/// Reason of `SoftwareEmulation=True`: the probe found KVM missing or unusable.
pub const REASON_KVM_UNUSABLE: &str = "KVMUnusable";
/// Reason of `SoftwareEmulation=True`: the configuration asks for emulation.
pub const REASON_EMULATION_REQUESTED: &str = "EmulationRequested";
/// Reason of events: the domain was created.
pub const REASON_CREATED: &str = "Created";
/// Event: firmware will find no boot sector.
pub const REASON_NOT_BOOTABLE: &str = "NotBootable";
/// Reason of events: the guest started.
pub const REASON_STARTED: &str = "Started";
/// Reason of events: the guest was asked to shut down.
pub const REASON_SHUTTING_DOWN: &str = "ShuttingDown";
/// Reason of events: the guest ended.
pub const REASON_STOPPED: &str = "Stopped";
/// Reason of events: the machine was deleted.
pub const REASON_DELETED: &str = "Deleted";

/// Label of what works on volumes: its value says what it does.
pub const CDI: &str = "cdi.kubevirt.io";
/// Value of the label of a pod that fills a volume.
pub const IMPORTER: &str = "importer";
