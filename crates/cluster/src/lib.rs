//! What berth needs on a cluster that it does not need standalone: an existing API server has to be told of it.
//!
//! - [`manifests`]: the objects that install it; [`uninstall`] takes them away;
//! - [`webhook`]: admission over HTTPS, by the same function that the embedded API server calls in process;
//! - [`certificates`]: the webhooks' certificate, made and renewed by berth, in a Secret that all replicas share;
//! - [`leader`]: which replica of the controller works.

pub mod certificates;
pub mod leader;
pub mod manifests;
pub mod uninstall;
pub mod webhook;
