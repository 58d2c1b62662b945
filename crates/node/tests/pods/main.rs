//! Pods on a real kernel: the runtime with the embedded API server, with busybox for a launcher.
//!
//! Each test has a machine of its own: a thread in a network and a mount namespace that nobody else is in, on which the
//! runtime's threads are started.

#![allow(clippy::unwrap_used, reason = "a test ends at what it did not expect")]

mod machine;

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;
use kube::{Api, ResourceExt as _};
use rustix::process::Signal;
use serde_json::{Value, json};

use machine::*;

#[test]
fn a_pod_has_no_privilege_and_sees_nothing_but_itself() {
    on_a_machine("sandbox", |machine| async move {
        let other = machine.run("other", "exec sleep 1000").await;
        machine.until_phase("other", "Running").await;
        let script = "cd /var/run/berth
            cp /proc/self/status status; id > id; hostname > hostname; cat /etc/resolv.conf > resolv
            ls / > root; ls /dev > dev; ip -o -4 addr show dev eth0 > eth0; ip -o link > links; ls /proc > proc
            ls -R / 2>/dev/null | sort > everything; cat /proc/self/mountinfo > mounts
            { touch /usr/x; touch /x; echo 1 > /proc/sys/kernel/panic; mount -t tmpfs x /tmp; unshare -n true;
              mknod /tmp/n c 1 3; kill -0 2; cat /dev/kmsg; } 2> refused
            ls /proc/self/fd > fds; readlink /proc/self/ns/net > net; touch done; exec sleep 1000";
        let pod = machine.run("tight", script).await;
        let running = machine.until_phase("tight", "Running").await;
        machine.read(&pod, "done").await;
        let read = async |file: &str| machine.read(&pod, file).await;

        let status = read("status").await;
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert!(
                status.contains(&format!("{set}:\t0000000000000000")),
                "{set} in {status}"
            );
        }
        assert!(status.contains("NoNewPrivs:\t1"), "{status}");
        assert!(
            status.contains("\nGroups:\t\n") || status.contains("\nGroups:\t \n"),
            "{status}"
        );
        let user = read("id").await;
        assert!(
            user.contains("uid=2000001") && user.contains("gid=2000001"),
            "{user}"
        );
        assert_eq!(read("hostname").await, "guest-1\n");
        assert_eq!(
            read("resolv").await,
            "nameserver 192.0.2.53\nsearch lab.example\n"
        );

        // Its own network, with the address that the API shows.
        let ip = running.status.as_ref().unwrap().pod_ip.clone().unwrap();
        assert_eq!(ip, "10.7.0.3");
        assert!(read("eth0").await.contains(&format!("{ip}/24")));
        assert!(!read("links").await.contains("berth0"));
        let own = fs::read_link("/proc/thread-self/ns/net").unwrap();
        assert_ne!(read("net").await.trim(), own.to_string_lossy());

        // Nothing of the machine's files and of other pods; only its own processes.
        let root: BTreeSet<String> = read("root").await.lines().map(str::to_owned).collect();
        assert!(root.contains("usr") && root.contains("proc"), "{root:?}");
        for foreign in ["home", "srv", "boot", "mnt", "media"] {
            assert!(!root.contains(foreign), "{foreign} in {root:?}");
        }
        let everything = read("everything").await;
        assert!(
            !everything.contains(&other.uid().unwrap()),
            "another pod is visible"
        );
        assert!(!everything.contains("store.redb") && !everything.contains("sandbox.json"));
        let processes = read("proc")
            .await
            .lines()
            .filter(|name| name.parse::<u32>().is_ok())
            .count();
        assert!(processes <= 3, "{processes} processes");
        let mounts = read("mounts").await;
        let writable: BTreeSet<&str> = mounts
            .lines()
            .filter(|line| line.split(' ').nth(5).unwrap().starts_with("rw"))
            .map(|line| line.split(' ').nth(4).unwrap())
            .collect();
        let expected = [
            "/dev",
            "/dev/pts",
            "/dev/shm",
            "/proc",
            "/tmp",
            "/var/run/berth",
        ];
        assert_eq!(writable, BTreeSet::from(expected), "{mounts}");
        let devices: BTreeSet<String> = read("dev").await.lines().map(str::to_owned).collect();
        assert!(
            !devices.contains("vda") && !devices.contains("mem") && devices.contains("net"),
            "{devices:?}"
        );
        let refused = read("refused").await;
        for words in [
            "/usr/x",
            "/x",
            "/proc/sys/kernel/panic",
            "mount",
            "unshare",
            "mknod",
        ] {
            assert!(
                refused.contains(words),
                "{words} was not refused: {refused}"
            );
        }
        // Standard streams, and the directory that was listed.
        assert_eq!(
            read("fds").await.lines().count(),
            4,
            "descriptors reached the pod"
        );

        let compute = container(&running);
        assert!(compute.ready && compute.restart_count == 0);
        assert_eq!(
            compute.container_id.unwrap(),
            format!("berth://{}", pod.uid().unwrap())
        );
        machine.delete("tight", Some(1)).await;
        machine.delete("other", Some(1)).await;
        machine.until_gone("tight").await;
        machine.until_gone("other").await;
        machine.stop_agent_and_check().await;
    });
}

