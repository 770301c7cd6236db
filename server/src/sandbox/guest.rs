//! From a component's bytes to a [`Guest`]: `prepare` runs once, its memory is snapshotted into
//! the component, and that is compiled.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{Component, Val};
use wasmtime::{OptLevel, Store};
use wasmtime_wizer::Wizer;

use super::bindings::{Guest as Bindings, GuestPre as BindingsPre};
use super::engine::{Clock, Engine, config};
use super::host::{self, BundleView, Host, HostParts};
use super::{Fault, Limits, Request, Response};
use crate::nn::{Graphs, Run};
use crate::tensor::{Contract, Datatype, TensorSpec};

/// How long `prepare` may take.
const PREPARE_DEADLINE: Duration = Duration::from_secs(60);

/// The export that wizer runs, as the call it parses.
const PREPARE: &str = "wisp:model/handler.prepare@0.1.0()";

/// Why a component cannot be a guest; for the operator.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct PrepareError(String);

impl PrepareError {
    pub(super) fn of(reason: String) -> Self {
        Self(reason)
    }
}

/// What a component needs to become a guest.
pub struct Prepared {
    pub model: Arc<str>,
    pub limits: Limits,
    pub graphs: Arc<Graphs>,
    pub bundle: Arc<dyn BundleView>,
}

/// A prepared component in compiled form, and the contract that `prepare` returned. Worth
/// keeping: making it takes a second, loading it a millisecond.
pub struct Snapshot {
    pub compiled: Vec<u8>,
    pub contract: Contract,
}

/// Where a [`Snapshot`]'s compiled code lies now.
pub enum Code {
    /// Mapped, so that its pages are shared and come in as they are used.
    File(PathBuf),
    Bytes(Vec<u8>),
}

/// A component ready to be instantiated.
pub struct Guest {
    engine: Arc<Engine>,
    instance: BindingsPre<Host>,
    limits: Limits,
    model: Arc<str>,
    graphs: Arc<Graphs>,
    code_bytes: u64,
}

impl Snapshot {
    /// Runs `prepare` in a sandbox of its own and compiles the component with the memory it left.
    ///
    /// # Errors
    /// Not a component, of another world, cannot be snapshotted, `prepare` failed or trapped.
    pub async fn take(
        engine: &Engine,
        component: &[u8],
        prepared: &Prepared,
    ) -> Result<Self, PrepareError> {
        check_kind(component)?;
        // This instance runs once: quick to compile beats quick to run, its extra exports need no
        // pool, and bounds checks cost less than 4 GiB of an address space that may be small.
        let mut config = config(OptLevel::None);
        config.memory_reservation(0).memory_guard_size(64 << 10);
        let once =
            wasmtime::Engine::new(&config).map_err(|error| refuse("cannot be prepared", &error))?;
        let linker = host::linker(&once).map_err(|error| refuse("cannot be prepared", &error))?;
        let clock =
            Clock::start(vec![once.clone()]).map_err(|error| PrepareError(error.to_string()))?;
        let run = Run::limited(
            Instant::now() + PREPARE_DEADLINE,
            None,
            prepared.limits.graph_bytes,
            None,
        );
        let mut store = host::store(
            &once,
            HostParts {
                limits: prepared.limits,
                model: prepared.model.clone(),
                graphs: &prepared.graphs,
                run: &run,
                bundle: Some(prepared.bundle.clone()),
                live: clock.enter(&run),
            },
        );
        // Checked first: wizer's own words for a missing import or export are of its insides.
        let original =
            Component::new(&once, component).map_err(|error| refuse("not a component", &error))?;
        let pre = linker
            .instantiate_pre(&original)
            .map_err(|error| refuse("not of the world wisp:model/model", &error))?;
        BindingsPre::new(pre)
            .map_err(|error| refuse("not of the world wisp:model/model", &error))?;

        let late = || PrepareError(format!("`prepare` took longer than {PREPARE_DEADLINE:?}"));
        let mut wizer = Wizer::new();
        wizer.init_func(PREPARE).keep_init_func(true);
        let snapshot = wizer.run_component(&mut store, component, async |store, component| {
            linker.instantiate_async(store, component).await
        });
        // A guest that waits (for a clock of WASI) is not running, and no epoch ends it.
        let Ok(snapshot) = tokio::time::timeout(PREPARE_DEADLINE, snapshot).await else {
            return Err(late());
        };
        let (component, returned) = match snapshot {
            Ok(snapshot) => snapshot,
            Err(_) if run.is_over() => return Err(late()),
            Err(_) if store.data().growth_denied() => {
                return Err(PrepareError(format!(
                    "`prepare` needs more than {} MiB of memory",
                    prepared.limits.memory_bytes >> 20
                )));
            }
            Err(error) => return Err(refuse("cannot be prepared", &error)),
        };
        let contract = read_contract(&returned)?;
        let compiled = engine
            .wasm
            .precompile_component(&component)
            .map_err(|error| refuse("cannot be compiled", &error))?;
        Ok(Self { compiled, contract })
    }
}

