//! Answers one expression, counting what it costs.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators,
};
use kube_cel::cel::{IdedExpr, Value as Cel};
use regex::Regex;

use super::compare::{compare, field, index, inside, shown, zero};
use super::val::Val;
use super::{CALL_LIMIT, address, cost, library};

/// The longest that one evaluation takes, whatever it costs by count.
const TIME_LIMIT: Duration = Duration::from_secs(5);

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Fault {
    /// The limit is reached; nothing absorbs this.
    Limit,
    /// The expression failed, in upstream's words.
    Failed(String),
}

pub(super) type Outcome<'a> = Result<Val<'a>, Fault>;

/// One evaluation.
pub(super) struct Run {
    cost: f64,
    deadline: Instant,
    ticks: u32,
    pub(super) patterns: HashMap<String, Option<Regex>>,
}

/// Variables in view, the innermost first.
pub(super) enum Scope<'s, 'a> {
    Empty,
    Bound(&'s str, Val<'a>, &'s Self),
}

impl<'a> Scope<'_, 'a> {
    fn get(&self, name: &str) -> Option<&Val<'a>> {
        match self {
            Self::Empty => None,
            Self::Bound(bound, value, _) if *bound == name => Some(value),
            Self::Bound(_, _, outer) => outer.get(name),
        }
    }
}

pub(super) fn failed<T>(message: impl Into<String>) -> Result<T, Fault> {
    Err(Fault::Failed(message.into()))
}

pub(super) fn no_overload<T>() -> Result<T, Fault> {
    failed("no such overload")
}

impl Run {
    pub(super) fn new() -> Self {
        Self {
            cost: 0.0,
            deadline: Instant::now() + TIME_LIMIT,
            ticks: 0,
            patterns: HashMap::new(),
        }
    }

