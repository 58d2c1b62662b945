//! Rules that mean harm: they end, soon and with an error.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::eval::{Fault, Run, Scope};
use super::val::Val;
use super::{DEPTH_LIMIT, Program, SOURCE_LIMIT, stack};
use crate::schema::Schema;
use crate::schema::node::Node;

/// Evaluates a rule that no definition would be accepted with.
fn evaluate(source: &str, object: &Value, schema: &Value) -> Result<String, Fault> {
    let node = Node::parse(schema, "").unwrap();
    let program = Program::parse(source).map_err(Fault::Failed)?;
    let answer = || {
        let scope = Scope::Empty;
        let scope = Scope::Bound("self", Val::of(object, &node, true), &scope);
        let mut run = Run::new();
        run.eval(&program.expr, &scope)
            .map(|value| format!("{value:?}"))
    };
    if stack::needs_room(source) {
        stack::with_room(answer).unwrap()
    } else {
        answer()
    }
}

#[test]
fn costly_rules_reach_their_limit_soon() {
    let schema = json!({"type": "object", "properties": {
        "s": {"type": "string"}, "l": {"type": "array", "items": {"type": "string"}},
        "n": {"type": "array", "items": {"type": "array", "items": {"type": "integer"}}}}});
    let words: Vec<String> = (0..50_000).map(|i| format!("word {i}")).collect();
    let figures: Vec<Vec<u32>> = (0..2000)
        .map(|i| (0..100).map(|j| i * j).collect())
        .collect();
    let object = json!({"s": "a".repeat(1_000_000), "l": words, "n": figures});
    let doubled = |depth: usize| {
        let mut text = "self.s".to_owned();
        for i in 0..depth {
            text = format!("[{text}].map(x{i}, x{i} + x{i})[0]");
        }
        format!("{text} == ''")
    };
    let mut rules: Vec<String> = [
        "self.l.all(a, self.l.all(b, self.l.all(c, a != b + c)))",
        "sets.contains(self.l, self.l.map(x, x + 'y'))",
        "sets.equivalent(self.l, self.l)",
        "self.s.replace('', self.s) == ''",
        "self.s.replace('a', self.s) == ''",
        "self.l.map(x, self.s + x).join(self.s) == ''",
        "self.l.all(x, self.n == self.n)",
        "self.l.all(x, !self.s.matches('(a*)*b'))",
        "self.l.all(x, x.matches('(x+x+)+y' + x) || true)",
        "self.l.all(x, !self.s.contains('aaaaaaaaaaaaaaaaaaab'))",
        "self.n.all(x, self.n.all(y, x == y || x != y))",
        "self.l.exists(a, self.l.exists(b, 1 / 0 == 1))",
        "self.l.all(i, a, self.l.all(j, b, i + j >= 0))",
        "self.l.transformList(i, v, self.l).size() == 0 || self.l.map(x, self.l + self.l).size() == 0",
    ]
    .map(str::to_owned)
    .to_vec();
    rules.push(doubled(30));
    for rule in rules {
        let start = Instant::now();
        let outcome = evaluate(&rule, &object, &schema);
        let took = start.elapsed();
        assert!(
            took < Duration::from_secs(20),
            "{} took {took:?}",
            &rule[..60.min(rule.len())]
        );
        assert_eq!(
            outcome,
            Err(Fault::Limit),
            "{}",
            &rule[..60.min(rule.len())]
        );
    }
}

#[test]
fn an_error_that_is_not_asked_for_is_none() {
    let schema = json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}}});
    let object = json!({"l": [0, 2]});
    let good = [
        "self.l.exists(x, 2 / x == 1)",
        "!self.l.all(x, 2 / x == 2)",
        "true || 1 / 0 == 1",
        "!(1 / 0 == 1 && false)",
    ];
    for rule in good {
        assert_eq!(
            evaluate(rule, &object, &schema),
            Ok("Plain(Bool(true))".into()),
            "{rule}"
        );
    }
    let bad = [
        "self.l.exists(x, 2 / x == 9)",
        "self.l.all(x, 2 / x == 1)",
        "false || 1 / 0 == 1",
    ];
    for rule in bad {
        assert_eq!(
            evaluate(rule, &object, &schema),
            Err(Fault::Failed("division by zero".into())),
            "{rule}"
        );
    }
}

#[test]
fn long_and_deep_expressions_are_refused() {
    assert!(Program::parse(&" ".repeat(SOURCE_LIMIT + 1)).is_err());
    let deep = usize::from(DEPTH_LIMIT) * 100;
    for source in [
        format!("{}1{}", "(".repeat(deep), ")".repeat(deep)),
        format!("{}1", "-".repeat(deep)),
        format!("{}1{}", "[".repeat(deep), "]".repeat(deep)),
        format!("{}true", "!".repeat(deep)),
        format!("self{}", ".a".repeat(deep)),
        format!("1{}", " + 1".repeat(deep)),
        format!("true{}", " ? true : true".repeat(deep)),
    ] {
        // Whether it is refused or accepted, nothing overflows.
        let _ = evaluate(&source, &json!({}), &json!({"type": "object"}));
    }
}

#[test]
fn the_rules_of_one_object_have_one_budget() {
    let rule = "self.l.all(x, self.l.exists(y, x == y))";
    let schema = Schema::parse(&json!({"type": "object", "properties": {"l": {"type": "array", "items": {"type": "integer"}}},
        "x-kubernetes-validations": vec![json!({"rule": rule}); 40]}))
    .unwrap();
    let list: Vec<u32> = (0..400).collect();
    let start = Instant::now();
    let errors = schema.validate(&json!({"l": list}));
    assert!(start.elapsed() < Duration::from_secs(60));
    assert_eq!(errors.len(), 1, "{errors:?}");
    assert_eq!(
        errors[0].message,
        "Invalid value: \"object\": validation failed due to running out of cost budget, no further validation rules will be run"
    );
}
