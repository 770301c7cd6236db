//! `wisp infer`: one input, no server.

use std::fs;
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;

use super::unpack_all;
use crate::api;
use crate::config::Config;
use crate::repository::State;
use crate::set_up;
use crate::telemetry;

pub(super) fn infer(config: &Config, path: &Path, file: &Path) -> anyhow::Result<()> {
    telemetry::start(&config.log, config.log_format)?;
    let mut input = Vec::new();
    match file == Path::new("-") {
        true => drop(std::io::stdin().read_to_end(&mut input).context("stdin")?),
        false => input = fs::read(file).with_context(|| file.display().to_string())?,
    }
    let is_json = file.extension().is_some_and(|extension| extension == "json");
    let scratch = tempfile::tempdir()?;
    let paths = unpack_all(&[path.to_owned()], scratch.path(), config.deploy.bundle_limit);
    let (inference, _) =
        set_up(&config.engine, config.residency, config.threads, &paths, Arc::default())?;
    let [model] = inference.repository.listed() else {
        anyhow::bail!(
            "{}: expected one bundle, got {}",
            path.display(),
            inference.repository.listed().len()
        );
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let answer = runtime.block_on(async {
        inference.repository.load_first().await;
        if let Some(State::Failed(reason)) = model.main_version().map(|version| version.state()) {
            anyhow::bail!("model `{}`: {reason}", model.name);
        }
        Ok(api::infer_once(&inference, model, input, is_json).await?)
    })?;
    let mut stdout = std::io::stdout().lock();
    stdout.write_all(&answer).and_then(|()| writeln!(stdout)).context("stdout")
}
