//! The API types of berth: what a manifest may say and what a status reports.
//!
//! The JSON names are KubeVirt's, so manifests and clients written for it work unchanged. A field that is
//! described here is a field that berth honours; a field that is not described is refused at admission with
//! its path (see `berth-admission`), never dropped.
//!
//! - [`kubevirt`] holds the types of the API group `kubevirt.io`.
//! - [`cdi`] holds those of `cdi.kubevirt.io`.
//! - [`settings`] has the settings of an installation, kind `Berth`.
//! - [`crds`] turns them into CustomResourceDefinitions; [`roles`] says who may do what with them.
//! - [`storage`] has the names around PersistentVolumes.
//! - [`quantity`] reads Kubernetes quantities; [`conditions`] edits condition lists; [`labels`] has the names;
//!   [`launcher`] those inside a launcher pod.
//! - [`refusal`] is what a refused request is answered with; [`merge`] makes status patches; [`events`] records Events, the one part that does IO.

pub mod cdi;
pub mod conditions;
mod crd;
pub mod events;
pub mod kubevirt;
pub mod labels;
pub mod launcher;
pub mod merge;
pub mod quantity;
pub mod refusal;
pub mod roles;
pub mod settings;
pub mod storage;

pub use crd::crds;