impl Guest {
    /// Loads a compiled snapshot.
    ///
    /// # Safety
    /// `code` must be what [`Snapshot::take`] compiled, unchanged: it is run as machine code.
    ///
    /// # Errors
    /// It was compiled by another wasmtime or for another CPU.
    pub unsafe fn load(
        engine: &Arc<Engine>,
        code: &Code,
        prepared: Prepared,
    ) -> Result<Arc<Self>, PrepareError> {
        // SAFETY: the caller's promise.
        let component = unsafe {
            match code {
                Code::File(path) => Component::deserialize_file(&engine.wasm, path),
                Code::Bytes(bytes) => Component::deserialize(&engine.wasm, bytes),
            }
        };
        let component =
            component.map_err(|error| refuse("compiled code cannot be loaded", &error))?;
        let instance = engine.linker.instantiate_pre(&component).and_then(BindingsPre::new);
        let instance =
            instance.map_err(|error| refuse("not of the world wisp:model/model", &error))?;
        let Prepared { model, limits, graphs, bundle: _ } = prepared;
        let code_bytes = match code {
            Code::File(path) => path.metadata().map_or(0, |metadata| metadata.len()),
            Code::Bytes(bytes) => bytes.len() as u64,
        };
        Ok(Arc::new(Self { engine: engine.clone(), instance, limits, model, graphs, code_bytes }))
    }

    /// Of its code and the memory its sandboxes start from, which is mapped.
    pub fn code_bytes(&self) -> u64 {
        self.code_bytes
    }

    /// What its sandboxes may use.
    pub fn limits(&self) -> Limits {
        self.limits
    }

    pub(super) fn store(&self, run: &Arc<Run>) -> Store<Host> {
        host::store(
            &self.engine.wasm,
            HostParts {
                limits: self.limits,
                model: self.model.clone(),
                graphs: &self.graphs,
                run,
                bundle: None,
                live: self.engine.clock.enter(run),
            },
        )
    }

    pub(super) async fn instantiate(&self, store: &mut Store<Host>) -> wasmtime::Result<Instance> {
        self.instance.instantiate_async(store).await.map(Instance)
    }
}

/// A live instance.
pub(super) struct Instance(Bindings);

impl Instance {
    pub(super) async fn infer(
        self,
        store: &mut Store<Host>,
        request: Request,
    ) -> wasmtime::Result<Result<Response, Fault>> {
        let handler = self.0.wisp_model_handler();
        let answer = handler.call_infer(store, &request.into()).await?;
        Ok(answer.map(Into::into).map_err(Into::into))
    }
}

/// Tells a component from a core module by the binary format's layer field (bytes 6 and 7).
///
/// # Errors
/// It is a core module, or no Wasm at all.
pub(super) fn check_kind(bytes: &[u8]) -> Result<(), PrepareError> {
    match bytes.get(..8) {
        Some([b'\0', b'a', b's', b'm', _, _, 1, 0]) => Ok(()),
        Some([b'\0', b'a', b's', b'm', _, _, 0, 0]) => {
            Err(PrepareError("it is a core Wasm module, expected a component".into()))
        }
        _ => Err(PrepareError("it is not Wasm, expected a component".into())),
    }
}

/// What went wrong first, on one line, without wasmtime's stack of addresses.
pub(super) fn root_cause(error: &wasmtime::Error) -> String {
    error.root_cause().to_string()
}

fn refuse(what: &str, error: &wasmtime::Error) -> PrepareError {
    let chain: Vec<String> = error.chain().map(|cause| cause.to_string()).collect();
    // Backtraces come as a cause of many lines; they say nothing to an operator.
    let chain: Vec<&str> = chain
        .iter()
        .map(|cause| cause.lines().next().unwrap_or_default())
        .filter(|cause| !cause.starts_with("error while executing"))
        .collect();
    PrepareError(format!("{what}: {}", chain.join(": ")))
}

/// Reads what `prepare` returned: `result<contract, string>` in wasmtime's dynamic values.
fn read_contract(returned: &[Val]) -> Result<Contract, PrepareError> {
    let odd =
        || PrepareError("`prepare` returned something other than result<contract, string>".into());
    match returned {
        [Val::Result(Ok(Some(contract)))] => Ok(Contract {
            inputs: read_specs(contract, "inputs").ok_or_else(odd)?,
            outputs: read_specs(contract, "outputs").ok_or_else(odd)?,
        }),
        [Val::Result(Err(Some(reason)))] => match &**reason {
            Val::String(reason) => Err(PrepareError(format!("`prepare` failed: {reason}"))),
            _ => Err(odd()),
        },
        _ => Err(odd()),
    }
}

fn read_specs(contract: &Val, field: &str) -> Option<Vec<TensorSpec>> {
    let Val::List(specs) = field_of(contract, field)? else { return None };
    let specs = specs.iter().map(|spec| {
        let Val::String(name) = field_of(spec, "name")? else { return None };
        let Val::Enum(datatype) = field_of(spec, "datatype")? else { return None };
        let Val::List(shape) = field_of(spec, "shape")? else { return None };
        let shape =
            shape.iter().map(|size| if let Val::S64(size) = size { Some(*size) } else { None });
        Some(TensorSpec {
            name: name.clone(),
            datatype: Datatype::parse(&datatype.to_uppercase())?,
            shape: shape.collect::<Option<_>>()?,
        })
    });
    specs.collect()
}

fn field_of<'a>(record: &'a Val, name: &str) -> Option<&'a Val> {
    let Val::Record(fields) = record else { return None };
    fields.iter().find(|(field, _)| field == name).map(|(_, value)| value)
}
