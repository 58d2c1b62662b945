//! Guests that are asked how they are.

use std::time::Duration;

use anyhow::ensure;
use berth_e2e::{Target, manifest, wait_for};

use super::guests::wait_field;
use super::machines::berth;
use super::{BOOT, MEMORY, SOON};

const READY: &str = ".status.conditions[?(@.type=='Ready')].status";

fn with_probe(target: &dyn Target, name: &str, probe: &str) -> String {
    manifest(name, target.image(), MEMORY).replacen("spec:\n", &format!("spec:\n  {probe}\n"), 1)
}

/// A machine is ready when its probe says so, by the network.
pub(crate) fn ready_when_it_says_so(target: &dyn Target) -> anyhow::Result<()> {
    let tcp = "readinessProbe: {tcpSocket: {port: 8080}, periodSeconds: 1, failureThreshold: 2}";
    target.apply(&with_probe(target, "asked", tcp))?;
    let http = "readinessProbe: {httpGet: {port: 80, path: /index.html}, periodSeconds: 1}";
    target.apply(&with_probe(target, "served", http))?;
    target.wait_phase("asked", "Running", SOON)?;
    let mut console = target.console("asked")?;
    console.log_in(BOOT)?;
    ensure!(target.vmi("asked", READY)? == "False");
    console.shell("httpd -f -p 8080 -h /www & echo $! >/tmp/pid", SOON)?;
    wait_field(target, "asked", READY, "True", SOON)?;
    wait_field(target, "served", READY, "True", BOOT)?;
    console.shell("kill $(cat /tmp/pid)", SOON)?;
    wait_field(target, "asked", READY, "False", SOON)?;
    let why = target.vmi("asked", ".status.conditions[?(@.type=='Ready')].message")?;
    ensure!(
        why.contains("Readiness probe failed") && why.contains(":8080"),
        "{why}"
    );
    // A guest that stands still is not asked: longer than three failures would take.
    berth(target, &["pause", "vmi", "served"])?.ok()?;
    wait_field(target, "served", READY, "False", SOON)?;
    std::thread::sleep(Duration::from_secs(5));
    berth(target, &["unpause", "vmi", "served"])?.ok()?;
    wait_field(target, "served", READY, "True", SOON)?;
    target.delete("asked", SOON * 2)?;
    target.delete("served", SOON * 2)
}

/// A guest that is found dead is ended, and the machine has failed.
pub(crate) fn ended_when_dead(target: &dyn Target) -> anyhow::Result<()> {
    let probes = "readinessProbe: {guestAgentPing: {}, periodSeconds: 1, timeoutSeconds: 5}
  livenessProbe:
    exec: {command: [/bin/sh, -c, 'test ! -e /tmp/dead || { echo it is dead; false; }']}
    initialDelaySeconds: 20
    periodSeconds: 1
    timeoutSeconds: 5
    failureThreshold: 2";
    target.apply(&with_probe(target, "mortal", probes))?;
    target.wait_phase("mortal", "Running", SOON)?;
    let mut console = target.console("mortal")?;
    console.log_in(BOOT)?;
    wait_field(target, "mortal", READY, "True", SOON)?;
    console.shell("touch /tmp/dead", SOON)?;
    target.wait_phase("mortal", "Failed", SOON * 2)?;
    ensure!(target.vmi("mortal", ".status.reason")? == "Unhealthy");
    wait_for("the event says why", SOON, || {
        let events = target
            .kubectl(&["get", "events", "-o", "jsonpath={.items[*].message}"])?
            .ok()?;
        let said = "Liveness probe failed: exit status 1: it is dead";
        ensure!(events.contains(said), "{events}");
        Ok(())
    })?;
    target.delete("mortal", SOON * 2)
}
