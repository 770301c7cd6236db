//! Runs graphs through an engine and says what CPU time they took: JSON lines in, one JSON line
//! out for each. `WISP_ONNXRUNTIME` names ONNX Runtime's library, if it is to be had.
//!
//! ```text
//! {"load": "model.onnx", "engine": "tract" | "rten" | "onnxruntime" | "auto"}
//!     {"loaded": 0, "engine": "tract", "cpu_us": 1, "inputs": [{"name", "datatype", "shape"}], "outputs": […]}
//!     {"refused": "why"}
//! {"compile": "model.onnx", "to": "model.plan"}
//!     {"compiled": true}   (false: it has an operator that a compiled plan cannot hold)
//! {"wake": "model.plan", "load": "model.onnx"}
//!     as for "load"
//! {"run": 0, "inputs": "folder of 0.pb, 1.pb …", "times": 5, "write_outputs": "folder"}
//!     {"cpu_us": [1, 1, 1, 1, 1], "took_us": […]}   (by the clock; on `"threads": 2` where that is asked)
//!     {"failed": "why"}
//! {"profile": 0, "inputs": "folder", "times": 5}
//!     {"operators": [["operator and node", 1], …]}   (the least of the runs, in ns)
//! {"choose": "model.onnx", "inputs": "folder", "tolerance": 0.001}
//!     {"chosen": "tract", "reason": "why"}   (of tract and rten, as an examination chooses)
//! {"unload": 0}
//!     {"unloaded": 0}
//! ```
//!
//! The files are ONNX's TensorProto, in the order of the graph's inputs or outputs. CPU time is
//! the whole process's, in microseconds: an engine may use other threads than the caller's.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, Write};
use std::path::Path;
use std::time::Instant;

use bytes::Bytes;
use prost::Message;
use rustix::time::{ClockId, clock_gettime};
use serde_json::{Value as Json, json};
use tract_onnx::pb::{self, TensorProto};
use wisp_engine::tensor::{Datatype, TensorSpec, Value, bytes_elements, push_bytes_element};
use wisp_engine::{Cores, EngineKind, Failure, Graph, Helpers, OnnxRuntime, Watch, choose};

/// As the server has it.
#[global_allocator]
static ALLOCATOR: wisp_engine::memory::Allocator = wisp_engine::memory::Allocator::new();

fn main() {
    if let Some(path) = std::env::var_os("WISP_ONNXRUNTIME") {
        // SAFETY: whoever set it says that it is ONNX Runtime.
        let opened = unsafe { OnnxRuntime::open(Path::new(&path)) };
        let version = opened.expect("WISP_ONNXRUNTIME: a library that opens").version();
        eprintln!("ONNX Runtime {version}");
    }
    let mut probe = Probe::default();
    for line in std::io::stdin().lock().lines() {
        let line = line.expect("lines of text");
        let answer = match serde_json::from_str::<Json>(&line) {
            Ok(request) => probe.answer(&request).unwrap_or_else(|text| json!({ "failed": text })),
            Err(error) => json!({ "failed": format!("not JSON: {error}") }),
        };
        let mut stdout = std::io::stdout().lock();
        writeln!(stdout, "{answer}").and_then(|()| stdout.flush()).expect("a reader");
    }
}

#[derive(Default)]
struct Probe {
    graphs: BTreeMap<u64, Graph>,
    next: u64,
}

impl Probe {
    fn answer(&mut self, request: &Json) -> Result<Json, String> {
        if let Some(path) = request["compile"].as_str() {
            let to = request["to"].as_str().ok_or("`to` is missing")?;
            return Ok(json!({ "compiled": compile(path, to)? }));
        }
        if let (Some(plan), Some(onnx)) = (request["wake"].as_str(), request["load"].as_str()) {
            let since = cpu_us();
            let file = onnx.to_owned();
            let woken = map(plan).and_then(|plan| {
                Graph::wake(&plan, onnx, move || map(&file)).map_err(|error| error.to_string())
            });
            return Ok(match woken {
                Ok(graph) => self.keep(graph, cpu_us() - since),
                Err(text) => json!({ "refused": text }),
            });
        }
        if let Some(path) = request["load"].as_str() {
            let loaded = self.load(path, request["engine"].as_str().unwrap_or("auto"));
            return Ok(loaded.unwrap_or_else(|text| json!({ "refused": text })));
        }
        if let Some(path) = request["choose"].as_str() {
            return choose_engine(path, request);
        }
        if let Some(id) = request["profile"].as_u64() {
            return self.profile(id, request);
        }
        if let Some(id) = request["run"].as_u64() {
            return self.run(id, request);
        }
        if let Some(id) = request["unload"].as_u64() {
            self.graphs.remove(&id).ok_or("no such graph")?;
            return Ok(json!({ "unloaded": id }));
        }
        Err("no request that is known".into())
    }

