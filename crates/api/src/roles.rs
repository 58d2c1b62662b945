//! The ClusterRoles of berth's kinds: KubeVirt's and CDI's, by name and by what they allow.
//!
//! Those for admins, editors and viewers are labelled so that the cluster's own `admin`, `edit` and `view` take their rules
//! in. They speak of every kind that KubeVirt's speak of, so that a user who comes from there has the same rights.

use std::collections::BTreeMap;

use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, PolicyRule, RoleRef, Subject};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

const GROUP: &str = crate::kubevirt::GROUP;
const SUBRESOURCES: &str = "subresources.kubevirt.io";
const RBAC: &str = "rbac.authorization.k8s.io";

const READ: &[&str] = &["get", "list", "watch"];
const EDIT: &[&str] = &[
    "create", "delete", "get", "list", "patch", "update", "watch",
];
const ADMIN: &[&str] = &[
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];

/// The kinds of virtual machines.
const MACHINES: &[&str] = &[
    "virtualmachineinstancepresets",
    "virtualmachineinstancereplicasets",
    "virtualmachineinstances",
    "virtualmachines",
];
/// What may be looked at from outside the guest.
const LOOK: &[&str] = &[
    "virtualmachineinstances/filesystemlist",
    "virtualmachineinstances/guestosinfo",
    "virtualmachineinstances/objectgraph",
    "virtualmachineinstances/sev/fetchcertchain",
    "virtualmachineinstances/sev/querylaunchmeasurement",
    "virtualmachineinstances/userlist",
    "virtualmachines/expand-spec",
    "virtualmachines/objectgraph",
];
/// Ways into the guest.
const ENTER: &[&str] = &[
    "virtualmachineinstances/console",
    "virtualmachineinstances/portforward",
    "virtualmachineinstances/usbredir",
    "virtualmachineinstances/vnc",
    "virtualmachineinstances/vnc/screenshot",
    "virtualmachines/portforward",
];
/// What is done to a machine without changing its object.
const OPERATE: &[&str] = &[
    "virtualmachineinstances/addvolume",
    "virtualmachineinstances/evacuate/cancel",
    "virtualmachineinstances/freeze",
    "virtualmachineinstances/pause",
    "virtualmachineinstances/removevolume",
    "virtualmachineinstances/reset",
    "virtualmachineinstances/sev/injectlaunchsecret",
    "virtualmachineinstances/sev/setupsession",
    "virtualmachineinstances/softreboot",
    "virtualmachineinstances/unfreeze",
    "virtualmachineinstances/unpause",
    "virtualmachines/addvolume",
    "virtualmachines/evacuate/cancel",
    "virtualmachines/memorydump",
    "virtualmachines/removememorydump",
    "virtualmachines/removevolume",
    "virtualmachines/restart",
    "virtualmachines/start",
    "virtualmachines/stop",
];
/// Groups around virtual machines, and their kinds.
const AROUND: &[(&str, &[&str])] = &[
    (
        "backup.kubevirt.io",
        &["virtualmachinebackups", "virtualmachinebackuptrackers"],
    ),
    ("clone.kubevirt.io", &["virtualmachineclones"]),
    ("export.kubevirt.io", &["virtualmachineexports"]),
    (
        "instancetype.kubevirt.io",
        &[
            "virtualmachineclusterinstancetypes",
            "virtualmachineclusterpreferences",
            "virtualmachineinstancetypes",
            "virtualmachinepreferences",
        ],
    ),
    ("pool.kubevirt.io", &["virtualmachinepools"]),
    (
        "snapshot.kubevirt.io",
        &[
            "virtualmachinerestores",
            "virtualmachinesnapshotcontents",
            "virtualmachinesnapshots",
        ],
    ),
];
/// CDI's group and its kinds of a namespace.
const CDI: &str = "cdi.kubevirt.io";
const DISKS: &[&str] = &[
    "dataimportcrons",
    "datasources",
    "datavolumes",
    "volumeclonesources",
    "volumeimportsources",
    "volumeuploadsources",
];

/// Every ClusterRole.
pub fn roles() -> Vec<ClusterRole> {
    let mut roles = vec![
        role(
            "kubevirt.io:default",
            None,
            vec![
                rule(GROUP, &["kubevirts"], &["get", "list"]),
                rule(SUBRESOURCES, &["guestfs", "version"], &["get", "list"]),
            ],
        ),
        role(
            "kubevirt.io:migrate",
            None,
            vec![
                rule(SUBRESOURCES, &["virtualmachines/migrate"], &["update"]),
                rule(GROUP, &["virtualmachineinstancemigrations"], ADMIN),
            ],
        ),
        role(
            "instancetype.kubevirt.io:view",
            None,
            vec![rule(
                "instancetype.kubevirt.io",
                &[
                    "virtualmachineclusterinstancetypes",
                    "virtualmachineclusterpreferences",
                ],
                READ,
            )],
        ),
    ];
    roles.push(role(
        "cdi.kubevirt.io:config-reader",
        None,
        vec![rule(CDI, &["cdiconfigs", "storageprofiles"], READ)],
    ));
    for (to, verbs) in [("admin", ADMIN), ("edit", EDIT), ("view", READ)] {
        roles.push(machines(to, verbs));
        roles.push(disks(to));
    }
    roles
}

/// The bindings that let every known user see what is in no namespace: the version, cluster-wide instance types.
pub fn bindings() -> Vec<ClusterRoleBinding> {
    [
        "kubevirt.io:default",
        "instancetype.kubevirt.io:view",
        "cdi.kubevirt.io:config-reader",
    ]
    .map(|name| ClusterRoleBinding {
        metadata: metadata(name, None),
        role_ref: RoleRef {
            api_group: RBAC.to_owned(),
            kind: "ClusterRole".to_owned(),
            name: name.to_owned(),
        },
        subjects: Some(vec![Subject {
            api_group: Some(RBAC.to_owned()),
            kind: "Group".to_owned(),
            name: "system:authenticated".to_owned(),
            namespace: None,
        }]),
    })
    .into()
}

