//! The settings of an installation: the one object of kind `Berth`, and a watch of it.
//!
//! Field names are those of KubeVirt's `KubeVirt` object, so that the part of it that berth honours can be taken over.
//! Without the object everything has its default.

pub mod v1;

use std::sync::Arc;

use futures::TryStreamExt as _;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;

use v1::{Berth, Configuration, NAME};

/// Name of the API group.
pub const GROUP: &str = "berth.kubevirt.io";

/// What is known of the settings: nothing before they were read for the first time.
pub type Known = Option<Arc<Configuration>>;

/// The settings as they are now; the first answer is waited for.
pub async fn current(known: &watch::Receiver<Known>) -> Arc<Configuration> {
    let mut known = known.clone();
    match known.wait_for(Option::is_some).await {
        Ok(known) => known.clone().unwrap_or_default(),
        // Who follows them is gone, and so is this process, soon.
        Err(_) => Arc::default(),
    }
}

/// Follows the settings and never ends. A server that has no such kind yet, or does not answer, leaves what was known;
/// nothing known becomes the defaults, so that nobody waits for ever.
pub async fn follow(client: Client, known: &watch::Sender<Known>) {
    let set = |configuration: Configuration| {
        let wanted = Some(Arc::new(configuration));
        known.send_if_modified(|now| {
            let differs = *now != wanted;
            *now = wanted;
            differs
        });
    };
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut events = Box::pin(watcher(Api::<Berth>::all(client), only).default_backoff());
    let mut listed = None;
    loop {
        match events.try_next().await {
            Ok(Some(Event::Init)) => listed = None,
            Ok(Some(Event::InitApply(berth))) if berth.name_any() == NAME => {
                listed = Some(berth.spec.configuration);
            }
            Ok(Some(Event::InitDone)) => set(listed.take().unwrap_or_default()),
            Ok(Some(Event::Apply(berth))) if berth.name_any() == NAME => {
                set(berth.spec.configuration);
            }
            Ok(Some(Event::Delete(berth))) if berth.name_any() == NAME => {
                set(Configuration::default());
            }
            Ok(Some(_)) => {}
            Ok(None) => return std::future::pending().await,
            Err(error) => {
                tracing::warn!(%error, "the settings are not read, will be tried again");
                known.send_if_modified(|now| {
                    let first = now.is_none();
                    now.get_or_insert_default();
                    first
                });
            }
        }
    }
}