    fn load(&mut self, path: &str, engine: &str) -> Result<Json, String> {
        let candidates = match engine {
            "auto" => vec![EngineKind::Tract, EngineKind::Rten],
            name => vec![EngineKind::parse(name).ok_or("no such engine")?],
        };
        let onnx = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
        let mut reasons = Vec::new();
        for engine in candidates {
            let since = cpu_us();
            match Graph::load(&onnx, engine) {
                Ok(graph) => {
                    let took = cpu_us() - since;
                    return Ok(self.keep(graph, took));
                }
                Err(error) => reasons.push(format!("{engine}: {error}")),
            }
        }
        Err(reasons.join("; "))
    }

    fn keep(&mut self, graph: Graph, cpu_us: u64) -> Json {
        let (engine, id) = (graph.engine().name(), self.next);
        let contract = graph.contract();
        let (inputs, outputs) = (specs(&contract.inputs), specs(&contract.outputs));
        self.next += 1;
        self.graphs.insert(id, graph);
        json!({
            "loaded": id,
            "engine": engine,
            "cpu_us": cpu_us,
            "inputs": inputs,
            "outputs": outputs,
        })
    }

    fn profile(&self, id: u64, request: &Json) -> Result<Json, String> {
        let graph = self.graphs.get(&id).ok_or("no such graph")?;
        let mut inputs = inputs_of(graph, request)?;
        let mut least: Vec<(String, u128)> = Vec::new();
        for _ in 0..request["times"].as_u64().unwrap_or(1) {
            let times = graph.profile(&mut inputs).map_err(|failure| format!("{failure:?}"))?;
            let times = times.into_iter().map(|(name, took)| (name, took.as_nanos()));
            if least.is_empty() {
                least = times.collect();
            } else {
                least.iter_mut().zip(times).for_each(|(least, new)| least.1 = least.1.min(new.1));
            }
        }
        Ok(json!({ "operators": least }))
    }

    fn run(&self, id: u64, request: &Json) -> Result<Json, String> {
        let graph = self.graphs.get(&id).ok_or("no such graph")?;
        let inputs = inputs_of(graph, request)?;
        let mut outputs = Vec::new();
        let (mut times, mut took) = (Vec::new(), Vec::new());
        let threads = request["threads"].as_u64().unwrap_or(1).clamp(1, 1024) as usize;
        let watch = Unwatched(Helpers { cores: Cores::new(threads), most: threads - 1 });
        let _busy = watch.0.cores.wait_for_one();
        for _ in 0..request["times"].as_u64().unwrap_or(1) {
            let mut inputs = inputs.clone();
            let (since, started) = (cpu_us(), Instant::now());
            let result = graph.run(&mut inputs, &watch);
            took.push(started.elapsed().as_micros() as u64);
            times.push(cpu_us() - since);
            outputs = result.map_err(|failure| match failure {
                Failure::Refused(text) => format!("refused: {text}"),
                other => format!("failed: {other}"),
            })?;
        }
        if let Some(folder) = request["write_outputs"].as_str() {
            write(Path::new(folder), &graph.contract().outputs, &outputs)?;
        }
        Ok(json!({ "cpu_us": times, "took_us": took }))
    }
}

/// Runs for as long as they take, on some threads.
struct Unwatched(Helpers);

impl Watch for Unwatched {
    fn is_over(&self) -> bool {
        false
    }

    fn helpers(&self) -> Option<Helpers> {
        Some(self.0.clone())
    }
}

fn choose_engine(path: &str, request: &Json) -> Result<Json, String> {
    let onnx = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    let folder = Path::new(request["inputs"].as_str().ok_or("`inputs` is missing")?);
    let tolerance = request["tolerance"].as_f64().ok_or("`tolerance` is missing")?;
    let files = (0..).map(|index| folder.join(format!("{index}.pb")));
    let inputs = files.take_while(|file| file.exists()).map(|file| read(&file));
    let inputs = [inputs.collect::<Result<_, _>>()?];
    let engines = [EngineKind::Tract, EngineKind::Rten];
    let choice = choose(&onnx, &engines, &inputs, tolerance, false);
    let choice = choice.map_err(|error| error.to_string())?;
    Ok(json!({ "chosen": choice.engine.name(), "reason": choice.reason }))
}

/// Writes the compiled plan of a file, under its path as the key.
fn compile(path: &str, to: &str) -> Result<bool, String> {
    let onnx = fs::read(path).map_err(|error| format!("{path}: {error}"))?;
    let compiled = Graph::compile(&onnx, EngineKind::Tract, true);
    let Some(compiled) = compiled.map_err(|error| error.to_string())?.1 else { return Ok(false) };
    let file = fs::File::create(to).map_err(|error| format!("{to}: {error}"))?;
    let mut file = std::io::BufWriter::new(file);
    let written = compiled.write(path, &mut file).and_then(|()| file.flush());
    written.map(|()| true).map_err(|error| format!("{to}: {error}"))
}

