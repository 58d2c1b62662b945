//! Acting as someone else: the `Impersonate-…` headers, and what one must be allowed for each of them.

use std::collections::BTreeMap;

use http::{HeaderMap, HeaderName};

use crate::auth::{
    ANONYMOUS, AUTHENTICATED, RequestInfo, UNAUTHENTICATED, UserInfo, split_service_account,
};

const USER: HeaderName = HeaderName::from_static("impersonate-user");
const GROUP: HeaderName = HeaderName::from_static("impersonate-group");
const UID: HeaderName = HeaderName::from_static("impersonate-uid");
const EXTRA: &str = "impersonate-extra-";

/// What the headers ask for.
#[derive(Debug, PartialEq, Eq)]
pub struct Impersonation {
    /// Who the request shall run as.
    pub user: UserInfo,
    /// What the caller must be allowed, each by the verb `impersonate`.
    pub needs: Vec<RequestInfo>,
}

/// Reads the headers; none if there are none.
///
/// # Errors
/// The words of the refusal, if the headers name a group and the like but no user.
pub fn read(headers: &HeaderMap) -> Result<Option<Impersonation>, String> {
    let values = |name: &HeaderName| -> Vec<String> {
        let all = headers.get_all(name).iter();
        all.map(|v| String::from_utf8_lossy(v.as_bytes()).into_owned())
            .collect()
    };
    let first = |name| values(name).into_iter().next().unwrap_or_default();
    let (name, mut groups, uid) = (first(&USER), values(&GROUP), first(&UID));
    let mut extra: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for header in headers.keys() {
        if let Some(key) = header.as_str().strip_prefix(EXTRA) {
            let key = super::request::decode(key);
            extra.entry(key).or_default().extend(values(header));
        }
    }
    if name.is_empty() {
        if groups.is_empty() && uid.is_empty() && extra.is_empty() {
            return Ok(None);
        }
        return Err(
            "requested impersonation of groups, uid or extra without impersonating a user".into(),
        );
    }

    let need = |group: &str, resource: &str, name: &str| RequestInfo {
        is_resource: true,
        verb: "impersonate".into(),
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        name: name.into(),
        ..RequestInfo::default()
    };
    let mut needs = Vec::new();
    let account = split_service_account(&name);
    match account {
        Some((namespace, account)) => needs.push(RequestInfo {
            namespace: namespace.into(),
            ..need("", "serviceaccounts", account)
        }),
        None => needs.push(need("", "users", &name)),
    }
    needs.extend(groups.iter().map(|group| need("", "groups", group)));
    for (key, values) in &extra {
        needs.extend(values.iter().map(|value| RequestInfo {
            subresource: key.clone(),
            ..need("authentication.k8s.io", "userextras", value)
        }));
    }
    if !uid.is_empty() {
        needs.push(need("authentication.k8s.io", "uids", &uid));
    }

    // The groups that are given are all; else a service account has those that it always has.
    if groups.is_empty()
        && let Some((namespace, _)) = account
    {
        groups = vec![
            "system:serviceaccounts".into(),
            format!("system:serviceaccounts:{namespace}"),
        ];
    }
    let said = |group: &str, groups: &[String]| groups.iter().any(|g| g == group);
    if name == ANONYMOUS {
        if !said(UNAUTHENTICATED, &groups) {
            groups.push(UNAUTHENTICATED.into());
        }
    } else if !said(AUTHENTICATED, &groups) && !said(UNAUTHENTICATED, &groups) {
        groups.push(AUTHENTICATED.into());
    }
    let user = UserInfo {
        name,
        groups,
        uid,
        extra,
    };
    Ok(Some(Impersonation { user, needs }))
}

/// Takes the headers off: they must not be obeyed twice.
pub fn strip(headers: &mut HeaderMap) {
    let ours: Vec<HeaderName> = headers
        .keys()
        .filter(|name| [&USER, &GROUP, &UID].contains(name) || name.as_str().starts_with(EXTRA))
        .cloned()
        .collect();
    for name in ours {
        headers.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, value.parse().unwrap());
        }
        map
    }

    #[test]
    fn each_header_needs_a_right() {
        let mut given = headers(&[
            ("accept", "*/*"),
            ("impersonate-user", "eve"),
            ("impersonate-group", "a"),
            ("impersonate-group", "b"),
            ("impersonate-uid", "7"),
            ("impersonate-extra-example.com%2fscopes", "view"),
        ]);
        let found = read(&given).unwrap().unwrap();
        assert_eq!(found.user.groups, ["a", "b", AUTHENTICATED]);
        assert_eq!(found.user.extra["example.com/scopes"], ["view"]);
        let shown: Vec<String> = found.needs.iter().map(|need| need.refusal("x")).collect();
        assert_eq!(
            shown,
            [
                r#"User "x" cannot impersonate resource "users" in API group "" at the cluster scope"#,
                r#"User "x" cannot impersonate resource "groups" in API group "" at the cluster scope"#,
                r#"User "x" cannot impersonate resource "groups" in API group "" at the cluster scope"#,
                r#"User "x" cannot impersonate resource "userextras/example.com/scopes" in API group "authentication.k8s.io" at the cluster scope"#,
                r#"User "x" cannot impersonate resource "uids" in API group "authentication.k8s.io" at the cluster scope"#,
            ]
        );
        strip(&mut given);
        assert_eq!(given.len(), 1);
    }

    #[test]
    fn service_accounts_and_strangers_have_their_groups() {
        let account = read(&headers(&[(
            "impersonate-user",
            "system:serviceaccount:a:b",
        )]))
        .unwrap()
        .unwrap();
        assert_eq!(account.user, UserInfo::service_account("a", "b"));
        assert_eq!(
            (
                account.needs[0].resource.as_str(),
                account.needs[0].namespace.as_str()
            ),
            ("serviceaccounts", "a")
        );
        let nobody = read(&headers(&[("impersonate-user", ANONYMOUS)]))
            .unwrap()
            .unwrap();
        assert_eq!(nobody.user, UserInfo::anonymous());
        assert_eq!(read(&headers(&[])), Ok(None));
        assert!(read(&headers(&[("impersonate-group", "a")])).is_err());
    }
}
