//! Loops that a host must survive, and what else looks at one value to go on.

use crate::build::{BOOL, FLOAT, INT64, body, file, graph, int, longs, node, raw, singles, value};
use crate::hostile::Named;

/// Loops that do not end by themselves: of a carried value that stays as it is, or `grows`.
pub fn endless(kind: &str) -> Vec<Named> {
    let flag = |name: &str| value(name, BOOL, &[]);
    let inner = || {
        body(
            &[value("i", INT64, &[]), flag("c"), value("v", FLOAT, &[1])],
            &[flag("again"), value("grown", FLOAT, &[1])],
            &[],
            vec![
                node("Identity", &["c"], &["again"], &[]),
                node("Add", &["v", "v"], &["grown"], &[]),
            ],
        )
    };
    let grows = || {
        let mut inner = inner();
        inner.node[1] = node("Concat", &["v", "v"], &["grown"], &[int("axis", 0)]);
        inner.output[1] = value("grown", FLOAT, &[-1]);
        inner.input[2] = value("v", FLOAT, &[-1]);
        inner
    };
    let forever = raw("true", BOOL, &[], &[1]);
    let mut cases = Vec::new();
    let inner = if kind == "grows" { grows() } else { inner() };
    for most in [1 << 40, i64::MAX, -1, i64::MIN] {
        let inits = [forever.clone(), longs("most", &[], &[most])];
        let node = node("Loop", &["most", "true", "x"], &["y"], &[graph("body", inner.clone())]);
        cases.push((format!("loops: {kind}, at most {most}"), file(&[1], &inits, vec![node])));
    }
    let inits = [forever, singles("w", &[1], &[1.0])];
    for (name, start) in [("without a bound", "x"), ("of a constant", "w")] {
        let node = node("Loop", &["", "true", start], &["y"], &[graph("body", inner.clone())]);
        cases.push((format!("loops: {kind}, {name}"), file(&[1], &inits, vec![node])));
    }
    cases
}

/// Where one element is wanted, none.
pub fn of_nothing() -> Vec<Named> {
    let none = |to: i32| {
        let is_positive = node("Greater", &["x", "x"], &["b"], &[]);
        let chosen = node("Compress", &["x", "b"], &["left"], &[int("axis", 0)]);
        vec![is_positive, chosen, node("Cast", &["left"], &["none"], &[int("to", to.into())])]
    };
    let branch = |name: &str| {
        let outputs = [value("z", FLOAT, &[4])];
        graph(name, body(&[], &outputs, &[], vec![node("Neg", &["x"], &["z"], &[])]))
    };
    let turn = || {
        let inputs = [value("i", INT64, &[]), value("c", BOOL, &[]), value("v", FLOAT, &[4])];
        let outputs = [value("again", BOOL, &[]), value("w", FLOAT, &[4])];
        let nodes =
            vec![node("Identity", &["c"], &["again"], &[]), node("Neg", &["v"], &["w"], &[])];
        graph("body", body(&inputs, &outputs, &[], nodes))
    };
    let branches = [branch("then_branch"), branch("else_branch")];
    let nodes = [
        ("If", BOOL, node("If", &["none"], &["y"], &branches)),
        ("a Loop's count", INT64, node("Loop", &["none", "", "x"], &["y"], &[turn()])),
        ("a Loop's condition", BOOL, node("Loop", &["", "none", "x"], &["y"], &[turn()])),
        ("Dropout", BOOL, node("Dropout", &["x", "", "none"], &["y"], &[])),
    ];
    let named = nodes.into_iter().map(|(name, datum, last)| {
        let nodes = none(datum).into_iter().chain([last]).collect();
        (format!("nothing: {name}"), file(&[4], &[], nodes))
    });
    named.collect()
}