#[test]
fn the_end_of_a_pod_is_told_with_its_code_and_its_log_stays() {
    on_a_machine("exit codes", |machine| async move {
        let good = machine
            .run("good", "echo one; echo two; echo three >&2; exit 0")
            .await;
        machine.run("bad", "exit 3").await;
        let done = machine.until_phase("good", "Succeeded").await;
        assert_eq!(terminated(&done), (0, "Completed".to_owned()));
        assert_eq!(
            terminated(&machine.until_phase("bad", "Failed").await),
            (3, "Error".to_owned())
        );
        // What it held is free, its log is not gone.
        let held = machine.holdings();
        assert!(
            !held
                .iter()
                .any(|name| name.starts_with("link bp") || name.starts_with("netns")),
            "{held:?}"
        );
        assert!(groups(&good.uid().unwrap()).is_empty());
        assert_eq!(
            machine.log("good/log").await,
            (200, "one\ntwo\nthree\n".to_owned())
        );
        assert_eq!(
            machine.log("good/log?tailLines=1&follow=true").await.1,
            "three\n"
        );
        assert_eq!(
            machine
                .log("good/log?limitBytes=5&container=compute")
                .await
                .1,
            "one\nt"
        );
        assert_eq!(machine.log("good/log?container=x").await.0, 400);
        assert_eq!(machine.log("good/log?previous=true").await.0, 400);
        assert_eq!(machine.log("none/log").await.0, 404);
        machine.delete("good", None).await;
        machine.delete("bad", None).await;
        machine.until_gone("good").await;
        machine.until_gone("bad").await;
        within("the files' end", async {
            while machine
                .holdings()
                .iter()
                .any(|name| name.starts_with("pod "))
            {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        machine.stop_agent_and_check().await;
    });
}

#[test]
fn a_killed_pod_has_failed() {
    on_a_machine("killed", |machine| async move {
        let pod = machine.run("victim", "exec sleep 1000").await;
        machine.until_phase("victim", "Running").await;
        rustix::process::kill_process(machine.process(&pod), Signal::KILL).unwrap();
        assert_eq!(
            terminated(&machine.until_phase("victim", "Failed").await),
            (137, "Error".to_owned())
        );
        machine.delete("victim", None).await;
        machine.until_gone("victim").await;
    });
}

#[test]
fn a_deleted_pod_may_end_in_order_and_is_killed_when_it_does_not() {
    on_a_machine("deletion", |machine| async move {
        let polite = "trap 'echo bye; exit 0' TERM; touch /var/run/berth/ready; while :; do sleep 1000 & wait $!; done";
        let pod = machine.run("polite", polite).await;
        let stubborn = machine
            .run(
                "stubborn",
                "trap '' TERM; touch /var/run/berth/ready; while :; do sleep 1; done",
            )
            .await;
        for pod in [&pod, &stubborn] {
            machine.read(pod, "ready").await;
        }
        machine.until_phase("polite", "Running").await;
        machine.until_phase("stubborn", "Running").await;
        assert!(
            !groups(&pod.uid().unwrap()).is_empty(),
            "the pod is in no control group"
        );
        let begin = std::time::Instant::now();
        machine.delete("polite", None).await;
        machine.delete("stubborn", Some(2)).await;
        machine.until_gone("polite").await;
        assert!(
            begin.elapsed() < Duration::from_secs(25),
            "the grace was waited for"
        );
        machine.until_gone("stubborn").await;
        for pod in [&pod, &stubborn] {
            assert_eq!(groups(&pod.uid().unwrap()), Vec::<PathBuf>::new());
        }
        machine.stop_agent_and_check().await;
    });
}

#[test]
fn pods_outlive_the_agent_and_are_found_again() {
    on_a_machine("restart", |mut machine| async move {
        let pod = machine.run("survivor", "exec sleep 1000").await;
        let goner = machine.run("goner", "exec sleep 1000").await;
        let orphan = machine.run("orphan", "exec sleep 1000").await;
        let before = machine.until_phase("survivor", "Running").await;
        machine.until_phase("goner", "Running").await;
        machine.until_phase("orphan", "Running").await;
        let process = machine.process(&pod);
        let ghost = machine.process(&orphan);
        machine.stop_agent().await;

        rustix::process::test_kill_process(process).unwrap();
        rustix::process::kill_process(machine.process(&goner), Signal::KILL).unwrap();
        // Taken out of the API behind the agent's back.
        machine.delete("orphan", Some(0)).await;
        machine.until_gone("orphan").await;

        machine.start_agent();
        machine.until_phase("goner", "Failed").await;
        within("the orphan's end", async {
            while machine.pod_dir(&orphan).exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        assert!(
            rustix::process::test_kill_process(ghost).is_err(),
            "the orphan's process lives"
        );
        let after = machine.until_phase("survivor", "Running").await;
        assert_eq!(machine.process(&pod), process);
        assert_eq!(after.status.unwrap().pod_ip, before.status.unwrap().pod_ip);
        let newcomer = machine.run("newcomer", "exec sleep 1000").await;
        machine.until_phase("newcomer", "Running").await;
        assert_ne!(machine.process(&newcomer), process);

        rustix::process::kill_process(process, Signal::KILL).unwrap();
        machine.until_phase("survivor", "Failed").await;
        for name in ["survivor", "goner", "newcomer"] {
            machine.delete(name, Some(1)).await;
            machine.until_gone(name).await;
        }
        machine.stop_agent_and_check().await;
    });
}

#[test]
fn image_volumes_are_mounted_and_missing_images_are_told() {
    on_a_machine("images", |machine| async move {
        let disk = machine.dir.path().join("disk.img");
        fs::write(&disk, vec![7; 1 << 20]).unwrap();
        let store = berth_image::Store::open(machine.config.state_dir.join("images")).unwrap();
        store.build(&disk, &"guest:1".parse().unwrap()).unwrap();
        let with_image = |image: &'static str| {
            move |pod: &mut Value| {
                let mount = json!({"name": "disk-root", "mountPath": "/var/run/berth-disks/root", "readOnly": true});
                pod["spec"]["containers"][0]["volumeMounts"]
                    .as_array_mut()
                    .unwrap()
                    .push(mount);
                let volume = json!({"name": "disk-root", "image": {"reference": image, "pullPolicy": "Never"}});
                pod["spec"]["volumes"].as_array_mut().unwrap().push(volume);
            }
        };
        let script = "cd /var/run/berth-disks/root/disk; wc -c < $(ls) > /var/run/berth/size;
            touch x 2> /var/run/berth/refused; exec sleep 1000";
        let pod = machine.create("disk", script, with_image("guest:1")).await;
        machine.until_phase("disk", "Running").await;
        assert_eq!(
            machine.read(&pod, "size").await.trim(),
            (1 << 20).to_string()
        );
        assert!(machine.read(&pod, "refused").await.contains("Read-only"));

        machine
            .create("lost", "exit 0", with_image("no/such:thing"))
            .await;
        let lost = machine
            .until("lost", "a waiting reason", |pod| {
                let status = pod
                    .status
                    .as_ref()
                    .and_then(|s| s.container_statuses.as_ref()?.first());
                let waiting = status.and_then(|s| s.state.as_ref()?.waiting.as_ref());
                waiting.is_some_and(|waiting| waiting.reason.as_deref() == Some("ImagePullBackOff"))
            })
            .await;
        let waiting = container(&lost).state.unwrap().waiting.unwrap();
        assert!(waiting.message.unwrap().contains("no/such:thing"));
        let events: Api<Event> = Api::namespaced(machine.client.clone(), "default");
        within("the event", async {
            loop {
                let events = events.list(&ListParams::default()).await.unwrap();
                let told = |event: &Event| {
                    event.reason.as_deref() == Some("Failed")
                        && event
                            .message
                            .as_ref()
                            .is_some_and(|message| message.contains("no/such:thing"))
                };
                if events.items.iter().any(told) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        // Nothing was made for it.
        assert!(!machine.pod_dir(&lost).exists());

        // Its name means another image now: the old one stays for as long as a pod needs it, and goes with the pod.
        let disks = store.root().join("disks");
        let old = fs::read_dir(&disks)
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        fs::write(&disk, vec![8; 1 << 20]).unwrap();
        store.build(&disk, &"guest:1".parse().unwrap()).unwrap();
        store.collect(&BTreeSet::new()).unwrap();
        assert!(old.exists());
        for name in ["disk", "lost"] {
            machine.delete(name, Some(1)).await;
            machine.until_gone(name).await;
        }
        within("the unused disk's end", async {
            while old.exists() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await;
        machine.stop_agent_and_check().await;
    });
}

#[test]
fn a_pod_that_cannot_start_says_which_step_failed_and_leaves_nothing() {
    on_a_machine("failed start", |machine| async move {
        machine
            .create("broken", "", |pod| {
                pod["spec"]["containers"][0]["command"] = json!(["/usr/bin/not-there"]);
            })
            .await;
        let pod = machine
            .until("broken", "a waiting reason", |pod| {
                let status = pod
                    .status
                    .as_ref()
                    .and_then(|s| s.container_statuses.as_ref()?.first());
                status
                    .and_then(|s| s.state.as_ref()?.waiting.as_ref()?.message.as_ref())
                    .is_some()
            })
            .await;
        let waiting = container(&pod).state.unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("CreateContainerError"));
        assert!(
            waiting
                .message
                .unwrap()
                .contains("/usr/bin/not-there: No such file")
        );
        let held: Vec<_> = machine
            .holdings()
            .into_iter()
            .filter(|n| n != "link lo" && n != "link berth0")
            .collect();
        assert!(held.is_empty(), "{held:?}");
        assert_eq!(groups(&pod.uid().unwrap()), Vec::<PathBuf>::new());
        machine.delete("broken", None).await;
        machine.until_gone("broken").await;
        machine.stop_agent_and_check().await;
    });
}
