//! `wisp store`: a state folder with no server on it.

use std::path::PathBuf;

use clap::{Args, Subcommand};

use super::{say, say_json, size};
use crate::store::{LOCK, Store};

#[derive(Args)]
pub(super) struct StoreArgs {
    #[command(subcommand)]
    command: StoreCommand,
}

#[derive(Subcommand)]
enum StoreCommand {
    /// Read every blob in use and compare its digest
    Verify(VerifyArgs),
}

#[derive(Args)]
struct VerifyArgs {
    /// The state folder
    #[arg(long, env = "WISP_STATE", value_name = "FOLDER")]
    state: PathBuf,
    /// Print what was found as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: StoreArgs) -> anyhow::Result<()> {
    let StoreCommand::Verify(VerifyArgs { state, json }) = args.command;
    anyhow::ensure!(state.join(LOCK).is_file(), "{}: expected a state folder", state.display());
    let found = Store::open(&state)?.verify();
    if json {
        say_json(&found)?;
    } else {
        say(&format!(
            "{} models, {} versions, {} blobs of {}, {} unused",
            found.models,
            found.versions,
            found.blobs,
            size(found.bytes),
            found.unused
        ));
        found.problems.iter().for_each(|problem| say(problem));
    }
    anyhow::ensure!(found.problems.is_empty(), "the store has {} problems", found.problems.len());
    Ok(())
}
