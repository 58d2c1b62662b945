//! Type and highest cost of an expression, in one walk.

use std::collections::HashMap;
use std::rc::Rc;

use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::{
    CallExpr, ComprehensionExpr, EntryExpr, Expr, LiteralValue, operators,
};

use super::calls::estimated;
use super::estimate::{Size, largest};
use super::eval::{TwoVariables, two_variables, type_name};
use super::library::{self, QUALIFIED};
use super::names;
use super::types::{BOOL, INT, TEXT, Type, overloads};
use crate::schema::node::{self, Additional, Node};

/// Where in the document a value comes from; its schema bounds its size.
///
/// Upstream looks variables of comprehensions over computed lists up as if they were the root, and so does this.
#[derive(Clone, Copy, Debug)]
pub(super) enum Place<'a> {
    Node(&'a Node),
    Key,
    /// No schema says more.
    Lost,
}

impl<'a> Place<'a> {
    pub(super) fn size(self) -> Option<Size> {
        match self {
            Self::Node(node) => Some(Size {
                min: 0,
                max: largest(node),
            }),
            Self::Key => Some(Size::exactly(0)),
            Self::Lost => None,
        }
    }

    /// The place of a field.
    fn field(self, identifier: &str) -> Self {
        match self {
            Self::Node(node) => node
                .properties
                .get(identifier)
                .or_else(|| node.properties.get(names::unescape(identifier).as_str()))
                .map_or(Self::Lost, Self::Node),
            _ => Self::Lost,
        }
    }

    /// The place of items or values.
    pub(super) fn item(self) -> Self {
        match self {
            Self::Node(node) => match (&node.items, &node.additional) {
                (Some(items), _) => Self::Node(items),
                (None, Additional::Schema(schema)) => Self::Node(schema),
                _ => Self::Lost,
            },
            _ => Self::Lost,
        }
    }

    fn key(self) -> Self {
        match self {
            Self::Node(node) if matches!(node.additional, Additional::Schema(_)) => Self::Key,
            _ => Self::Lost,
        }
    }
}

/// What is known of an expression.
#[derive(Clone, Debug)]
pub(super) struct Known<'a> {
    pub(super) ty: Type<'a>,
    pub(super) cost: u64,
    pub(super) place: Option<Place<'a>>,
    pub(super) size: Option<Size>,
    /// Size of keys and of values.
    pub(super) entries: Option<(Size, Size)>,
}

impl<'a> Known<'a> {
    fn new(ty: Type<'a>, cost: u64) -> Self {
        Self {
            ty,
            cost,
            place: None,
            size: None,
            entries: None,
        }
    }

    pub(super) fn size(&self) -> Size {
        match (self.place.and_then(Place::size), self.size) {
            (Some(size), _) => size,
            (None, _) if self.ty.is_scalar() => Size::exactly(1),
            (None, Some(size)) => size,
            (None, None) => Size::UNKNOWN,
        }
    }
}

/// Walks one expression.
pub(super) struct Inference<'a> {
    root: Place<'a>,
    variables: Vec<(String, Known<'a>)>,
    /// Errors with the id of the expression that they are about.
    pub(super) errors: Vec<(u64, String)>,
}

impl<'a> Inference<'a> {
    /// Starts with `self` and `oldSelf` of a schema; none if rules cannot see its values.
    pub(super) fn new(node: &'a Node, resource: bool, optional: bool) -> Option<Self> {
        let ty = Type::of(node, resource)?;
        let own = Known {
            place: Some(Place::Node(node)),
            ..Known::new(ty.clone(), 1)
        };
        let older = Known {
            ty: if optional {
                Type::Optional(Rc::new(ty))
            } else {
                ty
            },
            ..own.clone()
        };
        Some(Self {
            root: Place::Node(node),
            variables: vec![("self".into(), own), ("oldSelf".into(), older)],
            errors: Vec::new(),
        })
    }

