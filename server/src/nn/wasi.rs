//! wasi-nn for one sandbox: its graphs by name, under its run, and no way to load another. A
//! guest's tensors are bounded all together, and checked before an engine sees them. A compute
//! may wait for others without holding its thread.

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use wasmtime::component::{HasData, Linker, Resource, ResourceTable};
use wisp_engine::Failure;

use self::wasi::nn::errors::{self, ErrorCode};
use self::wasi::nn::graph::{self, ExecutionTarget, GraphEncoding};
use self::wasi::nn::inference;
use self::wasi::nn::tensor::{self, TensorType};
use super::{Graphs, Run, Served};
use crate::tensor::{Datatype, Value};

/// No graph that is served has a tensor of more axes, and what is said of one tells its sizes.
const MAX_AXES: usize = 64;

/// Of a guest's names in what is said of them.
const MAX_NAME_BYTES: usize = 200;

wasmtime::component::bindgen!({
    path: "../wit",
    inline: "
        package wisp:nn;
        world imports {
            import wasi:nn/tensor@0.2.0-rc-2024-10-28;
            import wasi:nn/errors@0.2.0-rc-2024-10-28;
            import wasi:nn/inference@0.2.0-rc-2024-10-28;
            import wasi:nn/graph@0.2.0-rc-2024-10-28;
        }
    ",
    world: "wisp:nn/imports",
    imports: {
        "wasi:nn/inference.[method]graph-execution-context.compute": async | trappable,
        default: trappable,
    },
    with: {
        "wasi:nn/tensor.tensor": crate::nn::wasi::Tensor,
        "wasi:nn/errors.error": crate::nn::wasi::Error,
        "wasi:nn/graph.graph": crate::nn::wasi::BoundGraph,
        "wasi:nn/inference.graph-execution-context": crate::nn::wasi::ExecutionContext,
    },
});

/// A tensor that a guest made or was given.
pub struct Tensor {
    dimensions: Vec<u32>,
    ty: TensorType,
    data: Vec<u8>,
}

impl Tensor {
    /// What it takes of the host's memory.
    fn bytes(&self) -> usize {
        self.data.len().saturating_add(size_of_val(&*self.dimensions))
    }
}

/// What a guest is told of a failure. A guest may keep many: the text is short, whatever names
/// it was made of.
pub struct Error {
    code: ErrorCode,
    text: String,
}

/// A graph that a guest has asked for by name.
pub struct BoundGraph(Arc<Served>);

/// A graph that it will run.
pub struct ExecutionContext(Arc<Served>);

/// What one sandbox has of wasi-nn.
#[derive(Debug)]
pub struct Context {
    graphs: Arc<Graphs>,
    run: Arc<Run>,
    /// Of all its tensors, bytes.
    held_bytes: usize,
    most_bytes: usize,
    is_full: bool,
}

impl Context {
    /// These graphs by name, under `run`, and room for tensors of `most_bytes` in all.
    pub fn new(graphs: &Arc<Graphs>, run: &Arc<Run>, most_bytes: usize) -> Self {
        graphs.sandboxes.fetch_add(1, Ordering::Relaxed);
        let (graphs, run) = (graphs.clone(), run.clone());
        Self { graphs, run, held_bytes: 0, most_bytes, is_full: false }
    }

    pub fn graphs(&self) -> &Graphs {
        &self.graphs
    }

    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Whether a tensor was refused for want of room.
    pub fn is_full(&self) -> bool {
        self.is_full
    }
}

impl Drop for Context {
    fn drop(&mut self) {
        self.graphs.sandboxes.fetch_sub(1, Ordering::Relaxed);
        self.graphs.held_bytes.fetch_sub(self.held_bytes, Ordering::Relaxed);
    }
}

/// A sandbox's context, and the table with its resources.
pub struct View<'a> {
    pub context: &'a mut Context,
    pub table: &'a mut ResourceTable,
}

struct HasView;

impl HasData for HasView {
    type Data<'a> = View<'a>;
}

/// Adds the four interfaces to a linker.
///
/// # Errors
/// It has some of them already.
pub fn add_to_linker<T: Send + 'static>(
    linker: &mut Linker<T>,
    view: fn(&mut T) -> View<'_>,
) -> wasmtime::Result<()> {
    tensor::add_to_linker::<_, HasView>(linker, view)?;
    errors::add_to_linker::<_, HasView>(linker, view)?;
    inference::add_to_linker::<_, HasView>(linker, view)?;
    graph::add_to_linker::<_, HasView>(linker, view)
}

/// What a function returns: a trap, an error for the guest, or a value.
type Answer<T> = wasmtime::Result<Result<T, Resource<Error>>>;

