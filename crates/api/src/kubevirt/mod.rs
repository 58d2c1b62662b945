//! The API group `kubevirt.io`.

pub mod v1;

/// Name of the API group.
pub const GROUP: &str = "kubevirt.io";

/// Every served version of the group, the storage version first. All of them have the same schema.
pub const VERSIONS: [&str; 3] = ["v1", "v1alpha3", "v1alpha2"];
