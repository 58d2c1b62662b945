//! How many requests of one user are under way.
//!
//! A request counts until its whole answer has been taken, so a client that does not read cannot pile up answers.
//! Watches and streams are counted apart: they stay, and must not crowd out the requests of the same user.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use axum::body::Body;
use bytes::Bytes;
use http::Response;
use hyper::body::{Frame, SizeHint};

use crate::error::ApiError;

#[derive(Debug)]
pub(crate) struct InFlight {
    requests: usize,
    long_running: usize,
    /// By user and whether long-running; who has nothing under way is not in it.
    counts: Arc<Mutex<Counts>>,
}

type Counts = HashMap<(String, bool), usize>;

/// One request that is under way.
#[derive(Debug)]
pub(crate) struct Permit {
    counts: Arc<Mutex<Counts>>,
    of: (String, bool),
}

impl InFlight {
    pub(crate) fn new(requests: usize, long_running: usize) -> Self {
        Self {
            requests,
            long_running,
            counts: Arc::default(),
        }
    }

    pub(crate) fn enter(&self, user: &str, long_running: bool) -> Result<Permit, ApiError> {
        let limit = if long_running {
            self.long_running
        } else {
            self.requests
        };
        let of = (user.to_owned(), long_running);
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(of.clone()).or_default();
        if *count >= limit {
            return Err(ApiError::TooManyRequests);
        }
        *count += 1;
        Ok(Permit {
            counts: self.counts.clone(),
            of,
        })
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut counts = self.counts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.of) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.of);
            }
        }
    }
}

impl Permit {
    /// Keeps counting until the answer has been taken.
    pub(crate) fn until_taken(self, response: Response<Body>) -> Response<Body> {
        response.map(|body| {
            Body::new(Held {
                body,
                _with: Some(self),
            })
        })
    }
}

/// A body that something else lives as long as.
pub(crate) struct Held<T> {
    pub(crate) body: Body,
    pub(crate) _with: Option<T>,
}

impl<T: Unpin> hyper::body::Body for Held<T> {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if matches!(polled, Poll::Ready(None | Some(Err(_)))) {
            self._with = None;
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_and_watches_are_counted_apart() {
        let all = InFlight::new(1, 1);
        let first = all.enter("a", false).unwrap();
        let refused = all.enter("a", false).unwrap_err();
        assert_eq!(refused, ApiError::TooManyRequests);
        assert!(all.enter("b", false).is_ok() && all.enter("a", true).is_ok());
        drop(first);
        assert!(all.enter("a", false).is_ok());
        assert!(all.counts.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn a_request_counts_until_its_answer_is_taken() {
        let all = InFlight::new(1, 1);
        let permit = all.enter("a", false).unwrap();
        let response = permit.until_taken(Response::new(Body::from("x")));
        assert!(all.enter("a", false).is_err());
        let body = http_body_util::BodyExt::collect(response.into_body()).await;
        assert_eq!(body.unwrap().to_bytes(), "x");
        assert!(all.enter("a", false).is_ok());
    }
}
