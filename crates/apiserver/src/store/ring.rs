//! The last writes, kept in memory for watchers.
//!
//! Bounded by count and by bytes. Watchers hold no queue of their own: each keeps the revision that it has seen
//! and reads on from there, so a slow one costs nothing but is told [`TooOld`] once the ring has moved past it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::watch;

use crate::store::Key;

/// About how many bytes of events a watcher gets at a time: a slow client's answer is made in pieces of this size.
const PIECE: usize = 512 << 10;

/// One write, as watchers see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Revision of the write.
    pub revision: u64,
    /// What was written.
    pub key: Key,
    /// The value now; none if the key was removed.
    pub value: Option<Bytes>,
    /// The value before; none if the key was free.
    pub previous: Option<Bytes>,
    /// Revision of the write that put `previous` there; 0 if the key was free.
    pub previous_revision: u64,
}

impl Event {
    fn weight(&self) -> usize {
        let len = |bytes: &Option<Bytes>| bytes.as_ref().map_or(0, Bytes::len);
        // `previous` shares its buffer with the event before it only while that one is here: count both.
        len(&self.value) + len(&self.previous) + 256
    }
}

/// The start of a watch is no longer in the ring.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("too old resource version: {asked} ({oldest})")]
pub struct TooOld {
    /// Where the watch stands.
    pub asked: u64,
    /// The oldest revision that a watch can start from.
    pub oldest: u64,
}

/// The bounded history of one store.
#[derive(Debug)]
pub struct Ring {
    kept: Mutex<Kept>,
    /// Revision of the last write that is in the ring.
    head: watch::Sender<u64>,
}

#[derive(Debug)]
struct Kept {
    events: VecDeque<Arc<Event>>,
    bytes: usize,
    /// Every event after this revision is in `events`.
    since: u64,
    max_events: usize,
    max_bytes: usize,
}

impl Ring {
    /// An empty ring of a store that is at `revision`.
    pub fn new(revision: u64, max_events: usize, max_bytes: usize) -> Arc<Self> {
        let kept = Kept {
            events: VecDeque::new(),
            bytes: 0,
            since: revision,
            max_events,
            max_bytes,
        };
        Arc::new(Self {
            kept: Mutex::new(kept),
            head: watch::Sender::new(revision),
        })
    }

    /// Adds committed writes, in order, and wakes watchers.
    pub fn push(&self, events: impl IntoIterator<Item = Event>) {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let mut last = None;
        for event in events {
            last = Some(event.revision);
            kept.bytes += event.weight();
            kept.events.push_back(Arc::new(event));
        }
        while kept.events.len() > kept.max_events
            || (kept.bytes > kept.max_bytes && kept.events.len() > 1)
        {
            if let Some(gone) = kept.events.pop_front() {
                kept.bytes -= gone.weight();
                kept.since = gone.revision;
            }
        }
        drop(kept);
        if let Some(last) = last {
            self.head.send_replace(last);
        }
    }

    /// Revision of the last write.
    pub fn head(&self) -> u64 {
        *self.head.borrow()
    }

    /// Watches all writes after `revision`.
    pub fn subscribe(self: &Arc<Self>, revision: u64) -> Result<Subscription, TooOld> {
        let oldest = self
            .kept
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .since;
        if revision < oldest {
            return Err(TooOld {
                asked: revision,
                oldest,
            });
        }
        Ok(Subscription {
            ring: self.clone(),
            head: self.head.subscribe(),
            seen: revision,
        })
    }

    /// Waits until the write of this revision is in the ring.
    pub(crate) async fn reached(&self, revision: u64) {
        // The sender is held by `self`, so it cannot be gone.
        let _ = self
            .head
            .subscribe()
            .wait_for(|head| *head >= revision)
            .await;
    }

    /// The writes after a revision.
    pub(crate) fn after(&self, revision: u64) -> Result<Vec<Arc<Event>>, TooOld> {
        let kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        if revision < kept.since {
            return Err(TooOld {
                asked: revision,
                oldest: kept.since,
            });
        }
        let from = kept
            .events
            .partition_point(|event| event.revision <= revision);
        let mut bytes = 0;
        let piece = kept.events.range(from..).take_while(|event| {
            let fits = bytes < PIECE;
            bytes += event.weight();
            fits
        });
        Ok(piece.cloned().collect())
    }
}

/// One watcher's place in the ring.
#[derive(Debug)]
pub struct Subscription {
    ring: Arc<Ring>,
    head: watch::Receiver<u64>,
    seen: u64,
}

impl Subscription {
    /// The writes since the last call, at least one; waits for it. Cancel-safe.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event>>, TooOld> {
        loop {
            self.head.borrow_and_update();
            let events = self.ring.after(self.seen)?;
            if let Some(last) = events.last() {
                self.seen = last.revision;
                return Ok(events);
            }
            // The ring is held by `self`, so its sender cannot be gone.
            let _ = self.head.changed().await;
        }
    }

    /// The revision up to which everything was handed out.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// Skips writes up to `revision`, which the watcher knows from a listing.
    pub fn skip_to(&mut self, revision: u64) {
        self.seen = self.seen.max(revision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(revision: u64) -> Event {
        let key = Key::new(&"/things".into(), "", &revision.to_string());
        Event {
            revision,
            key,
            value: Some(Bytes::from_static(b"x")),
            previous: None,
            previous_revision: 0,
        }
    }

    #[tokio::test]
    async fn replays_then_follows() {
        let ring = Ring::new(0, 10, 1 << 20);
        ring.push((1..=3).map(event));
        let mut watch = ring.subscribe(1).unwrap();
        let seen: Vec<_> = watch
            .next()
            .await
            .unwrap()
            .iter()
            .map(|e| e.revision)
            .collect();
        assert_eq!(seen, [2, 3]);
        let pusher = ring.clone();
        let task = tokio::spawn(async move { pusher.push([event(4)]) });
        assert_eq!(watch.next().await.unwrap()[0].revision, 4);
        task.await.unwrap();
    }

    #[tokio::test]
    async fn past_the_ring_is_too_old() {
        let ring = Ring::new(5, 2, 1 << 20);
        assert!(ring.subscribe(4).is_err());
        let mut slow = ring.subscribe(5).unwrap();
        ring.push((6..=9).map(event));
        assert_eq!(
            slow.next().await,
            Err(TooOld {
                asked: 5,
                oldest: 7
            })
        );
        assert!(ring.subscribe(7).is_ok());
    }

    #[tokio::test]
    async fn much_comes_in_pieces() {
        let ring = Ring::new(0, 100, 100 << 20);
        ring.push((1..=10).map(|revision| Event {
            value: Some(Bytes::from(vec![b'x'; PIECE / 2])),
            ..event(revision)
        }));
        let mut watch = ring.subscribe(0).unwrap();
        let mut seen = Vec::new();
        while seen.len() < 10 {
            let piece = watch.next().await.unwrap();
            assert!(piece.len() <= 2, "{}", piece.len());
            seen.extend(piece.iter().map(|event| event.revision));
        }
        assert!(seen.into_iter().eq(1..=10));
    }

    #[test]
    fn bounded_by_bytes() {
        let ring = Ring::new(0, 1000, 1000);
        ring.push((1..=100).map(event));
        assert!(ring.subscribe(90).is_err());
        assert!(ring.subscribe(99).is_ok());
    }
}
