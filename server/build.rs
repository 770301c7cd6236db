//! Finds the generic guest, a component of this workspace that is embedded in the binary.

use std::env;
use std::path::PathBuf;

fn main() {
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
}
