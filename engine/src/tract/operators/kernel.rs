//! One shape for all operators that compute outputs from inputs and nothing else, and its
//! adapter to tract's inference, typed and evaluated operators.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use tract_onnx::model::ParsingContext;
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_core::ops::cast::cast;
use tract_onnx::tract_hir::internal::*;

use crate::tract::fuse::MAX_WEIGHTS;

/// The type and shape of an input or output, as far as planning knows them.
#[derive(Debug, Clone)]
pub(super) struct Form {
    pub(super) datum: DatumType,
    pub(super) shape: TVec<TDim>,
    /// The value, of an input that is a constant.
    pub(super) constant: Option<Arc<Tensor>>,
}

impl Form {
    pub(super) fn new(datum: DatumType, shape: impl IntoIterator<Item = TDim>) -> Self {
        Self { datum, shape: shape.into_iter().collect(), constant: None }
    }
}

pub(super) trait Kernel: fmt::Debug + Send + Sync + 'static {
    fn name(&self) -> &'static str;

    /// Types and shapes of all outputs, for inputs as many as the node has.
    ///
    /// # Errors
    /// Inputs that it does not take.
    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>>;

    /// All outputs, of the types and shapes that `outputs` gave.
    ///
    /// # Errors
    /// Values that it does not take.
    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>>;
}

/// What a builder in tract's register returns.
pub(super) type Built = TractResult<(Box<dyn InferenceOp>, Vec<String>)>;

/// A node that runs the kernel. Outputs that the node leaves out (an empty name) are dropped.
pub(super) fn built(node: &NodeProto, kernel: impl Kernel) -> Built {
    let named = node.output.iter().enumerate().filter(|(_, name)| !name.is_empty());
    let kept = named.map(|(index, _)| index).collect();
    Ok((Box::new(Operator { kernel: Arc::new(kernel), kept }), Vec::new()))
}

/// The kernel of one output as a typed operator, for what is wired from several.
pub(super) fn typed(kernel: impl Kernel) -> impl TypedOp + Clone {
    typed_with(kernel, 1)
}

/// The same of a kernel's first outputs.
pub(super) fn typed_with(kernel: impl Kernel, outputs: usize) -> impl TypedOp + Clone {
    Operator { kernel: Arc::new(kernel), kept: (0..outputs).collect() }
}

/// # Errors
/// Not exactly one input.
pub(super) fn one<T>(inputs: &[T]) -> TractResult<&T> {
    let [input] = inputs else { bail!("expected one input, got {}", inputs.len()) };
    Ok(input)
}

/// An input of a node as whole numbers where tract has sizes.
///
/// # Errors
/// tract's.
pub(super) fn whole(
    model: &mut TypedModel,
    node: &str,
    index: usize,
    input: OutletId,
) -> TractResult<OutletId> {
    if model.outlet_fact(input)?.datum_type != DatumType::TDim {
        return Ok(input);
    }
    let name = format!("{node}.whole_{index}");
    Ok(model.wire_node(name, cast(DatumType::I64), &[input])?[0])
}

/// Sizes that depend on values: planning knows a name for each that it asked for, and no more.
#[derive(Debug, Clone)]
pub(super) struct Unknown {
    symbols: SymbolScope,
    made: Arc<Mutex<HashMap<usize, Symbol>>>,
}

impl Unknown {
    pub(super) fn new(context: &ParsingContext) -> Self {
        Self { symbols: context.template.symbols.clone(), made: Arc::default() }
    }

    pub(super) fn dim(&self, index: usize) -> TDim {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        made.entry(index).or_insert_with(|| fresh(&self.symbols)).to_dim()
    }
}

/// A symbol of a name that is not taken. tract tries one number after the other, from zero each
/// time: thousands of symbols would take it minutes.
fn fresh(symbols: &SymbolScope) -> Symbol {
    let name = |number: usize| format!("n{number}");
    let is_taken = |number: usize| symbols.get(&name(number)).is_some();
    let (mut taken, mut free) = (0, 1);
    while is_taken(free) {
        (taken, free) = (free, 2 * free);
    }
    while taken + 1 < free {
        let middle = taken.midpoint(free);
        *(if is_taken(middle) { &mut taken } else { &mut free }) = middle;
    }
    symbols.new_with_prefix(&name(free))
}

