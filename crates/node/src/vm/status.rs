//! What the node agent says about a machine: pure, from what the launcher reports to the status that users see.
//!
//! Phases follow upstream's rules: a guest that shut itself down `Succeeded`; one that crashed, or whose grace ran
//! out, `Failed`; without ACPI nobody could have asked it to shut down, so being destroyed is its regular end.

use berth_api::conditions::{remove_condition, set_condition};
use berth_api::kubevirt::v1::{
    CPUTopology, Machine, MemoryStatus, NetworkInterfaceStatus, PersistentVolumeClaimInfo,
    VirtualMachineInstance, VirtualMachineInstancePhaseTransitionTimestamp as Transition,
    VirtualMachineInstanceSpec, VirtualMachineInstanceStatus as Status, VmiPhase, VolumeStatus,
};
use berth_api::labels;
use berth_launcher::protocol::{AgentState, reason as pause};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// The guest, as far as its node knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Guest {
    /// No domain yet.
    #[default]
    Absent,
    /// It runs.
    Running,
    /// It has a domain and stands still; the libvirt word for why.
    Paused(String),
    /// It is over.
    Ended(End),
}

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It shut down: by itself or because it was asked to.
    Shutdown,
    /// Its power was cut after it had not shut down in time.
    GraceExceeded(String),
    /// Its power was cut on request, or by somebody else.
    Destroyed(String),
    /// QEMU or the guest died.
    Crashed(String),
    /// It could not be started.
    NotStarted(String),
    /// The launcher went away and left no word.
    LauncherGone,
    /// It was deleted before it started.
    NeverStarted,
    /// It was stopped because its probe found it dead.
    Unhealthy(String),
}

/// A network interface that was wired for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct WiredNic {
    /// Name in the spec.
    pub name: String,
    /// Whether the guest's own address is behind the pod's, and of no use to others.
    pub translated: bool,
    /// The pod's interface behind it.
    pub pod_interface: String,
    /// MAC address of the guest.
    pub mac: String,
    /// Address that the guest is given, when the pod has one.
    pub ip: Option<String>,
}

/// Everything that the status depends on, besides the machine itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct View {
    /// The guest.
    pub guest: Guest,
    /// Its network interfaces; empty until they are wired.
    pub nics: Vec<WiredNic>,
    /// `(reason, message)` when the guest is emulated in software.
    pub emulation: Option<(String, String)>,
    /// Why the last attempt to bring the guest up failed.
    pub sync_error: Option<String>,
    /// When the launcher pod is on its way out.
    pub pod_terminating: bool,
    /// What the guest's agent tells, while one answers.
    pub agent: Option<AgentState>,
    /// Whether the guest's file systems are frozen by request.
    pub frozen: bool,
    /// The machine type that the guest has, once it has one.
    pub machine: Option<String>,
    /// Why the guest is not ready for work, by its own probe.
    pub not_ready: Option<String>,
}

/// The status for this view. Equal to the current one when nothing is to be written.
pub(crate) fn plan_status(vmi: &VirtualMachineInstance, view: &View, now: &Time) -> Status {
    let mut status = vmi.status.clone().unwrap_or_default();
    let Some(phase) = status.phase else {
        return status;
    };
    if phase.is_final() {
        return status;
    }
    let wanted = match &view.guest {
        Guest::Absent => phase,
        Guest::Running | Guest::Paused(_) => VmiPhase::Running,
        Guest::Ended(end) => phase_of_end(end, acpi(&vmi.spec)),
    };
    if wanted != phase {
        status.phase = Some(wanted);
        status.phase_transition_timestamps.push(Transition {
            phase: wanted,
            phase_transition_timestamp: now.clone(),
        });
    }
    set_ready(&mut status, view, now);
    set_paused(&mut status, view, now);
    set_synchronized(&mut status, view, now);
    match &view.guest {
        Guest::Running | Guest::Paused(_) => {
            set_live_migratable(&mut status, &vmi.spec, now);
            set_emulation(&mut status, view, now);
            set_facts(&mut status, &vmi.spec, view);
            set_agent(&mut status, view, now);
        }
        Guest::Ended(end) => {
            for gone in [
                labels::CONDITION_LIVE_MIGRATABLE,
                labels::CONDITION_AGENT_CONNECTED,
                labels::CONDITION_CREDENTIALS,
            ] {
                remove_condition(&mut status.conditions, gone);
            }
            status.fs_freeze_status = None;
            if wanted == VmiPhase::Failed {
                status.reason = Some(reason_of(end).to_owned());
            }
        }
        Guest::Absent => {}
    }
    status
}

