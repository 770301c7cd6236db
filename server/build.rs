//! Finds the generic guest, a component of this workspace that is embedded in the binary.

use std::path::Path;

fn main() {
    let root =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("server/ lies in the workspace");
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
