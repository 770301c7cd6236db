//! Components in WAT, for what Rust cannot express: the parts that a canonical ABI calls on its
//! way, and components that have too much of something.

use std::fs;
use std::path::{Path, PathBuf};

/// A guest that takes `do` and gives `did`, both BYTES [-1], written by hand. What it answers
/// is `ok`, whatever it was asked.
#[derive(Debug, Clone, Copy)]
pub(super) struct Guest {
    /// Fields of the core module.
    pub(super) fields: &'static str,
    pub(super) memory: &'static str,
    /// What `infer` does before it answers.
    pub(super) infer: &'static str,
    /// What `cabi_realloc` does before it gives memory.
    pub(super) realloc: &'static str,
    pub(super) post_return: &'static str,
}

impl Guest {
    /// One that behaves.
    pub(super) const GOOD: Self =
        Self { fields: "", memory: "4", infer: "", realloc: "", post_return: "" };

    /// Writes a bundle of it.
    pub(super) fn bundle(&self, folder: &Path, name: &str, manifest: &str) -> PathBuf {
        write_bundle(folder, name, &self.component(""), manifest)
    }

    /// As a component; `more` are further definitions.
    pub(super) fn component(&self, more: &str) -> Vec<u8> {
        let text = TEMPLATE
            .replace("(;fields;)", self.fields)
            .replace("(;memory;)", self.memory)
            .replace("(;infer;)", self.infer)
            .replace("(;realloc;)", self.realloc)
            .replace("(;post-return;)", self.post_return)
            .replace("(;more;)", more);
        wat::parse_str(&text).unwrap_or_else(|error| panic!("{error}"))
    }
}

/// Writes a bundle whose guest is these bytes.
pub(super) fn write_bundle(folder: &Path, name: &str, guest: &[u8], manifest: &str) -> PathBuf {
    let bundle = folder.join(name);
    fs::create_dir_all(&bundle).expect("a folder");
    fs::write(bundle.join("guest.wasm"), guest).expect("a file");
    let manifest = format!("component = \"guest.wasm\"\n{manifest}");
    fs::write(bundle.join("wisp.toml"), manifest).expect("a file");
    bundle
}

/// The world of `wit/model.wit`, by hand. In memory: at 16 the contract, at 64 and 96 its two
/// specs, at 256 the answer, at 288 its one tensor; requests go behind 4096.
const TEMPLATE: &str = r#"
(component
  (import "wisp:model/types@0.1.0" (instance $types
    (type $datatype' (enum "bool" "uint8" "uint16" "uint32" "uint64" "int8" "int16" "int32"
      "int64" "fp16" "bf16" "fp32" "fp64" "bytes"))
    (export "datatype" (type $datatype (eq $datatype')))
    (type $tensor' (record (field "name" string) (field "datatype" $datatype)
      (field "shape" (list u64)) (field "data" (list u8))))
    (export "tensor" (type $tensor (eq $tensor')))
    (type $spec' (record (field "name" string) (field "datatype" $datatype)
      (field "shape" (list s64))))
    (export "tensor-spec" (type $spec (eq $spec')))
    (type $parameter' (variant (case "boolean" bool) (case "integer" s64) (case "number" f64)
      (case "text" string)))
    (export "parameter" (type $parameter (eq $parameter')))
    (type $request' (record (field "inputs" (list $tensor)) (field "outputs" (list string))
      (field "parameters" (list (tuple string $parameter)))))
    (export "request" (type $request (eq $request')))
    (type $response' (record (field "outputs" (list $tensor))
      (field "parameters" (list (tuple string $parameter)))))
    (export "response" (type $response (eq $response')))
    (type $contract' (record (field "inputs" (list $spec)) (field "outputs" (list $spec))))
    (export "contract" (type $contract (eq $contract')))
    (type $error' (variant (case "invalid-input" string) (case "unsupported" string)
      (case "internal" string)))
    (export "error" (type $error (eq $error')))))
  (alias export $types "request" (type $request))
  (alias export $types "response" (type $response))
  (alias export $types "contract" (type $contract))
  (alias export $types "error" (type $error))
  (import "wasi:clocks/monotonic-clock@0.2.0" (instance $clock
    (export "now" (func (result u64)))))
  (core func $now (canon lower (func $clock "now")))
  (core module $module
    (import "host" "now" (func $now (result i64)))
    (memory (export "memory") (;memory;))
    (global $next (mut i32) (i32.const 4096))
    (data (i32.const 0) "dodidok")
    ;; result<contract, string>: ok, inputs, outputs
    (data (i32.const 16) "\00\00\00\00\40\00\00\00\01\00\00\00\60\00\00\00\01\00\00\00")
    ;; name, datatype, shape
    (data (i32.const 64) "\00\00\00\00\02\00\00\00\0d\00\00\00\80\00\00\00\01\00\00\00")
    (data (i32.const 96) "\02\00\00\00\03\00\00\00\0d\00\00\00\80\00\00\00\01\00\00\00")
    (data (i32.const 128) "\ff\ff\ff\ff\ff\ff\ff\ff")
    ;; result<response, error>: ok, outputs, parameters
    (data (i32.const 256) "\00\00\00\00\20\01\00\00\01\00\00\00\00\00\00\00\00\00\00\00")
    ;; name, datatype, shape, data
    (data (i32.const 288) "\02\00\00\00\03\00\00\00\0d\00\00\00\40\01\00\00\01\00\00\00\50\01\00\00\06\00\00\00")
    (data (i32.const 320) "\01\00\00\00\00\00\00\00")
    (data (i32.const 336) "\02\00\00\00ok")
    (;fields;)
    (func (export "realloc") (param i32 i32 i32 i32) (result i32)
      (;realloc;)
      (global.set $next (i32.and (i32.add (global.get $next) (i32.const 7)) (i32.const -8)))
      (global.get $next)
      (global.set $next (i32.add (global.get $next) (local.get 3))))
    (func (export "prepare") (result i32) (i32.const 16))
    (func (export "infer") (param i32 i32 i32 i32 i32 i32) (result i32)
      (;infer;)
      (i32.const 256))
    (func (export "post-return") (param i32) (;post-return;)))
  (core instance $core (instantiate $module (with "host" (instance (export "now" (func $now))))))
  (func $prepare (result (result $contract (error string)))
    (canon lift (core func $core "prepare") (memory $core "memory")))
  (func $infer (param "request" $request) (result (result $response (error $error)))
    (canon lift (core func $core "infer") (memory $core "memory")
      (realloc (func $core "realloc")) (post-return (func $core "post-return"))))
  (;more;)
  (instance $handler (export "prepare" (func $prepare)) (export "infer" (func $infer)))
  (export "wisp:model/handler@0.1.0" (instance $handler)))
"#;
