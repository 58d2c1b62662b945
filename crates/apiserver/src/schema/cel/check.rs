//! Whether the rules of a definition can work: they parse, their types fit, and what they can cost is within bounds.

use std::collections::HashMap;

use kube_cel::cel::common::ast::SourceInfo;
use serde_json::{Value, json};

use super::estimate::{cardinality, children, smallest};
use super::infer::Inference;
use super::types::{BOOL, TEXT, Type};
use super::{Program, Rule, located, parser, resolve, stack};
use crate::schema::node::{Additional, ListType, Node, join};
use crate::schema::{FieldError, FieldErrorKind};

/// The most that one rule of a definition may cost for a whole object, estimated.
const RULE_LIMIT: u64 = 10_000_000;
/// The most that all rules of a definition may cost together.
const TOTAL_LIMIT: u64 = 100_000_000;
const ADVICE: &str = "(try simplifying the rule, or adding maxItems, maxProperties, and maxLength where arrays, maps, and strings are declared)";

const REASONS: [&str; 4] = [
    "FieldValueDuplicate",
    "FieldValueForbidden",
    "FieldValueInvalid",
    "FieldValueRequired",
];

/// What the rules of a definition cost together.
#[derive(Debug, Default)]
struct Budget {
    total: u64,
    /// Rules and their costs.
    rules: Vec<(String, u64)>,
}

/// The place of a schema among the others.
#[derive(Clone, Copy)]
struct Context<'p> {
    resource: bool,
    /// How often its values can occur in an object; none if nothing bounds that.
    occurs: Option<u64>,
    /// The schema around it whose parts cannot be told apart from one version of an object to the next.
    uncorrelated: Option<&'p str>,
}

/// The errors of all rules in a schema that is otherwise right; `path` is its own.
pub(in crate::schema) fn check_rules(root: &Node, path: &str) -> Vec<FieldError> {
    let mut shape = Vec::new();
    check_shapes(root, path, &mut shape);
    if !shape.is_empty() || !root.has_rules {
        return shape;
    }
    stack::with_room(|| check_expressions(root, path)).unwrap_or_else(|| {
        vec![FieldError::invalid(
            path,
            &Value::Null,
            "validation rules could not be checked",
        )]
    })
}

fn check_expressions(root: &Node, path: &str) -> Vec<FieldError> {
    let mut errors = Vec::new();
    let mut budget = Budget::default();
    let context = Context {
        resource: true,
        occurs: Some(1),
        uncorrelated: None,
    };
    check_node(root, path, context, &mut budget, &mut errors);
    if budget.total > TOTAL_LIMIT {
        budget
            .rules
            .sort_by_key(|(_, cost)| std::cmp::Reverse(*cost));
        for (path, _) in budget.rules.iter().take(4) {
            errors.push(FieldError::forbidden(
                path.as_str(),
                "contributed to estimated rule cost total exceeding cost limit for entire OpenAPIv3 schema",
            ));
        }
        let what = "x-kubernetes-validations estimated rule cost total for entire OpenAPIv3 schema";
        errors.push(FieldError::forbidden(
            path,
            &over(what, budget.total, TOTAL_LIMIT),
        ));
    }
    errors
}

/// The texts of rules, apart from their expressions.
fn check_shapes(node: &Node, path: &str, errors: &mut Vec<FieldError>) {
    for (i, rule) in node.validations.iter().flatten().enumerate() {
        let at = |key: &str| format!("{path}.x-kubernetes-validations[{i}].{key}");
        let text = |value: &str| Value::from(value);
        let lines = |value: &str| value.contains(['\n', '\r']);
        let (trimmed, message) = (rule.rule.trim(), rule.message.trim());
        if trimmed.is_empty() {
            errors.push(FieldError::required(at("rule"), "rule is not specified"));
        } else if !rule.message.is_empty() && message.is_empty() {
            errors.push(FieldError::invalid(
                at("message"),
                &text(&rule.message),
                "must be non-empty if specified",
            ));
        } else if lines(message) {
            errors.push(FieldError::invalid(
                at("message"),
                &text(&rule.message),
                "must not contain line breaks",
            ));
        } else if lines(trimmed) && message.is_empty() {
            errors.push(FieldError::required(
                at("message"),
                "message must be specified if rule contains line breaks",
            ));
        }
        if !rule.message_expression.is_empty() && rule.message_expression.trim().is_empty() {
            errors.push(FieldError::required(
                at("messageExpression"),
                "messageExpression must be non-empty if specified",
            ));
        }
        if let Some(reason) = rule.reason.as_deref().filter(|r| !REASONS.contains(r)) {
            errors.push(FieldError::not_supported(
                at("reason"),
                &text(reason),
                &REASONS,
            ));
        }
        if !rule.field_path.is_empty() {
            let given = text(&rule.field_path);
            if rule.field_path.trim().is_empty() {
                errors.push(FieldError::invalid(
                    at("fieldPath"),
                    &given,
                    "must be non-empty if specified",
                ));
            }
            if lines(&rule.field_path) {
                errors.push(FieldError::invalid(
                    at("fieldPath"),
                    &given,
                    "must not contain line breaks",
                ));
            }
            if resolve(&rule.field_path, node, true).is_err() {
                errors.push(FieldError::invalid(
                    at("fieldPath"),
                    &given,
                    "must be a valid path",
                ));
            }
        }
    }
    for (inner, here) in inner(node, path) {
        check_shapes(inner, &here, errors);
    }
}

