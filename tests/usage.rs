//! What requests use, counted by model, version and API key; and answers that are kept.

use std::fs;
use std::path::Path;

use serde_json::{Value, json};

use crate::support::grpc::{Grpc, proto};
use crate::support::{
    Reply, Server, add_request, fixture, hostile_bundle, model, read, refused, scratch, wisp,
};

const SHOP: &str = "shop-0123456789abcdef";
const GATE: &str = "gate-0123456789abcdef";

fn of<'a>(usage: &'a Value, model: &str, key: Option<&str>) -> &'a Value {
    let all = usage["usage"].as_array().expect("a list");
    let found = all.iter().find(|record| record["model"] == model && record["key"] == json!(key));
    found.unwrap_or_else(|| panic!("no {model} of {key:?} in {usage}"))
}

fn number(record: &Value, field: &str) -> u64 {
    record[field].as_u64().unwrap_or_else(|| panic!("{field} in {record}"))
}

#[test]
fn what_a_request_uses_is_what_the_system_says_and_survives_a_restart() {
    let scratch = scratch();
    let state = scratch.path().join("state");
    let server = Server::start_admin(&state, &[model("imagenet")], &[]);
    let cat = read(&fixture("photos/cat.jpg"));
    let ask = |server: &Server| server.infer_raw("imagenet", "image/jpeg", &cat);
    let bytes_out: usize = {
        let reply = ask(&server);
        assert_eq!(reply.status, 200);
        reply.body.len()
    };
    let before = server.get("/usage").json();
    let (cpu_before, used_before) = (server.cpu_us(), cpu(of(&before, "imagenet", None)));
    // What each answer says of itself.
    let mut said = [0; 5];
    for _ in 0..40 {
        let reply = ask(&server);
        assert_eq!(reply.status, 200);
        for (sum, said) in said.iter_mut().zip(said_usage(&reply)) {
            *sum += said;
        }
    }
    let (cpu_after, after) = (server.cpu_us(), server.get("/usage").json());
    let record = of(&after, "imagenet", None);
    let (used, all) = (cpu(record) - used_before, cpu_after - cpu_before);
    // `make bench-account` has it within 2 %; the system counts in ticks of 10 ms.
    assert!(used * 100 > all * 95 && used * 100 < all * 102 + 2_000_000, "{used} of {all} µs");
    let fields = ["guest_cpu_us", "compute_cpu_us", "bytes_in", "bytes_out"];
    let counted =
        fields.map(|field| number(record, field) - number(of(&before, "imagenet", None), field));
    let [guest, compute, _, bytes @ ..] = said;
    assert_eq!(bytes, counted[2..]);
    for (said, counted) in [guest, compute].into_iter().zip(counted) {
        assert!(said <= counted && said * 100 > counted * 95, "{said} of {counted} µs");
    }
    assert_eq!(number(record, "requests"), 41);
    assert_eq!(number(record, "answered"), 41);
    assert_eq!(number(record, "bytes_in"), 41 * (cat.len() as u64 + 4));
    assert!(number(record, "bytes_out") > 41 && bytes_out > 0);
    assert!(number(record, "compute_cpu_us") > number(record, "guest_cpu_us") / 10);
    let peak = number(record, "peak_memory_bytes");
    assert!((1 << 20..256 << 20).contains(&peak), "{peak}");
    let metrics = String::from_utf8(server.get("/metrics").body).expect("UTF-8");
    let line = "wisp_usage_requests_total{model=\"imagenet\",version=\"1\",key=\"\"} 41";
    assert!(metrics.contains(line), "{metrics}");
    assert!(server.stop().0);

    let server = Server::start_admin(&state, &[model("imagenet")], &[]);
    let said = server.wisp_ok(&["usage", "imagenet", "--json"]);
    let mut kept: Value = serde_json::from_str(&said).expect("JSON");
    // The end of a connection is counted, too.
    let (before, then) = (number(record, "server_cpu_us"), number(&kept[0], "server_cpu_us"));
    assert!((before..before + 100_000).contains(&then), "{before} µs, then {then}");
    kept[0]["server_cpu_us"] = record["server_cpu_us"].clone();
    assert_eq!(kept[0], *record);
    assert_eq!(ask(&server).status, 200);
    let table = server.wisp_ok(&["usage"]);
    assert!(table.starts_with("MODEL     VERSION  KEY  REQUESTS  ANSWERED"), "{table}");
    assert!(table.contains("imagenet  1        -    42        42"), "{table}");
}

/// An answer's own account: CPU time of guest and graphs, µs, memory, bytes in and out.
fn said_usage(reply: &Reply) -> [u64; 5] {
    let text = reply.header("wisp-usage").expect("a usage");
    let fields = ["guest-cpu-us", "compute-cpu-us", "peak-memory-bytes", "bytes-in", "bytes-out"];
    let mut said = text.split(", ").map(|field| field.split_once('=').expect("a pair"));
    let said = fields.map(|field| {
        let (name, value) = said.next().expect("a field");
        assert_eq!(name, field, "{text}");
        value.parse().expect("a number")
    });
    assert!((1 << 20..256 << 20).contains(&said[2]), "{text}");
    said
}