impl View<'_> {
    /// Keeps a tensor, unless the sandbox would hold more in tensors than it may.
    fn push(&mut self, tensor: Tensor) -> wasmtime::Result<Resource<Tensor>> {
        let bytes = tensor.bytes();
        let held = self.context.held_bytes.saturating_add(bytes);
        if held > self.context.most_bytes {
            self.context.is_full = true;
            let most = self.context.most_bytes >> 20;
            wasmtime::bail!("tensors of more than {most} MiB are held");
        }
        let tensor = self.table.push(tensor)?;
        self.context.held_bytes = held;
        self.context.run.holds_tensors(held);
        self.context.graphs.held_bytes.fetch_add(bytes, Ordering::Relaxed);
        Ok(tensor)
    }

    fn take(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Tensor> {
        let tensor = self.table.delete(tensor)?;
        self.context.held_bytes -= tensor.bytes();
        self.context.graphs.held_bytes.fetch_sub(tensor.bytes(), Ordering::Relaxed);
        Ok(tensor)
    }

    fn refuse<T>(&mut self, code: ErrorCode, text: String) -> Answer<T> {
        Ok(Err(self.table.push(Error { code, text })?))
    }
}

impl tensor::Host for View<'_> {}

impl tensor::HostTensor for View<'_> {
    fn new(
        &mut self,
        dimensions: Vec<u32>,
        ty: TensorType,
        data: Vec<u8>,
    ) -> wasmtime::Result<Resource<Tensor>> {
        self.push(Tensor { dimensions, ty, data })
    }

    fn dimensions(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Vec<u32>> {
        Ok(self.table.get(&tensor)?.dimensions.clone())
    }

    fn ty(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<TensorType> {
        Ok(self.table.get(&tensor)?.ty)
    }

    fn data(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<Vec<u8>> {
        Ok(self.table.get(&tensor)?.data.clone())
    }

    fn drop(&mut self, tensor: Resource<Tensor>) -> wasmtime::Result<()> {
        self.take(tensor).map(drop)
    }
}

impl errors::Host for View<'_> {}

impl errors::HostError for View<'_> {
    fn code(&mut self, error: Resource<Error>) -> wasmtime::Result<ErrorCode> {
        Ok(self.table.get(&error)?.code)
    }

    fn data(&mut self, error: Resource<Error>) -> wasmtime::Result<String> {
        Ok(self.table.get(&error)?.text.clone())
    }

    fn drop(&mut self, error: Resource<Error>) -> wasmtime::Result<()> {
        self.table.delete(error)?;
        Ok(())
    }
}

impl graph::Host for View<'_> {
    fn load(
        &mut self,
        _: Vec<Vec<u8>>,
        _: GraphEncoding,
        _: ExecutionTarget,
    ) -> Answer<Resource<BoundGraph>> {
        let text = "graphs come with the bundle and are loaded by name".to_owned();
        self.refuse(ErrorCode::InvalidEncoding, text)
    }

    fn load_by_name(&mut self, name: String) -> Answer<Resource<BoundGraph>> {
        match self.context.graphs.served(&name) {
            Some(served) => Ok(Ok(self.table.push(BoundGraph(served.clone()))?)),
            None => {
                let text = format!("the bundle has no graph `{}`", shown(&name));
                self.refuse(ErrorCode::NotFound, text)
            }
        }
    }
}

impl graph::HostGraph for View<'_> {
    fn init_execution_context(
        &mut self,
        graph: Resource<BoundGraph>,
    ) -> Answer<Resource<ExecutionContext>> {
        let served = self.table.get(&graph)?.0.clone();
        Ok(Ok(self.table.push(ExecutionContext(served))?))
    }

    fn drop(&mut self, graph: Resource<BoundGraph>) -> wasmtime::Result<()> {
        self.table.delete(graph)?;
        Ok(())
    }
}

impl inference::Host for View<'_> {}

impl inference::HostGraphExecutionContext for View<'_> {
    async fn compute(
        &mut self,
        context: Resource<ExecutionContext>,
        inputs: Vec<(String, Resource<Tensor>)>,
    ) -> Answer<Vec<(String, Resource<Tensor>)>> {
        let named = inputs.into_iter().map(|(name, tensor)| Ok((name, self.take(tensor)?)));
        let named = named.collect::<wasmtime::Result<Vec<_>>>()?;
        let served = self.table.get(&context)?.0.clone();
        let run = self.context.run.clone();
        let is_alone = self.context.graphs.sandboxes.load(Ordering::Relaxed) <= 1;
        let started = Instant::now();
        let (result, computed) = match order(&served, named) {
            Ok(inputs) => served.run(inputs, &run, is_alone).await,
            Err(failure) => (Err(failure), started.elapsed()),
        };
        let result = result.and_then(|outputs| name(&served, outputs));
        run.record(started, computed, result.as_ref().err());
        match result {
            Ok(outputs) => {
                let outputs =
                    outputs.into_iter().map(|(name, tensor)| Ok((name, self.push(tensor)?)));
                Ok(Ok(outputs.collect::<wasmtime::Result<_>>()?))
            }
            Err(Failure::Refused(text)) => self.refuse(ErrorCode::InvalidArgument, text),
            Err(Failure::Failed(text) | Failure::OutOfMemory(text)) => {
                self.refuse(ErrorCode::RuntimeError, text)
            }
            Err(Failure::Stopped) => self.refuse(ErrorCode::Timeout, "stopped".to_owned()),
        }
    }

    fn drop(&mut self, context: Resource<ExecutionContext>) -> wasmtime::Result<()> {
        self.table.delete(context)?;
        Ok(())
    }
}

