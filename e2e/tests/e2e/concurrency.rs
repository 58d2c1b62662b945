//! Lost updates do not happen: what the server answers to a stale or blind replace.

use berth_e2e::{Machine, Need, missing};

#[test]
fn a_replace_needs_the_current_resource_version() -> anyhow::Result<()> {
    if missing("replace", &[Need::Root]) {
        return Ok(());
    }
    let machine = Machine::start()?;
    crate::stories::a_replace_needs_the_current_version(&machine)
}
