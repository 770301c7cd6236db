//! rten: a graph that needs no plan for each shape. Only this room names rten's types.
//!
//! Its tensors are f32, i32, i8 and u8. A graph's INT64 and BOOL are i32 in it: an input outside
//! i32 is refused, but a constant outside is clamped and a sum wraps, silently. Inside a graph
//! its doubles and halves are f32.
//!
//! A run cannot be stopped: there is neither a callback between operators nor a timeout. The
//! caller stops waiting for it when `is_over` says so (see `threads`).

mod threads;
mod values;

use std::fmt::Display;
use std::sync::Arc;

use rten::{Dimension, Model, ModelOptions, NodeId, RunError, RunErrorKind, RunOptions, ValueType};

use crate::contract::{self, Inferred};
use crate::graph::{Failure, LoadError, Session};
use crate::kind::EngineKind;
use crate::stack::with_stack;
use crate::tensor::{Contract, Datatype, TensorSpec, Value};
use threads::GivenUp;

/// Reads and optimises a graph, and says what is known of its outputs.
///
/// # Errors
/// An operator, a type or a combination that rten lacks.
pub(crate) fn load(
    onnx: &[u8],
    contract: &Contract,
) -> Result<(RtenSession, Vec<Inferred>), LoadError> {
    let has = |datatype| values::element_of(datatype).is_some();
    contract::check(contract, EngineKind::Rten, has)?;
    let model = with_stack(|| {
        // Weights laid out at load as products of matrices want them: a transformer runs in 0.7
        // to 0.9 of the time, for a quarter more of its load and a third more of its memory.
        let mut options = ModelOptions::with_all_ops();
        options.prepack_weights(true);
        options.load(onnx.to_vec())
    })?;
    let model = model.map_err(|error| LoadError(format!("cannot be read: {}", line(&error))))?;
    let ids = |specs: &[TensorSpec]| {
        let ids = specs
            .iter()
            .map(|spec| model.node_id(&spec.name).map_err(|error| LoadError(line(&error))));
        ids.collect::<Result<Vec<_>, _>>()
    };
    let (inputs, outputs) = (ids(&contract.inputs)?, ids(&contract.outputs)?);
    let inferred = outputs.iter().zip(&contract.outputs).map(|(&id, spec)| infer(&model, id, spec));
    let inferred = inferred.collect();
    let datatypes = contract.outputs.iter().map(|spec| spec.datatype).collect();
    let given_up = GivenUp::default();
    Ok((RtenSession { model: Arc::new(model), inputs, outputs, datatypes, given_up }, inferred))
}

/// What rten knows of an output; as the file declares it where rten knows nothing.
fn infer(model: &Model, id: NodeId, declared: &TensorSpec) -> Inferred {
    let node = model.node_info(id);
    let shape = node.as_ref().and_then(|node| node.shape()).map(|dimensions| {
        let sizes = dimensions.iter().map(|dimension| match dimension {
            Dimension::Fixed(size) => i64::try_from(*size).unwrap_or(-1),
            Dimension::Symbolic(_) => -1,
        });
        sizes.collect()
    });
    let datatype = match node.and_then(|node| node.dtype()) {
        None => Some(declared.datatype),
        Some(ValueType::Tensor(element))
            if values::element_of(declared.datatype) == Some(element) =>
        {
            Some(declared.datatype)
        }
        Some(ValueType::Tensor(element)) => values::datatype_of(element),
        Some(_) => None,
    };
    Inferred { datatype, shape: shape.unwrap_or_else(|| declared.shape.clone()) }
}

#[derive(Debug)]
pub(crate) struct RtenSession {
    model: Arc<Model>,
    inputs: Vec<NodeId>,
    outputs: Vec<NodeId>,
    /// The outputs' datatypes to a client.
    datatypes: Vec<Datatype>,
    given_up: GivenUp,
}

impl Session for RtenSession {
    fn run(
        &self,
        inputs: &[Value<'_>],
        is_over: &(dyn Fn() -> bool + Sync),
    ) -> Result<Vec<Value<'static>>, Failure> {
        let inputs = self
            .inputs
            .iter()
            .zip(inputs)
            .map(|(&id, value)| Ok((id, values::to_rten(value)?.into())));
        let inputs = inputs.collect::<Result<_, _>>().map_err(Failure::Refused)?;
        let (model, wanted) = (self.model.clone(), self.outputs.clone());
        let outputs = threads::run(
            &self.given_up,
            move |pool| {
                let options = RunOptions::default().with_thread_pool(Some(pool));
                model.run(inputs, &wanted, Some(options)).map_err(failure)
            },
            is_over,
        )?;
        let outputs = outputs.into_iter().zip(&self.datatypes);
        let outputs = outputs.map(|(value, &datatype)| values::from_rten(value, datatype));
        outputs.collect::<Result<_, _>>().map_err(Failure::Failed)
    }
}

fn failure(error: RunError) -> Failure {
    match error.kind() {
        RunErrorKind::InvalidInput => Failure::Refused(line(&error)),
        _ => Failure::Failed(line(&error)),
    }
}

fn line(error: &dyn Display) -> String {
    error.to_string().lines().collect::<Vec<_>>().join(" ")
}