/// The schemas inside a schema, with their paths.
fn inner<'a>(node: &'a Node, path: &str) -> Vec<(&'a Node, String)> {
    let mut all: Vec<(&Node, String)> = node
        .properties
        .iter()
        .map(|(name, schema)| (schema, format!("{}[{name}]", join(path, "properties"))))
        .collect();
    if let Additional::Schema(schema) = &node.additional {
        all.push((schema, join(path, "additionalProperties")));
    }
    if let Some(items) = &node.items {
        all.push((items, join(path, "items")));
    }
    all
}

fn check_node(
    node: &Node,
    path: &str,
    context: Context<'_>,
    budget: &mut Budget,
    errors: &mut Vec<FieldError>,
) {
    if !node.has_rules {
        return;
    }
    for (i, rule) in node.validations.iter().flatten().enumerate() {
        check_rule(
            rule,
            node,
            &format!("{path}.x-kubernetes-validations[{i}]"),
            context,
            budget,
            errors,
        );
    }
    let occurs = context
        .occurs
        .zip(children(node))
        .map(|(outer, each)| outer.saturating_mul(each));
    for (schema, here) in inner(node, path) {
        let is_item = node
            .items
            .as_deref()
            .is_some_and(|items| std::ptr::eq(items, schema));
        let uncorrelated = match &node.list {
            ListType::Map(_) => context.uncorrelated,
            _ if is_item => context.uncorrelated.or(Some(path)),
            _ => context.uncorrelated,
        };
        let next = Context {
            resource: schema.embedded,
            occurs,
            uncorrelated,
        };
        check_node(schema, &here, next, budget, errors);
    }
}

fn check_rule(
    rule: &Rule,
    node: &Node,
    path: &str,
    context: Context<'_>,
    budget: &mut Budget,
    errors: &mut Vec<FieldError>,
) {
    let optional = rule.optional_old_self == Some(true);
    let here = format!("{path}.rule");
    let parsed = expression(
        &rule.rule,
        node,
        context.resource,
        optional,
        &BOOL,
        "cel expression must evaluate to a bool",
    );
    let (cost, uses_old_self) = match &parsed {
        Ok(good) => (good.cost, good.uses_old_self),
        Err(_) => (0, false),
    };
    let times = context
        .occurs
        .unwrap_or_else(|| cardinality(smallest(node)));
    let cost = cost.saturating_mul(times);
    if cost > RULE_LIMIT {
        errors.push(FieldError::forbidden(
            here.as_str(),
            &over("estimated rule cost", cost, RULE_LIMIT),
        ));
    }
    budget.total = budget.total.saturating_add(cost);
    budget.rules.push((here.clone(), cost));
    let shown = |at: String, detail: &str| FieldError {
        kind: FieldErrorKind::Invalid,
        field: at,
        message: format!("Invalid value: {}: {detail}", shown_rule(rule)),
    };
    if let Err(detail) = &parsed {
        errors.push(shown(here.clone(), detail));
    } else if !rule.message_expression.is_empty() {
        let at = format!("{path}.messageExpression");
        match expression(
            &rule.message_expression,
            node,
            context.resource,
            optional,
            &TEXT,
            "messageExpression must evaluate to a string",
        ) {
            Ok(good) => {
                if good.cost > RULE_LIMIT {
                    let detail = over("estimated messageExpression cost", good.cost, RULE_LIMIT);
                    errors.push(FieldError::forbidden(at.as_str(), &detail));
                }
                budget.total = budget.total.saturating_add(good.cost);
                budget.rules.push((at, good.cost));
            }
            Err(detail) => {
                let detail = detail
                    .strip_prefix("compilation")
                    .map_or(detail.clone(), |rest| {
                        format!("messageExpression compilation{rest}")
                    });
                errors.push(shown(at, &detail));
            }
        }
    }
    if uses_old_self {
        if let Some(around) = context.uncorrelated {
            let detail = format!(
                "oldSelf cannot be used on the uncorrelatable portion of the schema within {around}"
            );
            errors.push(FieldError::invalid(
                here,
                &Value::from(rule.rule.as_ref()),
                &detail,
            ));
        }
    } else if let Some(given) = rule.optional_old_self {
        errors.push(FieldError::invalid(
            format!("{path}.optionalOldSelf"),
            &Value::from(given),
            "may not be set if oldSelf is not used in rule",
        ));
    }
}

