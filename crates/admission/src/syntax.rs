//! Forms of single values: names, labels, hardware addresses, image references.

/// Longest DNS label, and longest value of a Kubernetes label.
pub(crate) const LABEL_MAX: usize = 63;

/// A DNS label: lower case letters, digits and inner dashes, 1 to 63 of them. Namespaces and volumes are called so.
#[must_use]
pub fn is_dns_label(s: &str) -> bool {
    let alphanumeric = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let bytes = s.as_bytes();
    (1..=LABEL_MAX).contains(&bytes.len())
        && bytes.iter().all(|b| alphanumeric(*b) || *b == b'-')
        && bytes.first().is_some_and(|b| alphanumeric(*b))
        && bytes.last().is_some_and(|b| alphanumeric(*b))
}

/// A DNS subdomain: labels joined by dots, at most 253 characters.
pub(crate) fn is_dns_subdomain(s: &str) -> bool {
    s.len() <= 253 && s.split('.').all(is_dns_label)
}

/// A value of a label: empty, or up to 63 letters, digits and inner `-_.`.
pub(crate) fn is_label_value(s: &str) -> bool {
    let bytes = s.as_bytes();
    bytes.len() <= LABEL_MAX
        && bytes
            .iter()
            .all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b))
        && bytes.first().is_none_or(u8::is_ascii_alphanumeric)
        && bytes.last().is_none_or(u8::is_ascii_alphanumeric)
}

/// A key of a label: `name` or `domain/name`.
pub(crate) fn is_label_key(s: &str) -> bool {
    match s.split_once('/') {
        Some((prefix, name)) => {
            is_dns_subdomain(prefix) && !name.is_empty() && is_label_value(name)
        }
        None => !s.is_empty() && is_label_value(s),
    }
}

/// A hardware address of six bytes in hex, joined by colons or by dashes.
pub(crate) fn parse_mac(s: &str) -> Option<[u8; 6]> {
    let separator = if s.contains('-') { '-' } else { ':' };
    let mut bytes = [0; 6];
    let mut parts = s.split(separator);
    for byte in &mut bytes {
        let part = parts.next()?;
        if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    parts.next().is_none().then_some(bytes)
}

/// Letters, digits, and what else `extra` has; at least one.
pub(crate) fn is_word(s: &str, extra: &str) -> bool {
    !s.is_empty()
        && s.chars()
            .all(|c| c.is_ascii_alphanumeric() || extra.contains(c))
}

/// What is wrong with an image reference `[registry[:port]/]path[:tag][@sha256:hex]`. Accepts what the image store
/// accepts, no more and no less: a test holds the two together.
pub(crate) fn image_reference_error(reference: &str) -> Option<&'static str> {
    if reference.is_empty() {
        return Some("must not be empty");
    }
    let (rest, digest) = match reference.split_once('@') {
        Some((rest, digest)) => (rest, Some(digest)),
        None => (reference, None),
    };
    if digest.is_some_and(|d| !d.strip_prefix("sha256:").is_some_and(is_sha256_hex)) {
        return Some("must have a digest of the form sha256:<64 hex digits> after @");
    }
    // A colon before the last slash belongs to the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if tag.is_some_and(|t| !is_tag(t)) {
        return Some(
            "must have a tag of at most 128 letters, digits and inner _.- after the colon",
        );
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if names_a_registry(first) => (Some(first), path),
        _ => (None, name),
    };
    if registry.is_some_and(|r| !is_registry(r)) {
        return Some("must begin with a registry of the form host[:port]");
    }
    if !path.split('/').all(is_path_component) {
        return Some(
            "must have a name of lower case letters, digits and inner . _ - in parts joined by /",
        );
    }
    if full_name_length(registry, path) > 255 {
        return Some("must have a name of 1 to 255 characters");
    }
    if digest.is_none() && tag.is_none() && is_sha256_hex(name) {
        return Some("must have a name, not only a digest");
    }
    None
}

