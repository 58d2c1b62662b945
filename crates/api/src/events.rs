//! Core/v1 Events about an object: what `kubectl describe` and `kubectl get events` show.
//!
//! A repeated event is one Event object with a growing `count`. Its name is a digest of what it says about whom,
//! so repeats meet in the same object after a restart too, without any memory here.
//!
//! Events are advice, not state: a failed write is logged and forgotten, it never fails the caller's work.

use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams, PostParams};
use kube::{Client, Resource};
use serde_json::json;
use tracing::warn;

/// Longest message that the API takes, in bytes.
const MESSAGE_MAX: usize = 1024;

/// Writes events in the name of one component. Cheap to clone.
#[derive(Clone)]
pub struct Recorder {
    client: Client,
    source: EventSource,
}

/// Whether an event tells of trouble.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EventType {
    /// Things go as they should.
    Normal,
    /// Somebody may have to act.
    Warning,
}

impl EventType {
    /// The word used in the Event object.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

impl Recorder {
    /// A recorder for `component`, on node `host` when it belongs to one.
    #[must_use]
    pub fn new(client: Client, component: &str, host: Option<String>) -> Self {
        Self {
            client,
            source: EventSource {
                component: Some(component.to_owned()),
                host,
            },
        }
    }

    /// Records that something went as it should.
    pub async fn normal<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        reason: &str,
        message: &str,
    ) {
        self.record(about, EventType::Normal, reason, message).await;
    }

    /// Records trouble.
    pub async fn warning<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        reason: &str,
        message: &str,
    ) {
        self.record(about, EventType::Warning, reason, message)
            .await;
    }

    /// Records an event of the given type.
    pub async fn record<K: Resource<DynamicType = ()>>(
        &self,
        about: &K,
        type_: EventType,
        reason: &str,
        message: &str,
    ) {
        let event = event(
            &self.source,
            &about.object_ref(&()),
            type_,
            reason,
            message,
            Timestamp::now(),
        );
        if let Err(error) = self.write(&event).await {
            let (kind, name) = (&event.involved_object.kind, &event.involved_object.name);
            warn!(%error, ?kind, ?name, reason, "event not written");
        }
    }

    async fn write(&self, event: &Event) -> Result<(), kube::Error> {
        let api: Api<Event> = Api::namespaced(
            self.client.clone(),
            event.metadata.namespace.as_deref().unwrap_or("default"),
        );
        let name = event.metadata.name.as_deref().unwrap_or_default();
        match api.create(&PostParams::default(), event).await {
            Err(kube::Error::Api(status)) if status.code == 409 => {}
            other => return other.map(drop),
        }
        let count = api.get(name).await?.count.unwrap_or(1).saturating_add(1);
        let patch = json!({"count": count, "lastTimestamp": event.last_timestamp});
        api.patch(name, &PatchParams::default(), &Patch::Merge(&patch))
            .await
            .map(drop)
    }
}

/// The Event object for a first occurrence.
fn event(
    source: &EventSource,
    about: &ObjectReference,
    type_: EventType,
    reason: &str,
    message: &str,
    now: Timestamp,
) -> Event {
    let message = shorten(message, MESSAGE_MAX);
    let digest = fnv1a(&[
        about.kind.as_deref().unwrap_or_default(),
        about.uid.as_deref().unwrap_or_default(),
        source.component.as_deref().unwrap_or_default(),
        type_.as_str(),
        reason,
        message,
    ]);
    // A node is not namespaced; events about it live in `default`, as with kubelet.
    let namespace = about
        .namespace
        .clone()
        .unwrap_or_else(|| "default".to_owned());
    let subject = shorten(about.name.as_deref().unwrap_or("unknown"), 230);
    Event {
        metadata: kube::core::ObjectMeta {
            name: Some(format!("{subject}.{digest:016x}")),
            namespace: Some(namespace),
            ..Default::default()
        },
        involved_object: about.clone(),
        type_: Some(type_.as_str().to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        source: Some(source.clone()),
        reporting_component: source.component.clone(),
        reporting_instance: source.host.clone(),
        count: Some(1),
        first_timestamp: Some(Time(now)),
        last_timestamp: Some(Time(now)),
        ..Event::default()
    }
}

/// At most `max` bytes of `text`, cut at a character.
fn shorten(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

/// FNV-1a over the parts with a separator: stable from run to run, unlike the standard library's hasher.
fn fnv1a(parts: &[&str]) -> u64 {
    let bytes = parts
        .iter()
        .flat_map(|p| p.bytes().chain(std::iter::once(0)));
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn about(uid: &str) -> ObjectReference {
        ObjectReference {
            kind: Some("VirtualMachineInstance".to_owned()),
            name: Some("vm".to_owned()),
            namespace: Some("lab".to_owned()),
            uid: Some(uid.to_owned()),
            ..ObjectReference::default()
        }
    }

    fn named(uid: &str, reason: &str, message: &str) -> Event {
        let source = EventSource {
            component: Some("berth-node".to_owned()),
            host: None,
        };
        event(
            &source,
            &about(uid),
            EventType::Warning,
            reason,
            message,
            Timestamp::UNIX_EPOCH,
        )
    }

    #[test]
    fn the_same_words_about_the_same_object_share_a_name() {
        let name = |e: Event| e.metadata.name.unwrap();
        assert_eq!(
            name(named("1", "Failed", "x")),
            name(named("1", "Failed", "x"))
        );
        assert_ne!(
            name(named("1", "Failed", "x")),
            name(named("1", "Failed", "y"))
        );
        assert_ne!(
            name(named("1", "Failed", "x")),
            name(named("2", "Failed", "x"))
        );
        assert!(name(named("1", "Failed", "x")).starts_with("vm."));
    }

    #[test]
    fn a_long_message_is_cut_at_a_character() {
        let long = "ü".repeat(2000);
        let event = named("1", "Failed", &long);
        assert_eq!(event.message.unwrap().len(), 1024);
        assert_eq!(event.metadata.namespace.as_deref(), Some("lab"));
    }
}
