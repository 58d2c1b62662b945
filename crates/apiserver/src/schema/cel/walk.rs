//! Asks all rules of an object: an outer one before the inner ones, each with its own part of the object as `self`.
//!
//! On update a part is compared with its older self where the two can be told to be the same: by name in objects and maps, by
//! key in lists of type map. What was invalid before and has not changed is only warned of.

use std::rc::Rc;

use kube_cel::cel::Value as Cel;
use serde_json::Value;

use super::eval::{Fault, Run, Scope};
use super::val::{Val, property};
use super::{OBJECT_LIMIT, Program, Rule, stack};
use crate::schema::node::{Additional, Kind, Node};
use crate::schema::ratchet::{self, Counterpart};
use crate::schema::{FieldError, FieldErrorKind};

/// How upstream names the object as a whole.
const ROOT: &str = "<nil>";
const MESSAGE_LIMIT: usize = 5 * 1024;

/// What the rules of an object say.
#[derive(Debug, Default)]
pub(in crate::schema) struct Found {
    pub(in crate::schema) errors: Vec<FieldError>,
    pub(in crate::schema) warnings: Vec<String>,
}

struct Walk {
    budget: u64,
    found: Found,
}

/// No further rule is asked.
struct Exhausted;

/// The rules of a whole object; `path` is empty but for defaults.
pub(in crate::schema) fn walk_root(
    node: &Node,
    resource: bool,
    object: &Value,
    old: Option<&Value>,
    path: &str,
) -> Found {
    if !node.has_rules {
        return Found::default();
    }
    let ask = || {
        let mut walk = Walk {
            budget: OBJECT_LIMIT,
            found: Found::default(),
        };
        let counterpart = Counterpart::root(old);
        // Running out is an error of its own, already in the list.
        let _ = walk.value(node, resource, path, object, old, counterpart);
        walk.found
    };
    if node.has_deep_rules {
        // Without a thread nothing is known of the object, so it is refused.
        return stack::with_room(ask).unwrap_or_else(|| Found {
            errors: vec![FieldError::invalid(
                ROOT,
                &Value::Null,
                "validation rules could not be run",
            )],
            warnings: Vec::new(),
        });
    }
    ask()
}