struct Good {
    cost: u64,
    uses_old_self: bool,
}

/// Parses an expression and checks that it gives `wanted`.
fn expression(
    source: &str,
    node: &Node,
    resource: bool,
    optional: bool,
    wanted: &Type<'_>,
    otherwise: &str,
) -> Result<Good, String> {
    let program = Program::parse(source).map_err(|e| format!("compilation failed: {e}"))?;
    let Some(mut inference) = Inference::new(node, resource, optional) else {
        return Err("internal error: failed to construct type information for x-kubernetes-validations rules".into());
    };
    let known = inference.infer(&program.expr);
    if !inference.errors.is_empty() {
        let places = places(source);
        let mut located_errors: Vec<((isize, isize), String)> = inference
            .errors
            .iter()
            .map(|(id, message)| {
                let (line, column) = places.get(id).copied().unwrap_or((1, 1));
                ((line, column), located(source, line, column, message))
            })
            .collect();
        located_errors.sort_by_key(|(place, _)| *place);
        let all: Vec<String> = located_errors.into_iter().map(|(_, text)| text).collect();
        return Err(format!("compilation failed: {}", all.join("\n")));
    }
    // Only `dyn` itself is of every type.
    let fits = matches!((&known.ty, wanted), (Type::Named(a), Type::Named(b)) if a == b);
    if !fits {
        return Err(otherwise.to_owned());
    }
    Ok(Good {
        cost: known.cost,
        uses_old_self: program.uses_old_self,
    })
}

/// Line and column of each expression of `source`, by its id.
///
/// The parser gives these away with its errors only, so it is made to fail after the expression: what stands before the end
/// keeps its ids.
fn places(source: &str) -> HashMap<u64, (isize, isize)> {
    let Err(errors) = parser().parse(&format!("({source}\n) && has(1)")) else {
        return HashMap::new();
    };
    let Some(info) = errors.errors.first().and_then(|e| e.source_info.clone()) else {
        return HashMap::new();
    };
    ids(&info)
        .map(|(id, offset)| (id, line_and_column(source, offset.saturating_sub(1))))
        .collect()
}

fn ids(info: &SourceInfo) -> impl Iterator<Item = (u64, usize)> + '_ {
    (1..10_000_u64).map_while(|id| {
        let (start, _) = info.offset_for(id)?;
        Some((id, start as usize))
    })
}

fn line_and_column(source: &str, offset: usize) -> (isize, isize) {
    let before: String = source.chars().take(offset).collect();
    let line = before.matches('\n').count() + 1;
    let column = before
        .rsplit('\n')
        .next()
        .unwrap_or_default()
        .chars()
        .count()
        + 1;
    (
        isize::try_from(line).unwrap_or(isize::MAX),
        isize::try_from(column).unwrap_or(isize::MAX),
    )
}

/// A rule as errors show it.
fn shown_rule(rule: &Rule) -> String {
    let fields = [
        ("Rule", json!(rule.rule)),
        ("Message", json!(rule.message)),
        ("MessageExpression", json!(rule.message_expression)),
        ("Reason", json!(rule.reason)),
        ("FieldPath", json!(rule.field_path)),
        ("OptionalOldSelf", json!(rule.optional_old_self)),
    ];
    let all: Vec<String> = fields
        .iter()
        .map(|(name, value)| format!("\"{name}\":{value}"))
        .collect();
    let text = format!("{{{}}}", all.join(","));
    text.replace('<', "\\u003c")
        .replace('>', "\\u003e")
        .replace('&', "\\u0026")
}

#[expect(clippy::cast_precision_loss, reason = "shown with one digit")]
fn over(what: &str, cost: u64, limit: u64) -> String {
    let factor = cost as f64 / limit as f64;
    let shown = if factor > 100.0 {
        "more than 100x".to_owned()
    } else if factor < 1.5 {
        format!("{factor:.6}x")
    } else {
        format!("{factor:.1}x")
    };
    format!("{what} exceeds budget by factor of {shown} {ADVICE}")
}
