//! The end-to-end tests on a real cluster: the stories of standalone, and what only a cluster has. `make test-cluster`
//! makes the cluster, installs berth and says by `BERTH_CLUSTER` where it is.

mod claims;
mod nodes;
mod settings;
#[path = "../stories/mod.rs"]
mod stories;

use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_e2e::{Cluster, Registry, Target as _, manifest, run, wait_for};
use stories::{BOOT, MEMORY, SOON};

fn cluster(test: &str) -> anyhow::Result<Option<Cluster>> {
    let cluster = Cluster::start()?;
    if cluster.is_none() {
        berth_testing::skip(test, "no cluster: BERTH_CLUSTER is not set");
    }
    Ok(cluster)
}

/// Held by stories that the one which stops kubelets must not disturb.
static UNDISTURBED: RwLock<()> = RwLock::new(());

macro_rules! story {
    ($name:ident, $story:expr) => {
        #[test]
        fn $name() -> anyhow::Result<()> {
            let _undisturbed = UNDISTURBED.read().unwrap_or_else(PoisonError::into_inner);
            match cluster(stringify!($name))? {
                Some(cluster) => $story(&cluster),
                None => Ok(()),
            }
        }
    };
}

story!(
    a_manifest_becomes_a_guest,
    stories::a_manifest_becomes_a_guest
);
story!(the_seed_manifest_runs, |cluster: &Cluster| {
    stories::the_seed_manifest_runs(cluster, cluster.image())
});
story!(
    a_replace_needs_the_current_version,
    stories::a_replace_needs_the_current_version
);
story!(
    mistakes_are_refused_by_field,
    stories::mistakes_are_refused_by_field
);
story!(
    a_deleted_guest_is_asked_by_acpi,
    stories::lifecycle::a_deleted_guest_is_asked_by_acpi
);
story!(
    a_deaf_guest_is_ended_after_its_grace_period,
    stories::lifecycle::a_deaf_guest_is_ended_after_its_grace_period
);
story!(
    a_guest_that_powers_itself_off_has_succeeded,
    stories::lifecycle::a_guest_powers_itself_off
);
story!(
    two_guests_of_one_image_reach_each_other,
    stories::lifecycle::two_guests_reach_each_other
);
story!(
    a_viewer_looks_and_an_editor_enters,
    stories::users::a_viewer_looks_and_an_editor_enters
);
story!(
    a_killed_qemu_is_a_failed_machine,
    stories::crashes::a_killed_qemu_is_told
);
story!(
    a_killed_libvirt_is_started_again,
    stories::crashes::a_killed_libvirt_is_started_again
);
story!(
    rounds_of_create_and_delete_leave_the_same_counts,
    |cluster: &Cluster| stories::crashes::rounds_leave_the_same_counts(cluster, 5)
);
story!(what_docker_save_wrote_boots, |cluster: &Cluster| {
    stories::images::what_docker_save_wrote_boots(cluster, "docker-archive")
});
story!(
    images_with_no_disk_or_several_are_told_apart,
    stories::images::no_disk_or_several
);
story!(
    ipxe_takes_its_address_from_our_dhcp_server,
    stories::images::ipxe_takes_its_address
);
story!(
    a_registry_by_tag_and_by_digest_with_credentials,
    |cluster: &Cluster| {
        let _registry = Registry::on(cluster, Some(("anna", "sesame")))?;
        stories::bad_input::a_missing_image(cluster)?;
        stories::images::from_a_registry(cluster)
    }
);
story!(
    a_machine_is_started_restarted_and_stopped,
    stories::machines::started_restarted_stopped
);
story!(a_machine_is_paused_and_goes_on, stories::machines::paused);
story!(
    a_machine_runs_as_its_strategy_says,
    stories::machines::strategies
);
story!(
    what_is_wrong_with_a_machine_is_told,
    stories::machines::what_is_wrong_is_told
);
story!(
    rounds_of_start_and_stop_leave_nothing,
    |cluster: &Cluster| stories::machines::rounds_of_start_and_stop(cluster, 8)
);
story!(
    what_a_user_changes_is_never_lost,
    stories::machines::no_change_is_lost
);
story!(
    machines_are_placed_as_asked,
    stories::machines::placed_as_asked
);
story!(
    what_an_agent_tells_is_shown,
    stories::guests::an_agent_tells
);
story!(
    a_guest_is_restarted_inside_its_machine,
    stories::guests::restarted_inside
);
story!(
    a_machine_is_started_paused_and_ended_at_once,
    stories::guests::started_paused_and_ended_at_once
);
story!(a_guest_is_started_by_uefi, stories::guests::by_uefi);
story!(
    a_guest_is_ready_when_its_probe_says_so,
    stories::probes::ready_when_it_says_so
);
story!(
    a_guest_that_is_found_dead_is_ended,
    stories::probes::ended_when_dead
);
story!(
    texts_of_the_namespace_are_disks,
    stories::texts::texts_are_disks
);
story!(
    a_whole_debian_is_told_by_cloud_init,
    stories::guests::a_whole_debian
);
story!(
    a_machine_is_created_by_command,
    stories::guests::created_by_command
);
story!(
    a_guest_finds_the_hardware_that_was_asked_for,
    stories::hardware::the_guest_finds_its_hardware
);
story!(
    a_guest_has_what_the_status_says,
    stories::first_light::a_guest_and_what_is_shown
);
story!(
    an_image_that_cannot_boot_is_told,
    stories::bad_input::an_image_that_cannot_boot
);
story!(
    a_machine_that_is_too_large_waits,
    stories::bad_input::too_large
);
story!(
    ports_and_display_lead_to_the_guest,
    stories::ways_in::ports_and_display
);
story!(
    a_guest_reads_what_cloud_init_is_told,
    stories::hardware::the_guest_reads_what_cloud_init_is_told
);
story!(a_disk_that_cannot_be_read_is_told, unreadable);
story!(a_service_leads_to_the_guest, a_service);
story!(the_launcher_has_no_rights, no_rights);
story!(the_launcher_reaches_nobody, no_network);
story!(
    a_hostile_manifest_gets_nothing,
    stories::hostile::a_hostile_manifest_gets_nothing
);
story!(the_doctor_finds_nothing, nodes::doctor);
story!(an_evicted_guest_shuts_down, nodes::eviction);
story!(a_drained_node_asks_its_guests, nodes::drain);
story!(nodes_say_what_they_can_run, nodes::what_they_say);
story!(a_guest_has_cpus_for_itself, nodes::dedicated);
story!(a_pod_is_ready_with_its_guest, nodes::readiness);
story!(mistaken_settings_are_refused, settings::mistakes);
story!(
    a_kernel_comes_out_of_an_image,
    stories::hardware::a_kernel_out_of_an_image
);
story!(the_examples_of_kubevirt_run, stories::examples::of_upstream);
story!(
    a_guest_is_behind_the_pods_address,
    stories::network::behind_the_pods_address
);
story!(a_guest_boots_from_a_block_device, claims::block);
story!(
    a_disk_of_an_address_lives_with_its_machine,
    |cluster: &Cluster| with_classes(
        cluster,
        stories::volumes::a_disk_of_an_address_lives_with_its_machine
    )
);
story!(imports_that_fail_say_why, |cluster: &Cluster| with_classes(
    cluster,
    stories::volumes::imports_that_fail_say_why
));
story!(empty_disks_and_copies, |cluster: &Cluster| with_classes(
    cluster,
    stories::volumes::empty_disks_and_copies
));

