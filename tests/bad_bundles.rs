//! Bundles that cannot be served: each is FAILED with a reason, and the others serve.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::support::{Server, add_request, fixture, guest, hostile_bundle, scratch};

/// The smallest core module and the smallest component.
const CORE_MODULE: &[u8] = b"\0asm\x01\0\0\0";
const EMPTY_COMPONENT: &[u8] = b"\0asm\x0d\0\x01\0";

fn bundle(folder: &Path, name: &str, manifest: &str, files: &[(&str, &[u8])]) {
    let path = folder.join(name);
    fs::create_dir_all(&path).expect("a folder");
    fs::write(path.join("wisp.toml"), manifest).expect("a manifest");
    for (file, bytes) in files {
        fs::write(path.join(file), bytes).expect("a file");
    }
}

#[test]
fn each_fails_with_its_reason_and_the_rest_serves() {
    let scratch = scratch();
    let folder = scratch.path();
    let onnx = fs::read(fixture("models/add.onnx")).expect("a fixture");
    let component = "component = \"guest.wasm\"\n";
    bundle(folder, "a-core-module", component, &[("guest.wasm", CORE_MODULE)]);
    bundle(folder, "b-other-world", component, &[("guest.wasm", EMPTY_COMPONENT)]);
    bundle(folder, "c-not-wasm", component, &[("guest.wasm", b"hello")]);
    bundle(folder, "d-missing-guest", component, &[]);
    bundle(folder, "e-missing-graph", "[graphs]\nmodel = \"model.onnx\"\n", &[]);
    bundle(
        folder,
        "f-not-onnx",
        "[graphs]\nmodel = \"model.onnx\"\n",
        &[("model.onnx", b"this is text, not a graph")],
    );
    bundle(
        folder,
        "g-cut-onnx",
        "[graphs]\nmodel = \"model.onnx\"\n",
        &[("model.onnx", &onnx[..onnx.len() - 20])],
    );
    bundle(
        folder,
        "h-unknown-key",
        "nam = \"x\"\n[graphs]\nmodel = \"model.onnx\"\n",
        &[("model.onnx", &onnx)],
    );
    bundle(folder, "i-outside", "[graphs]\nmodel = \"../secret.onnx\"\n", &[]);
    bundle(folder, "j-nothing", "", &[]);
    bundle(folder, "k-no-toml", "name = ", &[]);
    bundle(
        folder,
        "l-greedy",
        "[graphs]\nmodel = \"model.onnx\"\n[limits]\nmemory_mib = 100000\n",
        &[("model.onnx", &onnx)],
    );
    bundle(folder, "m-empty-onnx", "[graphs]\nmodel = \"model.onnx\"\n", &[("model.onnx", b"")]);
    bundle(
        folder,
        "n-same-name",
        "name = \"works\"\n[graphs]\nmodel = \"model.onnx\"\n",
        &[("model.onnx", &onnx)],
    );
    bundle(
        folder,
        "o-bad-name",
        "name = \"a/b\"\n[graphs]\nmodel = \"model.onnx\"\n",
        &[("model.onnx", &onnx)],
    );
    bundle(
        folder,
        "p-reserved",
        "name = \"stats\"\n[graphs]\nmodel = \"model.onnx\"\n",
        &[("model.onnx", &onnx)],
    );
    hostile_bundle(folder, "q-prepare-fails", "[settings]\nprepare = \"fail\"\n");
    hostile_bundle(folder, "r-prepare-panics", "[settings]\nprepare = \"panic\"\n");
    hostile_bundle(
        folder,
        "s-prepare-grows",
        "[settings]\nprepare = \"grow\"\n[limits]\nmemory_mib = 16\n",
    );
    hostile_bundle(folder, "t-reads-outside", "[settings]\nprepare = \"asset\"\n");
    fs::copy(fixture("models/float8.onnx"), folder.join("u-float8.onnx")).expect("a fixture");
    bundle(folder, "works", "[graphs]\nmodel = \"model.onnx\"\n", &[("model.onnx", &onnx)]);

    let server = Server::start(&[folder.to_owned(), PathBuf::from("/nowhere/at-all.onnx")]);
    let inputs = add_request();
    assert_eq!(server.infer("works", &inputs).floats("sum"), [2.0, 4.0, 6.0, 8.0]);

    let place = folder.to_str().expect("UTF-8");
    let mut table = String::new();
    while !table.contains("at-all") {
        table.push_str(server.next_line().replace(place, "[folder]").trim_end());
        table.push('\n');
    }
    insta::assert_snapshot!(table);
    insta::assert_snapshot!(server.infer("a-core-module", &inputs).error(503, "not-ready"), @"model `a-core-module` is not ready: guest: it is a core Wasm module, expected a component");
    assert_eq!(server.get("/v2/health/ready").json(), json!({"ready": true}));
    server.get("/v2/models/f-not-onnx/ready").error(503, "not-ready");
    assert_eq!(server.get("/v2/models").json(), json!({"models": ["works"]}));
}

#[test]
fn an_image_guest_with_the_wrong_graph_or_labels() {
    let scratch = scratch();
    let folder = scratch.path();
    let wasm = fs::read(guest("classify")).expect("the guest is built");
    let onnx = fs::read(fixture("models/add.onnx")).expect("a fixture");
    let manifest = |settings: &str| {
        format!(
            "component = \"guest.wasm\"\nassets = [\"labels.txt\"]\n[graphs]\nmodel = \"model.onnx\"\n[settings]\n{settings}"
        )
    };
    bundle(
        folder,
        "two-inputs",
        &manifest(""),
        &[("guest.wasm", &wasm), ("labels.txt", b"x\ny"), ("model.onnx", &onnx)],
    );
    let server = Server::start(&[folder.join("two-inputs")]);
    insta::assert_snapshot!(server.get("/v2/models/two-inputs").error(503, "not-ready"), @"model `two-inputs` is not ready: guest: `prepare` failed: graph `model`: expected one input and one output, got 2 and 1");

    let digits = crate::support::model("digits");
    let onnx = fs::read(digits.join("digits.onnx")).expect("fetched by `make models`");
    bundle(
        folder,
        "few-labels",
        &manifest(""),
        &[("guest.wasm", &wasm), ("labels.txt", b"zero\none"), ("model.onnx", &onnx)],
    );
    let labels = fs::read(digits.join("labels.txt")).expect("a model's labels");
    bundle(
        folder,
        "bad-setting",
        &manifest("crop = \"wide\"\n"),
        &[("guest.wasm", &wasm), ("labels.txt", &labels), ("model.onnx", &onnx)],
    );
    let server = Server::start(&[folder.join("few-labels"), folder.join("bad-setting")]);
    insta::assert_snapshot!(server.get("/v2/models/few-labels").error(503, "not-ready"), @"model `few-labels` is not ready: guest: `prepare` failed: labels.txt has 2 lines, output `logits` has shape [-1, 10]");
    insta::assert_snapshot!(server.get("/v2/models/bad-setting").error(503, "not-ready"), @"model `bad-setting` is not ready: guest: `prepare` failed: setting `crop` is `wide`, expected a value like f64");
}