fn phase_of_end(end: &End, acpi: bool) -> VmiPhase {
    match end {
        End::Shutdown | End::NeverStarted => VmiPhase::Succeeded,
        End::GraceExceeded(_) | End::Destroyed(_) if !acpi => VmiPhase::Succeeded,
        End::GraceExceeded(_)
        | End::Destroyed(_)
        | End::Crashed(_)
        | End::NotStarted(_)
        | End::Unhealthy(_)
        | End::LauncherGone => VmiPhase::Failed,
    }
}

/// One CamelCase word for `status.reason` and the event.
pub(crate) fn reason_of(end: &End) -> &'static str {
    match end {
        End::Shutdown | End::NeverStarted => labels::REASON_STOPPED,
        End::GraceExceeded(_) => "GracePeriodExceeded",
        End::Destroyed(_) => "Destroyed",
        End::Crashed(_) => "GuestCrashed",
        End::NotStarted(_) => "StartFailed",
        End::LauncherGone => "LauncherGone",
        End::Unhealthy(_) => labels::REASON_UNHEALTHY,
    }
}

/// A sentence on how the guest ended.
pub(crate) fn message_of(end: &End) -> String {
    match end {
        End::Shutdown => "The VirtualMachineInstance was shut down.".to_owned(),
        End::NeverStarted => {
            "The VirtualMachineInstance was deleted before its guest was started.".to_owned()
        }
        End::GraceExceeded(why) | End::Destroyed(why) => format!("The guest was stopped: {why}."),
        End::Crashed(why) => format!("The guest crashed: {why}."),
        End::NotStarted(why) => format!("The guest could not be started: {why}"),
        End::Unhealthy(why) => format!("The guest was stopped: its liveness probe failed: {why}"),
        End::LauncherGone => {
            "The launcher ended without reporting what became of the guest.".to_owned()
        }
    }
}

/// ACPI is on unless the user turned it off.
fn acpi(spec: &VirtualMachineInstanceSpec) -> bool {
    let acpi = spec.domain.features.as_ref().and_then(|f| f.acpi.as_ref());
    acpi.and_then(|a| a.enabled).unwrap_or(true)
}

fn set_ready(status: &mut Status, view: &View, now: &Time) {
    let (ready, reason, message) = match &view.guest {
        Guest::Running if view.pod_terminating => (
            false,
            labels::REASON_POD_TERMINATING,
            "The launcher pod is being deleted.".to_owned(),
        ),
        Guest::Running => match &view.not_ready {
            Some(why) => (false, labels::REASON_UNHEALTHY, why.clone()),
            None => (true, "", String::new()),
        },
        Guest::Paused(_) => (
            false,
            labels::REASON_GUEST_NOT_RUNNING,
            "The guest is paused.".to_owned(),
        ),
        Guest::Absent => (
            false,
            labels::REASON_GUEST_NOT_RUNNING,
            "The guest is not running yet.".to_owned(),
        ),
        Guest::Ended(end) => (false, labels::REASON_GUEST_NOT_RUNNING, message_of(end)),
    };
    set_condition(
        &mut status.conditions,
        labels::CONDITION_READY,
        ready,
        reason,
        &message,
        now.clone(),
    );
}

fn set_paused(status: &mut Status, view: &View, now: &Time) {
    let Guest::Paused(why) = &view.guest else {
        remove_condition(&mut status.conditions, labels::CONDITION_PAUSED);
        return;
    };
    let (reason, message) = match why.as_str() {
        pause::IO_ERROR => (
            labels::REASON_PAUSED_IO_ERROR,
            "The guest was paused because a disk could not be read or written.",
        ),
        pause::WATCHDOG => ("PausedByWatchdog", "The guest was paused by its watchdog."),
        pause::USER => (
            labels::REASON_PAUSED_BY_USER,
            "The guest was paused by a request.",
        ),
        _ => ("Paused", "The guest was paused."),
    };
    set_condition(
        &mut status.conditions,
        labels::CONDITION_PAUSED,
        true,
        reason,
        message,
        now.clone(),
    );
}