/// Elements that an operator may make of sizes that come as values.
const MAX_ELEMENTS: usize = 1 << 28;

/// # Errors
/// A shape of more elements than that.
pub(super) fn checked_len(shape: &[usize]) -> TractResult<usize> {
    let size = shape.iter().try_fold(1usize, |size, &dim| size.checked_mul(dim));
    let size = size.filter(|&size| size <= MAX_ELEMENTS);
    size.with_context(|| format!("a shape of {shape:?} is too large"))
}

/// Strings that an operator may make: each is 24 bytes before its text.
const MAX_STRINGS: usize = 1 << 22;

/// # Errors
/// A shape of more strings than that.
pub(super) fn checked_strings(shape: &[usize]) -> TractResult<usize> {
    let size = checked_len(shape)?;
    ensure!(size <= MAX_STRINGS, "a shape of {shape:?} has too many strings");
    Ok(size)
}

/// The list of sizes in a tensor of integers.
///
/// # Errors
/// Another type, or a negative size.
pub(super) fn sizes_of(tensor: &Tensor) -> TractResult<TVec<usize>> {
    integers_of(tensor)?.iter().map(|&size| Ok(usize::try_from(size)?)).collect()
}

/// # Errors
/// A tensor of no integers.
pub(super) fn integers_of(tensor: &Tensor) -> TractResult<Vec<i64>> {
    let cast = tensor.cast_to::<i64>()?;
    Ok(cast.try_as_plain_ram()?.as_slice::<i64>()?.to_vec())
}

/// The one element of a tensor. tract reads it where there is none, too.
///
/// # Errors
/// More elements or none, or not one of that type.
pub(super) fn only<D: Datum + Copy>(tensor: &Tensor) -> TractResult<D> {
    ensure!(tensor.len() == 1, "{} elements, expected one", tensor.len());
    tensor.cast_to_scalar::<D>()
}

/// # Errors
/// No axis of that rank.
pub(super) fn checked_axis(axis: i64, rank: usize) -> TractResult<usize> {
    let counted = if axis < 0 { axis.saturating_add(rank as i64) } else { axis };
    let counted = usize::try_from(counted).ok().filter(|&axis| axis < rank);
    counted.with_context(|| format!("no axis {axis} in a shape of rank {rank}"))
}

/// A numeric matrix's rows and columns: ONNX's classical operators take one row as a vector.
///
/// # Errors
/// Another rank.
pub(super) fn rows_and_columns<D: Clone>(shape: &[D], one: D) -> TractResult<(D, D)> {
    match shape {
        [columns] => Ok((one, columns.clone())),
        [rows, columns] => Ok((rows.clone(), columns.clone())),
        _ => bail!("expected an input of rank 1 or 2, got rank {}", shape.len()),
    }
}

/// Operators from constants to weights: those that are quantised are made of several.
const MOST_OPERATORS: usize = 32;

/// What an outlet holds, where that follows from constants by a few operators; `known` is what was found
/// so far.
pub(super) fn constant_at(
    model: &TypedModel,
    outlet: OutletId,
    known: &mut HashMap<OutletId, Option<Arc<Tensor>>>,
) -> Option<Arc<Tensor>> {
    let fact = model.outlet_fact(outlet).ok()?;
    if let Some(konst) = &fact.konst {
        return Some(konst.clone());
    }
    if let Some(found) = known.get(&outlet) {
        return found.clone();
    }
    let bytes = fact.mem_size().as_i64().and_then(|bytes| usize::try_from(bytes).ok());
    let node = model.node(outlet.node);
    let is_small = bytes.is_some_and(|bytes| bytes <= MAX_WEIGHTS);
    if known.len() >= MOST_OPERATORS || node.inputs.is_empty() || !is_small {
        return None;
    }
    known.insert(outlet, None);
    let inputs = node.inputs.iter().map(|&input| constant_at(model, input, known));
    let inputs: TVec<TValue> =
        inputs.map(|input| input.map(IntoTValue::into_tvalue)).collect::<Option<_>>()?;
    let outputs = node.op.eval_out_of_plan(inputs).ok()??;
    let found = outputs.get(outlet.slot)?.clone().into_arc_tensor();
    known.insert(outlet, Some(found.clone()));
    Some(found)
}