    fn error(&mut self, expr: &IdedExpr, message: impl Into<String>) -> Known<'a> {
        self.errors.push((expr.id, message.into()));
        Known::new(Type::Dyn, 0)
    }

    pub(super) fn infer(&mut self, expr: &IdedExpr) -> Known<'a> {
        match &expr.expr {
            Expr::Literal(literal) => constant(literal),
            Expr::Ident(name) => {
                let known = self.variables.iter().rev().find(|(known, _)| known == name);
                match known {
                    Some((_, known)) => Known {
                        cost: 1,
                        ..known.clone()
                    },
                    None if type_name(name).is_some() => Known {
                        place: Some(self.root),
                        ..Known::new(Type::OfTypes, 1)
                    },
                    None => self.error(expr, undeclared(name)),
                }
            }
            Expr::Select(select) => {
                let operand = self.infer(&select.operand);
                let mut out = self.select(expr, &operand, &select.field);
                if select.test {
                    out = Known::new(BOOL, out.cost.saturating_sub(1));
                }
                out
            }
            Expr::Call(call) => self.call(expr, call),
            Expr::List(list) => {
                let mut out = Known::new(Type::List(Rc::new(Type::Dyn)), 10);
                let mut item: Option<Type<'a>> = None;
                let mut size: Option<Size> = None;
                for (i, element) in list.elements.iter().enumerate() {
                    let mut known = self.infer(element);
                    if list.optional_indices.contains(&i)
                        && let Type::Optional(inner) = &known.ty
                    {
                        known.ty = inner.as_ref().clone();
                    }
                    out.cost = out.cost.saturating_add(known.cost);
                    size = Some(size.map_or(known.size(), |s| s.union(known.size())));
                    item = Some(self.same(element, item, known.ty));
                }
                out.ty = Type::List(Rc::new(item.unwrap_or(Type::Dyn)));
                out.size = Some(Size::exactly(list.elements.len() as u64));
                out.entries = Some((Size::exactly(1), size.unwrap_or(Size::exactly(0))));
                out
            }
            Expr::Map(map) => {
                let mut out = Known::new(Type::Dyn, 30);
                let (mut key, mut value) = (None, None);
                let mut sizes: Option<(Size, Size)> = None;
                for entry in &map.entries {
                    let EntryExpr::MapEntry(entry) = &entry.expr else {
                        continue;
                    };
                    let (k, mut v) = (self.infer(&entry.key), self.infer(&entry.value));
                    if let (true, Type::Optional(inner)) = (entry.optional, &v.ty) {
                        v.ty = inner.as_ref().clone();
                    }
                    out.cost = out.cost.saturating_add(k.cost).saturating_add(v.cost);
                    let (ks, vs) = (k.size(), v.size());
                    sizes = Some(sizes.map_or((ks, vs), |(a, b)| (a.union(ks), b.union(vs))));
                    key = Some(self.same(&entry.key, key, k.ty));
                    value = Some(self.same(&entry.value, value, v.ty));
                }
                let (key, value) = (key.unwrap_or(Type::Dyn), value.unwrap_or(Type::Dyn));
                out.ty = Type::Map(Rc::new(key), Rc::new(value));
                out.size = Some(Size::exactly(map.entries.len() as u64));
                out.entries = Some(sizes.unwrap_or((Size::exactly(0), Size::exactly(0))));
                out
            }
            Expr::Comprehension(fold) => self.fold(fold),
            Expr::Struct(given) => {
                let name = &given.type_name;
                self.error(expr, undeclared(name))
            }
            Expr::Unspecified => Known::new(Type::Dyn, 0),
        }
    }

    /// All elements of a literal have one type.
    fn same(&mut self, element: &IdedExpr, known: Option<Type<'a>>, ty: Type<'a>) -> Type<'a> {
        match known {
            None => ty,
            Some(known) => {
                if !known.takes(&ty, &mut HashMap::new()) {
                    self.errors.push((
                        element.id,
                        format!("expected type '{known}' but found '{ty}'"),
                    ));
                }
                known
            }
        }
    }

    fn select(&mut self, expr: &IdedExpr, operand: &Known<'a>, name: &str) -> Known<'a> {
        let cost = operand.cost;
        let (ty, optional) = match &operand.ty {
            Type::Optional(inner) => (inner.as_ref().clone(), true),
            other => (other.clone(), false),
        };
        let mut out = match ty {
            Type::Object(node, resource) => match Type::field(node, resource, name) {
                Some((ty, _)) => Known::new(ty, cost.saturating_add(1)),
                None => return self.error(expr, format!("undefined field '{name}'")),
            },
            Type::Map(_, value) => Known::new(value.as_ref().clone(), cost.saturating_add(1)),
            Type::Dyn => Known::new(Type::Dyn, cost),
            other => {
                return self.error(
                    expr,
                    format!("type '{other}' does not support field selection"),
                );
            }
        };
        out.place = Some(operand.place.map_or(Place::Lost, |place| place.field(name)));
        if optional {
            out.ty = Type::Optional(Rc::new(out.ty));
        }
        out
    }

    fn call(&mut self, expr: &IdedExpr, call: &CallExpr) -> Known<'a> {
        let name = call.func_name.as_str();
        if name == operators::OPT_SELECT
            && let [operand, field] = call.args.as_slice()
        {
            let operand = self.infer(operand);
            let Expr::Literal(LiteralValue::String(field)) = &field.expr else {
                return self.error(expr, "unsupported optional field selection");
            };
            let mut out = self.select(expr, &operand, field.inner());
            if !matches!(out.ty, Type::Optional(_)) {
                out.ty = Type::Optional(Rc::new(out.ty));
            }
            return out;
        }
        if let Some(target) = &call.target {
            if let Some(two) = two_variables(call) {
                return self.fold_two(&two, target);
            }
            if let Expr::Ident(prefix) = &target.expr {
                let full = format!("{prefix}.{name}");
                let bound = self.variables.iter().any(|(known, _)| known == prefix);
                if !bound && (QUALIFIED.contains(&full.as_str()) || full.starts_with("optional.")) {
                    let args: Vec<Known<'a>> = call.args.iter().map(|a| self.infer(a)).collect();
                    return self.apply(expr, &full, None, &args, call);
                }
            }
        }
        if matches!(name, "optMap" | "optFlatMap") {
            return self.mapped_optional(expr, call);
        }
        let target = call.target.as_ref().map(|target| self.infer(target));
        if overloads(name).is_empty() {
            let message = undeclared(name);
            let out = self.error(expr, message);
            for arg in &call.args {
                self.infer(arg);
            }
            return out;
        }
        let args: Vec<Known<'a>> = call.args.iter().map(|a| self.infer(a)).collect();
        if matches!(name, operators::LOGICAL_AND | operators::LOGICAL_OR) {
            for (arg, known) in call.args.iter().zip(&args) {
                if !BOOL.takes(&known.ty, &mut HashMap::new()) {
                    self.errors.push((
                        arg.id,
                        format!("expected type 'bool' but found '{}'", known.ty),
                    ));
                }
            }
            let cost = args.iter().fold(0u64, |sum, a| sum.saturating_add(a.cost));
            return Known::new(BOOL, cost);
        }
        self.apply(expr, name, target.as_ref(), &args, call)
    }

    fn apply(
        &mut self,
        expr: &IdedExpr,
        name: &str,
        target: Option<&Known<'a>>,
        args: &[Known<'a>],
        call: &CallExpr,
    ) -> Known<'a> {
        let mut results: Vec<Type<'a>> = Vec::new();
        for overload in overloads(name) {
            if overload.target.is_some() != target.is_some() || overload.args.len() != args.len() {
                continue;
            }
            let mut bound: HashMap<char, Type<'a>> = HashMap::new();
            let fits_target = match (&overload.target, target) {
                (Some(wanted), Some(given)) => wanted.takes(&given.ty, &mut bound),
                _ => true,
            };
            let mut fits = fits_target;
            for (wanted, given) in overload.args.iter().zip(args) {
                fits = fits && wanted.takes(&given.ty, &mut bound);
            }
            if fits {
                results.push(overload.result.filled(&bound));
            }
        }
        let Some(first) = results.first().cloned() else {
            let list = |args: &[Known<'a>]| {
                args.iter()
                    .map(|a| a.ty.to_string())
                    .collect::<Vec<_>>()
                    .join(", ")
            };
            let given = match target {
                Some(target) => format!("{}.({})", target.ty, list(args)),
                None => format!("({})", list(args)),
            };
            return self.error(
                expr,
                format!("found no matching overload for '{name}' applied to '{given}'"),
            );
        };
        self.check_literals(name, call);
        let one_type = results.iter().all(|r| r.to_string() == first.to_string());
        let ty = if one_type { first } else { Type::Dyn };
        estimated(name, target, args, ty, self.root)
    }

    /// Literals that can only fail.
    fn check_literals(&mut self, name: &str, call: &CallExpr) {
        let Some(arg) = call.args.last() else { return };
        let Expr::Literal(LiteralValue::String(text)) = &arg.expr else {
            return;
        };
        let text = text.inner();
        let wrong = match name {
            "matches" => node::compile(text).is_err(),
            "duration" | "timestamp" => library::parse(name, text).is_none(),
            _ => false,
        };
        if wrong {
            self.errors
                .push((arg.id, format!("invalid {name} argument")));
        }
    }

    fn mapped_optional(&mut self, expr: &IdedExpr, call: &CallExpr) -> Known<'a> {
        let (Some(target), [variable, body]) = (&call.target, call.args.as_slice()) else {
            return self.error(expr, undeclared(&call.func_name));
        };
        let target = self.infer(target);
        let (Expr::Ident(variable), Type::Optional(inner)) = (&variable.expr, target.ty.clone())
        else {
            return self.error(expr, undeclared(&call.func_name));
        };
        let bound = Known {
            ty: inner.as_ref().clone(),
            ..target.clone()
        };
        self.variables.push((variable.clone(), bound));
        let body = self.infer(body);
        self.variables.pop();
        let ty = match &body.ty {
            ty @ Type::Optional(_) if call.func_name == "optFlatMap" => ty.clone(),
            ty => Type::Optional(Rc::new(ty.clone())),
        };
        Known::new(ty, target.cost.saturating_add(body.cost).saturating_add(3))
    }

    /// The variables of a comprehension over `range`: key (or index) and value, and what a single one is.
    fn ranged(&mut self, range: &Known<'a>, at: &IdedExpr) -> (Known<'a>, Known<'a>, bool) {
        let (key_size, value_size) = range.entries.unzip();
        let (key, value, list) = match &range.ty {
            Type::List(item) => (INT, item.as_ref().clone(), true),
            Type::Map(key, value) => (key.as_ref().clone(), value.as_ref().clone(), false),
            Type::Dyn => (Type::Dyn, Type::Dyn, false),
            other => {
                let message = format!(
                    "expression of type '{other}' cannot be range of a comprehension (must be list, map, or dynamic)"
                );
                self.errors.push((at.id, message));
                (Type::Dyn, Type::Dyn, false)
            }
        };
        let key = Known {
            place: Some(match range.place {
                _ if list => Place::Lost,
                Some(place) => place.key(),
                None => self.root,
            }),
            size: key_size,
            ..Known::new(key, 1)
        };
        let value = Known {
            place: Some(range.place.map_or(self.root, Place::item)),
            size: value_size,
            ..Known::new(value, 1)
        };
        (key, value, list)
    }

    fn fold(&mut self, fold: &ComprehensionExpr) -> Known<'a> {
        let range = self.infer(&fold.iter_range);
        let start = self.infer(&fold.accu_init);
        let (key, value, list) = self.ranged(&range, &fold.iter_range);
        let item = if list || matches!(range.ty, Type::Dyn) {
            value
        } else {
            key
        };
        let accumulator = Known {
            place: None,
            ..start.clone()
        };
        self.variables
            .push((fold.accu_var.clone(), accumulator.clone()));
        self.variables.push((fold.iter_var.clone(), item));
        let condition = self.infer(&fold.loop_cond);
        let step = self.infer(&fold.loop_step);
        self.variables.truncate(self.variables.len() - 2);
        let accumulator = Known {
            ty: step.ty.clone(),
            ..accumulator
        };
        self.variables.push((fold.accu_var.clone(), accumulator));
        let result = self.infer(&fold.result);
        self.variables.pop();

        let count = range.size();
        let each = condition.cost.saturating_add(step.cost);
        let cost = [
            range.cost,
            start.cost,
            result.cost,
            count.max.saturating_mul(each),
        ]
        .into_iter()
        .fold(0u64, u64::saturating_add);
        let mut out = Known::new(result.ty, cost);
        if matches!(fold.accu_init.expr, Expr::List(_) | Expr::Map(_)) {
            out.size = Some(count);
            out.entries = step.entries;
        } else {
            out.size = start.size;
        }
        out
    }

    fn fold_two(&mut self, two: &TwoVariables<'_>, target: &IdedExpr) -> Known<'a> {
        let range = self.infer(target);
        let (key, value, _) = self.ranged(&range, target);
        let key_type = key.ty.clone();
        self.variables.push((two.key.to_owned(), key));
        self.variables.push((two.value.to_owned(), value));
        let filter = two.filter.map(|f| (f, self.infer(f)));
        let body = self.infer(two.body);
        self.variables.truncate(self.variables.len() - 2);
        let wants_bool = matches!(two.name, "all" | "exists" | "existsOne" | "exists_one");
        let tested = filter.iter().map(|(at, known)| (at.id, &known.ty));
        let tested = tested.chain(wants_bool.then_some((two.body.id, &body.ty)));
        let wrong: Vec<(u64, String)> = tested
            .filter(|(_, ty)| !BOOL.takes(ty, &mut HashMap::new()))
            .map(|(id, ty)| (id, format!("expected type 'bool' but found '{ty}'")))
            .collect();
        self.errors.extend(wrong);
        let count = range.size();
        let each = body
            .cost
            .saturating_add(filter.as_ref().map_or(0, |(_, f)| f.cost))
            .saturating_add(if wants_bool { 3 } else { 13 });
        let cost = range
            .cost
            .saturating_add(count.max.saturating_mul(each))
            .saturating_add(1);
        let ty = match two.name {
            "transformList" => Type::List(Rc::new(body.ty.clone())),
            "transformMap" => Type::Map(Rc::new(key_type), Rc::new(body.ty.clone())),
            "transformMapEntry" => body.ty.clone(),
            _ => BOOL,
        };
        let mut out = Known::new(ty, cost);
        if !wants_bool {
            out.size = Some(count);
            out.entries = Some((Size::UNKNOWN, body.size()));
        }
        out
    }
}

pub(super) fn undeclared(name: &str) -> String {
    format!("undeclared reference to '{name}' (in container '')")
}

fn constant<'a>(literal: &LiteralValue) -> Known<'a> {
    let (ty, size) = match literal {
        LiteralValue::Boolean(_) => (BOOL, 1),
        LiteralValue::Int(_) => (INT, 1),
        LiteralValue::UInt(_) => (Type::Named("uint"), 1),
        LiteralValue::Double(_) => (Type::Named("double"), 1),
        LiteralValue::Null => (Type::Named("null"), 1),
        LiteralValue::String(text) => (TEXT, text.inner().chars().count() as u64),
        LiteralValue::Bytes(bytes) => (Type::Named("bytes"), bytes.inner().len() as u64),
    };
    Known {
        size: Some(Size::exactly(size)),
        ..Known::new(ty, 0)
    }
}
