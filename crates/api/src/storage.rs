//! Names around PersistentVolumes: those of Kubernetes' own parts, and berth's.

/// The driver of volumes on a node's own file system, and the provisioner of [`LOCAL_CLASS`].
pub const LOCAL_DRIVER: &str = "local.berth.kubevirt.io";
/// The storage class that a standalone machine has, and its default.
pub const LOCAL_CLASS: &str = "berth-local";

/// Annotation of a class: it is the one for claims that name none.
pub const DEFAULT_CLASS: &str = "storageclass.kubernetes.io/is-default-class";
/// Annotation of a claim: who is to make its volume.
pub const PROVISIONER: &str = "volume.kubernetes.io/storage-provisioner";
/// Annotation of a volume: who made it.
pub const PROVISIONED_BY: &str = "pv.kubernetes.io/provisioned-by";
/// Annotation of a claim that waits for its first consumer: where that is going to run.
pub const SELECTED_NODE: &str = "volume.kubernetes.io/selected-node";
/// Annotation of a claim: it is bound for good.
pub const BIND_COMPLETED: &str = "pv.kubernetes.io/bind-completed";
/// Annotation of a claim whose volume berth's controllers chose.
pub const BOUND_BY_CONTROLLER: &str = "pv.kubernetes.io/bound-by-controller";
/// Finalizer of a claim: it stays while a pod uses it.
pub const CLAIM_PROTECTION: &str = "kubernetes.io/pvc-protection";
/// Finalizer of a volume: it stays while a claim has it.
pub const VOLUME_PROTECTION: &str = "kubernetes.io/pv-protection";
/// The binding mode of a class whose volumes are made where they are first used.
pub const WAIT_FOR_CONSUMER: &str = "WaitForFirstConsumer";
/// The volume mode without a file system.
pub const BLOCK: &str = "Block";