    /// What was spent so far.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "positive and below the limit"
    )]
    pub(super) fn cost(&self) -> u64 {
        self.cost.ceil() as u64
    }

    #[expect(clippy::cast_precision_loss, reason = "far below 2^52")]
    pub(super) fn charge(&mut self, cost: f64) -> Result<(), Fault> {
        self.cost += cost;
        self.ticks += 1;
        let late = self.ticks.is_multiple_of(64) && Instant::now() > self.deadline;
        if self.cost > CALL_LIMIT as f64 || late {
            self.cost = self.cost.max(CALL_LIMIT as f64 + 1.0);
            return Err(Fault::Limit);
        }
        Ok(())
    }

    pub(super) fn eval<'a>(&mut self, expr: &IdedExpr, scope: &Scope<'_, 'a>) -> Outcome<'a> {
        match &expr.expr {
            Expr::Literal(literal) => Ok(constant(literal)),
            Expr::Ident(name) => {
                self.charge(1.0)?;
                match scope.get(name) {
                    Some(value) => Ok(value.clone()),
                    None => match type_name(name) {
                        Some(name) => Ok(Val::Type(name.into())),
                        None => failed(format!("no such attribute(s): {name}")),
                    },
                }
            }
            Expr::Select(select) => {
                let operand = self.eval(&select.operand, scope)?;
                self.charge(1.0)?;
                if select.test {
                    return Ok(Val::bool(match &operand {
                        Val::Optional(inner) => inner
                            .as_ref()
                            .is_some_and(|v| v.get(&select.field).is_some()),
                        other => other.get(&select.field).is_some(),
                    }));
                }
                field(&operand, &select.field)
            }
            Expr::Call(call) => self.call(call, scope),
            Expr::List(list) => {
                self.charge(10.0)?;
                let mut items = Vec::with_capacity(list.elements.len());
                for (i, element) in list.elements.iter().enumerate() {
                    let value = self.eval(element, scope)?;
                    match value {
                        Val::Optional(inner) if list.optional_indices.contains(&i) => {
                            items.extend(inner.map(|v| (*v).clone()));
                        }
                        value => items.push(value),
                    }
                }
                Ok(Val::List(Rc::new(items)))
            }
            Expr::Map(map) => {
                self.charge(30.0)?;
                let mut entries: Vec<(Cel, Val<'a>)> = Vec::with_capacity(map.entries.len());
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        return failed("unsupported map entry");
                    };
                    let Val::Plain(key) = self.eval(&entry.key, scope)? else {
                        return failed("unsupported key type");
                    };
                    let value = match self.eval(&entry.value, scope)? {
                        Val::Optional(inner) if entry.optional => match inner {
                            Some(value) => (*value).clone(),
                            None => continue,
                        },
                        value => value,
                    };
                    if entries.iter().any(|(known, _)| *known == key) {
                        return failed("duplicate key in map literal");
                    }
                    self.charge(0.1)?;
                    entries.push((key, value));
                }
                Ok(Val::Map(Rc::new(entries)))
            }
            Expr::Comprehension(fold) => self.fold(fold, scope),
            Expr::Struct(_) | Expr::Unspecified => failed("unsupported expression"),
        }
    }

    fn fold<'a>(&mut self, fold: &ComprehensionExpr, scope: &Scope<'_, 'a>) -> Outcome<'a> {
        let range = self.eval(&fold.iter_range, scope)?;
        let items = keys_or_items(&range)?;
        let mut accumulated = self.eval(&fold.accu_init, scope);
        for item in items {
            self.charge(0.0)?;
            let outer = Scope::Bound(
                &fold.accu_var,
                accumulated.clone().or_else(|fault| absorb(&fault))?,
                scope,
            );
            let goes_on = match &accumulated {
                // A step that failed is kept until one decides, as `||` and `&&` have it.
                Err(_) => true,
                Ok(_) => self.eval(&fold.loop_cond, &outer)?.as_bool() != Some(false),
            };
            if !goes_on {
                break;
            }
            let inner = Scope::Bound(&fold.iter_var, item, &outer);
            let next = match (&accumulated, step(&fold.loop_step)) {
                (Err(fault), Some(decides)) => {
                    let Some(arm) = decides.arm else {
                        return Err(fault.clone());
                    };
                    match self.eval(arm, &inner) {
                        Ok(value) if value.as_bool() == Some(decides.at) => Ok(value),
                        Err(Fault::Limit) => return Err(Fault::Limit),
                        _ => Err(fault.clone()),
                    }
                }
                (Err(fault), None) => return Err(fault.clone()),
                (Ok(_), _) => match self.eval(&fold.loop_step, &inner) {
                    Err(Fault::Limit) => return Err(Fault::Limit),
                    other => other,
                },
            };
            accumulated = next;
        }
        let outer = Scope::Bound(&fold.accu_var, accumulated?, scope);
        self.eval(&fold.result, &outer)
    }

    fn call<'a>(&mut self, call: &CallExpr, scope: &Scope<'_, 'a>) -> Outcome<'a> {
        let name = call.func_name.as_str();
        match (name, call.args.as_slice()) {
            (operators::LOGICAL_AND, [left, right]) => {
                return self.junction(left, right, scope, false);
            }
            (operators::LOGICAL_OR, [left, right]) => {
                return self.junction(left, right, scope, true);
            }
            (operators::CONDITIONAL, [condition, yes, no]) => {
                return match self.eval(condition, scope)?.as_bool() {
                    Some(true) => self.eval(yes, scope),
                    Some(false) => self.eval(no, scope),
                    None => no_overload(),
                };
            }
            (operators::NOT_STRICTLY_FALSE, [inner]) => {
                return match self.eval(inner, scope) {
                    Err(Fault::Limit) => Err(Fault::Limit),
                    Ok(value) => Ok(Val::bool(value.as_bool() != Some(false))),
                    Err(_) => Ok(Val::bool(true)),
                };
            }
            (operators::OPT_SELECT, [operand, name]) => {
                let operand = self.eval(operand, scope)?;
                let Val::Plain(Cel::String(name)) = self.eval(name, scope)? else {
                    return no_overload();
                };
                self.charge(1.0)?;
                return Ok(Val::Optional(
                    inside(&operand).and_then(|v| v.get(&name)).map(Rc::new),
                ));
            }
            _ => {}
        }
        if let Some(target) = &call.target {
            if let Some(result) = self.macro_of_two(call, target, scope) {
                return result;
            }
            if let Expr::Ident(prefix) = &target.expr {
                let full = format!("{prefix}.{name}");
                if scope.get(prefix).is_none() {
                    let args = self.all(&call.args, scope)?;
                    return self.qualified(&full, &args);
                }
            }
        }
        let target = match &call.target {
            Some(target) => Some(self.eval(target, scope)?),
            None => None,
        };
        if let Some(Val::Optional(inner)) = &target
            && let Some(result) = self.optional(name, inner.as_deref(), &call.args, scope)
        {
            return result;
        }
        let args = self.all(&call.args, scope)?;
        self.apply(name, target.as_ref(), &args)
    }

    fn all<'a>(
        &mut self,
        exprs: &[IdedExpr],
        scope: &Scope<'_, 'a>,
    ) -> Result<Vec<Val<'a>>, Fault> {
        exprs.iter().map(|expr| self.eval(expr, scope)).collect()
    }

    /// `&&` and `||`: a side that decides makes the other's failure irrelevant.
    fn junction<'a>(
        &mut self,
        left: &IdedExpr,
        right: &IdedExpr,
        scope: &Scope<'_, 'a>,
        decides: bool,
    ) -> Outcome<'a> {
        let mut fault = None;
        for side in [left, right] {
            match self.eval(side, scope) {
                Err(Fault::Limit) => return Err(Fault::Limit),
                Err(other) => fault = fault.or(Some(other)),
                Ok(value) => match value.as_bool() {
                    Some(b) if b == decides => return Ok(Val::bool(decides)),
                    Some(_) => {}
                    None => {
                        fault = fault.or_else(|| Some(Fault::Failed("no such overload".into())));
                    }
                },
            }
        }
        fault.map_or(Ok(Val::bool(!decides)), Err)
    }

    /// The macros that bind a key and a value, which the parser leaves as calls.
    fn macro_of_two<'a>(
        &mut self,
        call: &CallExpr,
        target: &IdedExpr,
        scope: &Scope<'_, 'a>,
    ) -> Option<Outcome<'a>> {
        let two = two_variables(call)?;
        Some(self.fold_two(&two, target, scope))
    }

    fn fold_two<'a>(
        &mut self,
        two: &TwoVariables<'_>,
        target: &IdedExpr,
        scope: &Scope<'_, 'a>,
    ) -> Outcome<'a> {
        let range = self.eval(target, scope)?;
        let mut fault = None;
        let (mut hits, mut list, mut map) = (0, Vec::new(), Vec::new());
        for (key, value) in pairs(&range)? {
            self.charge(1.0)?;
            let outer = Scope::Bound(two.key, key.clone(), scope);
            let inner = Scope::Bound(two.value, value, &outer);
            if let Some(filter) = two.filter
                && self.eval(filter, &inner)?.as_bool() != Some(true)
            {
                continue;
            }
            let result = match self.eval(two.body, &inner) {
                Err(Fault::Limit) => return Err(Fault::Limit),
                other => other,
            };
            match two.name {
                "all" | "exists" => match result {
                    Ok(v) if v.as_bool() == Some(two.name == "exists") => return Ok(v),
                    Ok(_) => {}
                    Err(e) => fault = fault.or(Some(e)),
                },
                "existsOne" | "exists_one" => hits += u32::from(result?.as_bool() == Some(true)),
                "transformList" => list.push(result?),
                "transformMap" => {
                    let Val::Plain(key) = key else {
                        return no_overload();
                    };
                    map.push((key, result?));
                }
                _ => map.extend(result?.entries().unwrap_or_default()),
            }
        }
        if let Some(fault) = fault {
            return Err(fault);
        }
        Ok(match two.name {
            "all" => Val::bool(true),
            "exists" => Val::bool(false),
            "existsOne" | "exists_one" => Val::bool(hits == 1),
            "transformList" => Val::List(Rc::new(list)),
            _ => Val::Map(Rc::new(map)),
        })
    }

    fn qualified<'a>(&mut self, name: &str, args: &[Val<'a>]) -> Outcome<'a> {
        match (name, args) {
            ("optional.none", []) => Ok(Val::Optional(None)),
            ("optional.of", [value]) => Ok(Val::Optional(Some(Rc::new(value.clone())))),
            ("optional.ofNonZeroValue", [value]) => Ok(Val::Optional(
                (!zero(value)).then(|| Rc::new(value.clone())),
            )),
            _ => self.library(name, None, args),
        }
    }

    fn optional<'a>(
        &mut self,
        name: &str,
        inner: Option<&Val<'a>>,
        args: &[IdedExpr],
        scope: &Scope<'_, 'a>,
    ) -> Option<Outcome<'a>> {
        Some(match (name, args) {
            ("hasValue", []) => Ok(Val::bool(inner.is_some())),
            ("value", []) => inner
                .cloned()
                .map_or_else(|| failed("optional.none() dereference"), Ok),
            ("or", [other]) => match inner {
                Some(value) => Ok(Val::Optional(Some(Rc::new(value.clone())))),
                None => self.eval(other, scope),
            },
            ("orValue", [other]) => match inner {
                Some(value) => Ok(value.clone()),
                None => self.eval(other, scope),
            },
            ("optMap" | "optFlatMap", [variable, body]) => {
                let (Expr::Ident(variable), Some(value)) = (&variable.expr, inner) else {
                    return Some(Ok(Val::Optional(None)));
                };
                let scope = Scope::Bound(variable, value.clone(), scope);
                self.eval(body, &scope).map(|value| match value {
                    value @ Val::Optional(_) if name == "optFlatMap" => value,
                    value => Val::Optional(Some(Rc::new(value))),
                })
            }
            _ => return None,
        })
    }

    /// Operators and functions, their arguments known.
    fn apply<'a>(&mut self, name: &str, target: Option<&Val<'a>>, args: &[Val<'a>]) -> Outcome<'a> {
        match (name, target, args) {
            (operators::EQUALS, None, [a, b]) => self.equal(a, b, 0).map(Val::bool),
            (operators::NOT_EQUALS, None, [a, b]) => self.equal(a, b, 0).map(|e| Val::bool(!e)),
            (operators::INDEX, None, [container, key]) => {
                self.charge(1.0)?;
                let found = index(inside(container), key)?;
                match (container, found) {
                    (Val::Optional(_), found) => Ok(Val::Optional(found.map(Rc::new))),
                    (_, Some(found)) => Ok(found),
                    (container, None) if container.is_list() => {
                        failed(format!("index out of bounds: {}", shown(key)))
                    }
                    (_, None) => failed(format!("no such key: {}", shown(key))),
                }
            }
            (operators::OPT_INDEX, None, [container, key]) => {
                self.charge(1.0)?;
                Ok(Val::Optional(index(inside(container), key)?.map(Rc::new)))
            }
            (operators::IN, None, [item, container]) => self.contained(item, container),
            (operators::LOGICAL_NOT, None, [value]) => {
                self.charge(1.0)?;
                value
                    .as_bool()
                    .map_or_else(no_overload, |b| Ok(Val::bool(!b)))
            }
            (operators::ADD, None, [a, b]) if a.is_list() && b.is_list() => self.concatenated(a, b),
            ("size", Some(value), []) | ("size", None, [value]) => {
                self.charge(1.0)?;
                let sized = value.is_list()
                    || value.is_map()
                    || matches!(value, Val::Plain(Cel::String(_) | Cel::Bytes(_)));
                if sized {
                    Ok(Val::Plain(Cel::Int(
                        i64::try_from(value.size()).unwrap_or(i64::MAX),
                    )))
                } else {
                    no_overload()
                }
            }
            ("first" | "last", Some(list), []) if list.is_list() => {
                self.charge(1.0)?;
                let items = list.items().unwrap_or_default();
                let found = if name == "first" {
                    items.first()
                } else {
                    items.last()
                };
                Ok(Val::Optional(found.cloned().map(Rc::new)))
            }
            ("type", None, [value]) => {
                self.charge(1.0)?;
                Ok(Val::Type(value.type_name().into()))
            }
            ("dyn", None, [value]) => {
                self.charge(1.0)?;
                Ok(value.clone())
            }
            ("bool", None, [Val::Plain(Cel::String(text))]) => {
                self.charge(1.0)?;
                match text.as_str() {
                    "true" | "True" | "TRUE" | "t" | "1" => Ok(Val::bool(true)),
                    "false" | "False" | "FALSE" | "f" | "0" => Ok(Val::bool(false)),
                    _ => failed(format!(
                        "type conversion error from 'string' to 'bool': {text:?}"
                    )),
                }
            }
            ("bool", None, [Val::Plain(Cel::Bool(b))]) => Ok(Val::bool(*b)),
            ("matches", Some(text), [pattern]) | ("matches", None, [text, pattern]) => {
                self.matches(text, pattern)
            }
            (
                operators::LESS
                | operators::LESS_EQUALS
                | operators::GREATER
                | operators::GREATER_EQUALS,
                None,
                [a, b],
            ) => {
                self.charge(cost::ordering(a, b))?;
                compare(name, a, b)
            }
            _ => self.library(name, target, args),
        }
    }

    fn library<'a>(
        &mut self,
        name: &str,
        target: Option<&Val<'a>>,
        args: &[Val<'a>],
    ) -> Outcome<'a> {
        self.charge(cost::call(name, target, args))?;
        if let ([value], None) | ([], Some(value)) = (args, target)
            && let Val::Plain(value) = value
            && let Some(result) = address::call(name, value)
        {
            return result.map(Val::from_library).map_err(Fault::Failed);
        }
        let target = target.map(Val::to_library);
        let args: Vec<Cel> = args.iter().map(Val::to_library).collect();
        let result = match (name, target, args.as_slice()) {
            (
                operators::ADD
                | operators::SUBSTRACT
                | operators::MULTIPLY
                | operators::DIVIDE
                | operators::MODULO,
                None,
                [a, b],
            ) => library::call(name, None, vec![a.clone(), b.clone()]),
            (_, target, _) => library::call(name, target, args),
        };
        result
            .map(Val::from_library)
            .map_err(|e| Fault::Failed(library::message(&e)))
    }
}

