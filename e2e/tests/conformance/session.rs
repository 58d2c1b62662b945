//! What a row does to a server, and what it saw: every request and its answer go to a transcript, from which is masked
//! what may differ between two servers that behave the same (uids, times, revisions).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use berth_e2e::{Outcome, Server, Side, repository, run};
use http::{Method, Request};
use http_body_util::BodyExt as _;
use kube::Client;
use kube::config::{KubeConfigOptions, Kubeconfig};
use regex::Regex;
use serde_json::{Map, Value, json};

/// The longest that an answer may take.
const SOON: Duration = Duration::from_secs(60);

/// A server that rows run against.
pub(crate) struct Target {
    pub(crate) server: Arc<Server>,
    pub(crate) client: Client,
}

impl Target {
    /// Starts the server and installs what rows use.
    pub(crate) async fn start(side: Side) -> anyhow::Result<Rc<Self>> {
        let server = tokio::task::spawn_blocking(move || Server::start(side)).await??;
        let config = Kubeconfig::read_from(server.kubeconfig())?;
        let config =
            kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        Ok(Rc::new(Self {
            server: Arc::new(server),
            client: Client::try_from(config)?,
        }))
    }
}

/// One row on one server.
#[derive(Clone)]
pub(crate) struct Session {
    pub(crate) target: Rc<Target>,
    /// A namespace of the row's own.
    pub(crate) ns: String,
    seen: Rc<RefCell<Seen>>,
}

#[derive(Default)]
struct Seen {
    transcript: Vec<Value>,
    failures: Vec<String>,
    masks: Vec<(String, String)>,
    managed_fields: bool,
}

impl Session {
    pub(crate) fn new(target: &Rc<Target>, ns: &str) -> Self {
        Self {
            target: target.clone(),
            ns: ns.to_owned(),
            seen: Rc::default(),
        }
    }

    /// Shows managedFields in the transcript; only some rows are about them.
    pub(crate) fn keep_managed_fields(&self) {
        self.seen.borrow_mut().managed_fields = true;
    }

    /// Says that `text` is made up by the server.
    pub(crate) fn mask(&self, text: &str, name: &str) {
        if !text.is_empty() {
            let mut seen = self.seen.borrow_mut();
            seen.masks.push((text.to_owned(), format!("<{name}>")));
        }
    }

    /// Adds something that the row found out by itself.
    pub(crate) fn observe(&self, what: &str, value: impl Into<Value>) {
        let value: Value = value.into();
        let mut seen = self.seen.borrow_mut();
        seen.transcript
            .push(json!({"observed": what, "value": value}));
    }

    /// Expectations that did not hold.
    pub(crate) fn failures(&self) -> Vec<String> {
        self.seen.borrow().failures.clone()
    }

    /// Holds that something is as expected; the row goes on either way, so that the transcripts stay comparable.
    pub(crate) fn expect(&self, holds: bool, what: &str) {
        if !holds {
            self.seen.borrow_mut().failures.push(what.to_owned());
        }
    }

    /// What was seen so far, masked.
    pub(crate) fn transcript(&self) -> Vec<Value> {
        let seen = self.seen.borrow();
        let url = self.target.server.url();
        seen.transcript
            .iter()
            .map(|entry| {
                let mut entry = entry.clone();
                normalise(&mut entry, &seen, url);
                entry
            })
            .collect()
    }

