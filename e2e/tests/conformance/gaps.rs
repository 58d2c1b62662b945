//! Rows in which berth's answers are not yet those of the real server, and that is not meant. The table shows them as OPEN,
//! and says of one that is right by now that it can leave this list. No row may be added for something that was right.

/// Names of rows.
pub(crate) const OPEN: &[&str] = &[
    "strategic merge patch: lists merge by their keys",
    "patch: name, uid and namespace do not change",
    "patch: the result is validated",
    "managedFields: by create, update, patch and status",
    "apply: a conflict names the managers, force takes over",
    "apply: lists with keys merge item by item",
    "apply: what is refused",
    "fieldValidation: Warn says what is unknown or double",
    "fieldValidation: Strict refuses what is unknown or double",
    "definition: what is refused",
    "openapi v3: the schema of a custom resource",
    "kubectl apply: created, unchanged, configured; delete",
];