/// # Errors
/// The input is not of one of these types.
pub(super) fn expect_datum(form: &Form, wanted: &[DatumType]) -> TractResult<()> {
    let (came, wanted_contains) = (form.datum, wanted.contains(&form.datum));
    ensure!(wanted_contains, "expected an input of {wanted:?}, got {came:?}");
    Ok(())
}

/// # Errors
/// The shape is known to be another.
pub(super) fn expect_shape(name: &str, came: &[TDim], wanted: &[TDim]) -> TractResult<()> {
    let may_be = |(came, wanted): (&TDim, &TDim)| {
        let known = (came.to_usize(), wanted.to_usize());
        came == wanted || !matches!(known, (Ok(_), Ok(_)))
    };
    let may_fit = came.len() == wanted.len() && came.iter().zip(wanted).all(may_be);
    let shown = |shape: &[TDim]| {
        let sizes: Vec<String> = shape.iter().map(ToString::to_string).collect();
        sizes.join(", ")
    };
    ensure!(may_fit, "{name} of [{}], expected [{}]", shown(came), shown(wanted));
    Ok(())
}

/// The types and shapes of what a kernel runs on.
pub(super) fn forms_of(inputs: &[TValue]) -> TVec<Form> {
    let form = |input: &TValue| {
        Form::new(input.datum_type(), input.shape().iter().map(|&size| size.to_dim()))
    };
    inputs.iter().map(form).collect()
}

/// The numbers of an input in single precision; none where it is left out.
///
/// # Errors
/// Another type.
pub(super) fn singles(input: Option<&TValue>) -> TractResult<&[f32]> {
    match input {
        Some(input) => input.try_as_plain_ram()?.as_slice::<f32>(),
        None => Ok(&[]),
    }
}

/// The numbers that the classical operators take.
pub(super) const NUMBERS: [DatumType; 4] =
    [DatumType::F32, DatumType::F64, DatumType::I64, DatumType::I32];

#[derive(Debug, Clone)]
struct Operator {
    kernel: Arc<dyn Kernel>,
    kept: TVec<usize>,
}

impl Operator {
    fn forms(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let forms = self.kernel.outputs(inputs).with_context(|| self.kernel.name());
        let sized = || self.kernel.outputs(&without_sizes(inputs)).ok();
        let forms = forms.or_else(|error| sized().ok_or(error))?;
        let kept = self.kept.iter().map(|&index| forms.get(index).cloned());
        let kept: Option<TVec<Form>> = kept.collect();
        kept.with_context(|| format!("{} has {} outputs", self.kernel.name(), forms.len()))
    }
}

/// Inputs of fewer elements are not looked at before a run: what a graph makes of one row was
/// seen when it was examined.
const FEW_ELEMENTS: usize = 1 << 10;

impl Operator {
    /// # Errors
    /// Outputs, as far as their sizes follow from the inputs', of too many elements.
    fn check_sizes(&self, inputs: &[TValue]) -> TractResult<()> {
        if inputs.iter().all(|input| input.len() < FEW_ELEMENTS) {
            return Ok(());
        }
        // What it needs values for says so itself when it runs.
        let Ok(outputs) = self.kernel.outputs(&forms_of(inputs)) else { return Ok(()) };
        for output in outputs {
            let sizes: Option<TVec<usize>> =
                output.shape.iter().map(|size| size.to_usize().ok()).collect();
            if let Some(sizes) = sizes {
                checked_len(&sizes)?;
            }
        }
        Ok(())
    }
}

