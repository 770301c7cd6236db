//! Sizes that a run finds, as how many elements are not zero. To tract each is a symbol, which gets its
//! number from the output that has it for a size, and all that follows from it are constants. So where
//! nothing else is wanted of that output, tract leaves out what makes it.

use std::collections::HashSet;

use tract_onnx::prelude::*;
use tract_onnx::tract_hir::internal::*;

/// A size, and the output that has it.
type Found = (Symbol, OutletId);

/// Sizes that are looked for at a time, a bit each.
const BITS: usize = 64;

/// What is kept may need others to be kept, and those others again.
const MOST_ROUNDS: usize = 8;

/// Gives its first input once the others are there; of sizes, the numbers that they have come to by then.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::tract) struct After;

/// Where sizes are needed before what finds them is known to have run.
struct Needed {
    place: Place,
    sizes: Vec<Found>,
}

#[derive(Clone, Copy)]
enum Place {
    Input(InletId),
    Output(usize),
}

/// What [`keep`] has kept.
pub(super) struct Kept {
    /// How many outputs there were.
    outputs: usize,
    sizes: HashSet<Symbol>,
}

/// Makes outputs of what finds sizes that are needed, for tract not to leave it out.
pub(super) fn keep(model: &mut TypedModel) -> TractResult<Kept> {
    let mut kept = Kept { outputs: model.outputs.len(), sizes: HashSet::new() };
    let made = model.nodes().iter().filter(|node| !node.inputs.is_empty());
    let outlets = made.flat_map(|node| {
        let id = node.id;
        (0..node.outputs.len()).map(move |slot| OutletId::new(id, slot))
    });
    let found = found(model, outlets)?;
    for _ in 0..MOST_ROUNDS {
        let mut more = Vec::new();
        for (symbol, outlet) in needed(model, &found)?.into_iter().flat_map(|it| it.sizes) {
            if kept.sizes.insert(symbol) {
                more.push(outlet);
            }
        }
        if more.is_empty() {
            break;
        }
        model.outputs.extend(more);
    }
    Ok(kept)
}

/// Has what needs such sizes wait for them, and takes those outputs away.
pub(super) fn raise(model: &mut TypedModel, kept: &Kept) -> TractResult<()> {
    if kept.sizes.is_empty() {
        return Ok(());
    }
    let mut found = found(model, model.outputs[kept.outputs..].iter().copied())?;
    found.retain(|(symbol, _)| kept.sizes.contains(symbol));
    let needed = needed(model, &found)?;
    model.outputs.truncate(kept.outputs);
    let mut raised = model.clone();
    for (index, Needed { place, sizes }) in needed.into_iter().enumerate() {
        let from = match place {
            Place::Input(inlet) => raised.node(inlet.node).inputs[inlet.slot],
            Place::Output(output) if output < kept.outputs => raised.outputs[output],
            Place::Output(_) => continue,
        };
        let name = format!("{}.after_{index}", raised.node(from.node).name);
        let fact = raised.outlet_fact(from)?.without_value();
        let after = raised.add_node(name, After, tvec!(fact))?;
        let others = sizes.into_iter().map(|(_, outlet)| outlet);
        for (slot, outlet) in [from].into_iter().chain(others).enumerate() {
            raised.add_edge(outlet, InletId::new(after, slot))?;
        }
        match place {
            Place::Input(inlet) => raised.add_edge(OutletId::new(after, 0), inlet)?,
            Place::Output(output) => raised.outputs[output] = OutletId::new(after, 0),
        }
    }
    // Where each waits for the other, all stays as it is.
    if raised.eval_order().is_ok() {
        *model = raised;
    }
    model.compact()
}

/// The sizes of these outlets that are no input's, each with the first that has it. Nodes come after those
/// that they need.
fn found(
    model: &TypedModel,
    outlets: impl IntoIterator<Item = OutletId>,
) -> TractResult<Vec<Found>> {
    let mut given = Vec::new();
    for &input in &model.inputs {
        given.extend(model.outlet_fact(input)?.shape.iter().flat_map(TDim::symbols));
    }
    let mut found = Vec::new();
    for outlet in outlets {
        for size in model.outlet_fact(outlet)?.shape.iter() {
            if let TDim::Sym(symbol) = size
                && !given.contains(symbol)
            {
                found.push((symbol.clone(), outlet));
            }
        }
    }
    found.sort_by(|(a, _), (b, _)| a.cmp(b));
    found.dedup_by(|(a, _), (b, _)| a == b);
    Ok(found)
}

