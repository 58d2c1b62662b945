//! Image references, normalised the way Docker does it.
//!
//! `windows2012dc` means `docker.io/library/windows2012dc:latest`. The part before the first `/` is a registry when it
//! has a `.` or a `:`, or is `localhost`, or has upper-case letters. A reference with tag and digest names the digest.

use std::fmt;
use std::str::FromStr;

use thiserror::Error;

use crate::Digest;

const DEFAULT_REGISTRY: &str = "docker.io";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised image reference: registry, repository, and a tag or a digest.
///
/// Its text form is complete (`docker.io/library/x:latest`) and parses to the same reference.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageRef {
    registry: String,
    repository: String,
    version: Version,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Version {
    Tag(String),
    Digest(Digest),
}

/// Why a text is not an image reference.
#[derive(Debug, Clone, Error)]
#[error("image reference {text:?}: {problem}")]
pub struct InvalidReference {
    /// What was given (shortened when absurdly long).
    pub text: String,
    /// What is wrong with it.
    pub problem: &'static str,
}

impl ImageRef {
    /// The registry as written in image names: `docker.io`, `localhost:5000`.
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository inside the registry: `library/windows2012dc`.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag, unless the reference names a digest.
    pub fn tag(&self) -> Option<&str> {
        match &self.version {
            Version::Tag(tag) => Some(tag),
            Version::Digest(_) => None,
        }
    }

    /// The digest, if the reference names one.
    pub fn digest(&self) -> Option<&Digest> {
        match &self.version {
            Version::Tag(_) => None,
            Version::Digest(digest) => Some(digest),
        }
    }

    /// Registry and repository, without tag or digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }
}

impl FromStr for ImageRef {
    type Err = InvalidReference;

    fn from_str(text: &str) -> Result<Self, InvalidReference> {
        parse(text).map_err(|problem| InvalidReference {
            text: text.chars().take(300).collect(),
            problem,
        })
    }
}

impl fmt::Display for ImageRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        match &self.version {
            Version::Tag(tag) => write!(f, ":{tag}"),
            Version::Digest(digest) => write!(f, "@{digest}"),
        }
    }
}

fn parse(text: &str) -> Result<ImageRef, &'static str> {
    if text.is_empty() {
        return Err("it is empty");
    }
    if text.contains("://") {
        return Err("it has a scheme; an image reference is NAME[:TAG] or NAME@DIGEST");
    }
    let (rest, digest) = match text.split_once('@') {
        Some((rest, digest)) => (
            rest,
            Some(
                digest
                    .parse::<Digest>()
                    .map_err(|_| "the part after @ is not a sha256 digest")?,
            ),
        ),
        None => (text, None),
    };
    // A colon after the last slash starts the tag; one before it is the registry's port.
    let (name, tag) = match rest.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (rest, None),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = match name.split_once('/') {
        Some((first, path)) if is_registry(first) => (first, path),
        _ => (DEFAULT_REGISTRY, name),
    };
    check_registry(registry)?;
    let registry = match registry {
        "index.docker.io" | "registry-1.docker.io" => DEFAULT_REGISTRY,
        other => other,
    };
    check_path(path)?;
    let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
        format!("library/{path}")
    } else {
        path.to_owned()
    };
    if registry.len() + repository.len() + 1 > MAX_NAME {
        return Err("the name is longer than 255 characters");
    }
    let version = match (digest, tag) {
        (Some(digest), _) => Version::Digest(digest),
        (None, Some(tag)) => Version::Tag(tag.to_owned()),
        (None, None) if Digest::is_hex(name) => {
            return Err("it is a bare digest; an image reference needs a name");
        }
        (None, None) => Version::Tag("latest".to_owned()),
    };
    Ok(ImageRef {
        registry: registry.to_owned(),
        repository,
        version,
    })
}

fn is_registry(first: &str) -> bool {
    first == "localhost"
        || first.contains(['.', ':'])
        || first.bytes().any(|b| b.is_ascii_uppercase())
}

fn check_registry(registry: &str) -> Result<(), &'static str> {
    let (host, port) = if let Some(rest) = registry.strip_prefix('[') {
        let (address, after) = rest
            .split_once(']')
            .ok_or("the registry's IPv6 address does not end")?;
        if address.parse::<std::net::Ipv6Addr>().is_err() {
            return Err("the registry is not an IPv6 address");
        }
        match after.strip_prefix(':') {
            Some(port) => (None, Some(port)),
            None if after.is_empty() => (None, None),
            None => return Err("the registry's port is not a number"),
        }
    } else {
        match registry.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(registry), None),
        }
    };
    let label_ok = |label: &str| {
        !label.is_empty()
            && label
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    if host.is_some_and(|host| !host.split('.').all(label_ok)) {
        return Err("the registry is not a host name");
    }
    if port.is_some_and(|port| {
        !port.bytes().all(|b| b.is_ascii_digit()) || !port.parse::<u16>().is_ok_and(|n| n > 0)
    }) {
        return Err("the registry's port is not a number");
    }
    Ok(())
}

