//! ONNX Runtime: the engine that everyone knows, out of a library that the operator names. It is
//! neither linked nor downloaded: without [`OnnxRuntime::open`] none of its code is there. Only
//! this room names its types.
//!
//! Its functions are called as its C API documents them. The crate `ort`, which would wrap them,
//! runs a session behind `&mut` only, which would make requests for one graph wait for each
//! other; ONNX Runtime's own documentation lets any number of threads run a session.
//!
//! A run learns up to 10 ms late that it is over, and ends at its next node.

mod handle;
mod library;
mod values;
mod watch;

use std::ffi::{CStr, CString, c_char};
use std::ptr;

use ort_sys::{
    ExecutionMode, GraphOptimizationLevel, OrtRunOptions, OrtSession, OrtSessionOptions, OrtValue,
};

use crate::contract::Inferred;
use crate::graph::{Failure, LoadError, Session, Watch};
use crate::tensor::{Contract, TensorSpec, Value};
use handle::Handle;
pub use library::OnnxRuntime;
use values::Input;

/// Reads and optimises a graph, and says what is known of its outputs.
///
/// # Errors
/// The library has not been opened, or the graph has an operator, a type or a combination that
/// ONNX Runtime lacks.
pub(crate) fn load(
    onnx: &[u8],
    contract: &Contract,
) -> Result<(OnnxRuntimeSession, Vec<Inferred>), LoadError> {
    let runtime = OnnxRuntime::get()?;
    let session = open_session(runtime, onnx)
        .map_err(|reason| LoadError(format!("cannot be planned: {reason}")))?;
    let inferred = contract.outputs.iter().enumerate();
    let inferred = inferred.map(|(index, spec)| values::infer(runtime, &session, index, spec));
    let inferred = inferred.collect::<Result<_, _>>().map_err(LoadError)?;
    let (inputs, outputs) = (names(&contract.inputs)?, names(&contract.outputs)?);
    Ok((OnnxRuntimeSession { runtime, session, inputs, outputs }, inferred))
}

fn open_session(runtime: &'static OnnxRuntime, onnx: &[u8]) -> Result<Handle<OrtSession>, String> {
    let api = runtime.api;
    let options = session_options(runtime)?;
    let (bytes, length) = (onnx.as_ptr().cast(), onnx.len());
    let mut session = ptr::null_mut();
    // SAFETY: an environment and options that live, as many bytes as are said (they are copied),
    // and a place for the result.
    unsafe {
        runtime.check((api.CreateSessionFromArray)(
            runtime.environment,
            bytes,
            length,
            options.get(),
            &raw mut session,
        ))?;
        Handle::new(session, api.ReleaseSession)
    }
}

/// By their names in onnxruntime_session_options_config_keys.h.
const SETTINGS: [(&CStr, &CStr); 3] = [
    // A thread that waits for work does not burn a core.
    (c"session.intra_op.allow_spinning", c"0"),
    (c"session.inter_op.allow_spinning", c"0"),
    // Its own format can be told by its first bytes; what was checked above is ONNX.
    (c"session.load_model_format", c"ONNX"),
];

fn session_options(runtime: &OnnxRuntime) -> Result<Handle<OrtSessionOptions>, String> {
    let api = runtime.api;
    let mut options = ptr::null_mut();
    // SAFETY: a place for the result, options that live, and texts that end in 0.
    unsafe {
        runtime.check((api.CreateSessionOptions)(&raw mut options))?;
        let options = Handle::new(options, api.ReleaseSessionOptions)?;
        // A run is one thread's work, the caller's: the server runs many at a time.
        runtime.check((api.SetIntraOpNumThreads)(options.get(), 1))?;
        runtime.check((api.SetInterOpNumThreads)(options.get(), 1))?;
        let sequential = ExecutionMode::ORT_SEQUENTIAL;
        runtime.check((api.SetSessionExecutionMode)(options.get(), sequential))?;
        let all = GraphOptimizationLevel::ORT_ENABLE_ALL;
        runtime.check((api.SetSessionGraphOptimizationLevel)(options.get(), all))?;
        // Its arena keeps what a graph's largest run took, for each graph: after one large batch
        // a transformer of 90 MB stood at 372 MiB with it and at 170 without. Runs took as long.
        runtime.check((api.DisableCpuMemArena)(options.get()))?;
        for (key, value) in SETTINGS {
            let (key, value) = (key.as_ptr(), value.as_ptr());
            runtime.check((api.AddSessionConfigEntry)(options.get(), key, value))?;
        }
        Ok(options)
    }
}

