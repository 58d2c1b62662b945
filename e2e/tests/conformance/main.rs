//! The conformance suite: each row does the same to berth's API server and to a real kube-apiserver on etcd.
//!
//! A row states what is expected, from upstream's documentation, and what it saw must be the same on both servers, answer by
//! answer and field by field. What is meant to differ is in [`differences`], each with its reason; a difference that is not
//! there fails the test, and so does one there that no longer shows. Where the real server is not built (no Go), the
//! expectations are still held to berth, and the comparison is counted as skipped.
//!
//! `BERTH_CONFORMANCE=text` runs only rows whose name holds the text, and shows what is wrong with open ones too.

mod compare;
mod differences;
mod fixtures;
mod gaps;
mod rows;
mod session;

use std::collections::BTreeMap;
use std::io::Write as _;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use berth_e2e::{Need, Side, missing};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::compare::differing;
use crate::differences::DIFFERENCES;
use crate::rows::Row;
use crate::session::{Session, Target};

/// Rows at a time on one server: most of their time is waiting.
const AT_ONCE: usize = 4;
/// The longest that a row may take.
const ROW: Duration = Duration::from_secs(180);

/// What a row came to on one server.
struct Ran {
    transcript: Vec<Value>,
    failures: Vec<String>,
}

#[test]
fn both_servers_answer_alike() -> anyhow::Result<()> {
    let compared = !missing("both_servers_answer_alike", &[Need::Reference]);
    let sides: &[Side] = match std::env::var("BERTH_CONFORMANCE_SIDE").as_deref() {
        Ok("berth") => &[Side::Berth],
        Ok("kubernetes") => &[Side::Kubernetes],
        _ if compared => &[Side::Berth, Side::Kubernetes],
        _ => &[Side::Berth],
    };
    let begin = Instant::now();
    let runs: Vec<_> = sides
        .iter()
        .map(|side| {
            let side = *side;
            std::thread::spawn(move || run_all(side))
        })
        .collect();
    let mut results = Vec::new();
    for (side, run) in sides.iter().zip(runs) {
        let ran = run
            .join()
            .map_err(|_| anyhow::anyhow!("{} panicked", side.name()))??;
        results.push((*side, ran));
    }
    let (table, wrong) = judge(&results);
    say(&table);
    say(&format!(
        "conformance: {} rows on {} in {:.0} s\n",
        selected().len(),
        sides
            .iter()
            .map(|s| s.name())
            .collect::<Vec<_>>()
            .join(" and "),
        begin.elapsed().as_secs_f64()
    ));
    ensure!(
        wrong.is_empty(),
        "{} things are wrong:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    Ok(())
}

fn selected() -> Vec<Row> {
    let filter = std::env::var("BERTH_CONFORMANCE").unwrap_or_default();
    rows::all()
        .into_iter()
        .filter(|row| row.name.contains(&filter))
        .collect()
}

/// Runs every row on one server, on a thread of its own.
fn run_all(side: Side) -> anyhow::Result<BTreeMap<usize, Ran>> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let target = Target::start(side).await?;
        fixtures::install(&target).await?;
        let rows = selected();
        let ran = futures::stream::iter(rows.iter().enumerate())
            .map(|(i, row)| run_row(&target, i, row))
            .buffer_unordered(AT_ONCE)
            .collect::<BTreeMap<_, _>>()
            .await;
        Ok(ran)
    })
}

async fn run_row(target: &Rc<Target>, i: usize, row: &Row) -> (usize, Ran) {
    let session = Session::new(target, &row.namespace());
    let work = async {
        let namespace = json!({"metadata": {"name": session.ns}});
        let made = session
            .quiet(
                "POST",
                "/api/v1/namespaces",
                &[session::JSON_BODY],
                &namespace.to_string(),
            )
            .await?;
        made.ok()?;
        (row.body)(session.clone()).await
    };
    let ended = match tokio::time::timeout(ROW, work).await {
        Ok(Ok(())) => None,
        Ok(Err(e)) => Some(format!("{e:#}")),
        Err(_) => Some(format!("not within {} s", ROW.as_secs())),
    };
    let mut failures = session.failures();
    failures.extend(ended);
    let transcript = session.transcript();
    (
        i,
        Ran {
            transcript,
            failures,
        },
    )
}

/// The table of rows, and everything that is wrong.
fn judge(results: &[(Side, BTreeMap<usize, Ran>)]) -> (String, Vec<String>) {
    let mut wrong = Vec::new();
    let mut table = String::new();
    let mut used = vec![false; DIFFERENCES.len()];
    let rows = selected();
    let filtered = std::env::var_os("BERTH_CONFORMANCE").is_some();
    for (i, row) in rows.iter().enumerate() {
        let mut verdicts = Vec::new();
        let open = !filtered && gaps::OPEN.contains(&row.name);
        let mut open_seen = false;
        for (side, ran) in results {
            let failures = ran.get(&i).map_or(&[][..], |ran| &ran.failures);
            if *side == Side::Berth && !failures.is_empty() {
                open_seen |= open;
            }
            for failure in failures {
                if open && *side == Side::Berth {
                    continue;
                }
                wrong.push(format!("{} on {}: {failure}", row.name, side.name()));
            }
            verdicts.push(format!(
                "{} {}",
                side.name(),
                if failures.is_empty() { "ok" } else { "FAILED" }
            ));
        }
        if let [(_, berth), (_, kubernetes)] = results
            && let (Some(berth), Some(kubernetes)) = (berth.get(&i), kubernetes.get(&i))
        {
            let mut meant = 0;
            let mut unmeant = 0;
            for found in differing(&berth.transcript, &kubernetes.transcript) {
                let known = DIFFERENCES
                    .iter()
                    .position(|d| d.covers(row.name, &found.place));
                if let Some(known) = known {
                    used[known] = true;
                    meant += 1;
                    continue;
                }
                unmeant += 1;
                if open {
                    open_seen = true;
                    continue;
                }
                wrong.push(format!(
                    "{}: {} differs:\n    berth:          {}\n    kube-apiserver: {}",
                    row.name,
                    found.place,
                    short(&found.berth),
                    short(&found.kubernetes)
                ));
            }
            verdicts.push(match (unmeant, meant) {
                (0, 0) => "same".to_owned(),
                (0, meant) => format!("same but for {meant} listed"),
                (unmeant, _) => format!("{unmeant} DIFFER"),
            });
        }
        if open && results.len() == 2 {
            // Some depend on the order of things within a second, so one good run is no proof.
            let verdict = if open_seen {
                "OPEN"
            } else {
                "OPEN, but right in this run: does it still belong in gaps.rs?"
            };
            verdicts.push(verdict.to_owned());
        }
        table += &format!(
            "{:<70} {}\n    expected by {}\n",
            row.name,
            verdicts.join(", "),
            row.source
        );
    }
    if results.len() == 2 && !filtered {
        for (difference, used) in DIFFERENCES.iter().zip(used) {
            if used {
                table += &format!(
                    "differs as listed: {} at {}: {}\n",
                    difference.row, difference.place, difference.why
                );
            } else {
                wrong.push(format!(
                    "listed but not seen: {} at {}",
                    difference.row, difference.place
                ));
            }
        }
    }
    (table, wrong)
}

fn short(value: &Value) -> String {
    let text = value.to_string();
    match text.char_indices().nth(1200) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text,
    }
}

/// Straight to the descriptor: the test harness would swallow it.
fn say(text: &str) {
    let _ = std::io::stderr().lock().write_all(text.as_bytes());
}