/// A step of the form `accumulator || x` or `accumulator && x`.
struct Decides<'e> {
    arm: Option<&'e IdedExpr>,
    at: bool,
}

fn step(expr: &IdedExpr) -> Option<Decides<'_>> {
    let Expr::Call(call) = &expr.expr else {
        return None;
    };
    let at = match call.func_name.as_str() {
        operators::LOGICAL_OR => true,
        operators::LOGICAL_AND => false,
        _ => return None,
    };
    Some(Decides {
        arm: call.args.get(1),
        at,
    })
}

/// While an error is carried along, the accumulator has no value of its own.
fn absorb<'a>(fault: &Fault) -> Outcome<'a> {
    match fault {
        Fault::Limit => Err(Fault::Limit),
        Fault::Failed(_) => Ok(Val::Plain(Cel::Null)),
    }
}

/// A macro with a variable for the key and one for the value.
pub(super) struct TwoVariables<'e> {
    pub(super) name: &'e str,
    pub(super) key: &'e str,
    pub(super) value: &'e str,
    pub(super) filter: Option<&'e IdedExpr>,
    pub(super) body: &'e IdedExpr,
}

pub(super) fn two_variables(call: &CallExpr) -> Option<TwoVariables<'_>> {
    let (key, value, filter, body) = match (call.func_name.as_str(), call.args.as_slice()) {
        (
            "all" | "exists" | "existsOne" | "exists_one" | "transformList" | "transformMap"
            | "transformMapEntry",
            [key, value, body],
        ) => (key, value, None, body),
        ("transformList" | "transformMap" | "transformMapEntry", [key, value, filter, body]) => {
            (key, value, Some(filter), body)
        }
        _ => return None,
    };
    let (Expr::Ident(key), Expr::Ident(value)) = (&key.expr, &value.expr) else {
        return None;
    };
    Some(TwoVariables {
        name: &call.func_name,
        key,
        value,
        filter,
        body,
    })
}