/// tract has sizes (`TDim`) for all that is cast to whole numbers: what they are for a kernel that
/// takes no sizes.
fn without_sizes(inputs: &[Form]) -> TVec<Form> {
    let whole = |form: &Form| match form.datum {
        DatumType::TDim => {
            let value = form.constant.as_ref().and_then(|value| value.cast_to::<i64>().ok());
            let constant = value.map(|value| value.into_owned().into_arc_tensor());
            Form { constant, ..Form::new(DatumType::I64, form.shape.iter().cloned()) }
        }
        _ => form.clone(),
    };
    inputs.iter().map(whole).collect()
}

fn form_of(fact: &TypedFact) -> Form {
    let form = Form::new(fact.datum_type, fact.shape.iter().cloned());
    Form { constant: fact.konst.clone(), ..form }
}

impl PartialEq for Operator {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.kernel, &other.kernel) && self.kept == other.kept
    }
}

impl Eq for Operator {}

impl Op for Operator {
    fn name(&self) -> StaticName {
        self.kernel.name().into()
    }

    op_as_typed_op!();
}

impl EvalOp for Operator {
    op_out_of_plan!();

    fn eval(&self, _context: &EvalContext, inputs: TVec<TValue>) -> TractResult<TVec<TValue>> {
        self.check_sizes(&inputs).with_context(|| self.kernel.name())?;
        let outputs = self.kernel.run(&inputs).with_context(|| self.kernel.name())?;
        let mut outputs: TVec<Option<Tensor>> = outputs.into_iter().map(Some).collect();
        let kept = self.kept.iter().map(|&index| {
            let output = outputs.get_mut(index).and_then(Option::take);
            output.map(IntoTValue::into_tvalue)
        });
        let kept: Option<TVec<TValue>> = kept.collect();
        kept.with_context(|| format!("{} lacks an output", self.kernel.name()))
    }
}

impl TypedOp for Operator {
    fn output_facts(&self, inputs: &[&TypedFact]) -> TractResult<TVec<TypedFact>> {
        let inputs: TVec<Form> = inputs.iter().map(|fact| form_of(fact)).collect();
        let forms = self.forms(&inputs)?;
        Ok(forms.into_iter().map(|form| form.datum.fact(&*form.shape)).collect())
    }

    as_op!();
}

impl InferenceOp for Operator {
    fn infer_facts(
        &mut self,
        inputs: TVec<&InferenceFact>,
        outputs: TVec<&InferenceFact>,
        observed: TVec<&InferenceFact>,
    ) -> TractResult<(TVec<InferenceFact>, TVec<InferenceFact>, TVec<InferenceFact>)> {
        let known: Option<TVec<Form>> = inputs
            .iter()
            .map(|fact| {
                let form = Form::new(fact.datum_type()?, fact.shape.concretize()?);
                Some(Form { constant: fact.value.concretize(), ..form })
            })
            .collect();
        let own = |facts: TVec<&InferenceFact>| facts.into_iter().cloned().collect::<TVec<_>>();
        let mut inferred = own(outputs);
        if let Some(known) = known {
            for (fact, form) in inferred.iter_mut().zip(self.forms(&known)?) {
                let found = InferenceFact::dt_shape(form.datum, form.shape);
                fact.unify_with(&found).with_context(|| self.kernel.name())?;
            }
        }
        Ok((own(inputs), inferred, own(observed)))
    }

    fn nboutputs(&self) -> TractResult<usize> {
        Ok(self.kept.len())
    }

    fn to_typed(
        &self,
        _source: &InferenceModel,
        node: &InferenceNode,
        target: &mut TypedModel,
        mapping: &HashMap<OutletId, OutletId>,
    ) -> TractResult<TVec<OutletId>> {
        let mut inputs: TVec<OutletId> = node.inputs.iter().map(|outlet| mapping[outlet]).collect();
        let facts = inputs.iter().map(|&input| Ok(form_of(target.outlet_fact(input)?)));
        let takes_sizes = self.kernel.outputs(&facts.collect::<TractResult<TVec<_>>>()?).is_ok();
        for (index, input) in inputs.iter_mut().enumerate().filter(|_| !takes_sizes) {
            *input = whole(target, &node.name, index, *input)?;
        }
        target.wire_node(&*node.name, self.clone(), &inputs)
    }

    as_op!();
}