fn set_synchronized(status: &mut Status, view: &View, now: &Time) {
    match &view.sync_error {
        Some(error) => {
            let (type_, reason) = (labels::CONDITION_SYNCHRONIZED, labels::REASON_SYNC_FAILED);
            let message = format!("Synchronizing with the Domain failed: {error}");
            set_condition(
                &mut status.conditions,
                type_,
                false,
                reason,
                &message,
                now.clone(),
            );
        }
        None => drop(remove_condition(
            &mut status.conditions,
            labels::CONDITION_SYNCHRONIZED,
        )),
    }
}

fn set_live_migratable(status: &mut Status, spec: &VirtualMachineInstanceSpec, now: &Time) {
    let bridged = spec
        .domain
        .devices
        .interfaces
        .iter()
        .any(|i| i.bridge.is_some());
    let (reason, message) = if bridged {
        let message = "An interface with a bridge binding to the pod network has an address of this node's range.";
        (labels::REASON_INTERFACE_NOT_LIVE_MIGRATABLE, message)
    } else {
        (
            labels::REASON_DISKS_NOT_LIVE_MIGRATABLE,
            "What the guest wrote to its disks is kept on this node only.",
        )
    };
    let type_ = labels::CONDITION_LIVE_MIGRATABLE;
    set_condition(
        &mut status.conditions,
        type_,
        false,
        reason,
        message,
        now.clone(),
    );
}

fn set_emulation(status: &mut Status, view: &View, now: &Time) {
    let type_ = labels::CONDITION_SOFTWARE_EMULATION;
    match &view.emulation {
        Some((reason, message)) => {
            set_condition(
                &mut status.conditions,
                type_,
                true,
                reason,
                message,
                now.clone(),
            );
        }
        None => drop(remove_condition(&mut status.conditions, type_)),
    }
}

/// Interfaces, memory and processors of a guest that runs.
fn set_facts(status: &mut Status, spec: &VirtualMachineInstanceSpec, view: &View) {
    if !view.nics.is_empty() {
        let agent = view.agent.as_ref();
        let nics = view.nics.iter();
        status.interfaces = nics.map(|nic| interface(nic, agent)).collect();
    }
    if let Some(guest) = spec.domain.memory.as_ref().and_then(|m| m.guest.clone()) {
        status.memory.get_or_insert_with(|| MemoryStatus {
            guest_at_boot: Some(guest.clone()),
            guest_current: Some(guest.clone()),
            guest_requested: Some(guest),
        });
    }
    if status.volume_status.is_empty() {
        status.volume_status = volumes(spec);
    }
    if let Some(machine) = &view.machine {
        status.machine = Some(Machine {
            type_: Some(machine.clone()),
        });
    }
    if let Some(cpu) = &spec.domain.cpu {
        status
            .current_cpu_topology
            .get_or_insert_with(|| CPUTopology {
                cores: Some(cpu.cores.unwrap_or(1)),
                sockets: Some(cpu.sockets.unwrap_or(1)),
                threads: Some(cpu.threads.unwrap_or(1)),
            });
    }
}

/// The volumes that the guest has, by name. Those of a machine that runs do not change.
fn volumes(spec: &VirtualMachineInstanceSpec) -> Vec<VolumeStatus> {
    let targets = berth_domain::disk_targets(&spec.domain).unwrap_or_default();
    let disks = spec.domain.devices.disks.iter().zip(targets);
    let mut all: Vec<VolumeStatus> = disks
        .map(|(disk, target)| {
            let volume = spec.volumes.iter().find(|volume| volume.name == disk.name);
            let claim = volume.and_then(|volume| volume.claim());
            VolumeStatus {
                name: disk.name.clone(),
                target,
                persistent_volume_claim_info: claim.map(|(name, _)| PersistentVolumeClaimInfo {
                    claim_name: Some(name.to_owned()),
                }),
            }
        })
        .collect();
    all.sort_by(|a, b| a.name.cmp(&b.name));
    all
}