/// What a comprehension over the value sees: the items of a list, the keys of a map.
fn keys_or_items<'a>(range: &Val<'a>) -> Result<Vec<Val<'a>>, Fault> {
    if let Some(items) = range.items() {
        return Ok(items);
    }
    match range.entries() {
        Some(entries) => Ok(entries
            .into_iter()
            .map(|(key, _)| Val::Plain(key))
            .collect()),
        None => no_overload(),
    }
}

fn pairs<'a>(range: &Val<'a>) -> Result<Vec<(Val<'a>, Val<'a>)>, Fault> {
    if let Some(items) = range.items() {
        let numbered = items.into_iter().enumerate();
        return Ok(numbered
            .map(|(i, v)| {
                (
                    Val::Plain(Cel::Int(i64::try_from(i).unwrap_or(i64::MAX))),
                    v,
                )
            })
            .collect());
    }
    match range.entries() {
        Some(entries) => Ok(entries
            .into_iter()
            .map(|(key, v)| (Val::Plain(key), v))
            .collect()),
        None => no_overload(),
    }
}

fn constant<'a>(literal: &LiteralValue) -> Val<'a> {
    Val::Plain(match literal {
        LiteralValue::Boolean(b) => Cel::Bool(*b.inner()),
        LiteralValue::Int(i) => Cel::Int(*i.inner()),
        LiteralValue::UInt(u) => Cel::UInt(*u.inner()),
        LiteralValue::Double(f) => Cel::Float(*f.inner()),
        LiteralValue::String(s) => Cel::String(Arc::new(s.inner().to_owned())),
        LiteralValue::Bytes(b) => Cel::Bytes(Arc::new(b.inner().to_vec())),
        LiteralValue::Null => Cel::Null,
    })
}

