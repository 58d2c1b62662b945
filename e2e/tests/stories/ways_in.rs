//! Ways into a guest by the API server: ports and the display.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};

use anyhow::{Context as _, ensure};
use berth_e2e::{Target, manifest, run, wait_for};

use super::{BOOT, MEMORY, SOON};

/// A command of berth that listens; killed when dropped.
struct Listening(Child);

impl Listening {
    /// Starts it; gives the first line that it prints.
    fn start(target: &dyn Target, arguments: &[&str]) -> anyhow::Result<(Self, String)> {
        let mut child = target
            .berth_command()
            .args(arguments)
            .args(["--namespace", target.namespace()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()?;
        let stdout = child.stdout.take().context("standard output")?;
        let listening = Self(child);
        let mut line = String::new();
        BufReader::new(stdout).read_line(&mut line)?;
        Ok((listening, line))
    }
}

impl Drop for Listening {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The guest's web server and its display, on ports of this machine; and what is refused.
pub(crate) fn ports_and_display(target: &dyn Target) -> anyhow::Result<()> {
    target.apply(&manifest("way", target.image(), MEMORY))?;
    target.wait_phase("way", "Running", SOON)?;
    target.wait_prompt("way", BOOT)?;
    let (_listening, said) = Listening::start(target, &["port-forward", "vmi/way", "0:80"])?;
    let port = said
        .strip_prefix("Forwarding from 127.0.0.1:")
        .and_then(|rest| rest.trim().strip_suffix(" -> 80"))
        .with_context(|| format!("it says {said:?}"))?;
    // Several connections, one after the other and each of its own.
    for _ in 0..2 {
        let page = wait_for("the guest's page", SOON, || {
            target.page(&format!("127.0.0.1:{port}"))
        })?;
        ensure!(page.contains("hello from the guest"), "{page}");
    }
    let (_listening, said) = Listening::start(target, &["vnc", "way", "--proxy-only"])?;
    let port = said
        .trim()
        .strip_prefix("{\"port\":")
        .and_then(|rest| rest.strip_suffix('}'))
        .with_context(|| format!("it says {said:?}"))?;
    let greet = format!("exec 3<>/dev/tcp/127.0.0.1/{port}; head -c 12 <&3");
    let greeting = target
        .exec("timeout", &["10", "bash", "-c", &greet])?
        .ok()?;
    ensure!(greeting.starts_with("RFB 003."), "no display: {greeting:?}");

    let refused = |arguments: &[&str]| -> anyhow::Result<String> {
        run(
            target
                .berth_command()
                .args(arguments)
                .args(["--namespace", target.namespace()]),
            "",
        )?
        .err()
    };
    let closed = refused(&["port-forward", "--stdio", "vmi/way", "81"])?;
    ensure!(closed.contains("port 81 of the guest"), "{closed}");
    let nobody = refused(&["port-forward", "--stdio", "vm/nobody", "80"])?;
    ensure!(nobody.contains("\"nobody\" not found"), "{nobody}");
    target.apply(&manifest("blind", "localhost/none:1", MEMORY).replace(
        "      rng: {}\n",
        "      rng: {}\n      autoattachGraphicsDevice: false\n",
    ))?;
    let blind = refused(&["vnc", "blind", "--proxy-only"])?;
    ensure!(blind.contains("No graphics devices are present"), "{blind}");
    let waits = refused(&["port-forward", "--stdio", "vmi/blind", "80"])?;
    ensure!(waits.contains("VMI is not running"), "{waits}");
    target.delete("blind", SOON)?;
    target.delete("way", SOON * 2)
}
