//! The admin API: what is deployed, and changes to it. On a listener of its own, so that no proxy
//! before the protocol's port lets it out: on loopback, or for those who have the token.

use std::collections::BTreeMap;
use std::io::{self, Read};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use axum::extract::{Query, Request, State};
use axum::http::uri::Authority;
use axum::http::{HeaderMap, Method, StatusCode, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{delete, get, post, put};
use bytes::Bytes;
use http_body_util::BodyExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::body::{self, read_small_json};
use super::errors::Failed;
use super::metadata::ModelPath;
use super::metrics::exposition;
use super::reply::json;
use super::usage::UsageList;
use crate::deploy::{Change, Deployed, Deployer, Deployment};
use crate::digest::Digest;
use crate::error::Error;
use crate::registry::Remote;
use crate::store::{Policy, ShadowRecord};

/// Bundles that may be on their way in at a time: each takes disk, and a thread.
const MAX_COMING: usize = 4;

/// For one to come, be examined apart.
const COMING_DEADLINE: Duration = Duration::from_secs(3600);

/// An upload that sends nothing for so long is given up.
const UPLOAD_PATIENCE: Duration = Duration::from_secs(30);

const OPENAPI: &str = include_str!("admin.openapi.json");

/// What the handlers share.
#[derive(Clone)]
pub struct Admin(Arc<Shared>);

struct Shared {
    deployer: Arc<Deployer>,
    options: AdminOptions,
    /// Bundles on their way in.
    coming: Semaphore,
}

/// Who may use the admin API.
#[derive(Debug, Clone, Default)]
pub struct AdminOptions {
    /// `None`: whoever can connect, from no web page.
    pub token: Option<String>,
}

impl Admin {
    pub fn new(deployer: Arc<Deployer>, options: AdminOptions) -> Self {
        let coming = Semaphore::new(MAX_COMING);
        Self(Arc::new(Shared { deployer, options, coming }))
    }

    /// All routes; each is in `admin.openapi.json`.
    pub fn router(self) -> Router {
        Router::new()
            .route("/admin/v1/openapi.json", get(openapi))
            .route("/admin/v1/bundles", put(deploy))
            .route("/admin/v1/usage", get(usage))
            .route("/admin/v1/metrics", get(metrics))
            .route("/admin/v1/models", get(list))
            .route("/admin/v1/models/{model}", get(view).delete(remove))
            .route("/admin/v1/models/{model}/versions/{version}", delete(remove_version))
            .route("/admin/v1/models/{model}/traffic", put(split))
            .route("/admin/v1/models/{model}/rollback", post(rollback))
            .route("/admin/v1/models/{model}/shadow", put(shadow).delete(end_shadow))
            .route("/admin/v1/models/{model}/policy", put(policy))
            .fallback(async |uri: Uri| Failed(Error::UnknownPath(uri.path().to_owned())))
            .method_not_allowed_fallback(async |method: Method, uri: Uri| {
                let (method, path) = (method.to_string(), uri.path().to_owned());
                Failed(Error::WrongMethod { method, path })
            })
            .layer(middleware::from_fn_with_state(self.clone(), guard))
            .with_state(self)
    }

    fn deployer(&self) -> Arc<Deployer> {
        self.0.deployer.clone()
    }
}

async fn guard(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    match authorize(request.headers(), admin.0.options.token.as_deref()) {
        Ok(()) => next.run(request).await,
        Err(error) => Failed(error).into_response(),
    }
}

/// With a token, who has it may; without one, who is on this machine and no web page. A page
/// that a browser here shows can send requests here too, but then they have an `Origin`, or a
/// `Host` that only looks local to a resolver.
fn authorize(headers: &HeaderMap, token: Option<&str>) -> Result<(), Error> {
    if let Some(token) = token {
        let given = headers
            .get(header::AUTHORIZATION)
            .and_then(|value| value.as_bytes().strip_prefix(b"Bearer ").map(<[u8]>::to_vec));
        // Digests: comparing them tells nothing of the token, however long it takes.
        let fits = given.is_some_and(|given| Digest::of(&given) == Digest::of(token.as_bytes()));
        return match fits {
            true => Ok(()),
            false => Err(Error::Unauthorized(
                "expected the admin token in the header `Authorization: Bearer …`".to_owned(),
            )),
        };
    }
    if headers.contains_key(header::ORIGIN) {
        return Err(Error::Unauthorized(
            "the admin API takes nothing from web pages, unless it has a token".to_owned(),
        ));
    }
    let host = headers.get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.parse::<Authority>().map(|authority| authority.host().to_ascii_lowercase());
    let name = name.unwrap_or_default();
    let name = name.trim_start_matches('[').trim_end_matches(']');
    let is_local =
        name == "localhost" || name.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    match is_local {
        true => Ok(()),
        false => Err(Error::Unauthorized(format!(
            "expected this machine's own address as Host, got `{host}`"
        ))),
    }
}

/// Of all API keys.
async fn usage(State(admin): State<Admin>) -> Response {
    let usage = admin.0.deployer.inference().usage.records(None);
    json(StatusCode::OK, &UsageList { usage })
}

/// With the usage of all API keys.
async fn metrics(State(admin): State<Admin>) -> Response {
    exposition(admin.0.deployer.inference(), None)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DryRun {
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct DeployQuery {
    name: Option<String>,
    version: Option<String>,
    #[serde(default)]
    activate: bool,
    #[serde(default)]
    dry_run: bool,
    /// What the list shows as its source; the reference, where one is pulled.
    source: Option<String>,
}

/// A body of JSON instead of a bundle.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PullBody {
    reference: String,
    #[serde(default)]
    plain_http: bool,
}

async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], OPENAPI).into_response()
}

