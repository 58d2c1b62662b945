//! Which replica works: the holder of a Lease.
//!
//! The holder renews it; the others wait until it has not been renewed for its whole duration, as their own clocks
//! measure it, since those of machines differ. Each write carries the version that was read, so two cannot both win. Who
//! cannot renew in time must stop working before another may begin.

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::api::{ObjectMeta, PostParams};
use kube::{Api, Client};
use tokio_util::sync::CancellationToken;

/// How long the lease holds without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// The holder gives up when it could not renew for so long: well before others may take over.
const GIVE_UP: Duration = Duration::from_secs(10);
/// Between two looks, and two renewals.
const BEAT: Duration = Duration::from_secs(2);

/// The Lease and who asks for it.
#[derive(Debug, Clone)]
pub struct Candidate {
    /// Where the Lease is.
    pub namespace: String,
    /// Its name.
    pub lease: String,
    /// Unique among all that ask: the name of the pod.
    pub identity: String,
}

/// What is known of somebody else's lease.
struct Seen {
    version: Option<String>,
    since: Instant,
}

/// Waits until this candidate holds the lease; none if `shutdown` came first.
pub async fn elected(
    client: Client,
    candidate: Candidate,
    shutdown: &CancellationToken,
) -> Option<Held> {
    let api: Api<Lease> = Api::namespaced(client, &candidate.namespace);
    let mut seen = None;
    loop {
        match attempt(&api, &candidate, &mut seen).await {
            Ok(true) => {
                tracing::info!(identity = candidate.identity, "leads");
                return Some(Held { api, candidate });
            }
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "the lease cannot be had, will be tried again"),
        }
        tokio::select! {
            () = shutdown.cancelled() => return None,
            () = tokio::time::sleep(BEAT) => {}
        }
    }
}

/// Takes the lease if it is free, ours, or has run out.
async fn attempt(
    api: &Api<Lease>,
    candidate: &Candidate,
    seen: &mut Option<Seen>,
) -> Result<bool, kube::Error> {
    let found = api.get_opt(&candidate.lease).await?;
    let Some(found) = found else {
        let lease = lease(candidate, None, 0);
        return won(api.create(&PostParams::default(), &lease).await);
    };
    let holder = found
        .spec
        .as_ref()
        .and_then(|spec| spec.holder_identity.as_deref())
        .unwrap_or_default();
    if !holder.is_empty() && holder != candidate.identity {
        let version = found.metadata.resource_version.clone();
        match seen {
            Some(seen) if seen.version == version => {
                if seen.since.elapsed() < DURATION {
                    return Ok(false);
                }
            }
            // It lives.
            _ => {
                let since = Instant::now();
                *seen = Some(Seen { version, since });
                return Ok(false);
            }
        }
    }
    let transitions = found
        .spec
        .as_ref()
        .and_then(|spec| spec.lease_transitions)
        .unwrap_or(0);
    let transitions = transitions + i32::from(holder != candidate.identity);
    let lease = lease(candidate, Some(&found), transitions);
    won(api
        .replace(&candidate.lease, &PostParams::default(), &lease)
        .await)
}

fn won(written: Result<Lease, kube::Error>) -> Result<bool, kube::Error> {
    match written {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(false),
        Err(error) => Err(error),
    }
}

fn lease(candidate: &Candidate, found: Option<&Lease>, transitions: i32) -> Lease {
    let now = MicroTime(Timestamp::now());
    let spec = found.and_then(|found| found.spec.clone());
    let kept = spec.filter(|s| s.holder_identity.as_deref() == Some(&candidate.identity));
    Lease {
        metadata: ObjectMeta {
            name: Some(candidate.lease.clone()),
            namespace: Some(candidate.namespace.clone()),
            resource_version: found.and_then(|found| found.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            holder_identity: Some(candidate.identity.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: kept
                .and_then(|kept| kept.acquire_time)
                .or_else(|| Some(now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }),
    }
}

/// A lease that is held.
pub struct Held {
    api: Api<Lease>,
    candidate: Candidate,
}

impl Held {
    /// Renews until it is lost or `shutdown` comes; then it is given back. True if it was lost: whoever worked under it
    /// must not write any more.
    pub async fn keep(self, shutdown: &CancellationToken) -> bool {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = shutdown.cancelled() => {
                    self.give_back().await;
                    return false;
                }
                () = tokio::time::sleep(BEAT) => {}
            }
            let left = GIVE_UP.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(left, attempt(&self.api, &self.candidate, &mut None)).await {
                Ok(Ok(true)) => renewed = Instant::now(),
                Ok(Ok(false)) => {
                    tracing::error!("the lease was taken over");
                    return true;
                }
                Ok(Err(error)) => tracing::warn!(%error, "the lease is not renewed"),
                Err(_) => {}
            }
            if renewed.elapsed() >= GIVE_UP {
                tracing::error!("the lease could not be renewed");
                return true;
            }
        }
    }

    /// So that the next one need not wait for it to run out.
    async fn give_back(&self) {
        let given = async {
            let mut lease = self.api.get(&self.candidate.lease).await?;
            let holder = lease.spec.as_ref().and_then(|s| s.holder_identity.clone());
            if holder.as_deref() == Some(&self.candidate.identity)
                && let Some(spec) = &mut lease.spec
            {
                spec.holder_identity = Some(String::new());
                self.api
                    .replace(&self.candidate.lease, &PostParams::default(), &lease)
                    .await?;
            }
            Ok::<_, kube::Error>(())
        };
        match tokio::time::timeout(BEAT, given).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "the lease is not given back"),
            Err(_) => tracing::warn!("the lease is not given back: no answer"),
        }
    }
}
