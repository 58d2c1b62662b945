//! `kubectl logs`: what a pod's launcher wrote.
//!
//! `GET /api/v1/namespaces/{namespace}/pods/{name}/log` with `container`, `follow`, `tailLines` and `limitBytes`. Lines
//! carry no times of the runtime's (the launcher writes its own), so `timestamps`, `sinceSeconds` and `sinceTime` change
//! nothing. Following asks the file again every [`TICK`] until the pod has ended and all is read.

use std::io::SeekFrom;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use berth_api::refusal;
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _};
use serde::Deserialize;
use tokio::fs::File;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};

use crate::pod::Sandboxes;

/// Between two looks at a log that is followed.
const TICK: Duration = Duration::from_millis(250);
/// Read at once.
const CHUNK: usize = 32 << 10;

#[derive(Clone)]
struct Logs {
    client: Client,
    sandboxes: Arc<Sandboxes>,
}

/// What kubectl may ask for.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Options {
    container: Option<String>,
    follow: Option<String>,
    tail_lines: Option<u64>,
    limit_bytes: Option<u64>,
    previous: Option<String>,
}

fn is_true(value: Option<&String>) -> bool {
    value.is_some_and(|value| value == "true" || value == "1")
}

/// The route.
pub(crate) fn router(client: Client, sandboxes: Arc<Sandboxes>) -> Router {
    Router::new()
        .route("/api/v1/namespaces/{namespace}/pods/{name}/log", get(log))
        .with_state(Logs { client, sandboxes })
}

fn refuse(code: StatusCode, reason: &str, message: &str) -> Response {
    let status = refusal::status(code.as_u16(), reason, message);
    (code, axum::Json(status)).into_response()
}

async fn log(
    State(logs): State<Logs>,
    Path((namespace, name)): Path<(String, String)>,
    Query(options): Query<Options>,
) -> Response {
    let api: Api<Pod> = Api::namespaced(logs.client.clone(), &namespace);
    let pod = match api.get_opt(&name).await {
        Ok(Some(pod)) => pod,
        Ok(None) => {
            return refuse(
                StatusCode::NOT_FOUND,
                "NotFound",
                &format!("pods {name:?} not found"),
            );
        }
        Err(error) => {
            return refuse(
                StatusCode::INTERNAL_SERVER_ERROR,
                "InternalError",
                &error.to_string(),
            );
        }
    };
    let containers: Vec<_> = pod
        .spec
        .iter()
        .flat_map(|spec| &spec.containers)
        .map(|one| one.name.as_str())
        .collect();
    if let Some(container) = options
        .container
        .as_deref()
        .filter(|container| !containers.contains(container))
    {
        let message = format!("container {container} is not valid for pod {name}");
        return refuse(StatusCode::BAD_REQUEST, "BadRequest", &message);
    }
    if is_true(options.previous.as_ref()) {
        let message = format!(
            "previous terminated container in pod {name:?} not found: launchers do not restart"
        );
        return refuse(StatusCode::BAD_REQUEST, "BadRequest", &message);
    }
    let uid = pod.uid().unwrap_or_default();
    let path = logs.sandboxes.log_file(&uid);
    let Ok(file) = File::open(&path).await else {
        let container = containers.first().copied().unwrap_or_default();
        let message = format!(
            "container {container:?} in pod {name:?} is waiting to start: ContainerCreating"
        );
        return refuse(StatusCode::BAD_REQUEST, "BadRequest", &message);
    };
    let follow = is_true(options.follow.as_ref());
    match start_at(&path, options.tail_lines).await {
        Ok(start) => {
            let reader = Reader {
                file,
                at: start,
                left: options.limit_bytes,
                follow,
                uid,
                sandboxes: logs.sandboxes,
            };
            let stream = futures::stream::try_unfold(reader, |mut reader| async move {
                let chunk = reader.next().await?;
                Ok::<_, std::io::Error>(chunk.map(|chunk| (chunk, reader)))
            });
            (
                [(header::CONTENT_TYPE, "text/plain")],
                Body::from_stream(stream),
            )
                .into_response()
        }
        Err(error) => refuse(
            StatusCode::INTERNAL_SERVER_ERROR,
            "InternalError",
            &format!("the log: {error}"),
        ),
    }
}

/// Where the last `lines` lines begin.
async fn start_at(path: &PathBuf, lines: Option<u64>) -> std::io::Result<u64> {
    let Some(lines) = lines else { return Ok(0) };
    let mut file = File::open(path).await?;
    let length = file.metadata().await?.len();
    if lines == 0 {
        return Ok(length);
    }
    let mut chunk = vec![0; CHUNK];
    let mut at = length;
    let mut seen = 0;
    while at > 0 {
        let size = usize::try_from(at).unwrap_or(CHUNK).min(CHUNK);
        at -= size as u64;
        file.seek(SeekFrom::Start(at)).await?;
        file.read_exact(&mut chunk[..size]).await?;
        for index in (0..size).rev().filter(|index| chunk[*index] == b'\n') {
            let behind = at + index as u64 + 1;
            // The newline at the very end ends the last line and begins none.
            if behind < length {
                seen += 1;
                if seen == lines {
                    return Ok(behind);
                }
            }
        }
    }
    Ok(0)
}

struct Reader {
    file: File,
    at: u64,
    left: Option<u64>,
    follow: bool,
    uid: String,
    sandboxes: Arc<Sandboxes>,
}

impl Reader {
    async fn next(&mut self) -> std::io::Result<Option<Bytes>> {
        loop {
            let limit = self.left.map_or(CHUNK, |left| {
                usize::try_from(left).unwrap_or(CHUNK).min(CHUNK)
            });
            if limit == 0 {
                return Ok(None);
            }
            // Asked before the read: what the pod wrote last is then read before its end is believed.
            let ended = self
                .sandboxes
                .get(&self.uid)
                .is_none_or(|record| record.ended.is_some());
            // A log that was cut begins anew.
            if self.file.metadata().await?.len() < self.at {
                self.at = 0;
            }
            let mut chunk = vec![0; limit];
            self.file.seek(SeekFrom::Start(self.at)).await?;
            let count = self.file.read(&mut chunk).await?;
            if count > 0 {
                self.at += count as u64;
                self.left = self.left.map(|left| left - count as u64);
                chunk.truncate(count);
                return Ok(Some(chunk.into()));
            }
            if !self.follow || ended {
                return Ok(None);
            }
            tokio::time::sleep(TICK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_lines_begin_where_they_begin() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_owned();
        for (text, lines, start) in [
            ("a\nb\nc\n", 1, 4),
            ("a\nb\nc\n", 2, 2),
            ("a\nb\nc\n", 3, 0),
            ("a\nb\nc\n", 9, 0),
            ("a\nb\nc", 1, 4),
            ("a\nb\nc\n", 0, 6),
            ("", 5, 0),
        ] {
            std::fs::write(&path, text).unwrap();
            assert_eq!(
                start_at(&path, Some(lines)).await.unwrap(),
                start,
                "{text:?} {lines}"
            );
        }
        let long = format!("{}\nlast\n", "x".repeat(100_000));
        std::fs::write(&path, &long).unwrap();
        assert_eq!(start_at(&path, Some(1)).await.unwrap(), 100_001);
        assert_eq!(start_at(&path, None).await.unwrap(), 0);
    }
}
