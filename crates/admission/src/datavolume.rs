//! DataVolumes, and the templates of them in a VirtualMachine.

use berth_api::cdi::v1beta1::{ClaimSpec, DataVolumeSource, DataVolumeSpec};
use berth_api::quantity::parse_bytes;
use serde_json::Value;

use crate::cause::{Cause, Refusal};
use crate::{Admitted, fields, syntax};

const KIND: &str = "DataVolume";

/// A new DataVolume or a change of one, whose spec does not change.
pub(crate) fn admit(
    namespace: &str,
    object: &Value,
    old: Option<&Value>,
) -> Result<Admitted, Refusal> {
    let mut causes = Vec::new();
    fields::check_top(KIND, object, old, &mut causes);
    let mut object = object.clone();
    if let Some(spec) = object.get_mut("spec") {
        fields::drop_nulls(spec);
    }
    let spec = object.get("spec").cloned().unwrap_or(Value::Null);
    match old {
        Some(old) if old.get("spec") == Some(&spec) => {}
        Some(_) => causes.push(Cause::forbidden(
            "spec",
            "a DataVolume's spec cannot be changed",
        )),
        None if spec.is_null() => causes.push(Cause::required("spec", "a DataVolume needs a spec")),
        None => {
            fields::check(KIND, "spec", &spec, &mut causes);
            if causes.is_empty() {
                check_value("spec", &spec, &mut causes);
            }
            // A pod can mount claims of its own namespace only.
            let source = spec
                .pointer("/source/pvc/namespace")
                .and_then(Value::as_str);
            if let Some(source) = source
                && !source.is_empty()
                && source != namespace
            {
                causes.push(Cause::invalid(
                    "spec.source.pvc.namespace",
                    source,
                    format!("must be that of the DataVolume, {namespace}: claims of other namespaces are not copied yet"),
                ));
            }
        }
    }
    Refusal::from_causes(causes)?;
    Ok(Admitted {
        object: Some(object),
        warnings: Vec::new(),
    })
}

/// The rules of a spec whose fields and types were checked.
pub(crate) fn check_value(path: &str, spec: &Value, causes: &mut Vec<Cause>) {
    match serde_json::from_value::<DataVolumeSpec>(spec.clone()) {
        Ok(spec) => check(path, &spec, causes),
        Err(error) => causes.push(Cause::invalid(path, "object", error.to_string())),
    }
}

fn check(path: &str, spec: &DataVolumeSpec, causes: &mut Vec<Cause>) {
    match &spec.source {
        None => causes.push(Cause::required(
            format!("{path}.source"),
            "one of http, registry, pvc and blank",
        )),
        Some(source) => check_source(&format!("{path}.source"), source, causes),
    }
    match (&spec.pvc, &spec.storage) {
        (Some(_), Some(_)) => causes.push(Cause::forbidden(
            format!("{path}.pvc"),
            format!("cannot be given together with {path}.storage"),
        )),
        (None, None) => causes.push(Cause::required(
            format!("{path}.storage"),
            "the claim: storage or pvc",
        )),
        (Some(claim), None) => {
            if claim.access_modes.is_empty() {
                causes.push(Cause::required(
                    format!("{path}.pvc.accessModes"),
                    "at least one",
                ));
            }
            check_claim(&format!("{path}.pvc"), claim, causes);
        }
        (None, Some(claim)) => check_claim(&format!("{path}.storage"), claim, causes),
    }
    if let Some(kind) = spec.content_type.as_deref()
        && kind != "kubevirt"
    {
        causes.push(Cause::not_one_of(
            format!("{path}.contentType"),
            kind,
            &["kubevirt"],
        ));
    }
}

