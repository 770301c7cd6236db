//! What a request pays at each layer, without HTTP (benches/throughput.py has that): `make bench`.
//!
//! Each benchmark runs on one thread, as a request does. CPU time is what these figures are
//! about; on a quiet machine wall time is that.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs;
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use tokio::runtime::Runtime;
use wisp::api::{read_inputs, write_elements};
use wisp::bundle::BundleFiles;
use wisp::nn::{Graphs, Run};
use wisp::sandbox::{
    Code, Engine, Guest, Limits, PoolOptions, Prepared, Request, Sandbox, Snapshot, Timings,
};
use wisp::tensor::{Datatype, Parameter, Tensor, Value, push_bytes_element};
use wisp_engine::{EngineKind, Graph};

/// As the binary has it.
#[global_allocator]
static ALLOCATOR: wisp_engine::memory::Allocator = wisp_engine::memory::Allocator::new();

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("server/ lies in the root").to_owned()
}

fn read(path: &str) -> Vec<u8> {
    fs::read(root().join(path))
        .unwrap_or_else(|error| panic!("{path}: {error}; run `make bench`, which makes it"))
}

struct Bench {
    runtime: Runtime,
    engine: Arc<Engine>,
}

impl Bench {
    fn new() -> Self {
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let engine =
            Engine::new(PoolOptions { slots: 16, max_memory_bytes: 256 << 20, page_scan: true })
                .expect("an engine");
        eprintln!("sandboxes: {:?}", engine.pool());
        Self { runtime, engine }
    }

    /// Prepares a guest with graphs by name, as the repository does.
    fn guest(&self, guest: &str, graphs: &[(&str, &str)], labels: &str) -> Arc<Guest> {
        let graph = |&(name, path): &(&str, &str)| {
            let graph = Graph::load(&read(path), EngineKind::Tract).expect("a graph");
            (name.to_owned(), graph, None)
        };
        let files = BundleFiles {
            assets: BTreeMap::from([(
                "labels.txt".to_owned(),
                wisp::bundle::Content::new(bytes::Bytes::copy_from_slice(labels.as_bytes())),
            )]),
            settings: settings(),
        };
        let prepared = Prepared {
            model: guest.into(),
            limits: Limits::default(),
            graphs: Graphs::new(graphs.iter().map(graph).collect()),
            bundle: Arc::new(files),
        };
        let component = read(&format!("target/guests/{guest}.wasm"));
        let snapshot = self
            .runtime
            .block_on(Snapshot::take(&self.engine, &component, &prepared))
            .expect("a guest");
        // SAFETY: compiled one line above.
        unsafe { Guest::load(&self.engine, &Code::Bytes(snapshot.compiled), prepared) }
            .expect("a guest")
    }

    /// Sums what `measure` says of each run.
    fn sum(
        &self,
        guest: &Arc<Guest>,
        runs: u64,
        request: impl Fn() -> Request,
        measure: impl Fn(Timings) -> Duration,
    ) -> Duration {
        self.runtime.block_on(async {
            let mut total = Duration::ZERO;
            for _ in 0..runs {
                let run =
                    Run::limited(Instant::now() + Duration::from_secs(60), None, usize::MAX, None);
                let (response, timings) = Sandbox::new(guest, &run).run(request()).await;
                black_box(response.expect("an answer"));
                total += measure(timings);
            }
            total
        })
    }

    /// The whole call, request made and response dropped with it.
    fn call(&self, guest: &Arc<Guest>, runs: u64, request: impl Fn() -> Request) -> Duration {
        let started = Instant::now();
        self.sum(guest, runs, request, |_| Duration::ZERO);
        started.elapsed()
    }

    fn instantiate(&self, guest: &Arc<Guest>, runs: u64) -> Duration {
        self.runtime.block_on(async {
            let started = Instant::now();
            for _ in 0..runs {
                let run =
                    Run::limited(Instant::now() + Duration::from_secs(60), None, usize::MAX, None);
                Sandbox::new(guest, &run).instantiate().await.expect("an instance");
            }
            started.elapsed()
        })
    }
}

fn settings() -> BTreeMap<String, wisp::bundle::Setting> {
    use wisp::bundle::Setting::{Integer, Number};
    let settings = [("crop", Number(0.875)), ("mean", Integer(127)), ("std", Integer(128))];
    settings.map(|(name, value)| (name.to_owned(), value)).into()
}

fn bytes_request(name: &str, bytes: &[u8], parameters: &[(&str, i64)]) -> Request {
    let mut data = Vec::with_capacity(bytes.len() + 4);
    push_bytes_element(&mut data, bytes).expect("short");
    Request {
        inputs: vec![Tensor {
            name: name.to_owned(),
            datatype: Datatype::Bytes,
            shape: vec![1],
            data,
        }],
        outputs: Vec::new(),
        parameters: parameters
            .iter()
            .map(|&(name, value)| (name.to_owned(), Parameter::Integer(value)))
            .collect(),
    }
}

fn float_request(name: &str, shape: &[u64], values: &[f32]) -> Request {
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let inputs = vec![Tensor {
        name: name.to_owned(),
        datatype: Datatype::Fp32,
        shape: shape.to_vec(),
        data,
    }];
    Request { inputs, outputs: Vec::new(), parameters: Vec::new() }
}