/// Puts a guest's tensors in the order of the graph's inputs.
fn order(
    served: &Served,
    mut named: Vec<(String, Tensor)>,
) -> Result<Vec<Value<'static>>, Failure> {
    let specs = &served.graph.contract().inputs;
    let mut ordered = Vec::with_capacity(specs.len());
    for spec in specs {
        let found = named.iter().position(|(name, _)| *name == spec.name);
        let Some(found) = found else {
            let came: Vec<_> = named.iter().map(|(name, _)| shown(name)).collect();
            let text = format!("graph input `{}` is wanted, got {came:?} beside it", spec.name);
            return Err(Failure::Refused(text));
        };
        let tensor = named.swap_remove(found).1;
        if tensor.dimensions.len() > MAX_AXES {
            let (name, axes) = (&spec.name, tensor.dimensions.len());
            return Err(Failure::Refused(format!("graph input `{name}` has {axes} axes")));
        }
        ordered.push(to_value(tensor, spec.datatype));
    }
    match named.first() {
        None => Ok(ordered),
        Some((name, _)) if specs.iter().any(|spec| spec.name == *name) => {
            Err(Failure::Refused(format!("graph input `{}` came twice", shown(name))))
        }
        Some((name, _)) => {
            Err(Failure::Refused(format!("the graph has no input `{}`", shown(name))))
        }
    }
}

/// The beginning of a guest's name, for a text that is kept.
fn shown(name: &str) -> &str {
    &name[..name.floor_char_boundary(MAX_NAME_BYTES)]
}

fn name(served: &Served, outputs: Vec<Value<'static>>) -> Result<Vec<(String, Tensor)>, Failure> {
    let specs = &served.graph.contract().outputs;
    let named = specs.iter().zip(outputs).map(|(spec, value)| {
        let tensor = to_wasi(value)
            .map_err(|reason| Failure::Failed(format!("graph output `{}`: {reason}", spec.name)))?;
        Ok((spec.name.clone(), tensor))
    });
    named.collect()
}

/// A guest's tensor, for a graph's input of that datatype.
fn to_value(tensor: Tensor, wanted: Datatype) -> Value<'static> {
    let is_carried = carrier(wanted) == tensor.ty;
    Value {
        datatype: if is_carried { wanted } else { datatype_of(tensor.ty) },
        shape: tensor.dimensions.iter().map(|&size| size as usize).collect(),
        data: Cow::Owned(tensor.data),
    }
}

fn to_wasi(value: Value<'_>) -> Result<Tensor, String> {
    let dimensions: Result<Vec<u32>, _> =
        value.shape.iter().map(|&size| u32::try_from(size)).collect();
    let dimensions = dimensions.map_err(|error| error.to_string())?;
    Ok(Tensor { dimensions, ty: carrier(value.datatype), data: value.data.into_owned() })
}

/// The type of wasi-nn that a graph's tensors of a datatype have: the same where it is there,
/// else one of the same size, whose bits are the element's (`wit/model.wit` promises it).
fn carrier(datatype: Datatype) -> TensorType {
    match datatype {
        Datatype::Fp16 | Datatype::Int16 | Datatype::Uint16 => TensorType::Fp16,
        Datatype::Bf16 => TensorType::Bf16,
        Datatype::Fp32 => TensorType::Fp32,
        Datatype::Fp64 => TensorType::Fp64,
        Datatype::Uint8 | Datatype::Int8 | Datatype::Bool | Datatype::Bytes => TensorType::U8,
        Datatype::Int32 | Datatype::Uint32 => TensorType::I32,
        Datatype::Int64 | Datatype::Uint64 => TensorType::I64,
    }
}

fn datatype_of(ty: TensorType) -> Datatype {
    match ty {
        TensorType::Fp16 => Datatype::Fp16,
        TensorType::Bf16 => Datatype::Bf16,
        TensorType::Fp32 => Datatype::Fp32,
        TensorType::Fp64 => Datatype::Fp64,
        TensorType::U8 => Datatype::Uint8,
        TensorType::I32 => Datatype::Int32,
        TensorType::I64 => Datatype::Int64,
    }
}
