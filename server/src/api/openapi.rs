//! What clients may ask, as OpenAPI 3.1: of the server, of each model with its real tensors, and
//! a page for people that shows either. Nothing here answers for a model.

use std::collections::BTreeSet;
use std::sync::LazyLock;

use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde_json::{Map, Value, json};

use super::Api;
use super::errors::Failed;
use super::generate::text_input;
use super::metadata::ModelPath;
use super::reply::json;
use super::tensor_schema::{any_of, elements, fits_json, input, list, output, requested_output};
use crate::bundle::Task;
use crate::tensor::{Contract, Datatype};

const PAGE: &str = include_str!("docs.html");

/// The page shows names that users chose: it may ask this server, and load nothing.
const PAGE_POLICY: &str = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// The server's document as it is sent: parsed and written again, its paths would be sorted.
static SERVER_TEXT: LazyLock<String> = LazyLock::new(|| {
    let text = include_str!("server.openapi.json");
    text.replacen("CARGO_PKG_VERSION", env!("CARGO_PKG_VERSION"), 1)
});

static SERVER: LazyLock<Value> =
    LazyLock::new(|| serde_json::from_str(&SERVER_TEXT).expect("a test reads it as JSON"));

/// A longer input's data is left out of the example.
const EXAMPLE_ELEMENTS: u64 = 1000;

pub(super) async fn server() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], SERVER_TEXT.as_str()).into_response()
}

pub(super) async fn page() -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, PAGE).into_response()
}

/// A model's own document; without a version, of the one with the most traffic.
pub(super) async fn model(State(api): State<Api>, path: ModelPath) -> Result<Response, Failed> {
    let model = api.inference().repository.model(path.model()?)?;
    let revision = model.version(path.version())?.revision().await?;
    let subject = Subject {
        model: &model.name,
        version: &revision.version,
        is_fixed: path.version().is_some(),
        contract: &revision.contract,
        embeds: revision.task == Some(Task::TextEmbedding),
    };
    Ok(json(StatusCode::OK, &document(&subject)))
}

/// What a model's document is about.
struct Subject<'a> {
    model: &'a str,
    version: &'a str,
    /// Whether its paths name the version.
    is_fixed: bool,
    contract: &'a Contract,
    /// Whether it is for text embedding.
    embeds: bool,
}

/// The server's document, cut down to one model's endpoints and with its tensors filled in.
fn document(subject: &Subject<'_>) -> Value {
    let Subject { model, version, contract, .. } = subject;
    let description = format!(
        "Version `{version}` of the model `{model}`, with its tensors. What else there is, `/openapi.json` shows."
    );
    let mut document = json!({
        "openapi": SERVER["openapi"],
        "info": {
            "title": format!("Model {model}"),
            "version": version,
            "description": description,
        },
        "tags": SERVER["tags"],
        "paths": paths(subject),
        "components": SERVER["components"],
    });
    let components = &mut document["components"];
    components["requestBodies"]["Infer"] = infer_body(contract);
    components["schemas"]["InferRequest"] = infer_request(contract);
    components["schemas"]["InferResponse"] = infer_response(subject);
    if let Some(spec) = text_input(contract) {
        let request = &mut components["schemas"]["GenerateRequest"];
        if let Some(properties) = request["properties"].as_object_mut() {
            properties.entry(&spec.name).or_insert(json!({"type": "string"}));
        }
        request["required"] = json!([]);
        request["anyOf"] = json!([{"required": ["text_input"]}, {"required": [spec.name]}]);
        components["requestBodies"]["Generate"]["content"]["application/json"]["examples"] =
            json!({"text": {"summary": "A text", "value": {"text_input": "text"}}});
    }
    if subject.embeds {
        let length = contract.outputs.iter().find(|spec| spec.name == "embedding");
        let length = length.and_then(|spec| spec.shape.get(1));
        let properties = &mut components["schemas"]["EmbeddingRequest"]["properties"];
        properties["model"] = json!({"const": model});
        properties["dimensions"] = json!({"enum": [length, null]});
    }
    drop_unused(&mut document);
    document
}

/// The model's endpoints, as the server's document has them, with its name in place of the
/// parameters.
fn paths(subject: &Subject<'_>) -> Value {
    let Subject { model, version, contract, .. } = subject;
    let base = match subject.is_fixed {
        true => format!("/v2/models/{model}/versions/{version}"),
        false => format!("/v2/models/{model}"),
    };
    let mut paths = Map::new();
    let mut keep = |template: &str, path: String| {
        let mut item = SERVER["paths"][template].clone();
        if let Some(item) = item.as_object_mut() {
            item.remove("parameters");
        }
        paths.insert(path, item);
    };
    let text = text_input(contract).map(|_| ["/generate", "/generate_stream"]);
    for tail in ["", "/ready", "/infer"].into_iter().chain(text.into_iter().flatten()) {
        keep(&format!("/v2/models/{{model}}{tail}"), format!("{base}{tail}"));
    }
    if subject.embeds && !subject.is_fixed {
        keep("/v1/embeddings", "/v1/embeddings".to_owned());
    }
    paths.into()
}

fn infer_body(contract: &Contract) -> Value {
    let mut content = Map::new();
    let fits_json = contract.inputs.iter().all(|spec| fits_json(spec.datatype));
    if fits_json {
        let schema = json!({"$ref": "#/components/schemas/InferRequest"});
        let examples = json!({"zeros": example(contract)});
        content
            .insert("application/json".to_owned(), json!({"schema": schema, "examples": examples}));
    }
    let binary = match raw(contract) {
        Some(schema) => Some(schema),
        None if fits_json => None,
        None => Some(json!({
            "type": "string",
            "format": "binary",
            "description": "JSON and binary tensors, with the header `Inference-Header-Content-Length`.",
        })),
    };
    if let Some(schema) = binary {
        content.insert("application/octet-stream".to_owned(), json!({"schema": schema}));
    }
    json!({"required": true, "content": content})
}