fn check_source(path: &str, source: &DataVolumeSource, causes: &mut Vec<Cause>) {
    let given: Vec<&str> = [
        ("http", source.http.is_some()),
        ("registry", source.registry.is_some()),
        ("pvc", source.pvc.is_some()),
        ("blank", source.blank.is_some()),
    ]
    .into_iter()
    .filter_map(|(name, given)| given.then_some(name))
    .collect();
    if given.is_empty() {
        causes.push(Cause::required(
            path,
            "one of http, registry, pvc and blank",
        ));
    }
    for more in given.iter().skip(1) {
        causes.push(Cause::forbidden(
            format!("{path}.{more}"),
            format!("cannot be given together with {path}.{}", given[0]),
        ));
    }
    let mut name = |field: String, name: &str| {
        if !syntax::is_dns_subdomain(name) {
            causes.push(Cause::invalid(
                field,
                name,
                "must be a name: lower case letters, digits and inner dashes and dots",
            ));
        }
    };
    if let Some(http) = &source.http {
        for (field, given) in [
            ("secretRef", &http.secret_ref),
            ("certConfigMap", &http.cert_config_map),
        ] {
            if let Some(given) = given {
                name(format!("{path}.http.{field}"), given);
            }
        }
        for (index, given) in http.secret_extra_headers.iter().enumerate() {
            name(format!("{path}.http.secretExtraHeaders[{index}]"), given);
        }
    }
    if let Some(secret) = source
        .registry
        .as_ref()
        .and_then(|registry| registry.secret_ref.as_ref())
    {
        name(format!("{path}.registry.secretRef"), secret);
    }
    if let Some(pvc) = &source.pvc {
        name(format!("{path}.pvc.name"), &pvc.name);
    }
    if let Some(http) = &source.http {
        let rest = http
            .url
            .strip_prefix("http://")
            .or_else(|| http.url.strip_prefix("https://"));
        let clean = http.url.chars().all(|c| !c.is_control() && c != ' ');
        if !clean
            || http.url.len() > 4096
            || rest.is_none_or(|rest| rest.is_empty() || rest.starts_with('/'))
        {
            causes.push(Cause::invalid(
                format!("{path}.http.url"),
                &http.url,
                "must be an address that begins with http:// or https://",
            ));
        }
        if let Some(sum) = &http.checksum
            && !is_checksum(sum)
        {
            causes.push(Cause::invalid(
                format!("{path}.http.checksum"),
                sum,
                "must be md5:, sha1:, sha256: or sha512: and 32, 40, 64 or 128 hexadecimal digits",
            ));
        }
        for (index, header) in http.extra_headers.iter().enumerate() {
            if header.contains(['\r', '\n']) || !header.contains(':') {
                causes.push(Cause::invalid(
                    format!("{path}.http.extraHeaders[{index}]"),
                    "…",
                    "must be `name: value` on one line",
                ));
            }
        }
    }
    if let Some(registry) = &source.registry {
        let image = registry.url.strip_prefix("docker://");
        if image.is_none_or(|image| {
            image.is_empty() || image.chars().any(|c| c.is_whitespace() || c.is_control())
        }) {
            causes.push(Cause::invalid(
                format!("{path}.registry.url"),
                &registry.url,
                "must be docker:// and the name of an image",
            ));
        }
    }
}

fn is_checksum(text: &str) -> bool {
    let Some((name, hex)) = text.split_once(':') else {
        return false;
    };
    let digits = match name.to_ascii_lowercase().as_str() {
        "md5" => 32,
        "sha1" => 40,
        "sha256" => 64,
        "sha512" => 128,
        _ => return false,
    };
    hex.len() == digits && hex.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn check_claim(path: &str, claim: &ClaimSpec, causes: &mut Vec<Cause>) {
    const MODES: [&str; 4] = [
        "ReadWriteOnce",
        "ReadOnlyMany",
        "ReadWriteMany",
        "ReadWriteOncePod",
    ];
    for (index, mode) in claim.access_modes.iter().enumerate() {
        if !MODES.contains(&mode.as_str()) {
            causes.push(Cause::not_one_of(
                format!("{path}.accessModes[{index}]"),
                mode,
                &MODES,
            ));
        }
    }
    if let Some(mode) = claim.volume_mode.as_deref()
        && !["Filesystem", "Block"].contains(&mode)
    {
        causes.push(Cause::not_one_of(
            format!("{path}.volumeMode"),
            mode,
            &["Filesystem", "Block"],
        ));
    }
    let field = format!("{path}.resources.requests.storage");
    match claim
        .resources
        .as_ref()
        .and_then(|resources| resources.requests.get("storage"))
    {
        None => causes.push(Cause::required(field, "how large the claim is")),
        Some(size) => match parse_bytes(size) {
            Ok(bytes) if bytes > 0 => {}
            Ok(_) => causes.push(Cause::invalid(field, &size.0, "must be greater than zero")),
            Err(error) => causes.push(Cause::invalid(field, &size.0, error.to_string())),
        },
    }
}
