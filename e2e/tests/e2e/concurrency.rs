//! Lost updates do not happen: what the server answers to a stale or blind replace.

use anyhow::ensure;
use berth_e2e::{Machine, Need, manifest, missing};

#[test]
fn a_replace_needs_the_current_resource_version() -> anyhow::Result<()> {
    if missing("replace", &[Need::Root]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    // The image does not exist; the object is enough here.
    machine.apply(&manifest("contended", "none/such:1", "64Mi"))?;
    let path = "/apis/kubevirt.io/v1/namespaces/default/virtualmachineinstances/contended";
    let read = || -> anyhow::Result<serde_json::Value> {
        Ok(serde_json::from_str(
            &machine.kubectl(&["get", "--raw", path])?.ok()?,
        )?)
    };
    let replace = |object: &serde_json::Value| {
        machine.kubectl_with(&["replace", "--raw", path, "-f", "-"], &object.to_string())
    };
    let mut blind = read()?;
    blind["metadata"]["annotations"]["note"] = "blind".into();
    blind["metadata"]
        .as_object_mut()
        .map(|metadata| metadata.remove("resourceVersion"));
    let refused = replace(&blind)?.err()?;
    ensure!(
        refused.contains(
            "metadata.resourceVersion: Invalid value: 0x0: must be specified for an update"
        ),
        "{refused}"
    );
    let mut stale = read()?;
    machine
        .kubectl(&["annotate", "vmi", "contended", "other=writer"])?
        .ok()?;
    stale["metadata"]["annotations"]["note"] = "stale".into();
    let refused = replace(&stale)?.err()?;
    ensure!(
        refused.contains("the object has been modified; please apply your changes to the latest version and try again"),
        "{refused}"
    );
    // A fresh one passes; the controller may write the status in between, so it is read again as a client would.
    berth_e2e::wait_for("a fresh replace is accepted", crate::SOON, || {
        let mut fresh = read()?;
        fresh["metadata"]["annotations"]["note"] = "fresh".into();
        replace(&fresh)?.ok()
    })?;
    let now = read()?;
    ensure!(
        now["metadata"]["annotations"]["note"] == "fresh"
            && now["metadata"]["annotations"]["other"] == "writer"
    );
    Ok(())
}