/// A story of volumes, for which this cluster makes a volume for each claim.
fn with_classes(
    cluster: &Cluster,
    story: impl Fn(&dyn berth_e2e::Target, stories::volumes::Class<'_>) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    story(cluster, &|claim, size| {
        claims::class_with_volume(cluster, claim, size)
    })?;
    claims::forget_classes(cluster)
}
story!(
    a_console_is_refused_as_the_api_server_would,
    refused_consoles
);
story!(the_python_client_runs_a_machine, python);
story!(
    a_guest_boots_from_a_claim_and_has_a_second_one,
    claims::file_system
);

#[test]
fn restarts_leave_the_guest_running() -> anyhow::Result<()> {
    let _alone = UNDISTURBED.write().unwrap_or_else(PoisonError::into_inner);
    match cluster("restarts_leave_the_guest_running")? {
        Some(cluster) => restarts(&cluster),
        None => Ok(()),
    }
}

#[test]
fn settings_hold_from_now_on() -> anyhow::Result<()> {
    let _alone = UNDISTURBED.write().unwrap_or_else(PoisonError::into_inner);
    match cluster("settings_hold_from_now_on")? {
        Some(cluster) => settings::from_now_on(&cluster),
        None => Ok(()),
    }
}

#[test]
fn container_disks_are_image_volumes_where_they_can() -> anyhow::Result<()> {
    let _alone = UNDISTURBED.write().unwrap_or_else(PoisonError::into_inner);
    match cluster("container_disks_are_image_volumes_where_they_can")? {
        Some(cluster) => settings::image_volumes(&cluster),
        None => Ok(()),
    }
}