    /// `{ns}` in paths is the row's namespace.
    fn path(&self, path: &str) -> String {
        path.replace("{ns}", &self.ns)
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Answer> {
        self.call("GET", path, &[], "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.call("POST", path, &[JSON_BODY], &body.to_string())
            .await
    }

    pub(crate) async fn put(&self, path: &str, body: &Value) -> anyhow::Result<Answer> {
        self.call("PUT", path, &[JSON_BODY], &body.to_string())
            .await
    }

    pub(crate) async fn delete(&self, path: &str, options: &Value) -> anyhow::Result<Answer> {
        let body = if options.is_null() {
            String::new()
        } else {
            options.to_string()
        };
        self.call("DELETE", path, &[JSON_BODY], &body).await
    }

    pub(crate) async fn merge(&self, path: &str, patch: &Value) -> anyhow::Result<Answer> {
        self.patch(path, "application/merge-patch+json", patch)
            .await
    }

    pub(crate) async fn json_patch(&self, path: &str, patch: &Value) -> anyhow::Result<Answer> {
        self.patch(path, "application/json-patch+json", patch).await
    }

    pub(crate) async fn strategic(&self, path: &str, patch: &Value) -> anyhow::Result<Answer> {
        self.patch(path, "application/strategic-merge-patch+json", patch)
            .await
    }

    pub(crate) async fn apply(&self, path: &str, patch: &Value) -> anyhow::Result<Answer> {
        self.patch(path, "application/apply-patch+yaml", patch)
            .await
    }

    pub(crate) async fn patch(
        &self,
        path: &str,
        media: &str,
        patch: &Value,
    ) -> anyhow::Result<Answer> {
        self.call(
            "PATCH",
            path,
            &[("content-type", media)],
            &patch.to_string(),
        )
        .await
    }

    /// One request, recorded.
    pub(crate) async fn call(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> anyhow::Result<Answer> {
        let answer = self.quiet(method, path, headers, body).await?;
        let mut entry =
            json!({"request": answer.request, "code": answer.code, "body": answer.body});
        if !answer.warnings.is_empty() {
            entry["warnings"] = json!(answer.warnings);
        }
        self.seen.borrow_mut().transcript.push(entry);
        Ok(answer)
    }

    /// One request that is not recorded: the row observes a part of the answer.
    pub(crate) async fn quiet(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &str,
    ) -> anyhow::Result<Answer> {
        let request_line = format!("{method} {}", self.path(path));
        let mut request = Request::builder()
            .method(Method::from_bytes(method.as_bytes())?)
            .uri(self.path(path));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(kube::client::Body::from(body.as_bytes().to_vec()))?;
        let answer = async {
            let response = self.target.client.send(request).await?;
            let (parts, body) = response.into_parts();
            anyhow::Ok((parts, body.collect().await?.to_bytes()))
        };
        let (parts, bytes) = tokio::time::timeout(SOON, answer)
            .await
            .with_context(|| format!("{request_line}: no answer"))?
            .with_context(|| request_line.clone())?;
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let mut body = serde_json::from_str(&text).unwrap_or_else(|_| Value::String(text.clone()));
        if parts
            .headers
            .get("content-type")
            .is_some_and(|t| t.as_bytes().starts_with(b"application/json"))
            && body.is_string()
            && path.contains("watch=")
        {
            body = text
                .lines()
                .filter_map(|line| serde_json::from_str::<Value>(line).ok())
                .collect();
        }
        let warnings = parts
            .headers
            .get_all("warning")
            .iter()
            .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
            .collect();
        Ok(Answer {
            request: request_line,
            code: parts.status.as_u16(),
            body,
            warnings,
            seen: self.seen.clone(),
        })
    }

    /// A watch until it has `count` events that are no bookmarks in between, or ends by itself: the events, recorded.
    pub(crate) async fn watch(&self, path: &str) -> anyhow::Result<Vec<Value>> {
        let answer = self.call("GET", path, &[], "").await?;
        ensure!(
            answer.code == 200,
            "{path}: {} {}",
            answer.code,
            answer.body
        );
        Ok(match answer.body {
            Value::Array(events) => events,
            // One line is a JSON document of its own; none is nothing.
            Value::Object(event) => vec![Value::Object(event)],
            _ => Vec::new(),
        })
    }

    /// kubectl in the row's namespace; what it printed is recorded.
    pub(crate) async fn kubectl(&self, arguments: &[&str], input: &str) -> anyhow::Result<Outcome> {
        let outcome = self.kubectl_quietly(arguments, input).await?;
        self.seen.borrow_mut().transcript.push(json!({
            "kubectl": arguments.join(" "),
            "exit": outcome.code,
            "stdout": outcome.stdout,
            "stderr": outcome.stderr,
        }));
        Ok(outcome)
    }

    /// kubectl whose output the row looks at by itself.
    pub(crate) async fn kubectl_quietly(
        &self,
        arguments: &[&str],
        input: &str,
    ) -> anyhow::Result<Outcome> {
        let mut all = vec!["--namespace".to_owned(), self.ns.clone()];
        all.extend(arguments.iter().map(|a| (*a).to_owned()));
        let (server, input) = (self.target.server.clone(), input.to_owned());
        tokio::task::spawn_blocking(move || {
            let all: Vec<&str> = all.iter().map(String::as_str).collect();
            server.kubectl(&all, &input)
        })
        .await?
    }

    /// A script of the directory `python` with the official Python client; it prints one JSON document.
    pub(crate) async fn python(&self, script: &str) -> anyhow::Result<Value> {
        let tests = repository().join("e2e/tests/conformance/python");
        let mut command = std::process::Command::new(repository().join(".cache/python/bin/python"));
        command
            .arg(tests.join(script))
            .arg(&self.ns)
            .env("KUBECONFIG", self.target.server.kubeconfig());
        let output = tokio::task::spawn_blocking(move || run(&mut command, ""))
            .await??
            .ok()?;
        let value: Value = serde_json::from_str(&output).with_context(|| output.clone())?;
        self.observe(script, value.clone());
        Ok(value)
    }
}

/// The usual body.
pub(crate) const JSON_BODY: (&str, &str) = ("content-type", "application/json");

/// What came back.
#[derive(Clone)]
pub(crate) struct Answer {
    request: String,
    pub(crate) code: u16,
    pub(crate) body: Value,
    pub(crate) warnings: Vec<String>,
    seen: Rc<RefCell<Seen>>,
}

impl Answer {
    fn expect(&self, holds: bool, what: impl FnOnce() -> String) {
        if !holds {
            let what = format!("{}: {}", self.request, what());
            self.seen.borrow_mut().failures.push(what);
        }
    }

    /// Holds that the code is this one and that the body has `part` (objects may have more fields, arrays have exactly
    /// these items, null stands for nothing); gives the body.
    pub(crate) fn is(self, code: u16, part: &Value) -> anyhow::Result<Value> {
        self.expect(self.code == code && holds(&self.body, part), || {
            format!(
                "expected {code} and {part}, got {} and {}",
                self.code, self.body
            )
        });
        Ok(self.body)
    }

    /// The body of a success; the row cannot go on without it.
    pub(crate) fn ok(self) -> anyhow::Result<Value> {
        ensure!(
            (200..300).contains(&self.code),
            "{}: {} {}",
            self.request,
            self.code,
            self.body
        );
        Ok(self.body)
    }

    /// Holds that this is a failure with this code, reason and message.
    pub(crate) fn fails(self, code: u16, reason: &str, message: &str) -> anyhow::Result<Value> {
        self.is(code, &json!({"kind": "Status", "status": "Failure", "code": code, "reason": reason, "message": message}))
    }

    /// Holds that exactly these warnings came.
    pub(crate) fn warns(self, texts: &[&str]) -> anyhow::Result<Self> {
        let given: Vec<String> = self
            .warnings
            .iter()
            .map(|w| {
                let quoted = w.strip_prefix("299 - \"").unwrap_or(w);
                quoted
                    .strip_suffix('"')
                    .unwrap_or(quoted)
                    .replace("\\\"", "\"")
            })
            .collect();
        self.expect(given == texts, || {
            format!("warnings {given:?}, expected {texts:?}")
        });
        Ok(self)
    }
}

/// Whether `value` has everything that `part` has.
pub(crate) fn holds(value: &Value, part: &Value) -> bool {
    match (value, part) {
        (Value::Object(value), Value::Object(part)) => {
            part.iter().all(|(key, part)| match value.get(key) {
                Some(value) => holds(value, part),
                None => part.is_null(),
            })
        }
        (Value::Array(value), Value::Array(part)) => {
            value.len() == part.len() && value.iter().zip(part).all(|(v, p)| holds(v, p))
        }
        _ => value == part,
    }
}

static UID: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new("[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}").ok()
});
static TIME: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z|\b(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d [A-Z][a-z]{2} \d{4} [\d:]{8} [+-]\d{4}").ok()
});
/// In what kubectl prints.
static AGE: LazyLock<Option<Regex>> =
    LazyLock::new(|| Regex::new(r"(?m)\b(\d+m)?\d+s\b|Resource Version: +\d+").ok());