/// The types that expressions name.
pub(super) fn type_name(name: &str) -> Option<&'static str> {
    Some(match name {
        "bool" => "bool",
        "int" => "int",
        "uint" => "uint",
        "double" => "double",
        "string" => "string",
        "bytes" => "bytes",
        "list" => "list",
        "map" => "map",
        "null_type" => "null_type",
        "type" => "type",
        "optional_type" => "optional_type",
        _ => return None,
    })
}

/// Whether the expression speaks of a variable.
pub(super) fn mentions(expr: &IdedExpr, variable: &str) -> bool {
    let any = |list: &[IdedExpr]| list.iter().any(|e| mentions(e, variable));
    match &expr.expr {
        Expr::Ident(name) => name == variable,
        Expr::Select(select) => mentions(&select.operand, variable),
        Expr::Call(call) => {
            call.target.as_ref().is_some_and(|t| mentions(t, variable)) || any(&call.args)
        }
        Expr::List(list) => any(&list.elements),
        Expr::Map(map) => map.entries.iter().any(|entry| match &entry.expr {
            EntryExpr::MapEntry(e) => mentions(&e.key, variable) || mentions(&e.value, variable),
            EntryExpr::StructField(f) => mentions(&f.value, variable),
        }),
        Expr::Struct(s) => s.entries.iter().any(|entry| match &entry.expr {
            EntryExpr::MapEntry(e) => mentions(&e.key, variable) || mentions(&e.value, variable),
            EntryExpr::StructField(f) => mentions(&f.value, variable),
        }),
        Expr::Comprehension(c) => [
            &c.iter_range,
            &c.accu_init,
            &c.loop_cond,
            &c.loop_step,
            &c.result,
        ]
        .iter()
        .any(|e| mentions(e, variable)),
        Expr::Literal(_) | Expr::Unspecified => false,
    }
}