/// The same as standalone, alone: others would be without berth, too.
fn without_berth(
    name: &str,
    story: impl FnOnce(&dyn berth_e2e::Target) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let _alone = UNDISTURBED.write().unwrap_or_else(PoisonError::into_inner);
    match cluster(name)? {
        Some(cluster) => story(&cluster),
        None => Ok(()),
    }
}

#[test]
fn a_guest_outlives_berth_and_is_found_again() -> anyhow::Result<()> {
    without_berth(
        "a_guest_outlives_berth_and_is_found_again",
        stories::crashes::a_guest_outlives_berth,
    )
}

#[test]
fn a_guest_that_ended_while_berth_was_away_is_told_right() -> anyhow::Result<()> {
    without_berth(
        "a_guest_that_ended_while_berth_was_away_is_told_right",
        stories::crashes::an_end_while_berth_is_away_is_told,
    )
}

/// Certificates that are lost are made anew, and all parts find each other by the new ones.
#[test]
fn lost_certificates_are_made_anew() -> anyhow::Result<()> {
    without_berth("lost_certificates_are_made_anew", |cluster| {
        cluster.apply(&manifest("known", cluster.image(), MEMORY))?;
        cluster.wait_phase("known", "Running", SOON)?;
        let secrets = ["berth-api", "berth-node-server", "berth-node-client"];
        let in_berth = |arguments: &[&str]| {
            cluster
                .kubectl(&[&["--namespace", "berth"], arguments].concat())?
                .ok()
        };
        in_berth(&[&["delete", "secret"], &secrets[..]].concat())?;
        // It looks after them when it starts, and every hour.
        in_berth(&["rollout", "restart", "deployment/berth-controller"])?;
        let status = [
            "rollout",
            "status",
            "deployment/berth-controller",
            "--timeout=120s",
        ];
        in_berth(&status)?;
        let mut console = wait_for("the console opens", SOON, || {
            let mut console = cluster.console("known")?;
            console.log_in(BOOT)?;
            Ok(console)
        })?;
        console.send_line("poweroff -f")?;
        cluster.wait_phase("known", "Succeeded", SOON)?;
        cluster.delete("known", SOON)
    })
}

/// A machine that nobody waits for in the end: a guest that still boots does not listen.
pub(crate) fn hasty(cluster: &Cluster, name: &str) -> String {
    manifest(name, cluster.image(), MEMORY).replace(
        "terminationGracePeriodSeconds: 30",
        "terminationGracePeriodSeconds: 1",
    )
}

/// While there are virtual machines berth stays.
#[test]
fn uninstall_refuses_while_there_are_machines() -> anyhow::Result<()> {
    let _undisturbed = UNDISTURBED.read().unwrap_or_else(PoisonError::into_inner);
    let Some(cluster) = cluster("uninstall_refuses_while_there_are_machines")? else {
        return Ok(());
    };
    // One that does not run counts, too.
    let kept = stories::machines::machine(&cluster, "kept", "runStrategy: Halted");
    cluster.apply(&kept)?;
    let berth = berth_e2e::berth_binary();
    let refused = run(cluster.command(&berth).arg("uninstall"), "")?.err()?;
    ensure!(
        refused.contains("virtual machines exist") && refused.contains("kept"),
        "{refused}"
    );
    cluster
        .kubectl(&["-n", "berth", "get", "deployment", "berth-controller"])?
        .ok()
        .map(drop)
}

/// A Service in front of a virtual machine is a Service like any other.
fn a_service(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&manifest("web", cluster.image(), MEMORY))?;
    let exposed = stories::machines::berth(
        cluster,
        &[
            "expose",
            "vmi",
            "web",
            "--name=web",
            "--port=8080",
            "--target-port=80",
        ],
    )?
    .ok()?;
    ensure!(
        exposed.contains("Service web successfully created"),
        "{exposed}"
    );
    cluster.wait_phase("web", "Running", SOON)?;
    cluster.wait_prompt("web", BOOT)?;
    let address = cluster
        .kubectl(&["get", "service", "web", "-o", "jsonpath={.spec.clusterIP}"])?
        .ok()?;
    let page = wait_for("the service answers", SOON, || {
        cluster.page(&format!("{address}:8080"))
    })?;
    ensure!(page.contains("hello from the guest"), "{page}");
    Ok(())
}

