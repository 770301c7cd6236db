//! `wisp serve`.

use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::confinement::{reach, say_confinement};
use super::{say, unpack_all};
use crate::api::{self, Admin, AdminOptions, Api, ApiOptions, Patience};
use crate::api_keys::ApiKeys;
use crate::config::Config;
use crate::confine::confine;
use crate::deploy::{DeployOptions, Deployer};
use crate::error::one_line;
use crate::infer::Inference;
use crate::repository::{Repository, State};
use crate::sandbox::Engine;
use crate::set_up;
use crate::signature::PublicKey;
use crate::store::Store;
use crate::telemetry;
use crate::usage::Usage;

pub(super) fn serve(config: Config, paths: &[PathBuf]) -> anyhow::Result<ExitCode> {
    telemetry::start(&config.log, config.log_format)?;
    for (name, value, origin) in &config.origins {
        tracing::info!("setting {name} = {value} ({origin})");
    }
    anyhow::ensure!(
        paths.is_empty() || config.deploy.trusted_keys.is_none(),
        "setting trusted-keys: what is served from a PATH has no signature: deploy it instead"
    );
    let scratch = tempfile::tempdir().context("a scratch folder")?;
    let places = unpack_all(paths, scratch.path(), config.deploy.bundle_limit);
    let store = config.deploy.state.as_deref().map(Store::open).transpose()?.map(Arc::new);
    let usage = Arc::new(match &config.deploy.state {
        Some(state) => {
            let file = state.join("usage.json");
            Usage::open(file.clone()).with_context(|| format!("the usage in {}", file.display()))?
        }
        None => Usage::default(),
    });
    let keys =
        config.api_keys.as_deref().map(ApiKeys::read).transpose().map_err(anyhow::Error::msg)?;
    let trusted = config.deploy.trusted_keys.as_deref().map(PublicKey::read_all).transpose();
    let trusted = trusted.map_err(anyhow::Error::msg)?.unwrap_or_default();
    if config.confine {
        // Before the first thread, as threads are held in one by one.
        say_confinement(&confine(&reach(&config, paths, scratch.path())));
    } else {
        tracing::info!("confinement: none, as the setting confine says");
    }
    let (inference, engine) =
        set_up(&config.engine, config.residency, config.threads, &places, usage)?;
    let deployer = store.map(|store| deployer(store, trusted, &config, &inference));
    anyhow::ensure!(
        deployer.is_some() || !paths.is_empty(),
        "nothing to serve: give PATHs, or a state folder to deploy to"
    );
    // One more than have a core inline: there is a thread to accept and to answer health.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(config.threads + 1)
        .thread_name("wisp-http")
        .enable_all()
        .build()?;
    let usage = inference.usage.clone();
    let ended = runtime.block_on(run(&config, inference, engine, deployer, keys));
    usage.write();
    // An examination under way is not waited for: it ends with this process.
    runtime.shutdown_timeout(Duration::from_secs(1));
    ended
}

/// Serves what is deployed to the state folder.
fn deployer(
    store: Arc<Store>,
    trusted: Vec<PublicKey>,
    config: &Config,
    inference: &Arc<Inference>,
) -> Arc<Deployer> {
    let options = DeployOptions {
        engine: config.engine.clone(),
        examine: config.deploy.examine,
        bundle_limit: config.deploy.bundle_limit,
        trusted,
    };
    Arc::new(Deployer::new(store, inference.clone(), options))
}