fn normalise(value: &mut Value, seen: &Seen, url: &str) {
    match value {
        Value::String(text) => *text = masked(&canonical(text, seen, url), seen, url),
        Value::Array(items) => items.iter_mut().for_each(|item| normalise(item, seen, url)),
        Value::Object(map) => {
            if !seen.managed_fields {
                map.remove("managedFields");
            }
            // They are ordered by seconds first, and a second may end between two writes on one server only.
            if let Some(Value::Array(managers)) = map.get_mut("managedFields") {
                let name = |manager: &Value| {
                    ["manager", "operation", "subresource", "apiVersion"]
                        .map(|key| manager[key].as_str().unwrap_or_default().to_owned())
                };
                managers.sort_by_key(name);
            }
            if let Some(Value::Array(cells)) = map.get_mut("cells") {
                for cell in cells {
                    if let Value::String(text) = cell
                        && let Some(age) = AGE.as_ref()
                    {
                        *text = age.replace_all(text, "<age>").into_owned();
                    }
                }
            }
            revisions(map);
            for (key, value) in map.iter_mut() {
                if let (true, Value::String(text)) = (key == "stdout" || key == "stderr", &*value) {
                    *value = printed(text).into();
                }
                normalise(value, seen, url);
            }
        }
        _ => {}
    }
}

