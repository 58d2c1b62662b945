//! The rules that a schema cannot say: what belongs together, what is unique, what a value must look like.
//!
//! No value that passes here can break out of the domain XML, a path or a command line: free text is limited to
//! plain character sets, and everything else is an enumeration, a number or a name.

mod devices;
mod hardware;

use berth_api::kubevirt::v1::VirtualMachineInstanceSpec;

use crate::cause::Cause;
use crate::syntax;

/// Everything that is wrong with a spec whose defaults are set.
pub(crate) fn instance_spec(spec: &VirtualMachineInstanceSpec) -> Vec<Cause> {
    let mut causes = Vec::new();
    placement(spec, &mut causes);
    hardware::check(&spec.domain, &mut causes);
    devices::check(spec, &mut causes);
    causes
}

fn placement(spec: &VirtualMachineInstanceSpec, causes: &mut Vec<Cause>) {
    one_of(
        "spec.architecture",
        spec.architecture.as_deref(),
        &["amd64"],
        causes,
    );
    if let Some(hostname) = &spec.hostname
        && !syntax::is_dns_label(hostname)
    {
        causes.push(Cause::invalid(
            "spec.hostname",
            hostname,
            "must be a DNS label: at most 63 lower case letters, digits and inner dashes",
        ));
    }
    if let Some(seconds) = spec.termination_grace_period_seconds
        && !(0..=i64::from(i32::MAX)).contains(&seconds)
    {
        causes.push(Cause::invalid(
            "spec.terminationGracePeriodSeconds",
            seconds,
            format!("must be between 0 and {}", i32::MAX),
        ));
    }
    one_of(
        "spec.startStrategy",
        spec.start_strategy.as_deref(),
        &["Paused"],
        causes,
    );
    for (key, value) in &spec.node_selector {
        if !syntax::is_label_key(key) {
            causes.push(Cause::invalid(
                "spec.nodeSelector",
                key,
                "must be the key of a label",
            ));
        }
        if !syntax::is_label_value(value) {
            causes.push(Cause::invalid(
                format!("spec.nodeSelector.{key}"),
                value,
                "must be the value of a label: at most 63 letters, digits and inner -_.",
            ));
        }
    }
}

/// A value, if given, out of a closed set.
fn one_of(field: &str, value: Option<&str>, set: &[&str], causes: &mut Vec<Cause>) {
    if let Some(value) = value
        && !set.contains(&value)
    {
        causes.push(Cause::not_one_of(field, value, set));
    }
}