async fn run(
    config: &Config,
    inference: Arc<Inference>,
    engine: Arc<Engine>,
    deployer: Option<Arc<Deployer>>,
    keys: Option<ApiKeys>,
) -> anyhow::Result<ExitCode> {
    let mut terminated = signal(SignalKind::terminate())?;
    let mut interrupted = signal(SignalKind::interrupt())?;
    let listener = TcpListener::bind(config.listen).await;
    let listener = listener.with_context(|| format!("cannot listen on {}", config.listen))?;
    let grpc_listener = match config.grpc_listen {
        None => None,
        Some(address) => {
            let listener = TcpListener::bind(address).await;
            Some(
                listener
                    .with_context(|| format!("setting grpc-listen: cannot listen on {address}"))?,
            )
        }
    };
    let admin = match (&deployer, config.deploy.admin_listen) {
        (Some(deployer), Some(address)) => {
            let listener = TcpListener::bind(address).await;
            let listener = listener
                .with_context(|| format!("setting admin-listen: cannot listen on {address}"))?;
            let options = AdminOptions { token: config.deploy.admin_token.clone() };
            Some((listener, Admin::new(deployer.clone(), options).router()))
        }
        _ => None,
    };
    let version = env!("CARGO_PKG_VERSION");
    say(&format!("wisp {version} listening on http://{}", listener.local_addr()?));
    if let Some(listener) = &grpc_listener {
        say(&format!("gRPC on {}", listener.local_addr()?));
    }
    if let Some((listener, _)) = &admin {
        say(&format!("admin API on http://{}", listener.local_addr()?));
    }

    // The thread that waits for the network may be the one that runs a request inline: then
    // nobody waits for it any more. Anything to do wakes another thread, which takes over.
    let (http, running) = (tokio::runtime::Handle::current(), inference.clone());
    engine.on_tick(move || {
        if running.scheduler.runs_inline() {
            drop(http.spawn(async {}));
        }
    });
    tokio::spawn(inference.usage.clone().keep());
    let loader = inference.clone();
    tokio::spawn(async move {
        loader.repository.load_first().await;
        if !loader.repository.listed().is_empty() {
            say(table(&loader.repository).trim_end());
        }
        loader.repository.tend().await;
    });
    if let (Some(deployer), Some(folder)) = (deployer, &config.deploy.models) {
        tokio::spawn(crate::watch::watch(folder.clone(), deployer));
    }

    let limits = ApiOptions {
        body_limit: config.engine.body_limit,
        body_timeout: config.body_timeout,
        client_control: config.client_control,
    };
    let router = Api::new(inference.clone(), limits, keys).router();
    let unsafe_now = watch_isolation(engine.clone());
    let (stop, stopped) = watch::channel(false);
    let stop_on_signal = async {
        let exit = tokio::select! {
            _ = terminated.recv() => ExitCode::SUCCESS,
            _ = interrupted.recv() => ExitCode::SUCCESS,
            () = unsafe_now => ExitCode::FAILURE,
        };
        tracing::info!("stopping: requests in flight finish");
        stop.send_replace(true);
        exit
    };
    let is_stopped = |mut stopped: watch::Receiver<bool>| async move {
        // An error would mean that whoever stops is gone: as good as stopped.
        let _ = stopped.wait_for(|stopped| *stopped).await;
    };
    let answer = config.body_timeout;
    let patience = Patience { answer, drain: config.body_timeout + config.engine.deadline };
    let admin_patience = Patience { answer, drain: Duration::from_secs(5) };
    let admin_stopped = is_stopped(stopped.clone());
    let serve_admin = async {
        if let Some((listener, router)) = admin {
            api::serve(listener, router, admin_stopped, admin_patience).await;
        }
    };
    let grpc_stopped = is_stopped(stopped.clone());
    let grpc_router = router.clone();
    let serve_grpc = async {
        if let Some(listener) = grpc_listener {
            api::serve(listener, grpc_router, grpc_stopped, patience).await;
        }
    };
    let serve = api::serve(listener, router, is_stopped(stopped), patience);
    let (exit, (), (), ()) = tokio::join!(stop_on_signal, serve, serve_grpc, serve_admin);
    // A compute that outlived its request ends at its next node.
    let drained = async {
        while engine.live_sandboxes() > 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let late = tokio::time::timeout(Duration::from_secs(5), drained).await.is_err();
    tracing::info!(late, live_sandboxes = engine.live_sandboxes(), "stopped");
    Ok(exit)
}

/// Completes when sandboxes can no longer be reset safely: swap was turned on. A restart takes
/// the safe way; serving on does not.
async fn watch_isolation(engine: Arc<Engine>) {
    while engine.is_isolation_intact() {
        tokio::time::sleep(Duration::from_secs(5)).await;
    }
    tracing::error!(
        "swap was turned on: memory swapped out could be read by another request, so the server stops; start it again"
    );
}

/// A line for each model served from a path: `READY`, or `FAILED  reason`.
fn table(repository: &Repository) -> String {
    let models = repository.listed();
    let width = models.iter().map(|model| model.name.len()).max().unwrap_or(0).clamp(5, 64);
    let mut table = format!("{:width$}  STATE\n", "MODEL");
    for model in models {
        let state = match model.main_version().map(|version| version.state()) {
            Some(State::Prepared | State::Idle(_)) => "READY".to_owned(),
            Some(State::Failed(reason)) => format!("FAILED  {reason}"),
            Some(State::Cold | State::Waking | State::Unloaded) | None => "LOADING".to_owned(),
        };
        table.push_str(&format!("{:width$}  {state}\n", one_line(&model.name)));
    }
    table
}
