//! How far a pod is that fills a claim, asked of the pod itself.

use std::time::Duration;

use berth_api::cdi::importer::{METRICS_PORT, PROGRESS_METRIC};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const PATIENCE: Duration = Duration::from_secs(2);
const MOST: u64 = 64 << 10;

/// Percent; none where the pod does not answer, which is no news.
pub(super) async fn ask(address: &str) -> Option<f64> {
    let answer = tokio::time::timeout(PATIENCE, metrics(address))
        .await
        .ok()?
        .ok()?;
    read(&answer)
}

/// One request of HTTP/1.0: the answer ends with the connection.
async fn metrics(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((address, METRICS_PORT)).await?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
    let mut answer = Vec::new();
    stream.take(MOST).read_to_end(&mut answer).await?;
    Ok(String::from_utf8_lossy(&answer).into_owned())
}

fn read(answer: &str) -> Option<f64> {
    let line = answer
        .lines()
        .find(|line| line.starts_with(PROGRESS_METRIC))?;
    let percent: f64 = line.rsplit(' ').next()?.parse().ok()?;
    (0.0..=100.0).contains(&percent).then_some(percent)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_percentage_counts() {
        let answer = |value: &str| {
            read(&format!(
                "HTTP/1.0 200 OK\r\n\r\n# TYPE x counter\n{PROGRESS_METRIC}{{ownerUID=\"u\"}} {value}\n"
            ))
        };
        assert_eq!(answer("41.5"), Some(41.5));
        for bad in ["NaN", "-1", "101", "x", ""] {
            assert_eq!(answer(bad), None, "{bad}");
        }
    }
}