async fn list(State(admin): State<Admin>) -> Response {
    json(StatusCode::OK, &serde_json::json!({ "models": admin.deployer().list() }))
}

async fn view(State(admin): State<Admin>, path: ModelPath) -> Result<Response, Failed> {
    Ok(json(StatusCode::OK, &admin.deployer().view(path.model()?)?))
}

async fn deploy(
    State(admin): State<Admin>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, Failed> {
    let DeployQuery { name, version, activate, dry_run, source } = query(&uri)?;
    let ask = Deployment { name, version, activate, dry_run, watched: None, source: String::new() };
    let media_type = headers.get(header::CONTENT_TYPE).map(|value| value.as_bytes());
    let Ok(_coming) = admin.0.coming.try_acquire() else {
        body::discard(&headers, body).await;
        return Err(Failed(Error::NoRoom(format!(
            "{MAX_COMING} bundles are on their way already"
        ))));
    };
    let deployed = match media_type.is_some_and(|kind| kind.starts_with(b"application/json")) {
        true => {
            let PullBody { reference, plain_http } = read_json(body).await?;
            let source = source.unwrap_or_else(|| reference.clone());
            pull(admin.deployer(), reference, plain_http, Deployment { source, ..ask }).await?
        }
        false => {
            let source = source.unwrap_or_else(|| "upload".to_owned());
            upload(admin.deployer(), body, Deployment { source, ..ask }).await?
        }
    };
    let status = match deployed.unchanged || deployed.dry_run {
        true => StatusCode::OK,
        false => StatusCode::CREATED,
    };
    Ok(json(status, &deployed))
}

async fn pull(
    deployer: Arc<Deployer>,
    reference: String,
    plain_http: bool,
    ask: Deployment,
) -> Result<Deployed, Error> {
    // Goes with the request: with its client gone, nobody waits for a pull.
    let (_waiting, gone) = oneshot::channel::<()>();
    aside(move || {
        let remote = Remote::new(&reference, plain_http)?;
        // A runtime of its own: what comes is written to disk as it comes.
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| Error::Internal(error.to_string()))?;
        let staging = deployer.stage()?;
        let staged = runtime.block_on(async {
            tokio::select! {
                pulled = remote.pull(staging, Some(deployer.store().blobs()), &|_| {}) => pulled,
                _ = gone => Err(Error::Registry("whoever asked for the pull has gone".to_owned())),
                () = tokio::time::sleep(COMING_DEADLINE) => {
                    Err(Error::Registry(format!("the pull took longer than {COMING_DEADLINE:?}")))
                }
            }
        })?;
        drop(runtime);
        deployer.deploy(&staged, ask)
    })
    .await
}

