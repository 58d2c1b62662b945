//! Work that follows the store's ring for as long as the server lives.

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::error::ApiError;

/// Failed work is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// Does `round` again and again until `stop`; a round that failed is told of in the log as `what` cannot be done, and the
/// next one waits a little.
pub(crate) async fn tend<F>(stop: CancellationToken, what: &str, round: impl Fn() -> F)
where
    F: Future<Output = Result<(), ApiError>>,
{
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            result = round() => if let Err(error) = result {
                tracing::warn!("cannot {what}: {error}");
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(RETRY) => {}
                }
            }
        }
    }
}
