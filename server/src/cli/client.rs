//! The way to a running server's admin API.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use reqwest::{Client, Method, RequestBuilder};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::config::read_token;

/// Longer than any examination may be allowed to take.
const TIMEOUT: Duration = Duration::from_secs(4 * 3600);

#[derive(Args)]
pub(super) struct ServerArgs {
    /// The server's admin API
    #[arg(long, env = "WISP_ADMIN", value_name = "URL", default_value = "http://127.0.0.1:8001")]
    admin: String,
    /// File with its token
    #[arg(long, env = "WISP_ADMIN_TOKEN_FILE", value_name = "FILE")]
    token_file: Option<PathBuf>,
    /// Print the answer as JSON
    #[arg(long)]
    pub(super) json: bool,
}

/// A server's admin API.
pub(super) struct Server {
    client: Client,
    url: String,
    token: Option<String>,
    runtime: tokio::runtime::Runtime,
}

impl Server {
    pub(super) fn new(args: &ServerArgs) -> anyhow::Result<Self> {
        // Already there, where a registry was spoken to before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let token = args.token_file.as_deref().map(read_token).transpose()?;
        let client = Client::builder()
            .no_proxy()
            .connect_timeout(Duration::from_secs(10))
            .timeout(TIMEOUT)
            .build()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let url = args.admin.trim_end_matches('/').to_owned();
        anyhow::ensure!(
            url.starts_with("http://") || url.starts_with("https://"),
            "--admin: expected a URL as http://127.0.0.1:8001, got `{url}`"
        );
        Ok(Self { client, url, token, runtime })
    }

    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self.client.request(method, format!("{}/admin/v1/{path}", self.url));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a request and reads its answer; an error of the server's is told in its own words.
    pub(super) fn send<T: DeserializeOwned>(&self, request: RequestBuilder) -> anyhow::Result<T> {
        let answered = self.runtime.block_on(async {
            let response = request.send().await?;
            let status = response.status();
            Ok::<_, reqwest::Error>((status, response.bytes().await?))
        });
        let (status, body) =
            answered.with_context(|| format!("the admin API at {} does not answer", self.url))?;
        if status.is_success() {
            return serde_json::from_slice(&body)
                .with_context(|| format!("the admin API at {} answered something else", self.url));
        }
        let error: Option<Value> = serde_json::from_slice(&body).ok();
        let text = error.as_ref().and_then(|error| error["error"].as_str());
        anyhow::bail!("{}", text.unwrap_or(&format!("the admin API answered {status}")));
    }
}
