//! Where a story can happen: a machine with `berth up`, or a cluster. What a user does is the same on both.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, bail, ensure};

use crate::{Console, Outcome, wait_for};

/// Something that runs virtual machines and is driven by kubectl.
pub trait Target {
    /// `kubectl` with something on its standard input.
    fn kubectl_with(&self, arguments: &[&str], input: &str) -> anyhow::Result<Outcome>;

    /// Runs a program where the pod network can be reached.
    fn exec(&self, program: &str, arguments: &[&str]) -> anyhow::Result<Outcome>;

    /// A command on the (first) node, in the network in which that node pulls images.
    fn on_first_node(&self, program: &Path) -> Command;

    /// The name of that node.
    fn first_node(&self) -> &str;

    /// Puts an image (`docker save`'s archive or an OCI one, told apart by `kind` as skopeo names them) where the nodes find
    /// it under this name.
    fn import(&self, kind: &str, archive: &Path, image: &str) -> anyhow::Result<()>;

    /// Ends everything of berth but what is in pods, without a word to it.
    fn take_berth_away(&self) -> anyhow::Result<()>;

    /// Starts it again.
    fn bring_berth_back(&self) -> anyhow::Result<()>;

    /// `kill -9` of a program in the pod of a VMI.
    fn kill_in_pod(&self, vmi: &str, program: &str) -> anyhow::Result<()>;

    /// What there is of things that pods come with, when none is left: a count for each kind. Fails while one is.
    fn residue(&self) -> anyhow::Result<BTreeMap<String, usize>>;

    /// Waits until the guest of a VMI asks for a login.
    fn wait_prompt(&self, name: &str, limit: Duration) -> anyhow::Result<()>;

    /// The image of the small guest.
    fn image(&self) -> &str;

    /// The namespace that is used when none is named.
    fn namespace(&self) -> &str;

    /// What berth's own logs say, for the one who looks for the reason of a failure.
    fn log_tail(&self) -> String;

    /// The serial console of a VMI, by the real `berth console`.
    fn console(&self, name: &str) -> anyhow::Result<Console> {
        Console::open(
            self.berth_command()
                .args(["console", name, "--namespace", self.namespace()]),
        )
    }

    /// The real `berth`, where it finds this target's API by itself.
    fn berth_command(&self) -> Command;

    /// Called now and then while something is waited for.
    fn look(&self) {}

    /// The stock kubectl.
    fn kubectl(&self, arguments: &[&str]) -> anyhow::Result<Outcome> {
        self.kubectl_with(arguments, "")
    }

    /// `kubectl apply` of a manifest that must be accepted.
    fn apply(&self, manifest: &str) -> anyhow::Result<String> {
        self.kubectl_with(&["apply", "-f", "-"], manifest)?.ok()
    }

    /// One field of a VMI by JSONPath; empty where it is not set.
    fn vmi(&self, name: &str, path: &str) -> anyhow::Result<String> {
        self.kubectl(&["get", "vmi", name, "-o", &format!("jsonpath={{{path}}}")])?
            .ok()
    }

    /// Waits until a VMI is in a phase. A final phase that is not the wanted one ends the wait at once.
    fn wait_phase(&self, name: &str, phase: &str, limit: Duration) -> anyhow::Result<()> {
        let mut final_phase = None;
        let waited = wait_for(&format!("vmi {name} is {phase}"), limit, || {
            let now = self.vmi(name, ".status.phase")?;
            self.look();
            if now != phase && (now == "Failed" || now == "Succeeded") {
                final_phase = Some(now);
                return Ok(());
            }
            ensure!(now == phase, "it is {now:?}");
            Ok(())
        });
        let problem = match (waited, final_phase) {
            (Ok(()), None) => return Ok(()),
            (Ok(()), Some(phase)) => format!("vmi {name} ended as {phase}"),
            (Err(error), _) => format!("{error:#}"),
        };
        let describe = self.kubectl(&["get", "vmi,pod,events", "-o", "yaml"])?;
        bail!("{problem}\n{}\n{}", describe.stdout, self.log_tail())
    }

    /// Waits until a condition of a VMI holds the text in its message; gives the message.
    fn wait_condition(
        &self,
        name: &str,
        kind: &str,
        text: &str,
        limit: Duration,
    ) -> anyhow::Result<String> {
        let path = format!(".status.conditions[?(@.type=='{kind}')].message");
        wait_for(
            &format!("condition {kind} of vmi {name} says {text:?}"),
            limit,
            || {
                let message = self.vmi(name, &path)?;
                ensure!(message.contains(text), "it says {message:?}");
                Ok(message)
            },
        )
        .with_context(|| self.log_tail())
    }

    /// The address that the VMI's status shows, when it shows one.
    fn address(&self, name: &str) -> anyhow::Result<String> {
        wait_for(
            &format!("vmi {name} has an address"),
            Duration::from_secs(30),
            || {
                let address = self.vmi(name, ".status.interfaces[0].ipAddress")?;
                ensure!(!address.is_empty(), "status.interfaces is empty");
                Ok(address)
            },
        )
    }

    /// Waits until an address answers a ping.
    fn ping(&self, address: &str, limit: Duration) -> anyhow::Result<()> {
        wait_for(&format!("{address} answers ping"), limit, || {
            self.exec("ping", &["-c", "1", "-W", "1", address])?
                .ok()
                .map(drop)
        })
    }

    /// What the guest's web server says.
    fn page(&self, address: &str) -> anyhow::Result<String> {
        let url = format!("http://{address}/");
        self.exec("busybox", &["wget", "-q", "-O", "-", &url])?.ok()
    }

    /// Deletes a VMI and waits until the object is gone.
    fn delete(&self, name: &str, limit: Duration) -> anyhow::Result<()> {
        let timeout = format!("--timeout={}s", limit.as_secs());
        self.kubectl(&["delete", "vmi", name, &timeout])?
            .ok()
            .with_context(|| self.log_tail())
            .map(drop)
    }
}