impl Walk {
    fn value(
        &mut self,
        node: &Node,
        resource: bool,
        path: &str,
        value: &Value,
        old: Option<&Value>,
        counterpart: Counterpart<'_>,
    ) -> Result<(), Exhausted> {
        if !node.has_rules || value.is_null() {
            return Ok(());
        }
        let old = old.filter(|old| !old.is_null());
        self.rules(node, resource, path, value, old, counterpart)?;
        match value {
            Value::Object(map) => {
                for (name, inner) in map {
                    let (schema, here) = match (&node.additional, property(node, resource, name)) {
                        (Additional::Schema(schema), _) => {
                            (schema.as_ref(), format!("{path}[{name}]"))
                        }
                        (_, Some(schema)) => (schema, crate::schema::node::join(path, name)),
                        _ => continue,
                    };
                    let before = old.and_then(|old| old.get(name));
                    let next = counterpart.key(node, value, name);
                    self.value(schema, schema.embedded, &here, inner, before, next)?;
                }
            }
            Value::Array(list) => {
                if let Some(items) = &node.items {
                    for (i, inner) in list.iter().enumerate() {
                        let before = old.and_then(|old| ratchet::same_key(node, old, inner));
                        let here = format!("{path}[{i}]");
                        let next = counterpart.item(node, value, inner);
                        self.value(items, items.embedded, &here, inner, before, next)?;
                    }
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn rules(
        &mut self,
        node: &Node,
        resource: bool,
        path: &str,
        value: &Value,
        old: Option<&Value>,
        counterpart: Counterpart<'_>,
    ) -> Result<(), Exhausted> {
        let Some(rules) = node.validations.as_deref() else {
            return Ok(());
        };
        let kind = shown_kind(node);
        if self.budget == 0 {
            self.error(path, &kind, "validation failed due to running out of cost budget, no further validation rules will be run");
            return Err(Exhausted);
        }
        let own = Val::of(value, node, resource);
        let before = old.map(|old| Val::of(old, node, resource));
        for rule in rules {
            let Some(program) = rule.program() else {
                continue;
            };
            let optional = rule.optional_old_self == Some(true);
            if program.uses_old_self && before.is_none() && !optional {
                continue;
            }
            let outcome = self.run(program, &own, before.as_ref(), optional);
            match outcome {
                Err(Spent) => {
                    self.error(path, &kind, "validation failed due to running out of cost budget, no further validation rules will be run");
                    return Err(Exhausted);
                }
                Ok(Err(Fault::Limit)) => {
                    let detail = format!(
                        "'operation cancelled: actual cost limit exceeded': no further validation rules will be run due to call cost exceeds limit for rule: {}",
                        rule.title()
                    );
                    self.error(path, &kind, &detail);
                    return Err(Exhausted);
                }
                Ok(Err(Fault::Failed(message))) if message.starts_with("no such overload") => {
                    let detail = format!(
                        "'{message}': call arguments did not match a supported operator, function or macro signature for rule: {}",
                        rule.title()
                    );
                    self.error(path, &kind, &detail);
                }
                Ok(Err(Fault::Failed(message))) => {
                    self.error(
                        path,
                        &kind,
                        &format!("{message} evaluating rule: {}", rule.title()),
                    );
                }
                Ok(Ok(answer)) if answer.as_bool() == Some(true) => {}
                Ok(Ok(_)) => {
                    let tolerated = !program.uses_old_self && counterpart.unchanged(node, value);
                    self.broken(rule, path, &kind, &own, before.as_ref(), tolerated)?;
                }
            }
        }
        Ok(())
    }

    /// Runs a program and takes its cost from the budget.
    fn run<'a>(
        &mut self,
        program: &Program,
        own: &Val<'a>,
        before: Option<&Val<'a>>,
        optional: bool,
    ) -> Result<Result<Val<'a>, Fault>, Spent> {
        let empty = Scope::Empty;
        let with_self = Scope::Bound("self", own.clone(), &empty);
        let older = match before {
            _ if optional => Some(Val::Optional(before.cloned().map(Rc::new))),
            other => other.cloned(),
        };
        let mut run = Run::new();
        let answer = match older {
            Some(older) => run.eval(&program.expr, &Scope::Bound("oldSelf", older, &with_self)),
            None => run.eval(&program.expr, &with_self),
        };
        if !matches!(answer, Err(Fault::Limit)) && run.cost() > self.budget {
            self.budget = 0;
            return Err(Spent);
        }
        self.budget = self.budget.saturating_sub(run.cost());
        Ok(answer)
    }

    fn broken(
        &mut self,
        rule: &Rule,
        path: &str,
        kind: &Value,
        own: &Val<'_>,
        before: Option<&Val<'_>>,
        tolerated: bool,
    ) -> Result<(), Exhausted> {
        let mut message = if rule.message.is_empty() {
            format!("failed rule: {}", rule.title())
        } else {
            rule.message.trim().to_owned()
        };
        let here = match rule.shown_path.as_ref() {
            "" => path.to_owned(),
            inner if inner.starts_with('[') => format!("{path}{inner}"),
            inner => crate::schema::node::join(path, inner),
        };
        if let Some(program) = rule.message_program() {
            let optional = rule.optional_old_self == Some(true);
            let over = match self.run(program, own, before, optional) {
                Err(Spent) => Some(
                    "messageExpression evaluation failed due to running out of cost budget, no further validation rules will be run"
                        .to_owned(),
                ),
                Ok(Err(Fault::Limit)) => Some(format!(
                    "no further validation rules will be run due to call cost exceeds limit for messageExpression: {:?}",
                    rule.message_expression
                )),
                Ok(Err(Fault::Failed(_))) => None,
                Ok(Ok(answer)) => {
                    if let Val::Plain(Cel::String(text)) = answer {
                        let text = text.trim();
                        if !text.is_empty() && text.len() <= MESSAGE_LIMIT && !text.contains('\n') {
                            text.clone_into(&mut message);
                        }
                    }
                    None
                }
            };
            if let Some(over) = over {
                self.add(FieldError::invalid(here, kind, &over), tolerated);
                return Err(Exhausted);
            }
        }
        let error = match rule.reason.as_deref() {
            Some("FieldValueForbidden") => FieldError::forbidden(here, &message),
            Some("FieldValueRequired") => FieldError::required(here, &message),
            Some("FieldValueDuplicate") => {
                FieldError::new(FieldErrorKind::Duplicate, here, kind, "")
            }
            _ => FieldError::invalid(here, kind, &message),
        };
        self.add(error, tolerated);
        Ok(())
    }

    fn add(&mut self, mut error: FieldError, tolerated: bool) {
        if error.field.is_empty() {
            error.field = ROOT.into();
        }
        if tolerated {
            self.found.warnings.push(error.to_string());
        } else {
            self.found.errors.push(error);
        }
    }

    fn error(&mut self, path: &str, kind: &Value, detail: &str) {
        self.add(FieldError::invalid(path, kind, detail), false);
    }
}

/// The budget of the object is used up.
struct Spent;

/// Errors of rules show the type of the value in place of the value.
fn shown_kind(node: &Node) -> Value {
    Value::from(node.kind.map_or("", Kind::name))
}