fn names(specs: &[TensorSpec]) -> Result<Vec<CString>, LoadError> {
    let names = specs.iter().map(|spec| {
        CString::new(spec.name.as_bytes())
            .map_err(|_| LoadError(format!("a name contains a 0: {:?}", spec.name)))
    });
    names.collect()
}

#[derive(Debug)]
pub(crate) struct OnnxRuntimeSession {
    runtime: &'static OnnxRuntime,
    session: Handle<OrtSession>,
    inputs: Vec<CString>,
    outputs: Vec<CString>,
}

// SAFETY: ONNX Runtime documents that any number of threads may run one session at a time. It is
// released by one, when nobody has it any more.
unsafe impl Send for OnnxRuntimeSession {}
// SAFETY: see above.
unsafe impl Sync for OnnxRuntimeSession {}

impl Session for OnnxRuntimeSession {
    fn run(&self, inputs: &[Value<'_>], watch: &dyn Watch) -> Result<Vec<Value<'static>>, Failure> {
        let runtime = self.runtime;
        let inputs = inputs.iter().map(|value| Input::new(runtime, value));
        let inputs = inputs.collect::<Result<Vec<_>, _>>().map_err(Failure::Refused)?;
        let options = run_options(runtime).map_err(Failure::Failed)?;
        let is_over = || watch.is_over();
        let outputs =
            watch::watched(runtime, &options, &is_over, || self.compute(&inputs, &options));
        let outputs = outputs.map_err(|reason| match is_over() {
            true => Failure::Stopped,
            false => Failure::Failed(reason),
        })?;
        let outputs = outputs.iter().map(|value| values::read(runtime, value));
        outputs.collect::<Result<_, _>>().map_err(Failure::Failed)
    }
}

fn run_options(runtime: &OnnxRuntime) -> Result<Handle<OrtRunOptions>, String> {
    let mut options = ptr::null_mut();
    // SAFETY: a place for the result.
    unsafe {
        runtime.check((runtime.api.CreateRunOptions)(&raw mut options))?;
        Handle::new(options, runtime.api.ReleaseRunOptions)
    }
}

impl OnnxRuntimeSession {
    fn compute(
        &self,
        inputs: &[Input<'_>],
        options: &Handle<OrtRunOptions>,
    ) -> Result<Vec<Handle<OrtValue>>, String> {
        let pointers = |names: &[CString]| names.iter().map(|name| name.as_ptr()).collect();
        let input_names: Vec<*const c_char> = pointers(&self.inputs);
        let output_names: Vec<*const c_char> = pointers(&self.outputs);
        let inputs: Vec<*const OrtValue> = inputs.iter().map(Input::get).collect();
        let mut outputs: Vec<*mut OrtValue> = vec![ptr::null_mut(); output_names.len()];
        let api = self.runtime.api;
        // SAFETY: a session, options and values that live, names that end in 0, and lists as
        // long as is said: `Graph` has checked that there are as many inputs as names.
        unsafe {
            let status = (api.Run)(
                self.session.get(),
                options.get(),
                input_names.as_ptr(),
                inputs.as_ptr(),
                inputs.len().min(input_names.len()),
                output_names.as_ptr(),
                output_names.len(),
                outputs.as_mut_ptr(),
            );
            // Outputs that came before an error are to be released too.
            let made = outputs.into_iter().map(|output| Handle::new(output, api.ReleaseValue));
            let made: Vec<_> = made.collect();
            self.runtime.check(status)?;
            made.into_iter().collect()
        }
    }
}
