//! Room for recursion. Parsing, checking and answering an expression go as deep as the expression does; a server thread has
//! room for ordinary ones only, so the others get a thread of their own, whose stack is memory only as far as it is used.

use std::thread::Builder;

use kube_cel::cel::IdedExpr;
use kube_cel::cel::common::ast::{EntryExpr, Expr};

const ROOM: usize = 256 << 20;
/// Signs in an expression up to which it is ordinary.
const ORDINARY: usize = 40;

/// Does the work with room; none if there is no thread for it.
pub(super) fn with_room<T: Send>(work: impl FnOnce() -> T + Send) -> Option<T> {
    std::thread::scope(|scope| {
        let thread = Builder::new()
            .name("cel".into())
            .stack_size(ROOM)
            .spawn_scoped(scope, work)
            .ok()?;
        thread.join().ok()
    })
}

/// Whether an expression may nest so deep that it needs room: it cannot nest deeper than it has signs.
pub(super) fn needs_room(source: &str) -> bool {
    source
        .bytes()
        .filter(|b| !b.is_ascii_alphanumeric() && !b" _'\",\n".contains(b))
        .count()
        + source.matches(" in ").count()
        > ORDINARY
}

/// How deep an expression nests. Does not recurse itself.
pub(super) fn depth(expr: &IdedExpr) -> usize {
    let mut deepest = 0;
    let mut open = vec![(expr, 1)];
    while let Some((expr, depth)) = open.pop() {
        deepest = deepest.max(depth);
        let mut push = |inner| open.push((inner, depth + 1));
        match &expr.expr {
            Expr::Select(select) => push(&select.operand),
            Expr::Call(call) => {
                call.args.iter().for_each(&mut push);
                call.target.iter().for_each(|target| push(target));
            }
            Expr::List(list) => list.elements.iter().for_each(push),
            Expr::Map(map) => {
                for entry in &map.entries {
                    match &entry.expr {
                        EntryExpr::MapEntry(entry) => {
                            push(&entry.key);
                            push(&entry.value);
                        }
                        EntryExpr::StructField(field) => push(&field.value),
                    }
                }
            }
            Expr::Struct(given) => {
                for entry in &given.entries {
                    match &entry.expr {
                        EntryExpr::MapEntry(entry) => push(&entry.value),
                        EntryExpr::StructField(field) => push(&field.value),
                    }
                }
            }
            Expr::Comprehension(fold) => {
                [
                    &fold.iter_range,
                    &fold.accu_init,
                    &fold.loop_cond,
                    &fold.loop_step,
                    &fold.result,
                ]
                .into_iter()
                .for_each(push);
            }
            Expr::Ident(_) | Expr::Literal(_) | Expr::Unspecified => {}
        }
    }
    deepest
}
