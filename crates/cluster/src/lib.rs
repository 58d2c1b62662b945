//! What berth needs on a cluster that it does not need standalone: an existing API server has to be told of it.
//!
//! - [`manifests`]: the objects that install it; [`uninstall`] takes them away,
//!   [`doctor`] says what is missing;
//! - [`webhook`]: admission, by the same function that the embedded API server calls in process;
//! - [`aggregated`]: the subresources, which the embedded API server serves itself; [`front_proxy`] says for whom;
//! - [`nodes`]: the way from the controller to node agents;
//! - [`serve`]: HTTPS for these three; [`certificates`]: what it needs, made and renewed by berth;
//! - [`leader`]: which replica of the controller works.

pub mod aggregated;
pub mod certificates;
pub mod doctor;
pub mod front_proxy;
pub mod leader;
pub mod manifests;
pub mod nodes;
pub mod serve;
pub mod uninstall;
pub mod webhook;