/// What the guest's agent tells of the whole guest.
fn set_agent(status: &mut Status, view: &View, now: &Time) {
    let type_ = labels::CONDITION_AGENT_CONNECTED;
    let Some(agent) = &view.agent else {
        remove_condition(&mut status.conditions, type_);
        // What it told stays true until another guest runs; that it is frozen does not.
        status.fs_freeze_status = None;
        return;
    };
    set_condition(&mut status.conditions, type_, true, "", "", now.clone());
    if let Some(problem) = &agent.credentials {
        let reason = if problem.is_empty() {
            "AccessCredentialsSyncSuccess"
        } else {
            "AccessCredentialsSyncError"
        };
        set_condition(
            &mut status.conditions,
            labels::CONDITION_CREDENTIALS,
            problem.is_empty(),
            reason,
            problem,
            now.clone(),
        );
    }
    status.guest_os_info = Some(agent.os.clone());
    status.fs_freeze_status = view.frozen.then(|| "frozen".to_owned());
}

/// An interface, and what the guest says of the one with this hardware address. The first address is the one that was given to
/// the guest, whatever order the guest has them in.
fn interface(nic: &WiredNic, agent: Option<&AgentState>) -> NetworkInterfaceStatus {
    let mut interfaces = agent.into_iter().flat_map(|agent| &agent.interfaces);
    let seen = interfaces.find(|seen| seen.mac == nic.mac);
    let mut addresses: Vec<String> = nic.ip.iter().cloned().collect();
    let own = seen.into_iter().filter(|_| !nic.translated);
    for address in own.flat_map(|seen| &seen.addresses) {
        let address = address.to_string();
        if !addresses.contains(&address) {
            addresses.push(address);
        }
    }
    NetworkInterfaceStatus {
        name: Some(nic.name.clone()),
        ip_address: addresses.first().cloned(),
        ip_addresses: addresses,
        mac: Some(nic.mac.clone()),
        pod_interface_name: Some(nic.pod_interface.clone()),
        interface_name: seen.map(|seen| seen.name.clone()),
        info_source: Some(
            if seen.is_some() {
                "domain, guest-agent"
            } else {
                "domain"
            }
            .to_owned(),
        ),
        link_state: Some("up".to_owned()),
        queue_count: Some(1),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use berth_api::conditions::find_condition;
    use serde_json::json;

    fn vmi(phase: &str, spec: &serde_json::Value) -> VirtualMachineInstance {
        let mut vmi: VirtualMachineInstance = serde_json::from_value(json!({
            "apiVersion": "kubevirt.io/v1", "kind": "VirtualMachineInstance",
            "metadata": {"name": "vm", "namespace": "lab", "uid": "u1"},
            "spec": {"domain": {"devices": {"interfaces": [{"name": "default", "bridge": {}}]},
                                "memory": {"guest": "128Mi"}, "cpu": {"cores": 2}}},
            "status": {"phase": phase, "nodeName": "n1"},
        }))
        .unwrap();
        if let Some(features) = spec.get("features") {
            vmi.spec.domain.features = serde_json::from_value(features.clone()).unwrap();
        }
        vmi
    }

    fn view(guest: Guest) -> View {
        View {
            guest,
            ..View::default()
        }
    }

    fn at(seconds: i64) -> Time {
        Time(k8s_openapi::jiff::Timestamp::from_second(seconds).unwrap())
    }

    fn condition<'a>(status: &'a Status, type_: &str) -> (&'a str, &'a str) {
        let c = find_condition(&status.conditions, type_).unwrap();
        (&c.status, c.reason.as_deref().unwrap_or_default())
    }

    #[test]
    fn volumes_are_told_by_name_and_place() {
        let mut vmi = vmi("Scheduled", &json!({}));
        let devices = &mut vmi.spec.domain.devices;
        devices.disks = serde_json::from_value(json!([
            {"name": "root", "disk": {"bus": "virtio"}},
            {"name": "cd", "cdrom": {"bus": "sata"}},
            {"name": "data", "disk": {"bus": "virtio"}},
        ]))
        .unwrap();
        let claim = json!([{"name": "data", "persistentVolumeClaim": {"claimName": "mine"}}]);
        vmi.spec.volumes = serde_json::from_value(claim).unwrap();
        let status = plan_status(&vmi, &view(Guest::Running), &at(1));
        let told: Vec<_> = status
            .volume_status
            .iter()
            .map(|v| (&*v.name, &*v.target))
            .collect();
        assert_eq!(told, [("cd", "sda"), ("data", "vdb"), ("root", "vda")]);
        let info = status.volume_status[1].persistent_volume_claim_info.clone();
        assert_eq!(info.unwrap().claim_name.as_deref(), Some("mine"));
    }

    #[test]
    fn a_guest_that_is_not_well_is_not_ready() {
        let seen = View {
            not_ready: Some("Readiness probe failed: no answer".to_owned()),
            ..view(Guest::Running)
        };
        let status = plan_status(&vmi("Running", &json!({})), &seen, &at(1));
        assert_eq!(condition(&status, "Ready"), ("False", "Unhealthy"));
        let dead = view(Guest::Ended(End::Unhealthy("no answer".to_owned())));
        let status = plan_status(&vmi("Running", &json!({})), &dead, &at(1));
        assert_eq!(status.phase, Some(VmiPhase::Failed));
        assert_eq!(status.reason.as_deref(), Some("Unhealthy"));
    }

    #[test]
    fn a_running_guest_is_ready_and_shows_its_address() {
        let seen = View {
            nics: vec![WiredNic {
                name: "default".to_owned(),
                translated: false,
                pod_interface: "eth0".to_owned(),
                mac: "02:00:00:00:00:01".to_owned(),
                ip: Some("10.98.0.2".to_owned()),
            }],
            emulation: Some(("KVMUnusable".to_owned(), "no vmx".to_owned())),
            ..view(Guest::Running)
        };
        let mut machine = vmi("Scheduled", &json!({}));
        let status = plan_status(&machine, &seen, &at(5));
        assert_eq!(status.phase, Some(VmiPhase::Running));
        assert_eq!(condition(&status, "Ready"), ("True", ""));
        assert_eq!(
            condition(&status, "LiveMigratable"),
            ("False", "InterfaceNotLiveMigratable")
        );
        assert_eq!(
            condition(&status, "SoftwareEmulation"),
            ("True", "KVMUnusable")
        );
        assert_eq!(
            serde_json::to_value(&status.interfaces).unwrap(),
            json!([{"name": "default", "ipAddress": "10.98.0.2", "ipAddresses": ["10.98.0.2"], "queueCount": 1,
                    "mac": "02:00:00:00:00:01", "podInterfaceName": "eth0", "infoSource": "domain", "linkState": "up"}])
        );
        machine.status = Some(status.clone());
        assert_eq!(
            plan_status(&machine, &seen, &at(6)),
            status,
            "nothing changed, nothing to write"
        );
    }

    #[test]
    fn what_the_agent_tells_is_shown_and_does_not_take_the_address_over() {
        let mut machine = vmi("Running", &json!({}));
        let mut seen = view(Guest::Running);
        seen.nics = vec![WiredNic {
            translated: false,
            name: "default".to_owned(),
            pod_interface: "eth0".to_owned(),
            mac: "02:00:00:00:00:01".to_owned(),
            ip: Some("10.98.0.2".to_owned()),
        }];
        seen.machine = Some("pc-q35-7.2".to_owned());
        seen.frozen = true;
        seen.agent = Some(
            serde_json::from_value(json!({
                "os": {"id": "debian"},
                "interfaces": [
                    {"name": "ens3", "mac": "02:00:00:00:00:01", "addresses": ["fe80::1", "10.98.0.2", "192.168.7.7"]},
                    {"name": "docker0", "mac": "02:42:00:00:00:01", "addresses": ["172.17.0.1"]},
                ],
            }))
            .unwrap(),
        );
        let status = plan_status(&machine, &seen, &at(5));
        assert_eq!(condition(&status, "AgentConnected"), ("True", ""));
        assert_eq!(status.fs_freeze_status.as_deref(), Some("frozen"));
        let text = serde_json::to_value(&status).unwrap();
        assert_eq!(text["guestOSInfo"], json!({"id": "debian"}));
        assert_eq!(text["machine"], json!({"type": "pc-q35-7.2"}));
        assert_eq!(
            text["interfaces"],
            json!([{"name": "default", "ipAddress": "10.98.0.2", "interfaceName": "ens3", "queueCount": 1,
                    "ipAddresses": ["10.98.0.2", "fe80::1", "192.168.7.7"], "mac": "02:00:00:00:00:01",
                    "podInterfaceName": "eth0", "infoSource": "domain, guest-agent", "linkState": "up"}])
        );
        machine.status = Some(status);
        seen.agent = None;
        seen.frozen = false;
        let status = plan_status(&machine, &seen, &at(6));
        let agent = find_condition(&status.conditions, "AgentConnected");
        assert!(agent.is_none() && status.fs_freeze_status.is_none());
        assert!(status.guest_os_info.is_some());
    }

    #[test]
    fn ends_follow_the_upstream_rules() {
        let no_acpi = json!({"features": {"acpi": {"enabled": false}}});
        let table = [
            (End::Shutdown, json!({}), VmiPhase::Succeeded, None),
            (End::NeverStarted, json!({}), VmiPhase::Succeeded, None),
            (
                End::GraceExceeded("slow".to_owned()),
                json!({}),
                VmiPhase::Failed,
                Some("GracePeriodExceeded"),
            ),
            (
                End::Destroyed("on request".to_owned()),
                json!({}),
                VmiPhase::Failed,
                Some("Destroyed"),
            ),
            (
                End::Destroyed("on request".to_owned()),
                no_acpi,
                VmiPhase::Succeeded,
                None,
            ),
            (
                End::Crashed("panicked".to_owned()),
                json!({}),
                VmiPhase::Failed,
                Some("GuestCrashed"),
            ),
            (
                End::NotStarted("no machine type".to_owned()),
                json!({}),
                VmiPhase::Failed,
                Some("StartFailed"),
            ),
            (
                End::LauncherGone,
                json!({}),
                VmiPhase::Failed,
                Some("LauncherGone"),
            ),
        ];
        for (end, spec, phase, reason) in table {
            let status = plan_status(
                &vmi("Running", &spec),
                &view(Guest::Ended(end.clone())),
                &at(5),
            );
            assert_eq!(
                (status.phase, status.reason.as_deref()),
                (Some(phase), reason),
                "{end:?}"
            );
            assert_eq!(
                condition(&status, "Ready"),
                ("False", "GuestNotRunning"),
                "{end:?}"
            );
        }
    }

    #[test]
    fn a_final_phase_stays() {
        let over = vmi("Failed", &json!({}));
        assert_eq!(
            Some(plan_status(&over, &view(Guest::Running), &at(5))),
            over.status
        );
    }

    #[test]
    fn a_failed_sync_is_a_condition_until_one_works() {
        let mut machine = vmi("Scheduled", &json!({}));
        let failing = View {
            sync_error: Some("no such disk".to_owned()),
            ..view(Guest::Absent)
        };
        let status = plan_status(&machine, &failing, &at(5));
        assert_eq!(status.phase, Some(VmiPhase::Scheduled));
        assert_eq!(condition(&status, "Synchronized"), ("False", "SyncFailed"));
        machine.status = Some(status);
        let cured = plan_status(&machine, &view(Guest::Running), &at(6));
        assert!(find_condition(&cured.conditions, "Synchronized").is_none());
    }

    #[test]
    fn a_paused_guest_runs_and_is_not_ready() {
        let status = plan_status(
            &vmi("Running", &json!({})),
            &view(Guest::Paused("ioerror".to_owned())),
            &at(5),
        );
        assert_eq!(status.phase, Some(VmiPhase::Running));
        assert_eq!(condition(&status, "Paused"), ("True", "PausedIOError"));
        assert_eq!(condition(&status, "Ready"), ("False", "GuestNotRunning"));
    }
}