/// A message with the objects that it quotes in one order of fields, and with what is made up in them masked: Go writes
/// the fields of a typed object in the order of its declaration.
fn canonical(text: &str, seen: &Seen, url: &str) -> String {
    const BEFORE: &str = "Invalid value: \"";
    let mut out = String::new();
    let mut rest = text;
    while let Some(at) = rest.find(BEFORE) {
        let (head, quoted) = rest.split_at(at + BEFORE.len() - 1);
        out += head;
        let mut parsed = serde_json::Deserializer::from_str(quoted).into_iter::<String>();
        let inner = parsed.next().and_then(Result::ok);
        let end = parsed.byte_offset();
        match inner.and_then(|inner| serde_json::from_str::<Value>(&inner).ok()) {
            Some(mut object @ Value::Object(_)) => {
                normalise(&mut object, seen, url);
                out += &format!("{:?}", object.to_string());
                rest = &quoted[end..];
            }
            _ => {
                out.push('"');
                rest = &quoted[1..];
            }
        }
    }
    out + rest
}

fn revisions(map: &mut Map<String, Value>) {
    for key in ["resourceVersion", "continue"] {
        // A property of a schema of that name is an object.
        if let Some(Value::String(text)) = map.get_mut(key).filter(|v| *v != "" && *v != "0") {
            *text = format!("<{key}>");
        }
    }
}

fn masked(text: &str, seen: &Seen, url: &str) -> String {
    let mut text = text.replace(url, "<url>");
    for (given, name) in &seen.masks {
        text = text.replace(given, name);
    }
    for (regex, name) in [(&UID, "<uid>"), (&TIME, "<time>")] {
        if let Some(regex) = regex.as_ref() {
            text = regex.replace_all(&text, name).into_owned();
        }
    }
    text
}

/// Column widths follow ages.
fn printed(text: &str) -> String {
    let text = match AGE.as_ref() {
        Some(age) => age.replace_all(text, "<age>").into_owned(),
        None => text.to_owned(),
    };
    text.lines()
        .map(|line| {
            let indent = line.len() - line.trim_start().len();
            format!(
                "{}{}\n",
                &line[..indent],
                line.split_whitespace().collect::<Vec<_>>().join(" ")
            )
        })
        .collect()
}
