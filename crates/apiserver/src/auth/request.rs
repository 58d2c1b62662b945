//! What a request asks for, read from its method and path alone, as upstream's `RequestInfo`.

use http::{Method, Uri};

/// A parsed request line.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RequestInfo {
    /// Whether the path names API objects; else only `verb` and `path` are set.
    pub is_resource: bool,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`; for other paths the lower-case method.
    pub verb: String,
    /// The whole path.
    pub path: String,
    /// Empty for the core group.
    pub group: String,
    /// For example `v1`.
    pub version: String,
    /// Empty for cluster-scoped requests and lists over all namespaces.
    pub namespace: String,
    /// Plural name.
    pub resource: String,
    /// For example `status`; may hold several path segments. Empty if none.
    pub subresource: String,
    /// Empty for collections.
    pub name: String,
}

impl RequestInfo {
    /// Parses a request line. Never fails: what is not a resource path is simply a path.
    pub fn parse(method: &Method, uri: &Uri) -> Self {
        let path = uri.path();
        let mut info = Self {
            verb: method.as_str().to_ascii_lowercase(),
            path: path.to_owned(),
            ..Self::default()
        };
        let segments: Vec<String> = path
            .split('/')
            .filter(|s| !s.is_empty())
            .map(decode)
            .collect();
        let mut rest = match segments
            .iter()
            .map(String::as_str)
            .collect::<Vec<_>>()
            .as_slice()
        {
            ["api", version, _, ..] => {
                info.version = (*version).to_owned();
                &segments[2..]
            }
            ["apis", group, version, _, ..] => {
                info.group = (*group).to_owned();
                info.version = (*version).to_owned();
                &segments[3..]
            }
            _ => return info,
        };
        info.is_resource = true;
        // `/namespaces/x` and its own subresources are about the namespace itself, anything longer is inside it.
        if rest.len() > 2
            && rest[0] == "namespaces"
            && !matches!(rest[2].as_str(), "status" | "finalize")
        {
            info.namespace.clone_from(&rest[1]);
            rest = &rest[2..];
        } else if rest.len() > 1 && rest[0] == "namespaces" {
            info.namespace.clone_from(&rest[1]);
        }
        info.resource.clone_from(&rest[0]);
        if let Some(name) = rest.get(1) {
            info.name.clone_from(name);
        }
        if rest.len() > 2 {
            info.subresource = rest[2..].join("/");
        }
        let watch = query_flag(uri, "watch");
        info.verb = match (method.as_str(), info.name.is_empty()) {
            ("GET" | "HEAD", true) if watch => "watch",
            ("GET" | "HEAD", true) => "list",
            // A web socket over HTTP/2 comes by CONNECT.
            ("GET" | "HEAD" | "CONNECT", false) => "get",
            ("POST", _) => "create",
            ("PUT", _) => "update",
            ("PATCH", _) => "patch",
            ("DELETE", true) => "deletecollection",
            ("DELETE", false) => "delete",
            _ => return info,
        }
        .to_owned();
        info
    }

    /// The subresource that rules speak of: of a path the first segment, else what was asked about.
    pub fn first_subresource(&self) -> &str {
        match self.subresource.split_once('/') {
            Some((first, _)) if !self.path.is_empty() => first,
            _ => &self.subresource,
        }
    }

    /// The words that a refusal uses for this request: `User "x" cannot list resource "pods" in API group ""…`.
    pub fn refusal(&self, user: &str) -> String {
        if !self.is_resource {
            return format!("User {user:?} cannot {} path {:?}", self.verb, self.path);
        }
        let mut resource = self.resource.clone();
        if !self.subresource.is_empty() {
            resource = format!("{resource}/{}", self.first_subresource());
        }
        let scope = if self.namespace.is_empty() {
            " at the cluster scope".to_owned()
        } else {
            format!(" in the namespace {:?}", self.namespace)
        };
        format!(
            "User {user:?} cannot {} resource {resource:?} in API group {:?}{scope}",
            self.verb, self.group
        )
    }
}

fn query_flag(uri: &Uri, flag: &str) -> bool {
    uri.query().is_some_and(|query| {
        query.split('&').any(|pair| match pair.split_once('=') {
            Some((key, value)) => {
                key == flag && matches!(value, "" | "1" | "t" | "T" | "true" | "TRUE" | "True")
            }
            None => pair == flag,
        })
    })
}

/// Percent-decodes one path segment; bytes that are not UTF-8 become the replacement character.
pub(crate) fn decode(segment: &str) -> String {
    if !segment.contains('%') {
        return segment.to_owned();
    }
    let bytes = segment.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
                at += 3;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(method: &str, uri: &str) -> RequestInfo {
        RequestInfo::parse(&method.parse().unwrap(), &uri.parse().unwrap())
    }

    #[test]
    fn core_and_group_paths() {
        let pods = parse("GET", "/api/v1/namespaces/a/pods/p/log?x=1");
        assert_eq!(
            (
                pods.verb.as_str(),
                pods.namespace.as_str(),
                pods.resource.as_str(),
                pods.name.as_str()
            ),
            ("get", "a", "pods", "p")
        );
        assert_eq!(pods.subresource, "log");
        let all = parse(
            "GET",
            "/apis/kubevirt.io/v1/virtualmachineinstances?watch=true",
        );
        assert_eq!(
            (
                all.verb.as_str(),
                all.group.as_str(),
                all.namespace.as_str()
            ),
            ("watch", "kubevirt.io", "")
        );
    }

    #[test]
    fn namespaces_are_resources_too() {
        let one = parse("PUT", "/api/v1/namespaces/a/status");
        assert_eq!(
            (
                one.resource.as_str(),
                one.name.as_str(),
                one.subresource.as_str()
            ),
            ("namespaces", "a", "status")
        );
        let list = parse("GET", "/api/v1/namespaces");
        assert_eq!(
            (list.verb.as_str(), list.resource.as_str()),
            ("list", "namespaces")
        );
        let inside = parse("DELETE", "/api/v1/namespaces/a/pods");
        assert_eq!(
            (inside.verb.as_str(), inside.resource.as_str()),
            ("deletecollection", "pods")
        );
    }

    #[test]
    fn other_paths_and_escapes() {
        assert!(!parse("GET", "/api/v1").is_resource);
        assert!(!parse("GET", "/version").is_resource);
        assert_eq!(parse("GET", "/api/v1/nodes/a%2Db%zz").name, "a-b%zz");
        assert_eq!(
            parse("GET", "/api/v1/nodes").refusal("u"),
            r#"User "u" cannot list resource "nodes" in API group "" at the cluster scope"#
        );
    }
}
