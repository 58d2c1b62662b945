//! Every difference between the two servers that is meant, with its reason.

use crate::compare::Difference;

/// See the module.
pub(crate) const DIFFERENCES: &[Difference] = &[
    Difference {
        row: "get: an unacceptable media type is 406",
        place: "*",
        why: "berth answers in JSON only; clients that would like YAML or protobuf name JSON, too",
    },
    Difference {
        row: "views: Table and PartialObjectMetadata",
        place: "*/body/message",
        why: "berth answers in JSON only",
    },
    Difference {
        row: "views: Table and PartialObjectMetadata",
        place: "*/columnDefinitions/*/description",
        why: "what a column means is said in berth's own words",
    },
    Difference {
        row: "watch: as tables and as metadata",
        place: "*/description",
        why: "what a column means is said in berth's own words",
    },
    Difference {
        row: "views: Table and PartialObjectMetadata",
        place: "*/body/items",
        why: "an empty list is [], where Go writes null; clients take both",
    },
    Difference {
        row: "update: name and uid must be those of the object",
        place: "*/body/message",
        why: "upstream's message names a key of etcd, which is not there",
    },
    Difference {
        row: "watch: a revision that is too old is 410 Expired",
        place: "*/value/*",
        why: "berth still has the revision: it forgets by number of events, etcd by time and at start",
    },
    Difference {
        row: "python: read, change, replace is held to its resourceVersion",
        place: "*",
        why: "the value is shown as 0x0, as up to Kubernetes 1.33, since scripts look for these words; 1.34 shows 0",
    },
    Difference {
        row: "delete: preconditions",
        place: "*/body/message",
        why: "the message names the revision of the object, which is each server's own",
    },
    Difference {
        row: "a bearer token that is wrong is 401",
        place: "1/value/*",
        why: "who shows no credentials is told so (401) for everything but health and version; upstream lets system:anonymous ask",
    },
    Difference {
        row: "update: custom resources must say what they replace",
        place: "*message",
        why: "the value is shown as 0x0, as up to Kubernetes 1.33, since scripts look for these words; 1.34 shows 0",
    },
    Difference {
        row: "openapi v*",
        place: "*/description",
        why: "apiVersion, kind and metadata are described in berth's own words",
    },
    Difference {
        row: "kubectl explain",
        place: "*/stdout",
        why: "apiVersion, kind and metadata are described in berth's own words",
    },
    Difference {
        row: "definition: *",
        place: "*/body/metadata/finalizers",
        why: "berth puts the finalizer on with the create, upstream's controller a moment later",
    },
    Difference {
        row: "definition: *",
        place: "*/body/status/*",
        why: "berth accepts the names within the create, upstream's controllers a moment later",
    },
    Difference {
        row: "kubectl auth can-i, whoami",
        place: "*/stdout",
        why: "everybody who is logged in may read the virtualization kinds that KubeVirt and CDI open to all; kubectl's column is wider for them",
    },
];
