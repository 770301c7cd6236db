//! A guest that misbehaves on request: its input `do` names what to do, its setting `prepare`
//! what to do before that.

mod residue;
mod tensors;
#[cfg(target_arch = "wasm32")]
mod wasi;

use std::hint::black_box;

use wisp_guest::{
    Contract, Datatype, Error, Graph, Model, Parameter, Request, Response, Tensor, TensorSpec,
    Value, read_asset, setting_or,
};

struct Hostile {
    /// The setting of that name: tells one version of a bundle from the next.
    stamp: String,
}

impl Model for Hostile {
    fn prepare() -> Result<(Self, Contract), String> {
        match setting_or("prepare", String::new())?.as_str() {
            "fail" => return Err("it was told to fail".to_owned()),
            "panic" => panic!("it was told to panic"),
            "grow" => drop(grow()),
            "asset" => drop(read_asset("../secret")?),
            "loop" => loop {
                black_box(());
            },
            _ => {}
        }
        let spec = |name| TensorSpec::new(name, Datatype::Bytes, [-1]);
        let stamp = setting_or("stamp", String::new())?;
        Ok((Hostile { stamp }, Contract { inputs: vec![spec("do")], outputs: vec![spec("did")] }))
    }

    fn infer(&self, request: Request) -> Result<Response, Error> {
        let order = request.input("do")?.to_bytes()?;
        let order = order
            .first()
            .map(|order| String::from_utf8_lossy(order).into_owned())
            .unwrap_or_default();
        match order.as_str() {
            "stamp" => {
                let stamps = [&self.stamp; 2];
                return Ok(Response::from([Tensor::bytes("did", &stamps)]));
            }
            "loop" => loop {
                black_box(());
            },
            "copy" => {
                let mut memory = vec![1u8; 32 << 20];
                loop {
                    memory.copy_within(..16 << 20, 16 << 20);
                    black_box(&memory);
                }
            }
            "fill" => {
                let mut memory = vec![1u8; 32 << 20];
                loop {
                    memory.fill(black_box(2));
                    black_box(&memory);
                }
            }
            "panic" => panic!("it was told to panic"),
            "recurse" => drop(recurse(1)),
            "grow" => drop(grow()),
            "fail" => return Err(Error::Internal("it was told to fail".to_owned())),
            "unsupported" => return Err(Error::Unsupported("it was told not to".to_owned())),
            "no-output" => return Ok(Response { outputs: Vec::new(), parameters: Vec::new() }),
            "wrong-datatype" => return Ok(Response::from([Tensor::fp32("did", &[1], &[1.0])])),
            "wrong-length" => {
                let mut output = Tensor::bytes("did", &["x"]);
                output.shape = vec![2];
                return Ok(Response::from([output]));
            }
            "print" => {
                (0..10_000).for_each(|line| wisp_guest::log(&format!("line {line}\nFORGED line")))
            }
            "print-for-ever" => loop {
                wisp_guest::log("once more");
            },
            "forge" => {
                let text = "a text\r\nwisp-error: none\r\nFORGED line";
                wisp_guest::log(text);
                return Err(Error::Internal(text.to_owned()));
            }
            "long-text" => return Err(Error::Internal("x".repeat(16 << 20))),
            "forge-headers" => return Ok(forged_headers()),
            "huge-output" => return Ok(huge_output()),
            #[cfg(target_arch = "wasm32")]
            _ if order.starts_with("wasi-") => {
                return Ok(Response::from([Tensor::bytes("did", &[wasi::run(&order)])]));
            }
            "read-asset" => {
                return Err(Error::Internal(read_asset("labels.txt").err().unwrap_or_default()));
            }
            "other-graph" => drop(Graph::load("model")?),
            "write" => residue::write(),
            "write-and-panic" => {
                residue::write();
                panic!("it was told to panic");
            }
            "write-and-loop" => {
                residue::write();
                wisp_guest::log("it is written");
                loop {
                    black_box(());
                }
            }
            "scan" => {
                return Ok(Response::from([Tensor::bytes("did", &[residue::scan().to_string()])]));
            }
            "slow" => {
                wisp_guest::log("slow work has begun");
                (0..400_000_000u64).for_each(|count| {
                    black_box(count);
                });
            }
            "round-trips" => round_trips(request.positive("count", 1)?)?,
            "invalid-utf8" => return Ok(Response::from([Tensor::bytes("did", &[[0xff, 0xfe]])])),
            _ => {}
        }
        let came = tensors::run(&order).unwrap_or(order);
        Ok(Response::from([Tensor::bytes("did", &[came])]))
    }
}

/// An answer whose names would end a header and begin another, were they put in one.
fn forged_headers() -> Response {
    let mut response = Response::from([Tensor::bytes("did", &["it"])]);
    let name = "x\r\nwisp-error: none\r\n\r\n".to_owned();
    response.parameters = vec![(name.clone(), Parameter::Text(name))];
    response
}

/// One output of 1 MiB, a thousand times over.
fn huge_output() -> Response {
    let element = vec![0u8; 1 << 20];
    let output = || {
        let (name, datatype) = ("did".to_owned(), Datatype::Bytes);
        Tensor { name, datatype, shape: vec![1], data: tensors::alias(&element) }
    };
    let outputs = (0..1024).map(|_| output()).collect();
    // What the outputs are made of must live until they are read.
    std::mem::forget(element);
    Response { outputs, parameters: Vec::new() }
}

/// Sends 600 KB through the graph `wide`, which gives them back, `count` times.
fn round_trips(count: usize) -> Result<(), Error> {
    let values = vec![1.0f32; 150_528];
    let graph = Graph::load("wide")?;
    for _ in 0..count {
        let outputs = graph.compute([("x", Value::fp32(&[1, 150_528], &values))])?;
        black_box(outputs.first().map(|(_, value)| value.data()));
    }
    Ok(())
}

/// Takes memory until there is no more.
fn grow() -> Vec<Vec<u8>> {
    let mut taken = Vec::new();
    loop {
        taken.push(black_box(vec![1u8; 1 << 20]));
    }
}

fn recurse(depth: u64) -> u64 {
    black_box(if black_box(depth) == 0 { 0 } else { recurse(depth + 1) + 1 })
}

wisp_guest::export!(Hostile);