/// The files of an image stay as they are; one that the launcher cannot read is told, with what to do.
fn unreadable(cluster: &Cluster) -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let secret = tempfile::NamedTempFile::new()?;
    let files = [("disk/secret.img", secret.path())];
    let tar = stories::images::archive(directory.path(), "oci-archive", &files)?;
    cluster.import("oci-archive", &tar, "localhost/secret:1")?;
    cluster.apply(&manifest("secret", "localhost/secret:1", MEMORY))?;
    let told = "disk/secret.img in the image cannot be read by the launcher, user 107";
    cluster.wait_condition("secret", "Synchronized", told, SOON)?;
    cluster.delete("secret", SOON)
}

/// The official Python client, as on any cluster.
fn python(cluster: &Cluster) -> anyhow::Result<()> {
    let root = berth_e2e::repository();
    let program = root.join(".cache/python/bin/python");
    let script = root.join("e2e/tests/cluster/machine.py");
    let said = run(
        cluster
            .command(&program)
            .arg(script)
            .args([cluster.namespace(), cluster.image()]),
        "",
    )?
    .ok()
    .with_context(|| cluster.log_tail())?;
    said.trim()
        .parse::<std::net::Ipv4Addr>()
        .with_context(|| format!("an address, not {said:?}"))?;
    wait_for("the machine is gone", SOON, || {
        let left = cluster.kubectl(&["get", "vmi,pods", "-o", "name"])?.ok()?;
        ensure!(left.trim().is_empty(), "left: {left}");
        Ok(())
    })
}

/// What the reference says of launcher pods, and what its processes really have.
fn no_rights(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&hasty(cluster, "confined"))?;
    cluster.wait_phase("confined", "Running", SOON)?;
    let pod = cluster.launcher("confined")?;
    let text = |path: &str| pod.pointer(path).cloned().unwrap_or_default();
    ensure!(text("/spec/containers/0/name") == "compute");
    ensure!(text("/spec/automountServiceAccountToken") == false);
    ensure!(text("/spec/securityContext/runAsNonRoot") == true);
    ensure!(text("/metadata/annotations/kubevirt.io~1domain") == "confined");
    let node = text("/spec/nodeName");
    let node = node.as_str().context("the node")?;
    let uid = text("/metadata/uid");
    let uid = uid.as_str().context("the uid")?;
    // Every process of the pod, found by its control group.
    let found = cluster
        .on_node(
            node,
            "sh",
            &[
                "-c",
                &format!("grep -ls 'pod{uid}' /proc/[0-9]*/cgroup | cut -d/ -f3"),
            ],
        )?
        .ok()?;
    let mut looked_at = 0;
    for pid in found.lines() {
        let status = cluster.on_node(node, "cat", &[&format!("/proc/{pid}/status")])?;
        // One that has ended meanwhile.
        let Ok(status) = status.ok() else { continue };
        let field = |name: &str| {
            status
                .lines()
                .find_map(|line| line.strip_prefix(name))
                .map(str::trim)
                .unwrap_or_default()
                .to_owned()
        };
        let program = field("Name:");
        // It holds the pod's namespaces, and is the container runtime's.
        if program == "pause" {
            continue;
        }
        looked_at += 1;
        ensure!(
            field("Uid:").split_whitespace().all(|id| id == "107"),
            "{program} runs as {}",
            field("Uid:")
        );
        for set in ["CapEff:", "CapPrm:", "CapBnd:"] {
            ensure!(
                field(set).chars().all(|c| c == '0'),
                "{program} has {set} {}",
                field(set)
            );
        }
        ensure!(field("NoNewPrivs:") == "1", "{program} may gain privileges");
        ensure!(field("Seccomp:") == "2", "{program} has no filter");
    }
    ensure!(looked_at >= 3, "only {looked_at} processes were found");
    Ok(())
}

/// Neither the kubelet nor the node agent is what keeps a guest alive.
fn restarts(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&manifest("survivor", cluster.image(), MEMORY))?;
    cluster.wait_phase("survivor", "Running", SOON)?;
    cluster.wait_prompt("survivor", BOOT)?;
    let pod = cluster.launcher("survivor")?;
    let node = pod["spec"]["nodeName"].as_str().context("the node")?;
    cluster.on_node(node, "pkill", &["-x", "kubelet"])?.ok()?;
    cluster
        .kubectl(&[
            "-n",
            "berth",
            "delete",
            "pod",
            "-l",
            "app.kubernetes.io/name=berth-node",
        ])?
        .ok()?;
    cluster
        .kubectl(&[
            "-n",
            "berth",
            "rollout",
            "status",
            "daemonset/berth-node",
            "--timeout=60s",
        ])?
        .ok()?;
    let address = cluster.address("survivor")?;
    cluster.ping(&address, SOON)?;
    ensure!(cluster.vmi("survivor", ".status.phase")? == "Running");
    let now = cluster.launcher("survivor")?;
    ensure!(
        now["metadata"]["uid"] == pod["metadata"]["uid"]
            && now["status"]["containerStatuses"][0]["restartCount"] == 0,
        "the launcher pod is another one"
    );
    // The new agent has it in hand.
    cluster.delete("survivor", Duration::from_secs(60))
}