/// A body that is the one input's data as it is; `None` where the model does not take one.
fn raw(contract: &Contract) -> Option<Value> {
    let [spec] = &contract.inputs[..] else { return None };
    let name = &spec.name;
    let free = spec.shape.iter().filter(|&&size| size < 0).count();
    let elements = elements(spec).filter(|&elements| elements > 0)?;
    let mut schema = json!({"type": "string", "format": "binary"});
    let Some(size) = spec.datatype.size() else {
        schema["description"] = format!("The one element of `{name}` as it is.").into();
        return (elements == 1).then_some(schema);
    };
    let bytes = elements.checked_mul(size as u64)?;
    schema["minLength"] = bytes.into();
    let text = format!("The data of `{name}` as it is, little-endian");
    match free {
        0 => {
            schema["maxLength"] = bytes.into();
            schema["description"] = format!("{text}: {bytes} bytes.").into();
        }
        1 => schema["description"] = format!("{text}: a multiple of {bytes} bytes.").into(),
        _ => return None,
    }
    Some(schema)
}

fn infer_request(contract: &Contract) -> Value {
    let inputs: Vec<Value> = contract.inputs.iter().map(input).collect();
    let known = &SERVER["components"]["schemas"];
    let parameters = &known["RequestedOutput"]["properties"]["parameters"];
    let outputs = contract.outputs.iter();
    let outputs = outputs.map(|spec| requested_output(spec, parameters.clone()));
    let outputs: Vec<Value> = outputs.collect();
    let once = contract.outputs.iter().map(|spec| {
        json!({
            "contains": {"properties": {"name": {"const": spec.name}}},
            "minContains": 0,
            "maxContains": 1,
        })
    });
    let mut wanted = json!({
        "type": ["array", "null"],
        "description": "Those that are wanted, each once. None, or null: all.",
        "maxItems": outputs.len(),
        "items": any_of(outputs),
    });
    if contract.outputs.len() > 1 {
        wanted["allOf"] = once.collect();
    }
    json!({
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": known["InferRequest"]["properties"]["id"],
            "parameters": {"$ref": "#/components/schemas/RequestParameters"},
            "inputs": list(inputs, "The model's inputs; another order is as good."),
            "outputs": wanted,
        },
    })
}

fn infer_response(subject: &Subject<'_>) -> Value {
    let version = match subject.is_fixed {
        true => json!({"const": subject.version}),
        false => json!({"$ref": "#/components/schemas/Name"}),
    };
    let outputs: Vec<Value> = subject.contract.outputs.iter().map(output).collect();
    let properties = &SERVER["components"]["schemas"]["InferResponse"]["properties"];
    json!({
        "type": "object",
        "required": ["model_name", "model_version", "outputs"],
        "properties": {
            "model_name": {"const": subject.model},
            "model_version": version,
            "id": properties["id"],
            "parameters": properties["parameters"],
            "outputs": {
                "type": "array",
                "description": properties["outputs"]["description"],
                "maxItems": outputs.len(),
                "items": any_of(outputs),
            },
        },
    })
}

/// A request whose free sizes are 1 and whose elements are 0.
fn example(contract: &Contract) -> Value {
    let mut is_whole = true;
    let inputs = contract.inputs.iter().map(|spec| {
        let shape: Vec<i64> =
            spec.shape.iter().map(|&size| if size < 0 { 1 } else { size }).collect();
        let mut input =
            json!({"name": spec.name, "datatype": spec.datatype.name(), "shape": shape});
        let zero = match spec.datatype {
            Datatype::Bool => json!(false),
            Datatype::Bytes => json!("text"),
            _ => json!(0),
        };
        match elements(spec).filter(|&elements| elements <= EXAMPLE_ELEMENTS) {
            Some(elements) => input["data"] = vec![zero; elements as usize].into(),
            None => is_whole = false,
        }
        input
    });
    let inputs: Vec<Value> = inputs.collect();
    let summary = match is_whole {
        true => "Zeros",
        false => "Without the `data` of large inputs, which must be added",
    };
    json!({"summary": summary, "value": {"inputs": inputs}})
}

/// Leaves out the tags and components that nothing refers to.
fn drop_unused(document: &mut Value) {
    let mut used = BTreeSet::new();
    follow(&document["paths"], document, &mut used);
    let operations = document["paths"].as_object().into_iter().flat_map(|paths| paths.values());
    let operations = operations.filter_map(Value::as_object).flat_map(|item| item.values());
    let tags: Vec<Value> = operations.map(|operation| operation["tags"][0].clone()).collect();
    if let Some(known) = document["tags"].as_array_mut() {
        known.retain(|tag| tags.contains(&tag["name"]));
    }
    let kinds = document["components"].as_object_mut();
    for (kind, components) in kinds.into_iter().flatten() {
        if let Some(components) = components.as_object_mut() {
            components.retain(|name, _| used.contains(&format!("#/components/{kind}/{name}")));
        }
    }
}

/// Collects what `value` refers to, and what that does.
fn follow(value: &Value, document: &Value, used: &mut BTreeSet<String>) {
    if let Some(reference) = value.get("$ref").and_then(Value::as_str)
        && used.insert(reference.to_owned())
        && let Some(target) = document.pointer(reference.trim_start_matches('#'))
    {
        follow(target, document, used);
    }
    match value {
        Value::Object(fields) => fields.values().for_each(|field| follow(field, document, used)),
        Value::Array(items) => items.iter().for_each(|item| follow(item, document, used)),
        _ => {}
    }
}
