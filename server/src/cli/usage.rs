//! `wisp usage`.

use clap::Args;
use reqwest::Method;
use serde::Deserialize;

use super::client::{Server, ServerArgs};
use super::{print_table, say_json, size};
use crate::error::one_line;
use crate::usage::UsageRecord;

#[derive(Args)]
pub(super) struct UsageArgs {
    /// Of one model; else of all
    #[arg(value_name = "MODEL")]
    model: Option<String>,
    #[command(flatten)]
    server: ServerArgs,
}

#[derive(Deserialize)]
struct UsageList {
    usage: Vec<UsageRecord>,
}

pub(super) fn usage(args: UsageArgs) -> anyhow::Result<()> {
    let server = Server::new(&args.server)?;
    let UsageList { mut usage } = server.send(server.request(Method::GET, "usage"))?;
    usage.retain(|record| args.model.as_ref().is_none_or(|model| record.model == *model));
    if args.server.json {
        return say_json(&usage);
    }
    let heads = [
        "MODEL",
        "VERSION",
        "KEY",
        "REQUESTS",
        "ANSWERED",
        "CACHED",
        "GUEST CPU",
        "COMPUTE CPU",
        "SERVER CPU",
        "PEAK MEMORY",
        "IN",
        "OUT",
    ];
    let mut rows = vec![heads.map(str::to_owned)];
    rows.extend(usage.iter().map(|record| {
        [
            one_line(&record.model),
            one_line(&record.version),
            record.key.as_deref().map_or_else(|| "-".to_owned(), one_line),
            record.requests.to_string(),
            record.answered.to_string(),
            record.cached.to_string(),
            seconds(record.guest_cpu_us),
            seconds(record.compute_cpu_us),
            seconds(record.server_cpu_us),
            size(record.peak_memory_bytes),
            size(record.bytes_in),
            size(record.bytes_out),
        ]
    }));
    print_table(&rows);
    Ok(())
}

fn seconds(us: u64) -> String {
    format!("{:.3} s", us as f64 / 1e6)
}