fn machines(to: &str, verbs: &[&str]) -> ClusterRole {
    let mut rules = vec![
        rule(GROUP, MACHINES, verbs),
        // Moving machines is the cluster admin's; who shall do it is bound to `kubevirt.io:migrate`.
        rule(GROUP, &["virtualmachineinstancemigrations"], READ),
        rule(GROUP, &["kubevirts"], &["get", "list"]),
        rule("migrations.kubevirt.io", &["migrationpolicies"], READ),
        rule(SUBRESOURCES, LOOK, &["get"]),
        rule(SUBRESOURCES, &["expand-vm-spec"], &["update"]),
    ];
    for (group, kinds) in AROUND {
        rules.push(rule(group, kinds, verbs));
    }
    if to != "view" {
        rules.push(rule(SUBRESOURCES, ENTER, &["get"]));
        rules.push(rule(SUBRESOURCES, OPERATE, &["update"]));
    }
    role(&format!("kubevirt.io:{to}"), Some(to), rules)
}

fn disks(to: &str) -> ClusterRole {
    let rules = if to == "view" {
        vec![
            rule(CDI, DISKS, READ),
            rule(
                CDI,
                &["cdiconfigs", "objecttransfers", "storageprofiles"],
                READ,
            ),
            rule(CDI, &["datavolumes/source"], &["create"]),
        ]
    } else {
        vec![
            rule(CDI, DISKS, &["*"]),
            rule(CDI, &["datavolumes/source"], &["create"]),
            rule("upload.cdi.kubevirt.io", &["uploadtokenrequests"], &["*"]),
        ]
    };
    role(&format!("cdi.kubevirt.io:{to}"), Some(to), rules)
}

fn metadata(name: &str, aggregate_to: Option<&str>) -> ObjectMeta {
    let label = aggregate_to.map(|to| format!("{RBAC}/aggregate-to-{to}"));
    ObjectMeta {
        name: Some(name.to_owned()),
        labels: label.map(|label| BTreeMap::from([(label, "true".to_owned())])),
        annotations: Some(BTreeMap::from([(
            "rbac.authorization.kubernetes.io/autoupdate".to_owned(),
            "true".to_owned(),
        )])),
        ..ObjectMeta::default()
    }
}

fn role(name: &str, aggregate_to: Option<&str>, rules: Vec<PolicyRule>) -> ClusterRole {
    ClusterRole {
        metadata: metadata(name, aggregate_to),
        rules: Some(rules),
        aggregation_rule: None,
    }
}

fn rule(group: &str, resources: &[&str], verbs: &[&str]) -> PolicyRule {
    let own = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect();
    PolicyRule {
        api_groups: Some(own(&[group])),
        resources: Some(own(resources)),
        verbs: own(verbs),
        ..PolicyRule::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether the role called `kubevirt.io:<to>` or `cdi.kubevirt.io:<to>` allows something.
    fn allows(to: &str, group: &str, resource: &str, verb: &str) -> bool {
        let has = |list: &[String], one: &str| list.iter().any(|own| own == one || own == "*");
        roles()
            .into_iter()
            .filter(|role| {
                role.metadata
                    .name
                    .as_deref()
                    .is_some_and(|name| name.ends_with(&format!(":{to}")))
            })
            .flat_map(|role| role.rules.unwrap_or_default())
            .any(|rule| {
                has(&rule.api_groups.unwrap_or_default(), group)
                    && has(&rule.resources.unwrap_or_default(), resource)
                    && has(&rule.verbs, verb)
            })
    }

    #[test]
    fn each_role_has_its_part() {
        #[rustfmt::skip]
        let table = [
            // group, resource, verb, who has it
            (GROUP, "virtualmachines", "get", "admin edit view"),
            (GROUP, "virtualmachineinstances", "update", "admin edit"),
            (GROUP, "virtualmachineinstances", "deletecollection", "admin"),
            (GROUP, "virtualmachineinstancemigrations", "get", "admin edit view migrate"),
            (GROUP, "virtualmachineinstancemigrations", "create", "migrate"),
            (SUBRESOURCES, "virtualmachineinstances/console", "get", "admin edit"),
            (SUBRESOURCES, "virtualmachines/start", "update", "admin edit"),
            (SUBRESOURCES, "virtualmachineinstances/guestosinfo", "get", "admin edit view"),
            (SUBRESOURCES, "version", "get", "default"),
            ("snapshot.kubevirt.io", "virtualmachinesnapshots", "delete", "admin edit"),
            (CDI, "datavolumes", "create", "admin edit"),
            (CDI, "datavolumes", "watch", "admin edit view"),
            (CDI, "datavolumes/source", "create", "admin edit view"),
            ("", "secrets", "get", ""),
        ];
        for (group, resource, verb, who) in table {
            for to in ["admin", "edit", "view", "migrate", "default"] {
                let expected = who.split(' ').any(|one| one == to);
                assert_eq!(
                    allows(to, group, resource, verb),
                    expected,
                    "{to} {verb} {resource}.{group}"
                );
            }
        }
    }

    #[test]
    fn only_three_parts_are_taken_in_by_the_roles_of_the_cluster() {
        let labelled: Vec<String> = roles()
            .into_iter()
            .filter(|role| role.metadata.labels.is_some())
            .filter_map(|role| role.metadata.name)
            .collect();
        assert_eq!(labelled.len(), 6, "{labelled:?}");
    }
}