/// A first part that is a host, not the first part of a name in the default registry.
fn names_a_registry(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// The length of the name in full, with the registry and the folder that may be left out.
fn full_name_length(registry: Option<&str>, path: &str) -> usize {
    let registry = match registry {
        None | Some("index.docker.io" | "registry-1.docker.io") => "docker.io",
        Some(other) => other,
    };
    let folder = if registry == "docker.io" && !path.contains('/') {
        "library/".len()
    } else {
        0
    };
    registry.len() + 1 + folder + path.len()
}

fn is_sha256_hex(hex: &str) -> bool {
    hex.len() == 64
        && hex
            .bytes()
            .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

fn is_tag(s: &str) -> bool {
    s.len() <= 128 && is_word(s, "_.-") && !s.starts_with(['.', '-'])
}

fn is_registry(s: &str) -> bool {
    let port_ok =
        |p: &str| p.parse::<u16>().is_ok_and(|n| n > 0) && p.bytes().all(|b| b.is_ascii_digit());
    if let Some(rest) = s.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else {
            return false;
        };
        return address.parse::<std::net::Ipv6Addr>().is_ok()
            && (after.is_empty() || after.strip_prefix(':').is_some_and(port_ok));
    }
    let (host, port) = match s.split_once(':') {
        Some((host, port)) => (host, Some(port)),
        None => (s, None),
    };
    host.split('.')
        .all(|label| is_word(label, "-") && !label.starts_with('-') && !label.ends_with('-'))
        && port.is_none_or(port_ok)
}

/// Runs of lower case letters and digits, joined by one dot, one or two underscores, or dashes.
fn is_path_component(s: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends_ok = s.starts_with(alphanumeric) && s.ends_with(alphanumeric);
    ends_ok
        && s.split(alphanumeric)
            .all(|joint| matches!(joint, "" | "." | "_" | "__") || joint.bytes().all(|b| b == b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn image_references() {
        let digest = "a".repeat(64);
        for good in [
            "windows2012dc:latest".to_owned(),
            "alpine".to_owned(),
            "registry:5000/kubevirt/cirros-container-disk-demo:devel".to_owned(),
            "127.0.0.1:5000/a/b".to_owned(),
            "[::1]:5000/a:b".to_owned(),
            "quay.io/containerdisks/fedora:40".to_owned(),
            "localhost/a__b.c--d".to_owned(),
            format!("quay.io/x/y@sha256:{digest}"),
            format!("quay.io/x/y:1@sha256:{digest}"),
        ] {
            assert_eq!(image_reference_error(&good), None, "{good}");
        }
        for bad in [
            "",
            " ",
            "a b",
            "A",
            "a:",
            "a:b:c",
            ":a",
            "/a",
            "a/",
            "a//b",
            "a@sha256:12",
            "a@",
            "a:.b",
            "-a",
            "a-",
            "a'b",
            "a\"b",
            "a<b",
            "a&b",
            "a\nb",
            "a;b",
            "quay.io:port/a",
            "quay.io:0/a",
            "[x]/a",
            "a..b",
            "a___b",
            "https://quay.io/a",
            "../a",
            "a/../b",
            "a/B",
            &format!("a@sha512:{}", "a".repeat(128)),
            &digest,
        ] {
            assert!(image_reference_error(bad).is_some(), "{bad:?}");
        }
    }

    fn agree(reference: &str) {
        let ours = image_reference_error(reference);
        let stores = reference.parse::<berth_image::ImageRef>();
        assert_eq!(
            ours.is_none(),
            stores.is_ok(),
            "{reference:?}: {ours:?}, {stores:?}"
        );
    }

    #[test]
    fn admission_and_the_image_store_accept_the_same() {
        let hex = "0123456789abcdef".repeat(4);
        for reference in [
            &format!("a@sha512:{hex}{hex}"),
            &format!("a@sha256:{}", hex.to_uppercase()),
            &format!("a@sha256:{hex}"),
            &format!("a:{hex}"),
            &hex,
            &"a".repeat(237),
            &"a".repeat(238),
            &format!("index.docker.io/{}", "a".repeat(237)),
            &format!("quay.io/{}", "a".repeat(248)),
            "Host/a",
            "Host:80/a",
            "localhost:0/a",
            "localhost:65536/a",
            "localhost:+1/a",
            "[::1]/a",
            "[::1]x/a",
            "[x/a",
            "docker://a",
            "a://b/c",
            "a@b@c",
            "localhost",
            "localhost/",
        ] {
            agree(reference);
        }
    }

    proptest::proptest! {
        #[test]
        fn admission_and_the_image_store_accept_the_same_of_anything(
            reference in "(([a-zA-Z0-9.:\\[\\]-]{1,8})/)?[a-zA-Z0-9._/-]{0,10}(:[a-zA-Z0-9._/-]{0,5})?(@(sha256:)?[0-9a-g]{0,4})?",
        ) {
            agree(&reference);
        }
    }

    #[test]
    fn hardware_addresses() {
        assert_eq!(parse_mac("02:00:00:00:00:0a"), Some([2, 0, 0, 0, 0, 10]));
        assert_eq!(parse_mac("02-00-00-00-00-0A"), Some([2, 0, 0, 0, 0, 10]));
        for bad in [
            "",
            "02:00:00:00:00",
            "02:00:00:00:00:00:00",
            "2:0:0:0:0:0",
            "02:00:00:00:00:0g",
            "+2:00:00:00:00:00",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }

    #[test]
    fn labels() {
        assert!(
            is_dns_label("a-1") && !is_dns_label("") && !is_dns_label("-a") && !is_dns_label("A")
        );
        assert!(is_dns_label(&"a".repeat(63)) && !is_dns_label(&"a".repeat(64)));
        assert!(is_label_key("kubernetes.io/os") && !is_label_key("/os") && !is_label_key("a/b/c"));
        assert!(is_label_value("") && is_label_value("A_b.c") && !is_label_value("a b"));
    }
}
