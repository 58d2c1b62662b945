//! The status of the settings: that they were taken up, and what in them means nothing here.

use berth_api::settings::v1::{Berth, BerthStatus, NAME};
use futures::TryStreamExt as _;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use kube::api::Patch;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::reconcile::{manager_patch, now};

/// Writes the status until `shutdown`.
pub(crate) async fn run(client: Client, shutdown: CancellationToken) {
    let api: Api<Berth> = Api::all(client);
    let only = watcher::Config::default().fields(&format!("metadata.name={NAME}"));
    let mut seen = Box::pin(
        watcher(api.clone(), only)
            .default_backoff()
            .touched_objects(),
    );
    loop {
        let seen = tokio::select! {
            () = shutdown.cancelled() => return,
            seen = seen.try_next() => seen,
        };
        match seen {
            Ok(Some(berth)) => write(&api, &berth).await,
            Ok(None) => return,
            // Who follows the settings has said so already.
            Err(error) => tracing::debug!(%error, "settings"),
        }
    }
}

async fn write(api: &Api<Berth>, berth: &Berth) {
    let status = status_of(berth, &now());
    if berth.status.as_ref() == Some(&status) {
        return;
    }
    let patch = Patch::Merge(json!({
        "metadata": {"resourceVersion": berth.metadata.resource_version},
        "status": status,
    }));
    match api.patch_status(NAME, &manager_patch(), &patch).await {
        Ok(_) => {
            tracing::info!(
                generation = berth.metadata.generation,
                "the settings are taken up"
            );
        }
        // Changed or gone meanwhile, which the watch tells.
        Err(kube::Error::Api(answer)) if matches!(answer.code, 404 | 409) => {}
        Err(error) => tracing::warn!(%error, "the status of the settings is not written"),
    }
}

fn status_of(berth: &Berth, now: &Time) -> BerthStatus {
    let unknown = berth.spec.configuration.unknown_gates();
    let gates = if unknown.is_empty() {
        (true, "AllKnown", String::new())
    } else {
        let message = format!("These mean nothing here: {}", unknown.join(", "));
        (false, "Unknown", message)
    };
    let told = berth.status.as_ref().map(|status| &status.conditions);
    let condition = |type_: &str, (holds, reason, message): (bool, &str, String)| {
        let status = if holds { "True" } else { "False" };
        let before = told
            .into_iter()
            .flatten()
            .find(|c| c.type_ == type_ && c.status == status);
        Condition {
            type_: type_.to_owned(),
            status: status.to_owned(),
            reason: reason.to_owned(),
            message,
            observed_generation: berth.metadata.generation,
            last_transition_time: before
                .map_or_else(|| now.clone(), |c| c.last_transition_time.clone()),
        }
    };
    BerthStatus {
        phase: Some("Deployed".to_owned()),
        observed_generation: berth.metadata.generation,
        conditions: vec![
            condition("Available", (true, "TakenUp", String::new())),
            condition("FeatureGatesKnown", gates),
        ],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_that_mean_nothing_are_named() {
        let now = Time("2026-01-01T00:00:00Z".parse().unwrap());
        let mut berth: Berth = serde_json::from_value(json!({
            "metadata": {"name": NAME, "generation": 3},
            "spec": {"configuration": {"developerConfiguration": {"featureGates": ["ImageVolume", "Root"]}}},
        }))
        .unwrap();
        let first = status_of(&berth, &now);
        assert_eq!(first.observed_generation, Some(3));
        assert_eq!(first.conditions[1].status, "False");
        assert!(first.conditions[1].message.ends_with(": Root"));
        // Later, with nothing changed, there is nothing to write.
        berth.status = Some(first.clone());
        let later = Time("2026-01-02T00:00:00Z".parse().unwrap());
        assert_eq!(status_of(&berth, &later), first);
    }
}
