//! The OpenAPI documents and the page that shows them, held to what the server does.

use std::fs;

use serde_json::{Value, json};

use crate::support::{Server, fixture, model, root};

fn serve(models: &[&str]) -> Server {
    let paths: Vec<_> =
        models.iter().map(|model| fixture(&format!("models/{model}.onnx"))).collect();
    Server::start(&paths)
}

/// A model's own document.
fn document_of(server: &Server, model: &str) -> Value {
    server.get(&format!("/v2/models/{model}/openapi.json")).json()
}

fn schema<'a>(document: &'a Value, name: &str) -> &'a Value {
    &document["components"]["schemas"][name]
}

/// The schema of an input's part.
fn input<'a>(document: &'a Value, index: usize, part: &str) -> &'a Value {
    let inputs = &schema(document, "InferRequest")["properties"]["inputs"];
    &inputs["prefixItems"][index]["properties"][part]
}

/// The request that the document shows.
fn example<'a>(document: &'a Value, body: &str, name: &str) -> &'a Value {
    let content = &document["components"]["requestBodies"][body]["content"];
    &content["application/json"]["examples"][name]["value"]
}

/// All that is referred to.
fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get("$ref").and_then(Value::as_str));
            fields.values().for_each(|field| references(field, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

#[track_caller]
fn assert_whole(document: &Value) {
    let mut found = Vec::new();
    references(document, &mut found);
    assert!(!found.is_empty());
    for reference in found {
        let pointer = reference.strip_prefix('#').expect("within the document");
        assert!(document.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn the_document_names_every_route_and_method() {
    let server = serve(&["add"]);
    let document = server.get("/openapi.json").json();
    assert_eq!(document["openapi"], "3.1.0");
    assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    assert_whole(&document);
    let paths = document["paths"].as_object().expect("an object");
    let source = fs::read_to_string(root().join("server/src/api/mod.rs")).expect("the router");
    let routes = source.split(".route(").skip(1);
    let mut routes: Vec<_> = routes.filter_map(|route| route.split('"').nth(1)).collect();
    routes.sort_unstable();
    let mut named: Vec<_> = paths.keys().collect();
    named.sort_unstable();
    assert_eq!(named, routes);
    for (path, item) in paths {
        let target = path.replace("{model}", "add").replace("{version}", "1");
        let replies = [("get", server.get(&target)), ("post", server.post(&target, &[], b""))];
        for (method, reply) in replies {
            let operation = item.get(method);
            assert_ne!(reply.header("wisp-error"), Some("unknown-path"), "{method} {path}");
            assert_eq!(operation.is_some(), reply.status != 405, "{method} {path}");
            let Some(operation) = operation else { continue };
            let status = reply.status.to_string();
            assert!(operation["responses"].get(&status).is_some(), "{method} {path}: {status}");
        }
    }
}

#[test]
fn the_documents_examples_are_answered() {
    let server =
        Server::start(&[model("digits"), fixture("models/scale.onnx"), fixture("models/add.onnx")]);
    let document = server.get("/openapi.json").json();
    let infer = |model: &str, request: &Value| server.infer(model, request).status;
    assert_eq!(infer("digits", example(&document, "Infer", "digits")), 200);
    assert_eq!(infer("scale", example(&document, "Infer", "floats")), 200);
    assert_eq!(infer("scale", example(&document, "Infer", "binary answer")), 200);
    let body = example(&document, "Generate", "digits").to_string();
    let reply = server.post("/v2/models/digits/generate", &[], body.as_bytes());
    assert_eq!(reply.status, 200, "{reply:?}");
    for model in ["add", "scale"] {
        assert_eq!(infer(model, example(&document_of(&server, model), "Infer", "zeros")), 200);
    }
}

#[test]
fn a_model_s_document_has_its_tensors() {
    let server = serve(&["add", "scale", "int64", "pool"]);
    let add = document_of(&server, "add");
    assert_whole(&add);
    let paths: Vec<_> = add["paths"].as_object().expect("an object").keys().collect();
    assert_eq!(paths, ["/v2/models/add", "/v2/models/add/infer", "/v2/models/add/ready"]);
    assert_eq!(add["info"]["title"], "Model add");
    assert_eq!(input(&add, 1, "name"), &json!({"const": "b"}));
    assert_eq!(input(&add, 1, "datatype"), &json!({"const": "FP32"}));
    let shape = input(&add, 1, "shape");
    assert_eq!(shape["prefixItems"], json!([{"const": 1}, {"const": 4}]));
    assert_eq!((&shape["minItems"], &shape["maxItems"]), (&json!(2), &json!(2)));
    let [flat, nested] = &input(&add, 1, "data")["anyOf"].as_array().expect("two forms")[..] else {
        panic!("{add}")
    };
    assert_eq!((&flat["minItems"], &flat["maxItems"]), (&json!(4), &json!(4)));
    assert_eq!(flat["items"]["type"], "number");
    assert_eq!((&nested["minItems"], &nested["items"]["minItems"]), (&json!(1), &json!(4)));
    let answer = &schema(&add, "InferResponse")["properties"];
    assert_eq!(answer["model_name"], json!({"const": "add"}));
    let output = &answer["outputs"]["items"]["anyOf"][0]["properties"];
    assert_eq!(output["name"], json!({"const": "sum"}));

    let scale = document_of(&server, "scale");
    let free = json!({"type": "integer", "minimum": 0});
    assert_eq!(input(&scale, 0, "shape")["prefixItems"], json!([free, {"const": 4}]));

    let int64 = document_of(&server, "int64");
    let element = json!({"type": "integer", "minimum": i64::MIN, "maximum": i64::MAX});
    assert_eq!(input(&int64, 0, "data")["items"], element);
    let content = &int64["components"]["requestBodies"]["Infer"]["content"];
    let raw = &content["application/octet-stream"]["schema"];
    assert_eq!((&raw["minLength"], &raw["maxLength"]), (&json!(16), &json!(16)));

    // Too large an example helps nobody.
    let pool = document_of(&server, "pool");
    let input = json!({"name": "x", "datatype": "FP32", "shape": [1, 3, 224, 224]});
    assert_eq!(example(&pool, "Infer", "zeros"), &json!({"inputs": [input]}));
}

#[test]
fn a_version_s_document_is_of_that_version() {
    let server = serve(&["add"]);
    let document = server.get("/v2/models/add/versions/1/openapi.json").json();
    let paths = document["paths"].as_object().expect("an object");
    assert!(paths.contains_key("/v2/models/add/versions/1/infer"), "{paths:?}");
    let version = &schema(&document, "InferResponse")["properties"]["model_version"];
    assert_eq!(version, &json!({"const": "1"}));
    server.get("/v2/models/add/versions/2/openapi.json").error(404, "unknown-version");
    server.get("/v2/models/nobody/openapi.json").error(404, "unknown-model");
}

#[test]
fn a_model_of_one_text_generates() {
    let server = Server::start(&[model("digits")]);
    let document = document_of(&server, "digits");
    assert_whole(&document);
    assert!(document["paths"].get("/v2/models/digits/generate").is_some(), "{document}");
    let either = json!([{"required": ["text_input"]}, {"required": ["image"]}]);
    assert_eq!(schema(&document, "GenerateRequest")["anyOf"], either);
}

#[test]
fn the_page_loads_nothing_from_elsewhere() {
    let server = serve(&["add"]);
    let reply = server.get("/docs");
    assert_eq!(reply.status, 200);
    assert_eq!(reply.header("content-type"), Some("text/html; charset=utf-8"));
    let policy = reply.header("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; "), "{policy}");
    assert!(policy.contains("connect-src 'self'"), "{policy}");
    let page = String::from_utf8(reply.body).expect("UTF-8");
    for elsewhere in ["http:", "https:", "url(", "@import", "src=", "<link"] {
        assert!(!page.contains(elsewhere), "{elsewhere}");
    }
    // What documents say is shown as text, never as markup.
    for markup in ["innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("] {
        assert!(!page.contains(markup), "{markup}");
    }
}