/// Streams a `.wisp` to disk, checked as it comes.
async fn upload(
    deployer: Arc<Deployer>,
    mut body: Body,
    ask: Deployment,
) -> Result<Deployed, Error> {
    let deadline = Instant::now() + COMING_DEADLINE;
    let (send, receive) = mpsc::channel(4);
    let work = tokio::spawn(aside(move || {
        let archive = Incoming { receive, rest: Bytes::new() };
        let staged = deployer.stage()?.read_tar(archive)?;
        deployer.deploy(&staged, ask)
    }));
    loop {
        let patience = deadline.saturating_duration_since(Instant::now()).min(UPLOAD_PATIENCE);
        let frame = match tokio::time::timeout(patience, body.frame()).await {
            Ok(None) => break,
            Ok(Some(Ok(frame))) => frame.into_data().map_err(|_| io::Error::other("no data")),
            Ok(Some(Err(error))) => Err(io::Error::other(error)),
            Err(_) => Err(io::Error::other(format!(
                "nothing came for {UPLOAD_PATIENCE:?}, or the rest not within {COMING_DEADLINE:?}"
            ))),
        };
        let broke_off = frame.is_err();
        if send.send(frame).await.is_err() {
            // It is refused already: some of the rest is read all the same, as a client sends
            // before it listens.
            body::drain(&mut body).await;
            break;
        }
        if broke_off {
            break;
        }
    }
    drop(send);
    work.await.map_err(|error| Error::Internal(format!("the deployment panicked: {error}")))?
}

/// A request's body, to be read by a thread that may block.
struct Incoming {
    receive: mpsc::Receiver<io::Result<Bytes>>,
    rest: Bytes,
}

impl Read for Incoming {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receive.blocking_recv() {
                Some(bytes) => self.rest = bytes?,
                None => return Ok(0),
            }
        }
        let count = buffer.len().min(self.rest.len());
        buffer[..count].copy_from_slice(&self.rest.split_to(count));
        Ok(count)
    }
}

async fn split(
    State(admin): State<Admin>,
    path: ModelPath,
    uri: Uri,
    body: Body,
) -> Result<Response, Failed> {
    let traffic: BTreeMap<String, u8> = read_json(body).await?;
    change(&admin, &path, Change::Split(traffic), &uri).await
}

async fn rollback(
    State(admin): State<Admin>,
    path: ModelPath,
    uri: Uri,
) -> Result<Response, Failed> {
    change(&admin, &path, Change::Rollback, &uri).await
}

async fn shadow(
    State(admin): State<Admin>,
    path: ModelPath,
    uri: Uri,
    body: Body,
) -> Result<Response, Failed> {
    let shadow: ShadowRecord = read_json(body).await?;
    change(&admin, &path, Change::Shadow(Some(shadow)), &uri).await
}

async fn end_shadow(
    State(admin): State<Admin>,
    path: ModelPath,
    uri: Uri,
) -> Result<Response, Failed> {
    change(&admin, &path, Change::Shadow(None), &uri).await
}

async fn policy(
    State(admin): State<Admin>,
    path: ModelPath,
    uri: Uri,
    body: Body,
) -> Result<Response, Failed> {
    let policy: Policy = read_json(body).await?;
    change(&admin, &path, Change::Policy(policy), &uri).await
}

async fn remove(State(admin): State<Admin>, path: ModelPath, uri: Uri) -> Result<Response, Failed> {
    change(&admin, &path, Change::Remove, &uri).await
}

async fn remove_version(
    State(admin): State<Admin>,
    path: ModelPath,
    uri: Uri,
) -> Result<Response, Failed> {
    let version = path.version().unwrap_or_default().to_owned();
    change(&admin, &path, Change::RemoveVersion(version), &uri).await
}

async fn change(
    admin: &Admin,
    path: &ModelPath,
    change: Change,
    uri: &Uri,
) -> Result<Response, Failed> {
    let DryRun { dry_run } = query(uri)?;
    let (deployer, model) = (admin.deployer(), path.model()?.to_owned());
    let view = aside(move || deployer.change(&model, change, dry_run)).await?;
    Ok(json(StatusCode::OK, &view))
}

/// Runs what blocks where nothing waits for it.
async fn aside<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|error| Error::Internal(format!("the change panicked: {error}")))?
}

fn query<T: DeserializeOwned>(uri: &Uri) -> Result<T, Error> {
    // axum's own rejection would be plain text.
    let query = Query::try_from_uri(uri);
    query
        .map(|Query(query)| query)
        .map_err(|rejection| Error::InvalidInput(format!("query: {}", rejection.body_text())))
}

async fn read_json<T: DeserializeOwned>(body: Body) -> Result<T, Error> {
    let read = read_small_json(body).await?;
    read.ok_or_else(|| Error::InvalidInput("expected a JSON body, got none".to_owned()))
}
