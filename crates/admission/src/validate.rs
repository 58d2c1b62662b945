//! The rules that a schema cannot say: what belongs together, what is unique, what a value must look like.
//!
//! No value that passes here can break out of the domain XML, a path or a command line: free text is limited to
//! plain character sets, and everything else is an enumeration, a number or a name.

mod devices;
mod guest;
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
    guest::check(spec, &mut causes);
    causes
}

fn placement(spec: &VirtualMachineInstanceSpec, causes: &mut Vec<Cause>) {
    one_of(
        "spec.architecture",
        spec.architecture.as_deref(),
        &["amd64"],
        causes,
    );
    for (field, name) in [
        ("spec.hostname", &spec.hostname),
        ("spec.subdomain", &spec.subdomain),
    ] {
        if let Some(name) = name
            && !syntax::is_dns_label(name)
        {
            causes.push(Cause::invalid(
                field,
                name,
                "must be a DNS label: at most 63 lower case letters, digits and inner dashes",
            ));
        }
    }
    for (field, name) in [
        ("spec.priorityClassName", &spec.priority_class_name),
        ("spec.schedulerName", &spec.scheduler_name),
    ] {
        if let Some(name) = name
            && !syntax::is_dns_subdomain(name)
        {
            causes.push(Cause::invalid(
                field,
                name,
                "must be a name: lower case letters, digits and inner dashes and dots",
            ));
        }
    }
    check_placement(spec, causes);
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

/// Taints and spread: what Kubernetes would refuse of the pod.
fn check_placement(spec: &VirtualMachineInstanceSpec, causes: &mut Vec<Cause>) {
    for (i, toleration) in spec.tolerations.iter().enumerate() {
        let field = |name: &str| format!("spec.tolerations[{i}].{name}");
        one_of(
            &field("operator"),
            toleration.operator.as_deref(),
            &["Equal", "Exists"],
            causes,
        );
        one_of(
            &field("effect"),
            toleration.effect.as_deref(),
            &["NoSchedule", "PreferNoSchedule", "NoExecute"],
            causes,
        );
        let key = toleration.key.as_deref().unwrap_or_default();
        if !key.is_empty() && !syntax::is_label_key(key) {
            causes.push(Cause::invalid(
                field("key"),
                key,
                "must be the key of a taint",
            ));
        }
        let exists = toleration.operator.as_deref() == Some("Exists");
        let value = toleration.value.as_deref().unwrap_or_default();
        if exists && !value.is_empty() {
            causes.push(Cause::invalid(
                field("value"),
                value,
                "must be empty when the operator is Exists",
            ));
        }
        if key.is_empty() && !exists {
            causes.push(Cause::required(
                field("key"),
                "without a key the operator must be Exists",
            ));
        }
    }
    for (i, constraint) in spec.topology_spread_constraints.iter().enumerate() {
        let field = |name: &str| format!("spec.topologySpreadConstraints[{i}].{name}");
        one_of(
            &field("whenUnsatisfiable"),
            Some(&constraint.when_unsatisfiable),
            &["DoNotSchedule", "ScheduleAnyway"],
            causes,
        );
        if constraint.max_skew < 1 {
            causes.push(Cause::invalid(
                field("maxSkew"),
                constraint.max_skew,
                "must be at least 1",
            ));
        }
        if !syntax::is_label_key(&constraint.topology_key) {
            causes.push(Cause::invalid(
                field("topologyKey"),
                &constraint.topology_key,
                "must be the key of a label",
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

/// Of several members that exclude each other one must be there.
fn exactly_one(
    path: &str,
    (whole, what): (&str, &str),
    given: &[(&str, bool)],
    causes: &mut Vec<Cause>,
) {
    let set: Vec<&str> = given
        .iter()
        .filter(|(_, is)| *is)
        .map(|(name, _)| *name)
        .collect();
    match set[..] {
        [] => {
            let names: Vec<&str> = given.iter().map(|(name, _)| *name).collect();
            let (last, others) = names.split_last().unwrap_or((&"", &[]));
            causes.push(Cause::required(
                path,
                format!("must have a {what}: {} or {last}", others.join(", ")),
            ));
        }
        [_] => {}
        [first, second, ..] => causes.push(Cause::forbidden(
            format!("{path}.{second}"),
            format!("must not be set beside {first}: {whole} has one {what}"),
        )),
    }
}