fn needed(model: &TypedModel, found: &[Found]) -> TractResult<Vec<Needed>> {
    let mut needed = Vec::new();
    if found.is_empty() {
        return Ok(needed);
    }
    let mut own: Vec<Vec<usize>> = vec![Vec::new(); model.nodes().len()];
    for (place, (_, outlet)) in found.iter().enumerate() {
        own[outlet.node].push(place);
    }
    let mut asked = Vec::new();
    for id in model.eval_order()? {
        if !model.node(id).inputs.is_empty() {
            asked.push((id, asked_by_node(model, id, found)?));
        }
    }
    let asked_of_outputs = model.outputs.iter().map(|&outlet| asked_by_value(model, outlet, found));
    let asked_of_outputs: Vec<Vec<usize>> = asked_of_outputs.collect::<TractResult<_>>()?;
    for start in (0..found.len()).step_by(BITS) {
        let bits = |places: &[usize]| {
            let bits = places.iter().filter_map(|place| place.checked_sub(start));
            bits.filter(|&bit| bit < BITS).fold(0u64, |bits, bit| bits | 1u64 << bit)
        };
        let found_at = |bits: u64| {
            let found = found[start..].iter().take(BITS).enumerate();
            let found = found.filter(|(bit, _)| bits >> bit & 1 == 1);
            found.map(|(_, one)| one.clone()).collect::<Vec<Found>>()
        };
        // Those that need what a node gives cannot be waited for.
        let mut later: Vec<u64> = own.iter().map(|places| bits(places)).collect();
        for (id, _) in asked.iter().rev() {
            for input in &model.node(*id).inputs {
                later[input.node] |= later[*id];
            }
        }
        // Those that are found before a node's outputs are there.
        let mut known = vec![0u64; model.nodes().len()];
        for (id, (first, places)) in &asked {
            let inputs = model.node(*id).inputs.iter();
            let before = inputs.fold(bits(&own[*id]), |bits, input| bits | known[input.node]);
            let sizes = found_at(bits(places) & !before & !later[*id]);
            let waited = sizes.iter().filter_map(|(symbol, _)| place_of(symbol, found));
            known[*id] = before | bits(&waited.collect::<Vec<_>>());
            if !sizes.is_empty() {
                needed.push(Needed { place: Place::Input(InletId::new(*id, *first)), sizes });
            }
        }
        for (index, (output, places)) in model.outputs.iter().zip(&asked_of_outputs).enumerate() {
            let sizes = found_at(bits(places) & !known[output.node]);
            if !sizes.is_empty() {
                needed.push(Needed { place: Place::Output(index), sizes });
            }
        }
    }
    Ok(needed)
}

/// The sizes that a node asks for, by their places, and the input by which it does, or the first.
fn asked_by_node(
    model: &TypedModel,
    id: usize,
    found: &[Found],
) -> TractResult<(usize, Vec<usize>)> {
    let node = model.node(id);
    let mut places = Vec::new();
    let mut first = None;
    for (slot, &input) in node.inputs.iter().enumerate() {
        let by_value = asked_by_value(model, input, found)?;
        first = first.or((!by_value.is_empty()).then_some(slot));
        places.extend(by_value);
    }
    for size in node.outputs.iter().flat_map(|output| output.fact.shape.iter()) {
        places.extend(places_of(size, found));
    }
    let inputs = model.node_input_facts(id)?;
    let others = node.op().required_bound_symbols(&inputs);
    places.extend(others.iter().filter_map(|symbol| place_of(symbol, found)));
    places.sort_unstable();
    places.dedup();
    Ok((first.unwrap_or(0), places))
}

/// Those of a value that is known but for them.
fn asked_by_value(
    model: &TypedModel,
    outlet: OutletId,
    found: &[Found],
) -> TractResult<Vec<usize>> {
    let fact = model.outlet_fact(outlet)?;
    let value = fact.konst.as_ref().or(fact.uniform.as_ref());
    let Some(value) = value.filter(|value| value.datum_type() == DatumType::TDim) else {
        return Ok(Vec::new());
    };
    let sizes = value.try_as_plain_ram()?;
    let sizes = sizes.as_slice::<TDim>()?.iter();
    Ok(sizes.flat_map(|size| places_of(size, found)).collect())
}

fn places_of(size: &TDim, found: &[Found]) -> Vec<usize> {
    match size {
        TDim::Val(_) => Vec::new(),
        size => size.symbols().iter().filter_map(|symbol| place_of(symbol, found)).collect(),
    }
}

fn place_of(symbol: &Symbol, found: &[Found]) -> Option<usize> {
    found.binary_search_by(|(known, _)| known.cmp(symbol)).ok()
}

impl Op for After {
    fn name(&self) -> StaticName {
        "After".into()
    }

    op_as_typed_op!();
}

impl EvalOp for After {
    // Nothing is found while it is planned.
    not_out_of_plan!();

    fn eval(&self, context: &EvalContext, mut inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        inputs.truncate(1);
        if inputs[0].datum_type() != DatumType::TDim {
            return Ok(inputs);
        }
        let mut sizes = inputs.remove(0).into_tensor();
        let mut plain = sizes.try_as_plain_ram_mut()?;
        for size in plain.as_slice_mut::<TDim>()? {
            *size = size.eval(context.symbols);
        }
        Ok(tvec!(sizes.into_tvalue()))
    }
}

impl TypedOp for After {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        Ok(tvec!(inputs[0].without_value()))
    }

    as_op!();
}
