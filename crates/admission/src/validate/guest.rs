//! What is asked of the guest while it runs, and who may enter it.

use berth_api::kubevirt::v1::{
    AccessCredential, Probe, SSHPublicKeyPropagation, VirtualMachineInstanceSpec, Volume,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{exactly_one, one_of};
use crate::cause::Cause;
use crate::syntax;

/// Longest name of a user that a guest is told.
const USER_MAX: usize = 256;

pub(super) fn check(spec: &VirtualMachineInstanceSpec, causes: &mut Vec<Cause>) {
    check_probe(
        spec,
        "spec.readinessProbe",
        spec.readiness_probe.as_ref(),
        causes,
    );
    check_probe(
        spec,
        "spec.livenessProbe",
        spec.liveness_probe.as_ref(),
        causes,
    );
    if let Some(probe) = &spec.liveness_probe
        && let Some(threshold) = probe.success_threshold
        && threshold != 1
    {
        let field = "spec.livenessProbe.successThreshold";
        causes.push(Cause::invalid(field, threshold, "must be 1"));
    }
    for (i, credential) in spec.access_credentials.iter().enumerate() {
        check_credential(
            spec,
            &format!("spec.accessCredentials[{i}]"),
            credential,
            causes,
        );
    }
    check_dns(spec, causes);
}

fn check_probe(
    spec: &VirtualMachineInstanceSpec,
    path: &str,
    probe: Option<&Probe>,
    causes: &mut Vec<Cause>,
) {
    let Some(probe) = probe else { return };
    let given = [
        ("exec", probe.exec.is_some()),
        ("guestAgentPing", probe.guest_agent_ping.is_some()),
        ("httpGet", probe.http_get.is_some()),
        ("tcpSocket", probe.tcp_socket.is_some()),
    ];
    exactly_one(path, ("a probe", "question"), &given, causes);
    let by_network = probe.http_get.is_some() || probe.tcp_socket.is_some();
    if by_network && spec.domain.devices.interfaces.is_empty() {
        causes.push(Cause::invalid(
            path,
            "network",
            "a machine without an interface cannot be asked by the network",
        ));
    }
    if let Some(exec) = &probe.exec
        && exec.command.as_ref().is_none_or(Vec::is_empty)
    {
        let field = format!("{path}.exec.command");
        causes.push(Cause::required(field, "the program and its arguments"));
    }
    if let Some(http) = &probe.http_get {
        check_port(&format!("{path}.httpGet.port"), &http.port, causes);
        one_of(
            &format!("{path}.httpGet.scheme"),
            http.scheme.as_deref(),
            &["HTTP", "HTTPS"],
            causes,
        );
        // A node that asks whoever a spec names could be sent to anybody's doors.
        if http.host.as_deref().is_some_and(|host| !host.is_empty()) {
            let field = format!("{path}.httpGet.host");
            causes.push(Cause::forbidden(field, "the guest itself is asked"));
        }
        for (i, header) in http.http_headers.iter().flatten().enumerate() {
            let field = format!("{path}.httpGet.httpHeaders[{i}]");
            if header.name.is_empty() || !syntax::is_word(&header.name, "-_.") {
                causes.push(Cause::invalid(
                    format!("{field}.name"),
                    &header.name,
                    "must be the name of a header: letters, digits and -_.",
                ));
            }
            if header.value.chars().any(char::is_control) {
                causes.push(Cause::invalid(
                    format!("{field}.value"),
                    "…",
                    "must be one line",
                ));
            }
        }
    }
    if let Some(tcp) = &probe.tcp_socket {
        check_port(&format!("{path}.tcpSocket.port"), &tcp.port, causes);
        if tcp.host.as_deref().is_some_and(|host| !host.is_empty()) {
            let field = format!("{path}.tcpSocket.host");
            causes.push(Cause::forbidden(field, "the guest itself is asked"));
        }
    }
    for (name, value, least) in [
        ("initialDelaySeconds", probe.initial_delay_seconds, 0),
        ("timeoutSeconds", probe.timeout_seconds, 1),
        ("periodSeconds", probe.period_seconds, 1),
        ("successThreshold", probe.success_threshold, 1),
        ("failureThreshold", probe.failure_threshold, 1),
    ] {
        // 0 is what Kubernetes takes for "not given".
        if let Some(value) = value.filter(|value| *value < least && *value != 0) {
            causes.push(Cause::invalid(
                format!("{path}.{name}"),
                value,
                format!("must be at least {least}"),
            ));
        }
    }
}

fn check_port(field: &str, port: &IntOrString, causes: &mut Vec<Cause>) {
    match port {
        IntOrString::Int(1..=65535) => {}
        IntOrString::Int(port) => {
            causes.push(Cause::invalid(field, port, "must be from 1 to 65535"));
        }
        IntOrString::String(port) => causes.push(Cause::invalid(
            field,
            port,
            "must be a number: a guest's ports have no names",
        )),
    }
}

fn check_credential(
    spec: &VirtualMachineInstanceSpec,
    path: &str,
    credential: &AccessCredential,
    causes: &mut Vec<Cause>,
) {
    let kinds = [
        ("sshPublicKey", credential.ssh_public_key.is_some()),
        ("userPassword", credential.user_password.is_some()),
    ];
    exactly_one(path, ("a credential", "kind"), &kinds, causes);
    let kind = kinds.iter().find(|(_, is)| *is).map(|(name, _)| *name);
    let Some(kind) = kind else { return };
    let path = format!("{path}.{kind}");
    let field = format!("{path}.source.secret.secretName");
    match credential.secret() {
        None | Some("") => causes.push(Cause::required(field, "must be the name of a secret")),
        Some(name) if !syntax::is_dns_subdomain(name) => {
            causes.push(Cause::invalid(field, name, "must be the name of a secret"));
        }
        Some(_) => {}
    }
    let path = format!("{path}.propagationMethod");
    if let Some(passwords) = &credential.user_password {
        let method = passwords.propagation_method.as_ref();
        if method.is_none_or(|method| method.qemu_guest_agent.is_none()) {
            let field = format!("{path}.qemuGuestAgent");
            causes.push(Cause::required(field, "the one way that passwords go"));
        }
    }
    let Some(keys) = &credential.ssh_public_key else {
        return;
    };
    let none = SSHPublicKeyPropagation::default();
    let method = keys.propagation_method.as_ref().unwrap_or(&none);
    let ways = [
        ("configDrive", method.config_drive.is_some()),
        ("noCloud", method.no_cloud.is_some()),
        ("qemuGuestAgent", method.qemu_guest_agent.is_some()),
    ];
    exactly_one(&path, ("a credential", "way"), &ways, causes);
    let has = |is: fn(&Volume) -> bool| spec.volumes.iter().any(is);
    for (name, wanted, volume, there) in [
        (
            "configDrive",
            method.config_drive.is_some(),
            "cloudInitConfigDrive",
            has(|volume| volume.cloud_init_config_drive.is_some()),
        ),
        (
            "noCloud",
            method.no_cloud.is_some(),
            "cloudInitNoCloud",
            has(|volume| volume.cloud_init_no_cloud.is_some()),
        ),
    ] {
        if wanted && !there {
            causes.push(Cause::invalid(
                format!("{path}.{name}"),
                "{}",
                format!("needs a volume {volume} in spec.volumes"),
            ));
        }
    }
    if let Some(agent) = &method.qemu_guest_agent {
        let field = format!("{path}.qemuGuestAgent.users");
        if agent.users.is_empty() {
            causes.push(Cause::required(&field, "at least one user of the guest"));
        }
        for (i, user) in agent.users.iter().enumerate() {
            if user.is_empty() || user.len() > USER_MAX || user.chars().any(char::is_control) {
                causes.push(Cause::invalid(
                    format!("{field}[{i}]"),
                    user,
                    format!("must be the name of a user: one line of 1 to {USER_MAX} bytes"),
                ));
            }
        }
    }
}

fn check_dns(spec: &VirtualMachineInstanceSpec, causes: &mut Vec<Cause>) {
    one_of(
        "spec.dnsPolicy",
        spec.dns_policy.as_deref(),
        &["ClusterFirst", "ClusterFirstWithHostNet", "Default", "None"],
        causes,
    );
    let config = spec.dns_config.as_ref();
    let servers = || {
        config
            .into_iter()
            .flat_map(|c| c.nameservers.iter().flatten())
    };
    if spec.dns_policy.as_deref() == Some("None") && servers().next().is_none() {
        causes.push(Cause::required(
            "spec.dnsConfig.nameservers",
            "at least one, when spec.dnsPolicy is None",
        ));
    }
    for (i, server) in servers().enumerate() {
        let field = format!("spec.dnsConfig.nameservers[{i}]");
        if server.parse::<std::net::IpAddr>().is_err() {
            causes.push(Cause::invalid(field, server, "must be an IP address"));
        } else if i >= 3 {
            causes.push(Cause::invalid(field, server, "must be no more than 3"));
        }
    }
    let searches = config.into_iter().flat_map(|c| c.searches.iter().flatten());
    for (i, domain) in searches.enumerate() {
        if !syntax::is_dns_subdomain(domain.trim_end_matches('.')) {
            causes.push(Cause::invalid(
                format!("spec.dnsConfig.searches[{i}]"),
                domain,
                "must be a domain of the DNS",
            ));
        }
    }
}
