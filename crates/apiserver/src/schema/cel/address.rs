//! URLs as upstream's library sees them: the parts are those of the text, a port that goes without saying included.

use std::collections::HashMap;
use std::sync::Arc;

use kube_cel::cel::Value as Cel;
use kube_cel::cel::objects::Opaque;

#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Address {
    scheme: String,
    host: String,
    path: String,
    query: String,
}

impl Opaque for Address {
    fn runtime_type_name(&self) -> &str {
        "kubernetes.URL"
    }
}

impl Address {
    fn parse(text: &str) -> Option<Self> {
        if text.chars().any(|c| c.is_ascii_control() || c == ' ') {
            return None;
        }
        let (before, query) = text.split_once('?').unwrap_or((text, ""));
        let mut out = Self {
            query: query.to_owned(),
            ..Self::default()
        };
        if before.starts_with('/') {
            out.path = before.to_owned();
            return Some(out);
        }
        let (scheme, rest) = before.split_once(':')?;
        let good = scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme
                .bytes()
                .all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b));
        if !good {
            return None;
        }
        out.scheme = scheme.to_lowercase();
        if let Some(rest) = rest.strip_prefix("//") {
            let end = rest.find('/').unwrap_or(rest.len());
            let authority = &rest[..end];
            out.host = authority
                .rsplit_once('@')
                .map_or(authority, |(_, host)| host)
                .to_owned();
            out.path = rest[end..].to_owned();
            let port_is_number = out.port().bytes().all(|b| b.is_ascii_digit());
            return port_is_number.then_some(out);
        }
        Some(out)
    }

    /// Where the host ends and its port begins.
    fn split(&self) -> (&str, &str) {
        let after_brackets = self.host.rfind(']').map_or(0, |i| i + 1);
        match self.host[after_brackets..].rfind(':') {
            Some(i) => (
                &self.host[..after_brackets + i],
                &self.host[after_brackets + i + 1..],
            ),
            None => (&self.host, ""),
        }
    }

    fn port(&self) -> &str {
        self.split().1
    }

    fn part(&self, name: &str) -> Option<String> {
        Some(match name {
            "getScheme" => self.scheme.clone(),
            "getHost" => self.host.clone(),
            "getHostname" => self.split().0.trim_matches(['[', ']']).to_owned(),
            "getPort" => self.port().to_owned(),
            "getEscapedPath" => self.path.clone(),
            _ => return None,
        })
    }

    fn query(&self) -> Cel {
        let mut map: HashMap<String, Vec<Cel>> = HashMap::new();
        for pair in self.query.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            map.entry(decoded(key))
                .or_default()
                .push(decoded(value).into());
        }
        let map: HashMap<String, Cel> = map
            .into_iter()
            .map(|(key, values)| (key, Cel::List(Arc::new(values))))
            .collect();
        map.into()
    }
}

fn decoded(text: &str) -> String {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let figure = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
                if let (Some(high), Some(low)) = (figure(bytes.next()), figure(bytes.next())) {
                    out.extend(u8::try_from(high * 16 + low));
                }
            }
            other => out.push(other),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Answers the functions about URLs; none if it is no such call.
pub(super) fn call(name: &str, value: &Cel) -> Option<Result<Cel, String>> {
    match (name, value) {
        ("isURL", Cel::String(text)) => Some(Ok(Cel::Bool(Address::parse(text).is_some()))),
        ("url", Cel::String(text)) => Some(match Address::parse(text) {
            Some(address) => Ok(Cel::Opaque(Arc::new(address))),
            None => Err(format!(
                "URL parse error during conversion from string: parse {text:?}: invalid URI for request"
            )),
        }),
        (name, Cel::Opaque(opaque)) => {
            let address = opaque.downcast_ref::<Address>()?;
            if name == "getQuery" {
                return Some(Ok(address.query()));
            }
            address.part(name).map(|part| Ok(part.into()))
        }
        _ => None,
    }
}