fn map(path: &str) -> Result<Bytes, String> {
    let file = fs::File::open(path).map_err(|error| format!("{path}: {error}"))?;
    // SAFETY: whoever asks does not change the file meanwhile.
    let mapped = unsafe { memmap2::Mmap::map(&file) };
    mapped.map(Bytes::from_owner).map_err(|error| format!("{path}: {error}"))
}

fn inputs_of(graph: &Graph, request: &Json) -> Result<Vec<Value<'static>>, String> {
    let folder = Path::new(request["inputs"].as_str().ok_or("`inputs` is missing")?);
    let specs = &graph.contract().inputs;
    (0..specs.len()).map(|index| read(&folder.join(format!("{index}.pb")))).collect()
}

fn specs(specs: &[TensorSpec]) -> Vec<Json> {
    let spec = |spec: &TensorSpec| json!({ "name": spec.name, "datatype": spec.datatype.name(), "shape": spec.shape });
    specs.iter().map(spec).collect()
}

fn cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// ONNX's `TensorProto.DataType` numbers, from its specification (onnx.proto).
const TYPES: [(i32, Datatype); 14] = [
    (1, Datatype::Fp32),
    (2, Datatype::Uint8),
    (3, Datatype::Int8),
    (4, Datatype::Uint16),
    (5, Datatype::Int16),
    (6, Datatype::Int32),
    (7, Datatype::Int64),
    (8, Datatype::Bytes),
    (9, Datatype::Bool),
    (10, Datatype::Fp16),
    (11, Datatype::Fp64),
    (12, Datatype::Uint32),
    (13, Datatype::Uint64),
    (16, Datatype::Bf16),
];

fn read(path: &Path) -> Result<Value<'static>, String> {
    let fail = |text: &dyn std::fmt::Display| format!("{}: {text}", path.display());
    let content = fs::read(path).map_err(|error| fail(&error))?;
    let proto = TensorProto::decode(&content[..]).map_err(|error| fail(&error))?;
    let datatype = TYPES.iter().find(|(number, _)| *number == proto.data_type);
    let datatype = datatype.ok_or_else(|| fail(&"not an element type of the protocol"))?.1;
    let shape = proto.dims.iter().map(|&size| usize::try_from(size)).collect::<Result<Vec<_>, _>>();
    let shape = shape.map_err(|error| fail(&error))?;
    let data = data_of(proto, datatype).map_err(|error| fail(&error))?;
    Ok(Value { datatype, shape, data: Cow::Owned(data) })
}

/// The elements, which stand in a field for their type where they are not raw.
fn data_of(proto: TensorProto, datatype: Datatype) -> Result<Vec<u8>, String> {
    if !proto.raw_data.is_empty() {
        return Ok(proto.raw_data);
    }
    let size = datatype.size();
    Ok(match datatype {
        Datatype::Bytes => {
            let mut data = Vec::new();
            for element in &proto.string_data {
                push_bytes_element(&mut data, element)?;
            }
            data
        }
        Datatype::Fp32 => proto.float_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Datatype::Fp64 => proto.double_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Datatype::Int64 => proto.int64_data.iter().flat_map(|value| value.to_le_bytes()).collect(),
        Datatype::Uint32 | Datatype::Uint64 => {
            low_bytes(proto.uint64_data.iter().map(|value| value.to_le_bytes()), size)
        }
        _ => low_bytes(proto.int32_data.iter().map(|value| value.to_le_bytes()), size),
    })
}

fn low_bytes<const N: usize>(
    values: impl Iterator<Item = [u8; N]>,
    size: Option<usize>,
) -> Vec<u8> {
    let size = size.unwrap_or(N);
    values.flat_map(|bytes| bytes.into_iter().take(size)).collect()
}

fn write(folder: &Path, specs: &[TensorSpec], outputs: &[Value<'_>]) -> Result<(), String> {
    fs::create_dir_all(folder).map_err(|error| error.to_string())?;
    for (index, (spec, value)) in specs.iter().zip(outputs).enumerate() {
        let number = TYPES.iter().find(|(_, datatype)| *datatype == value.datatype);
        let mut proto = TensorProto {
            name: spec.name.clone(),
            dims: value.shape.iter().map(|&size| size as i64).collect(),
            data_type: number.map_or(pb::tensor_proto::DataType::Undefined as i32, |entry| entry.0),
            ..TensorProto::default()
        };
        match value.datatype {
            Datatype::Bytes => {
                let elements =
                    bytes_elements(&value.data).map(|element| element.map(<[u8]>::to_vec));
                proto.string_data = elements.collect::<Result<_, _>>()?;
            }
            _ => proto.raw_data = value.data.to_vec(),
        }
        fs::write(folder.join(format!("{index}.pb")), proto.encode_to_vec())
            .map_err(|error| error.to_string())?;
    }
    Ok(())
}