fn sandboxes(criterion: &mut Criterion) {
    let bench = Bench::new();
    let echo = bench.guest("echo", &[], "");
    let scale = bench.guest("tensor", &[("model", "tests/fixtures/models/scale.onnx")], "");
    let classify = bench.guest(
        "classify",
        &[("model", "tests/fixtures/models/pool.onnx")],
        "red\ngreen\nblue",
    );
    let mut group = criterion.benchmark_group("sandbox");
    group.bench_function("trivial guest: instantiate and drop", |b| {
        b.iter_custom(|runs| bench.instantiate(&echo, runs))
    });
    group.bench_function("trivial guest: whole call, 16 bytes", |b| {
        b.iter_custom(|runs| bench.call(&echo, runs, || bytes_request("in", &[7; 16], &[])));
    });
    group.bench_function("tiny graph: whole call, 4 floats", |b| {
        b.iter_custom(|runs| bench.call(&scale, runs, || float_request("x", &[1, 4], &[1.0; 4])));
    });
    group.bench_function("image guest: instantiate and drop", |b| {
        b.iter_custom(|runs| bench.instantiate(&classify, runs))
    });
    group.finish();
}

fn round_trip(criterion: &mut Criterion) {
    const COUNT: u64 = 20;
    let bench = Bench::new();
    let guest = bench.guest("hostile", &[("wide", "tests/fixtures/models/wide.onnx")], "");
    criterion.bench_function("wasi-nn: 600 KB in, computed (identity), out", |b| {
        b.iter_custom(|runs| {
            let request = || bytes_request("do", b"round-trips", &[("count", COUNT as i64)]);
            let requests = runs.div_ceil(COUNT);
            let total =
                bench.sum(&guest, requests, request, |timings| timings.guest + timings.compute);
            total.mul_f64(runs as f64 / (requests * COUNT) as f64)
        });
    });
}

fn pictures(criterion: &mut Criterion) {
    let bench = Bench::new();
    let guest = bench.guest(
        "classify",
        &[("model", "tests/fixtures/models/pool.onnx")],
        "red\ngreen\nblue",
    );
    let native = classify::Preprocess::efficientnet_lite0();
    let mut group = criterion.benchmark_group("photo to tensor");
    for name in ["target/photos/china.jpg", "tests/fixtures/photos/cat.jpg"] {
        let photo = read(name);
        let short = name.rsplit('/').next().expect("a file");
        group.bench_function(format!("{short}: in a sandbox"), |b| {
            b.iter_custom(|runs| {
                bench.sum(
                    &guest,
                    runs,
                    || bytes_request("image", &photo, &[]),
                    |timings| timings.guest,
                )
            });
        });
        group.bench_function(format!("{short}: native"), |b| {
            b.iter(|| black_box(native.tensor(&photo).expect("a tensor")))
        });
    }
    // After a graph has run: its kernels must not leave the processor in a state that slows the
    // next guest.
    let labels = read("models/imagenet/labels.txt");
    let labels = str::from_utf8(&labels).expect("text");
    let imagenet =
        bench.guest("classify", &[("model", "models/imagenet/efficientnet-lite0.onnx")], labels);
    let photo = read("tests/fixtures/photos/cat.jpg");
    group.sample_size(20);
    group.bench_function("cat.jpg: in a sandbox, EfficientNet between", |b| {
        b.iter_custom(|runs| {
            let request = || bytes_request("image", &photo, &[]);
            bench.sum(&imagenet, runs, request, |timings| timings.guest)
        });
    });
    group.finish();
}

fn graphs(criterion: &mut Criterion) {
    let path = "models/imagenet/efficientnet-lite0.onnx";
    let bench = Bench::new();
    let guest = bench.guest("tensor", &[("model", path)], "");
    let graph = Graph::load(&read(path), EngineKind::Tract).expect("a graph");
    let values = vec![0.5f32; 3 * 224 * 224];
    let mut group = criterion.benchmark_group("EfficientNet-Lite0 from a tensor");
    group.sample_size(30).measurement_time(Duration::from_secs(15));
    group.bench_function("in a sandbox", |b| {
        b.iter_custom(|runs| {
            bench.call(&guest, runs, || float_request("input", &[1, 3, 224, 224], &values))
        });
    });
    group.bench_function("native", |b| {
        b.iter(|| {
            let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
            let (datatype, shape) = (Datatype::Fp32, vec![1, 3, 224, 224]);
            let input = Value { datatype, shape, data: Cow::Owned(data) };
            black_box(graph.run(&mut [input], &|| false).expect("an answer"))
        });
    });
    group.finish();
}

/// A picture as JSON, read into a tensor and written again; serde_json's `Vec<f32>` beside it (as
/// built here, it reads doubles exactly: its plain form is 1.4 times as fast).
fn json(criterion: &mut Criterion) {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let values = (0..3 * 224 * 224).map(|_| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        // A byte, normalised as ImageNet's networks want it.
        ((random >> 56) as f32 / 255.0 - 0.456) / 0.224
    });
    let values: Vec<f32> = values.collect();
    let list = serde_json::to_string(&values).expect("finite");
    let head = r#"{"inputs":[{"name":"x","shape":[1,3,224,224],"datatype":"FP32","data":"#;
    let body = format!("{head}{list}}}]}}");
    let data = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let (name, shape) = ("x".to_owned(), vec![1, 3, 224, 224]);
    let tensor = Tensor { name, datatype: Datatype::Fp32, shape, data };
    assert!(read_inputs(body.as_bytes()).expect("a request").first() == Some(&tensor));
    assert_eq!(write_elements(&tensor).expect("finite"), list.as_bytes());
    let mut group = criterion.benchmark_group("150,528 FP32 values in JSON");
    group.bench_function("read", |b| b.iter(|| read_inputs(body.as_bytes())));
    group.bench_function("read by serde_json", |b| {
        b.iter(|| serde_json::from_str::<Vec<f32>>(&list));
    });
    group.bench_function("written", |b| b.iter(|| write_elements(&tensor)));
    group.bench_function("written by serde_json", |b| b.iter(|| serde_json::to_vec(&values)));
    group.finish();
}

criterion_group!(benches, sandboxes, round_trip, pictures, graphs, json);
criterion_main!(benches);