fn check_path(path: &str) -> Result<(), &'static str> {
    for component in path.split('/') {
        if component.is_empty() {
            return Err("a part of the name is empty");
        }
        if component.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err("the repository must be lower case");
        }
        if !component
            .bytes()
            .all(|b| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-'))
        {
            return Err("the repository may only have a-z, 0-9 and . _ - /");
        }
        // Separators stand between letters or digits: one dot, one or two underscores, any number of dashes.
        let separators: Vec<&str> = component
            .split(|c: char| c.is_ascii_alphanumeric())
            .collect();
        let (Some(first), Some(last)) = (separators.first(), separators.last()) else {
            return Err("a part of the name is empty");
        };
        let inner_ok = |s: &str| matches!(s, "" | "." | "_" | "__") || s.bytes().all(|b| b == b'-');
        if !first.is_empty() || !last.is_empty() || !separators.iter().all(|s| inner_ok(s)) {
            return Err("a part of the name has separators at its ends or several in a row");
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> Result<(), &'static str> {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    match tag.as_bytes() {
        [] => Err("the tag is empty"),
        bytes if bytes.len() > MAX_TAG => Err("the tag is longer than 128 characters"),
        [first, rest @ ..]
            if word(*first) && rest.iter().all(|b| word(*b) || matches!(b, b'.' | b'-')) =>
        {
            Ok(())
        }
        _ => Err("the tag may only have letters, digits and _ . -"),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn normal(text: &str) -> String {
        text.parse::<ImageRef>().unwrap().to_string()
    }

    #[test]
    fn names_mean_what_docker_means() {
        let hex = "0123456789abcdef".repeat(4);
        for (given, meant) in [
            (
                "windows2012dc:latest",
                "docker.io/library/windows2012dc:latest",
            ),
            ("windows2012dc", "docker.io/library/windows2012dc:latest"),
            ("docker.io/busybox", "docker.io/library/busybox:latest"),
            (
                "index.docker.io/library/busybox:1",
                "docker.io/library/busybox:1",
            ),
            ("kubevirt/cirros:v1", "docker.io/kubevirt/cirros:v1"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("localhost:5000/a/b/c:t", "localhost:5000/a/b/c:t"),
            ("quay.io/a/b", "quay.io/a/b:latest"),
            ("[::1]:5000/x:1", "[::1]:5000/x:1"),
            ("a__b/c-d.e:V1.0_x", "docker.io/a__b/c-d.e:V1.0_x"),
        ] {
            assert_eq!(normal(given), meant);
        }
        assert_eq!(
            normal(&format!("x@sha256:{hex}")),
            format!("docker.io/library/x@sha256:{hex}")
        );
        assert_eq!(
            normal(&format!("x:tag@sha256:{hex}")),
            format!("docker.io/library/x@sha256:{hex}")
        );
    }

    #[test]
    fn nonsense_is_refused_with_a_reason() {
        for bad in [
            "",
            "/x",
            "x/",
            "a//b",
            "UPPER",
            "x:",
            "x:-t",
            "x:a b",
            "docker://x",
            "https://quay.io/x",
            "x@sha256:short",
            "x@md5:0123",
            "-x",
            "a..b",
            "a___b",
            "../x",
            "x y",
            "reg.io:99999/x",
            "reg.io:/x",
            "reg.io:0/x",
            "[::1/x",
            "re_g.io/x",
            "ä",
        ] {
            let error = bad.parse::<ImageRef>().unwrap_err();
            assert!(error.to_string().contains(&format!("{bad:?}")), "{error}");
        }
        assert!("a".repeat(300).parse::<ImageRef>().is_err());
        assert!("0123456789abcdef".repeat(4).parse::<ImageRef>().is_err());
    }

    proptest! {
        #[test]
        fn any_text_parses_or_not_without_panic(text in "\\PC{0,80}") {
            let _ = text.parse::<ImageRef>();
        }

        #[test]
        fn the_normal_form_parses_to_itself(
            registry in "([a-z][a-z0-9]{0,8}\\.[a-z]{2,3}(:[1-9][0-9]{0,3})?/)?",
            // A dot in the first part would make it a registry.
            path in "[a-z0-9]{1,8}([_-][a-z0-9]{1,5}){0,2}(/[a-z0-9]{1,6}){0,3}",
            tag in "(:[A-Za-z0-9_][A-Za-z0-9_.-]{0,20})?",
        ) {
            let once = normal(&format!("{registry}{path}{tag}"));
            prop_assert_eq!(normal(&once), once);
        }
    }
}
