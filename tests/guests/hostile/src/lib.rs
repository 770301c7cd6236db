//! A guest that misbehaves on request: its input `do` names what to do, its setting `prepare`
//! what to do before that.

#[cfg(target_arch = "wasm32")]
mod wasi;

use std::hint::black_box;

use wisp_guest::{
    Contract, Datatype, Error, Graph, Model, Request, Response, Tensor, TensorSpec, TensorType,
    Value, read_asset, setting_or,
};

struct Hostile {
    /// The setting of that name: tells one version of a bundle from the next.
    stamp: String,
}

/// What a request leaves for the next one to find.
const RESIDUE: [u8; 16] = *b"RESIDUE-RESIDUE!";

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
            "tensors" => spray(),
            #[cfg(target_arch = "wasm32")]
            "wasi-environment" | "wasi-folders" | "wasi-print" => {
                return Ok(Response::from([Tensor::bytes("did", &[wasi::run(&order)])]));
            }
            "read-asset" => {
                return Err(Error::Internal(read_asset("labels.txt").err().unwrap_or_default()));
            }
            "other-graph" => drop(Graph::load("model")?),
            "write" => write_residue(),
            "write-and-panic" => {
                write_residue();
                panic!("it was told to panic");
            }
            "scan" => return Ok(Response::from([Tensor::bytes("did", &[scan().to_string()])])),
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
        Ok(Response::from([Tensor::bytes("did", &[order])]))
    }
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

/// Holds as many host tensors as it can, each of a few MiB.
fn spray() {
    let bytes = vec![0u8; 4 << 20];
    let tensors: Vec<Value> =
        (0..100_000).map(|_| Value::new(&[4 << 20], TensorType::U8, &bytes)).collect();
    drop(black_box(tensors));
}

/// Fills 8 MiB of heap with the mark and forgets them.
fn write_residue() {
    let memory: Vec<[u8; 16]> = vec![RESIDUE; (8 << 20) / 16];
    std::mem::forget(black_box(memory));
}

/// Counts marks in fresh heap memory, read as it comes from `memory.grow`.
fn scan() -> usize {
    #[cfg(target_arch = "wasm32")]
    {
        let page = core::arch::wasm32::memory_grow(0, 160);
        if page == usize::MAX {
            return usize::MAX;
        }
        let start = (page << 16) as *const u8;
        // SAFETY: the pages were just grown and nothing else knows of them.
        let fresh = unsafe { std::slice::from_raw_parts(start, 160 << 16) };
        fresh.iter().filter(|&&byte| byte != 0).count()
    }
    #[cfg(not(target_arch = "wasm32"))]
    0
}

wisp_guest::export!(Hostile);