/// The pod's address is the guest's: the launcher has none, and so reaches neither the API server nor anybody else.
fn no_network(cluster: &Cluster) -> anyhow::Result<()> {
    cluster.apply(&hasty(cluster, "mute"))?;
    cluster.wait_phase("mute", "Running", SOON)?;
    let pod = cluster.launcher("mute")?;
    let (node, uid) = (&pod["spec"]["nodeName"], &pod["metadata"]["uid"]);
    let (node, uid) = (node.as_str().context("the node")?, uid.as_str());
    let of_pod = |command: &str| {
        let find = format!(
            "grep -ls 'pod{}' /proc/[0-9]*/cgroup | head -n 1 | cut -d/ -f3",
            uid.unwrap_or_default()
        );
        let command = format!("nsenter --net=/proc/$({find})/ns/net {command}");
        cluster.on_node(node, "sh", &["-c", &command])
    };
    let addresses = of_pod("ip -o -4 address show scope global")?.ok()?;
    ensure!(addresses.trim().is_empty(), "{addresses}");
    let server = cluster
        .kubectl(&[
            "-n",
            "default",
            "get",
            "service",
            "kubernetes",
            "-o",
            "jsonpath={.spec.clusterIP}",
        ])?
        .ok()?;
    let refused = of_pod(&format!("busybox nc -w 3 {server} 443 </dev/null"))?.err()?;
    ensure!(refused.contains("unreachable"), "{refused}");
    // The same question from outside the pod has an answer.
    cluster
        .on_node(
            node,
            "sh",
            &["-c", &format!("busybox nc -w 3 {server} 443 </dev/null")],
        )?
        .ok()
        .map(drop)
}

/// By name, by state, and not at all to those whom the API server did not send.
fn refused_consoles(cluster: &Cluster) -> anyhow::Result<()> {
    let console = |name: &str| {
        run(
            cluster.command(&berth_e2e::berth_binary()).args([
                "console",
                name,
                "-n",
                cluster.namespace(),
            ]),
            "",
        )
    };
    let refused = console("nobody")?.err()?;
    ensure!(refused.contains("\"nobody\" not found"), "{refused}");
    cluster.apply(&manifest("waiting", "localhost/none:1", MEMORY))?;
    let refused = console("waiting")?.err()?;
    ensure!(refused.contains("VMI is not running"), "{refused}");
    let service = cluster
        .kubectl(&[
            "-n",
            "berth",
            "get",
            "service",
            "berth-api",
            "-o",
            "jsonpath={.spec.clusterIP}",
        ])?
        .ok()?;
    let path = format!(
        "apis/subresources.kubevirt.io/v1/namespaces/{}/virtualmachineinstances/waiting/console",
        cluster.namespace()
    );
    // A name in the header is nothing without the certificate.
    let answer = cluster.exec(
        "curl",
        &[
            "-sk",
            "-H",
            "X-Remote-User: kubernetes-admin",
            "-H",
            "X-Remote-Group: system:masters",
            &format!("https://{service}/{path}"),
        ],
    )?;
    ensure!(answer.stdout.contains("Unauthorized"), "{answer}");
    let agent = cluster
        .kubectl(&[
            "-n",
            "berth",
            "get",
            "pods",
            "-l",
            "app.kubernetes.io/name=berth-node",
            "-o",
            "jsonpath={.items[0].status.podIP}",
        ])?
        .ok()?;
    let answer = cluster.exec(
        "curl",
        &[
            "-sk",
            "-w",
            "%{http_code}",
            &format!("https://{agent}:8444/v1/pods/x/console"),
        ],
    )?;
    ensure!(answer.stdout.ends_with("401"), "{answer}");
    Ok(())
}

#[test]
fn each_part_is_killed_in_each_phase() -> anyhow::Result<()> {
    without_berth(
        "each_part_is_killed_in_each_phase",
        stories::crashes::each_part_is_killed_in_each_phase,
    )
}
