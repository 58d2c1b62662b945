//! How a pod ended.

use std::path::Path;

use berth_launcher::protocol::FINAL_STATE;
use k8s_openapi::jiff::Timestamp;
use serde_json::Value;

use super::process::Ending;
use super::record::Ended;
use crate::untrusted;

/// As much as a kubelet takes of it.
const MAX_SAID: usize = 4096;

/// From its exit status where it is known and from what the launcher wrote down.
pub(super) fn how(
    run_dir: &Path,
    termination_log: &Path,
    user: u32,
    ending: Ending,
    out_of_memory: bool,
) -> Ended {
    let written: Option<Value> = untrusted::read(&run_dir.join(FINAL_STATE), user)
        .ok()
        .and_then(|json| serde_json::from_slice(&json).ok());
    let text = |value: &Value| {
        value
            .as_str()
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let said = || {
        let said = untrusted::read(termination_log, user).ok()?;
        let said = String::from_utf8_lossy(&said[..said.len().min(MAX_SAID)]).into_owned();
        Some(said).filter(|said| !said.is_empty())
    };
    let told = written
        .as_ref()
        .and_then(|state| text(&state["failure"]).or_else(|| text(&state["domain"]["reason"])))
        .or_else(said);
    let (exit_code, signal) = match ending {
        Ending::Code(code) => (code, None),
        Ending::Signal(signal) => (128 + signal, Some(signal)),
        // Nobody saw it. What was written down at the end tells an orderly one.
        Ending::Unknown if written.is_some() => (0, None),
        Ending::Unknown => (137, Some(9)),
    };
    let reason = match exit_code {
        0 => "Completed",
        _ if out_of_memory => "OOMKilled",
        _ => "Error",
    };
    Ended {
        exit_code,
        signal,
        reason: reason.to_owned(),
        message: told,
        at: Timestamp::now(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_a_pod_in_every_case() {
        let dir = tempfile::tempdir().unwrap();
        let end = |ending, oom| {
            let log = dir.path().join("log");
            let ended = how(
                dir.path(),
                &log,
                rustix::process::geteuid().as_raw(),
                ending,
                oom,
            );
            (ended.exit_code, ended.reason, ended.message)
        };
        assert_eq!(end(Ending::Code(0), false), (0, "Completed".into(), None));
        assert_eq!(
            end(Ending::Signal(9), true),
            (137, "OOMKilled".into(), None)
        );
        assert_eq!(end(Ending::Unknown, false), (137, "Error".into(), None));
        std::fs::write(
            dir.path().join("final-state.json"),
            r#"{"domain": {"reason": "shut down"}}"#,
        )
        .unwrap();
        assert_eq!(
            end(Ending::Unknown, false),
            (0, "Completed".into(), Some("shut down".into()))
        );
        assert_eq!(
            end(Ending::Code(1), false),
            (1, "Error".into(), Some("shut down".into()))
        );
    }
}
