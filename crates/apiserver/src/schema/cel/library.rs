//! Calls of the function library, which is made once for each thread.

use kube_cel::KubeCelExt as _;
use kube_cel::cel::common::ast::{CallExpr, Expr};
use kube_cel::cel::{Context, ExecutionError, IdedExpr, Value as Cel};

thread_local! {
    static LIBRARY: Context<'static> = Context::default().with_all();
}

/// Functions whose name has a dot; what stands before it is no value.
pub(super) const QUALIFIED: [&str; 20] = [
    "sets.contains",
    "sets.equivalent",
    "sets.intersects",
    "ip.isCanonical",
    "jsonpatch.escapeKey",
    "strings.quote",
    "format.named",
    "format.dns1123Label",
    "format.dns1123Subdomain",
    "format.dns1035Label",
    "format.qualifiedName",
    "format.dns1123LabelPrefix",
    "format.dns1123SubdomainPrefix",
    "format.dns1035LabelPrefix",
    "format.labelValue",
    "format.uri",
    "format.uuid",
    "format.byte",
    "format.date",
    "format.datetime",
];

/// Calls a function by its full name.
pub(super) fn call(name: &str, target: Option<Cel>, args: Vec<Cel>) -> Result<Cel, ExecutionError> {
    LIBRARY.with(|library| {
        let mut scope = library.new_inner_scope();
        let mut bind = |variable: String, value: Cel| {
            scope.add_variable_from_value(variable.clone(), value);
            IdedExpr {
                id: 0,
                expr: Expr::Ident(variable),
            }
        };
        let target = target.map(|value| Box::new(bind("@target".into(), value)));
        let args = args
            .into_iter()
            .enumerate()
            .map(|(i, value)| bind(format!("@{i}"), value))
            .collect();
        let call = IdedExpr {
            id: 0,
            expr: Expr::Call(CallExpr {
                func_name: name.to_owned(),
                target,
                args,
            }),
        };
        scope.resolve(&call)
    })
}

/// A duration or a timestamp of the document; none if the text is none.
pub(super) fn parse(what: &str, text: &str) -> Option<Cel> {
    call(what, None, vec![text.to_owned().into()]).ok()
}

fn function_message(function: &str, message: &str) -> String {
    match function {
        "int" | "uint" | "double" if message.contains("parse") => {
            format!("type conversion error from 'string' to '{function}'")
        }
        "quantity" => {
            "quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'".to_owned()
        }
        _ => match message.strip_prefix("cannot call ") {
            Some(rest) => rest.replacen(" on empty list", " called on empty list", 1),
            None => message.to_owned(),
        },
    }
}

/// An error of the library in the words of upstream's.
pub(super) fn message(error: &ExecutionError) -> String {
    match error {
        ExecutionError::NoSuchOverload
        | ExecutionError::UnexpectedType { .. }
        | ExecutionError::UnsupportedTargetType { .. }
        | ExecutionError::NotSupportedAsMethod { .. }
        | ExecutionError::InvalidArgumentCount { .. }
        | ExecutionError::MissingArgumentOrTarget
        | ExecutionError::UnsupportedBinaryOperator(..)
        | ExecutionError::UnsupportedUnaryOperator(..) => "no such overload".to_owned(),
        ExecutionError::FunctionError { function, message } => function_message(function, message),
        ExecutionError::Overflow(..) => "integer overflow".to_owned(),
        ExecutionError::DivisionByZero(_) => "division by zero".to_owned(),
        ExecutionError::RemainderByZero(_) => "modulus by zero".to_owned(),
        ExecutionError::NoSuchKey(key) => format!("no such key: {key}"),
        other => other.to_string(),
    }
}
