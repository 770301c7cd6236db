//! Finds the generic guest, a component of this workspace that is embedded in the binary, and
//! makes Rust of the gRPC protocol, without a `protoc` on the machine.

use std::env;
use std::error::Error;
use std::path::PathBuf;

const PROTO: &str = "proto/inference.proto";

fn main() -> Result<(), Box<dyn Error>> {
    // Asked when it runs: a build that is kept may have been made in another folder.
    let server = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").expect("cargo sets it"));
    let root = server.parent().expect("server/ lies in the workspace");
    let guest = root.join("target/guests/tensor.wasm");
    println!("cargo::rerun-if-changed={}", guest.display());
    if !guest.is_file() {
        println!(
            "cargo::error=the generic guest is not built: run `make guests` first ({} is missing)",
            guest.display()
        );
    }
    println!("cargo::rustc-env=WISP_TENSOR_GUEST={}", guest.display());

    println!("cargo::rerun-if-changed={PROTO}");
    let descriptors = protox::compile([PROTO], ["proto"])?;
    let out = PathBuf::from(env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("inference.bin"), protox::prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .build_client(false)
        .codec_path("super::super::codec::CheckedCodec")
        .bytes(".inference.ModelInferRequest.raw_input_contents")
        .compile_fds(descriptors)?;
    Ok(())
}
