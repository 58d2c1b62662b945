//! Rules in CEL: `x-kubernetes-validations`.
//!
//! A rule is parsed when it is first needed, because most rules of a definition are never asked, and is kept as a syntax
//! tree only. `check` refuses a definition whose rules cannot work, `walk` asks the rules of an object, `eval` answers one.
//!
//! Evaluation is bounded: every step has a cost, as upstream counts it, and a rule that reaches the limit is an error, never
//! a hang. Where upstream counts less than the step takes (deep comparison, quadratic library functions), more is counted.
//!
//! Upstream behaviour mirrored: `apiextensions.k8s.io/v1` validation rules as of 1.34.

use std::sync::OnceLock;

use kube_cel::cel::IdedExpr;
use kube_cel::cel::parser::{ParseErrors, Parser};
use serde_json::Value;

mod address;
mod calls;
mod check;
mod compare;
mod cost;
mod estimate;
mod eval;
mod fieldpath;
mod infer;
mod library;
mod names;
mod stack;
mod types;
mod val;
mod walk;

pub(super) use check::check_rules;
pub(super) use fieldpath::{resolve, simple};
pub(super) use walk::walk_root;

use super::node::Node;

/// The most that one evaluation may cost.
const CALL_LIMIT: u64 = 1_000_000;
/// The most that all rules of one object may cost.
const OBJECT_LIMIT: u64 = 10_000_000;
/// The longest expression that is parsed, in characters.
const SOURCE_LIMIT: usize = 100_000;
/// How deep an expression may nest as it is written.
const DEPTH_LIMIT: u16 = 96;
/// How deep it may nest once macros are expanded.
const AST_LIMIT: usize = 500;

/// One entry of `x-kubernetes-validations`.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) rule: Box<str>,
    message: Box<str>,
    message_expression: Box<str>,
    reason: Option<Box<str>>,
    /// As the author wrote it, and as errors show it.
    field_path: Box<str>,
    shown_path: Box<str>,
    optional_old_self: Option<bool>,
    /// Whether answering it may take more stack than a server thread has.
    pub(super) deep: bool,
    program: OnceLock<Option<Program>>,
    message_program: OnceLock<Option<Program>>,
}

/// A parsed expression.
#[derive(Debug)]
pub(super) struct Program {
    expr: IdedExpr,
    uses_old_self: bool,
}

impl Rule {
    /// The rules of a schema; `node` is the schema that they sit in.
    pub(super) fn parse_all(source: Option<&Value>, node: &Node) -> Vec<Self> {
        let list = source.and_then(Value::as_array);
        list.into_iter()
            .flatten()
            .map(|source| Self::parse(source, node))
            .collect()
    }

    fn parse(source: &Value, node: &Node) -> Self {
        let text = |key: &str| source.get(key).and_then(Value::as_str).unwrap_or_default();
        let shown =
            resolve(text("fieldPath"), node, true).map_or_else(|_| String::new(), |(path, _)| path);
        Self {
            rule: text("rule").into(),
            message: text("message").into(),
            message_expression: text("messageExpression").into(),
            reason: source.get("reason").and_then(Value::as_str).map(Into::into),
            field_path: text("fieldPath").into(),
            shown_path: shown.into(),
            optional_old_self: source.get("optionalOldSelf").and_then(Value::as_bool),
            deep: stack::needs_room(text("rule")) || stack::needs_room(text("messageExpression")),
            program: OnceLock::new(),
            message_program: OnceLock::new(),
        }
    }

    /// The rule's program; none if it does not parse, which its definition was refused for.
    fn program(&self) -> Option<&Program> {
        self.program
            .get_or_init(|| Program::parse(&self.rule).ok())
            .as_ref()
    }

    fn message_program(&self) -> Option<&Program> {
        if self.message_expression.is_empty() {
            return None;
        }
        self.message_program
            .get_or_init(|| Program::parse(&self.message_expression).ok())
            .as_ref()
    }

    /// What an error says of the rule where it has no message of its own.
    fn title(&self) -> &str {
        if self.message.is_empty() {
            self.rule.trim()
        } else {
            self.message.trim()
        }
    }
}

impl Program {
    /// Parses an expression; the error is in the words that clients see.
    fn parse(source: &str) -> Result<Self, String> {
        let size = source.chars().count();
        if size > SOURCE_LIMIT {
            return Err(format!(
                "ERROR: <input>:-1:0: expression code point size exceeds limit: size: {size}, limit {SOURCE_LIMIT}"
            ));
        }
        stack::with_room(|| Self::parse_here(source))
            .unwrap_or_else(|| Err("ERROR: <input>:-1:0: the expression cannot be parsed".into()))
    }

    fn parse_here(source: &str) -> Result<Self, String> {
        let expr = parser().parse(source).map_err(|e| words(&e, source))?;
        if stack::depth(&expr) > AST_LIMIT {
            return Err(format!(
                "ERROR: <input>:-1:0: expression recursion limit exceeded: {AST_LIMIT}"
            ));
        }
        let uses_old_self = eval::mentions(&expr, "oldSelf");
        Ok(Self {
            expr,
            uses_old_self,
        })
    }
}

fn parser() -> Parser {
    Parser::new()
        .enable_optional_syntax(true)
        .max_recursion_depth(DEPTH_LIMIT)
}

/// Syntax errors with the place shown under the source.
fn words(errors: &ParseErrors, source: &str) -> String {
    let all: Vec<String> = errors
        .errors
        .iter()
        .map(|e| {
            let message = if e.msg.starts_with("Syntax error") || !e.msg.contains("input") {
                e.msg.clone()
            } else {
                format!("Syntax error: {}", e.msg)
            };
            located(source, e.pos.0, e.pos.1, &message)
        })
        .collect();
    all.join("\n")
}

/// One error with its place shown; `line` and `column` count from one.
fn located(source: &str, line: isize, column: isize, message: &str) -> String {
    let shown = usize::try_from(line - 1)
        .ok()
        .and_then(|n| source.lines().nth(n))
        .unwrap_or_default();
    let dots = ".".repeat(usize::try_from(column - 1).unwrap_or(0));
    format!("ERROR: <input>:{line}:{column}: {message}\n | {shown}\n | {dots}^")
}

#[cfg(test)]
mod tests;
