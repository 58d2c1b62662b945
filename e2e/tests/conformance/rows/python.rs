//! The official Python client.

use super::{Row, doc, row};

const CLIENT: &str = "https://github.com/kubernetes-client/python";

pub(super) fn rows() -> Vec<Row> {
    vec![
        row(
            "python: typed, dynamic and custom object calls",
            CLIENT,
            |t| async move {
                let seen = t.python("calls.py").await?;
                t.expect(
                    seen["watched"] == serde_json::json!(["ADDED a", "MODIFIED a", "DELETED a"]),
                    &seen.to_string(),
                );
                Ok(())
            },
        ),
        row(
            "python: read, change, replace is held to its resourceVersion",
            doc::CONVENTIONS,
            |t| async move {
                let seen = t.python("replace.py").await?;
                t.expect(
                    seen["without"][0] == 422 && seen["stale"][0] == 409 && seen["fresh"] == 200,
                    &seen.to_string(),
                );
                Ok(())
            },
        ),
        row(
            "python: 8 writers count to 800",
            doc::CONVENTIONS,
            |t| async move {
                let seen = t.python("counters.py").await?;
                t.expect(seen["count"] == 800, &seen.to_string());
                Ok(())
            },
        ),
    ]
}