fn cpu(record: &Value) -> u64 {
    ["guest_cpu_us", "compute_cpu_us", "server_cpu_us"]
        .map(|field| number(record, field))
        .iter()
        .sum()
}

fn keys(folder: &Path) -> String {
    let file = folder.join("keys");
    fs::write(&file, format!("# name key\nshop {SHOP}\ngate {GATE} # at the gate\n"))
        .expect("a file");
    file.to_str().expect("UTF-8").to_owned()
}

#[test]
fn with_api_keys_only_their_holders_are_answered_and_each_sees_its_own() {
    let scratch = scratch();
    let keys = keys(scratch.path());
    let add = fixture("models/add.onnx");
    let server = Server::start_with(&[add], &["--api-keys", &keys]);
    let body = serde_json::to_vec(&add_request()).expect("JSON");
    let ask = |headers: &[(&str, &str)]| server.post("/v2/models/add/infer", headers, &body);
    let bearer = |key: &str| format!("Bearer {key}");

    insta::assert_snapshot!(ask(&[]).error(401, "unauthorized"), @"expected an API key of this server in the header `Authorization: Bearer …`");
    ask(&[("authorization", "Bearer shop")]).error(401, "unauthorized");
    server.get("/v2/models").error(401, "unauthorized");
    server.get("/metrics").error(401, "unauthorized");
    server.get("/nowhere").error(401, "unauthorized");
    assert_eq!(server.get("/v2/health/live").status, 200);

    assert_eq!(ask(&[("authorization", &bearer(SHOP))]).status, 200);
    assert_eq!(ask(&[("authorization", &bearer(SHOP))]).status, 200);
    assert_eq!(ask(&[("authorization", &bearer(GATE))]).status, 200);
    assert_eq!(server.get("/v2/health/ready").status, 200);
    let own = server.get_with("/usage", &[("authorization", &bearer(SHOP))]).json();
    assert_eq!(own["usage"].as_array().map(Vec::len), Some(1));
    assert_eq!(number(of(&own, "add", Some("shop")), "requests"), 2);
    let metrics = server.get_with("/metrics", &[("authorization", &bearer(SHOP))]).body;
    let metrics = String::from_utf8(metrics).expect("UTF-8");
    assert!(metrics.contains("key=\"shop\"") && !metrics.contains("key=\"gate\""), "{metrics}");

    let grpc = Grpc::connect(&server);
    let live: Result<proto::ServerLiveResponse, _> =
        grpc.call("ServerLive", &proto::ServerLiveRequest {});
    assert!(live.expect("answered").live);
    let refused: Result<proto::ServerMetadataResponse, _> =
        grpc.call("ServerMetadata", &proto::ServerMetadataRequest {});
    assert_eq!(refused.expect_err("no key").code(), tonic::Code::Unauthenticated);
}

#[test]
fn a_file_of_keys_that_is_odd_stops_the_start() {
    let scratch = scratch();
    let file = scratch.path().join("keys");
    fs::write(&file, "shop short\n").expect("a file");
    let said = refused(
        &wisp()
            .arg("serve")
            .arg(fixture("models/add.onnx"))
            .arg("--api-keys")
            .arg(&file)
            .output()
            .expect("wisp runs"),
    );
    assert!(said.contains("line 1: expected a key of 16 or more characters"), "{said}");
}

#[test]
fn the_same_request_is_answered_from_the_cache_where_the_manifest_asks() {
    let scratch = scratch();
    let cached = "[response_cache]\nmax_mib = 1\n";
    let server = Server::start(&[
        hostile_bundle(scratch.path(), "cached", cached),
        hostile_bundle(scratch.path(), "plain", ""),
    ]);
    let statistics = |model: &str| {
        let statistics = server.get(&format!("/v2/models/{model}/stats")).json();
        let of = &statistics["model_stats"][0];
        let count = |span: &str| of["inference_stats"][span]["count"].as_u64().expect("a number");
        (of["execution_count"].as_u64(), count("cache_hit"), count("cache_miss"), count("success"))
    };
    for model in ["cached", "plain"] {
        let first = server.infer_raw(model, "text/plain", b"nothing").json();
        for _ in 0..2 {
            assert_eq!(server.infer_raw(model, "text/plain", b"nothing").json(), first);
        }
        assert_ne!(server.infer_raw(model, "text/plain", b"something").json(), first);
    }
    assert_eq!(statistics("cached"), (Some(2), 2, 2, 4));
    assert_eq!(statistics("plain"), (Some(4), 0, 0, 4));
    // What failed is asked again.
    for _ in 0..2 {
        server.infer_raw("cached", "text/plain", b"fail").error(500, "guest-failed");
    }
    assert_eq!(statistics("cached"), (Some(2), 2, 4, 4));
    let usage = server.get("/usage").json();
    assert_eq!(number(of(&usage, "cached", None), "cached"), 2);
    assert_eq!(number(of(&usage, "cached", None), "requests"), 4);
}
