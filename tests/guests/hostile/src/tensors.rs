//! What can be asked of wasi-nn, and should not be.

use std::hint::black_box;
use std::mem;

use wisp_guest::bindings::wasi::nn::errors::Error;
use wisp_guest::bindings::wasi::nn::graph::{ExecutionTarget, Graph, GraphEncoding};
use wisp_guest::bindings::wasi::nn::graph::{load, load_by_name};
use wisp_guest::bindings::wasi::nn::inference::GraphExecutionContext;
use wisp_guest::bindings::wasi::nn::tensor::{Tensor, TensorType};

/// Does what the order says, and answers with what came of it: an error's code and text, or the
/// length of what a graph gave. `None`: the order is another's.
pub(crate) fn run(order: &str) -> Option<String> {
    let (order, what) = order.split_once(' ').unwrap_or((order, ""));
    Some(match order {
        "tensors" => hold(|| tensor(&[4 << 20], TensorType::U8, 4 << 20)),
        "dimensions" => hold(|| tensor(&vec![0; 4 << 20], TensorType::U8, 0)),
        "errors" => {
            let name = "x".repeat(4 << 20);
            hold(|| load_by_name(&name).err())
        }
        "handles" => match what {
            "tensors" => hold(|| tensor(&[0], TensorType::U8, 0)),
            "errors" => hold(|| load_by_name("nothing").err()),
            "graphs" => hold(|| load_by_name("echo").ok()),
            _ => {
                let graph = load_by_name("echo").ok()?;
                hold(|| graph.init_execution_context().ok())
            }
        },
        // One MiB that is said to be there four thousand times.
        "aliased" => {
            let once = vec![0u8; 1 << 20];
            let many: Vec<Vec<u8>> = (0..4096).map(|_| alias(&once)).collect();
            let came = load(&many, GraphEncoding::Onnx, ExecutionTarget::Cpu);
            mem::forget(many);
            said(came.map(drop))
        }
        "load" => said(load(&[b"graph".to_vec()], GraphEncoding::Onnx, ExecutionTarget::Cpu)),
        "graph" => said(load_by_name(what)),
        "long-name" => said(load_by_name(&"../".repeat(1 << 20))),
        "compute" => compute(what),
        "twice" => {
            let [first, second] = [(); 2].map(|()| tensor(&[1], TensorType::Fp32, 4));
            length(context().compute(vec![("x".into(), first), ("x".into(), second)]))
        }
        "other-name" => {
            let x = tensor(&[1], TensorType::Fp32, 4);
            length(context().compute(vec![("y".repeat(1 << 20), x)]))
        }
        "after-drop" => {
            let used = tensor(&[1], TensorType::U8, 1);
            let handle = used.handle();
            drop(used);
            // SAFETY: it is not safe; what comes of it is the test.
            unsafe { Tensor::from_handle(handle) }.data().len().to_string()
        }
        "after-compute" => {
            let used = tensor(&[1], TensorType::Fp32, 4);
            let handle = used.handle();
            let came = context().compute(vec![("x".into(), used)]);
            drop(came);
            // SAFETY: it is not safe; what comes of it is the test.
            unsafe { Tensor::from_handle(handle) }.data().len().to_string()
        }
        "wrong-handle" => {
            let graph = load_by_name("echo").ok()?;
            // SAFETY: it is not safe; what comes of it is the test.
            let tensor = unsafe { Tensor::from_handle(graph.handle()) };
            mem::forget(graph);
            tensor.data().len().to_string()
        }
        // SAFETY: it is not safe; what comes of it is the test.
        "made-up-handle" => unsafe { Tensor::from_handle(12_345) }.data().len().to_string(),
        _ => return None,
    })
}

/// Calls until it is ended, and keeps what comes.
fn hold<T>(mut make: impl FnMut() -> T) -> String {
    let held: Vec<T> = (0..100_000).map(|_| make()).collect();
    black_box(held).len().to_string()
}

fn tensor(shape: &[u32], datatype: TensorType, bytes: usize) -> Tensor {
    Tensor::new(shape, datatype, &vec![0; bytes])
}

fn context() -> GraphExecutionContext {
    let context = load_by_name("echo").and_then(|graph: Graph| graph.init_execution_context());
    context.expect("the bundle has the graph `echo`")
}

/// Runs `echo`, which takes floats of any length, on a tensor that is odd in one way.
fn compute(what: &str) -> String {
    use TensorType::{Fp32, Fp64, U8};
    let (shape, datatype, bytes): (&[u32], _, _) = match what {
        "well" => (&[4], Fp32, 16),
        "short" => (&[4], Fp32, 12),
        "long" => (&[4], Fp32, 20),
        "ragged" => (&[4], Fp32, 15),
        "empty" => (&[4], Fp32, 0),
        "giant" => (&[u32::MAX], Fp32, 16),
        "wrapping" => (&[1 << 31, 1 << 31, 4], Fp32, 0),
        "no-dimensions" => (&[], Fp32, 4),
        "many-dimensions" => (&[1; 1000], Fp32, 4),
        "zero" => (&[0], Fp32, 0),
        "zero-and-some" => (&[0], Fp32, 4),
        "doubles" => (&[2], Fp64, 16),
        _ => (&[16], U8, 16),
    };
    length(context().compute(vec![("x".into(), tensor(shape, datatype, bytes))]))
}

fn length(came: Result<Vec<(String, Tensor)>, Error>) -> String {
    match came {
        Ok(outputs) => {
            format!("{} bytes", outputs.iter().map(|(_, y)| y.data().len()).sum::<usize>())
        }
        Err(error) => said::<()>(Err(error)),
    }
}

fn said<T>(came: Result<T, Error>) -> String {
    match came {
        Ok(_) => "nothing".to_owned(),
        Err(error) => {
            let text = error.data();
            let shown: String = text.chars().take(200).collect();
            format!("{:?}, {} bytes: {shown}", error.code(), text.len())
        }
    }
}

/// The same memory as another's vector; must not be dropped.
pub(crate) fn alias(once: &[u8]) -> Vec<u8> {
    // SAFETY: whoever asks forgets it before it is dropped.
    unsafe { Vec::from_raw_parts(once.as_ptr().cast_mut(), once.len(), once.len()) }
}
