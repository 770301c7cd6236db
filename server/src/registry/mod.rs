//! Bundles in OCI registries: pulled blob by blob, each checked as it comes and resumed where it
//! breaks off, and pushed so that any other client can copy them.

mod push;
mod reference;

pub use reference::is_reference;

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use oci_client::client::{BlobResponse, Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor};
use oci_client::secrets::RegistryAuth;
use oci_client::{Reference, RegistryOperation};
use reqwest::header::ACCEPT;

use crate::bundle::{Blob, Head, MAX_DOCUMENT_BYTES};
use crate::digest::Digest;
use crate::error::{Error, one_line};
use crate::signature::{self, Signature, SignatureDocuments};
use crate::store::{BlobWriter, Blobs, Staged, Staging};
use reference::{credentials, is_loopback, parse};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte.
const READ_TIMEOUT: Duration = Duration::from_secs(20);

/// For a whole manifest.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Of what a registry says of an error.
const MAX_EXPLANATION_BYTES: usize = 1000;

const USER_AGENT: &str = concat!("wisp/", env!("CARGO_PKG_VERSION"));

/// Times a blob is asked for in vain before it is given up.
const ATTEMPTS: u32 = 5;
/// Bytes that make an attempt that broke off worth something, and how many may be.
const PROGRESS: u64 = 1 << 20;
const MAX_BREAKS: u32 = 1000;
const PAUSE: Duration = Duration::from_millis(200);

/// Told of the bytes that have come or gone, as they do.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// A repository of bundles, and the way to it.
pub struct Remote {
    client: Client,
    /// For manifests.
    http: reqwest::Client,
    reference: Reference,
    auth: RegistryAuth,
    /// Whether it is spoken to without TLS.
    is_plain: bool,
}

impl Remote {
    /// Reads `oci://host/name:tag` or `…@sha256:…`. Plain HTTP is spoken to this machine itself,
    /// and to others only where `plain_http` says so. Credentials are those of docker or podman.
    ///
    /// # Errors
    /// Not such a reference, or credentials that cannot be read.
    pub fn new(text: &str, plain_http: bool) -> Result<Self, Error> {
        let reference = parse(text).map_err(Error::InvalidInput)?;
        let registry = reference.resolve_registry().to_owned();
        let is_plain = plain_http || is_loopback(&registry);
        let protocol = match is_plain {
            true => ClientProtocol::HttpsExcept(vec![registry.clone()]),
            false => ClientProtocol::Https,
        };
        // Already there, where another remote was made before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_from(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: USER_AGENT,
            ..ClientConfig::default()
        });
        let client = client.map_err(|error| explain(&registry, &error))?;
        let http = reqwest::Client::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .timeout(MANIFEST_TIMEOUT)
            .user_agent(USER_AGENT)
            .build();
        let http = http.map_err(|error| explain(&registry, &error.into()))?;
        let auth = credentials(&registry)?;
        if is_plain && !is_loopback(&registry) && auth != RegistryAuth::Anonymous {
            return Err(Error::InvalidInput(format!(
                "{registry}: credentials are not sent without TLS, but to this machine"
            )));
        }
        Ok(Self { client, http, reference, auth, is_plain })
    }

    /// Pulls the bundle into `staging`; blobs that `have` holds are not asked for again.
    ///
    /// # Errors
    /// The registry cannot be reached, does not have it, or sends something else.
    pub async fn pull(
        &self,
        staging: Staging,
        have: Option<&Blobs>,
        progress: Progress<'_>,
    ) -> Result<Staged, Error> {
        let manifest = self.manifest(&self.reference).await?;
        let manifest = manifest
            .ok_or_else(|| Error::Registry(format!("there is no bundle {}", self.reference)))?;
        let digest = Digest::of(&manifest);
        let head = Head::read(&manifest, staging.limit()).map_err(Error::BundleRefused)?;
        staging.blobs.put("the manifest", &mut &manifest[..], MAX_DOCUMENT_BYTES)?;
        for blob in head.blobs() {
            if staging.blobs.size(&blob.digest).is_some()
                || have.is_some_and(|have| staging.blobs.borrow(have, &blob.digest))
            {
                progress(blob.size);
                continue;
            }
            self.pull_blob(&staging.blobs, blob, progress).await?;
        }
        let signatures = self.pull_signatures(&staging.blobs, &digest).await?;
        staging.finish(&digest, signatures)
    }

    /// The digest that the reference names now.
    ///
    /// # Errors
    /// As [`Remote::pull`].
    pub async fn resolve(&self) -> Result<Digest, Error> {
        let manifest = self.manifest(&self.reference).await?;
        let manifest = manifest
            .ok_or_else(|| Error::Registry(format!("there is no bundle {}", self.reference)))?;
        Ok(Digest::of(&manifest))
    }

    /// The manifest's bytes, if there is one. Asked for here rather than by the client, which
    /// would take in whatever comes, however large.
    async fn manifest(&self, reference: &Reference) -> Result<Option<Vec<u8>>, Error> {
        let registry = self.reference.resolve_registry();
        let unreadable = |error: reqwest::Error| explain(registry, &error.into());
        let token = self.client.auth(reference, &self.auth, RegistryOperation::Pull);
        let token = tokio::time::timeout(MANIFEST_TIMEOUT, token).await.map_err(|_| {
            Error::Registry(format!("{registry} did not let wisp in within {MANIFEST_TIMEOUT:?}"))
        })?;
        let token = token.map_err(|error| explain(registry, &error))?;
        let scheme = if self.is_plain { "http" } else { "https" };
        let tag = reference.digest().or(reference.tag()).unwrap_or("latest");
        let url = format!("{scheme}://{registry}/v2/{}/manifests/{tag}", reference.repository());
        let request = self.http.get(url).header(ACCEPT, OCI_IMAGE_MEDIA_TYPE);
        let request = match (token, &self.auth) {
            (Some(token), _) => request.bearer_auth(token),
            (None, RegistryAuth::Basic(user, password)) => request.basic_auth(user, Some(password)),
            (None, RegistryAuth::Anonymous | RegistryAuth::Bearer(_)) => request,
        };
        let mut response = request.send().await.map_err(unreadable)?;
        let status = response.status();
        let mut bytes = Vec::new();
        while let Some(piece) = response.chunk().await.map_err(unreadable)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > MAX_DOCUMENT_BYTES {
                return Err(Error::BundleRefused(format!(
                    "the manifest has more than the {MAX_DOCUMENT_BYTES} bytes that are taken here"
                )));
            }
        }
        match status.as_u16() {
            200 => match reference.digest() {
                Some(asked) if asked != Digest::of(&bytes).to_string() => Err(Error::Registry(
                    format!("asked for the manifest {asked}, got {}", Digest::of(&bytes)),
                )),
                _ => Ok(Some(bytes)),
            },
            404 => Ok(None),
            code => {
                let message = String::from_utf8_lossy(&bytes).into_owned();
                let url = reference.to_string();
                Err(explain(registry, &OciDistributionError::ServerError { code, url, message }))
            }
        }
    }

    async fn pull_blob(
        &self,
        blobs: &Blobs,
        blob: &Blob,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        let what = format!("blob {}", blob.digest);
        let mut writer = blobs.writer(&what, blob.size)?;
        let (mut attempt, mut breaks) = (1, 0);
        while writer.written() < blob.size || attempt == 1 {
            let before = writer.written();
            match self.pull_rest(&mut writer, blob, progress).await {
                Ok(()) if writer.written() == blob.size => break,
                Ok(()) if attempt >= ATTEMPTS => {
                    return Err(Error::Registry(format!(
                        "{what}: expected {} bytes, got {}",
                        blob.size,
                        writer.written()
                    )));
                }
                Err(Pull::Fatal(error)) => return Err(error),
                Err(Pull::Broken(error)) if attempt >= ATTEMPTS => return Err(error),
                Ok(()) | Err(Pull::Broken(_)) => {}
            }
            tracing::debug!(%blob.digest, before, after = writer.written(), "resumed");
            // What got further is no failed attempt; but it must not go on by a byte at a time.
            breaks += 1;
            let is_further = writer.written() - before >= PROGRESS && breaks < MAX_BREAKS;
            attempt = if is_further { 1 } else { attempt + 1 };
            tokio::time::sleep(PAUSE * attempt).await;
        }
        let (digest, _) = writer.finish()?;
        match digest == blob.digest {
            true => Ok(()),
            false => {
                Err(Error::BundleRefused(format!("{what}: the registry sent content of {digest}")))
            }
        }
    }

    /// Asks for what is missing of a blob and writes what comes.
    async fn pull_rest(
        &self,
        writer: &mut BlobWriter<'_>,
        blob: &Blob,
        progress: Progress<'_>,
    ) -> Result<(), Pull> {
        let registry = self.reference.resolve_registry();
        let descriptor = OciDescriptor {
            media_type: blob.media_type.clone(),
            digest: blob.digest.to_string(),
            size: blob.size.cast_signed(),
            ..OciDescriptor::default()
        };
        let offset = writer.written();
        let asked = match offset {
            // With a range, an empty blob would be refused.
            0 => self
                .client
                .pull_blob_stream(&self.reference, &descriptor)
                .await
                .map(BlobResponse::Full),
            _ => {
                self.client
                    .pull_blob_stream_partial(&self.reference, &descriptor, offset, None)
                    .await
            }
        };
        let (mut stream, mut skip) = match asked {
            Ok(BlobResponse::Full(stream)) => (stream, offset),
            Ok(BlobResponse::Partial(stream)) => (stream, 0),
            Err(error) if is_not_found(&error) => {
                return Err(Pull::Fatal(Error::Registry(format!(
                    "it has no blob {}",
                    blob.digest
                ))));
            }
            Err(error) if is_refusal(&error) => return Err(Pull::Fatal(explain(registry, &error))),
            Err(error) => return Err(Pull::Broken(explain(registry, &error))),
        };
        while let Some(bytes) = stream.next().await {
            let bytes = bytes.map_err(|error| {
                Pull::Broken(Error::Registry(format!(
                    "{registry}: blob {} broke off after {} of {} bytes: {error}",
                    blob.digest,
                    writer.written(),
                    blob.size
                )))
            })?;
            // A registry that knows no ranges starts anew.
            let skipped = skip.min(bytes.len() as u64);
            skip -= skipped;
            let bytes = &bytes[skipped as usize..];
            writer.write(bytes).map_err(Pull::Fatal)?;
            progress(bytes.len() as u64);
        }
        Ok(())
    }

    async fn pull_signatures(&self, blobs: &Blobs, bundle: &Digest) -> Result<Vec<Digest>, Error> {
        let signatures = self.signatures(bundle).await?;
        if signatures.is_empty() {
            return Ok(Vec::new());
        }
        let documents = SignatureDocuments::of(&signatures);
        for blob in documents.blobs.iter().map(|blob| &blob[..]).chain([&documents.manifest[..]]) {
            blobs.put("a signature", &mut &*blob, MAX_DOCUMENT_BYTES)?;
        }
        Ok(vec![Digest::of(&documents.manifest)])
    }

    /// The signatures that lie beside a bundle.
    async fn signatures(&self, bundle: &Digest) -> Result<Vec<Signature>, Error> {
        let reference = self.tagged(&signature::tag(bundle));
        let Some(manifest) = self.manifest(&reference).await? else { return Ok(Vec::new()) };
        let mut payloads = BTreeMap::new();
        for digest in Signature::payloads(&manifest).map_err(Error::BundleRefused)? {
            let bytes = Bytes::from(self.small_blob(&digest, signature::MAX_BYTES).await?);
            if Digest::of(&bytes) != digest {
                return Err(Error::BundleRefused(format!(
                    "the signature {digest} has other content"
                )));
            }
            payloads.insert(digest, bytes);
        }
        let read = Signature::read(&manifest, |digest| payloads.get(digest).cloned());
        read.map_err(Error::BundleRefused)
    }

    async fn small_blob(&self, digest: &Digest, limit: u64) -> Result<Vec<u8>, Error> {
        let registry = self.reference.resolve_registry();
        let descriptor = OciDescriptor { digest: digest.to_string(), ..OciDescriptor::default() };
        let stream = self.client.pull_blob_stream(&self.reference, &descriptor).await;
        let mut stream = stream.map_err(|error| explain(registry, &error))?;
        let mut bytes = Vec::new();
        while let Some(piece) = stream.next().await {
            let piece =
                piece.map_err(|error| Error::Registry(format!("{registry}: {digest}: {error}")))?;
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > limit {
                return Err(Error::BundleRefused(format!("{digest} has more than {limit} bytes")));
            }
        }
        Ok(bytes)
    }

    fn tagged(&self, tag: &str) -> Reference {
        let (registry, repository) = (self.reference.registry(), self.reference.repository());
        Reference::with_tag(registry.to_owned(), repository.to_owned(), tag.to_owned())
    }
}

/// Why a pull stopped, and whether another try could go further.
enum Pull {
    Broken(Error),
    Fatal(Error),
}

fn is_not_found(error: &OciDistributionError) -> bool {
    match error {
        OciDistributionError::ImageManifestNotFoundError(_) => true,
        OciDistributionError::ServerError { code, .. } => *code == 404,
        OciDistributionError::RegistryError { envelope, .. } => {
            use oci_client::errors::OciErrorCode::{
                BlobUnknown, ManifestUnknown, NameUnknown, NotFound,
            };
            envelope.errors.iter().any(|error| {
                matches!(error.code, BlobUnknown | ManifestUnknown | NameUnknown | NotFound)
            })
        }
        _ => false,
    }
}

/// Whether the registry understood and said no.
fn is_refusal(error: &OciDistributionError) -> bool {
    matches!(
        error,
        OciDistributionError::UnauthorizedError { .. }
            | OciDistributionError::AuthenticationFailure(_)
            | OciDistributionError::RegistryError { .. }
            | OciDistributionError::ServerError { code: 401 | 403, .. }
    )
}

fn explain(registry: &str, error: &OciDistributionError) -> Error {
    use std::error::Error as _;
    let text = match error {
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_)
        | OciDistributionError::ServerError { code: 401 | 403, .. } => {
            format!(
                "{registry} refuses these credentials, or wants some: `docker login {registry}` keeps them where wisp looks"
            )
        }
        error => {
            let mut text = format!("{registry}: {error}");
            let mut cause = error.source();
            while let Some(error) = cause {
                text.push_str(&format!(": {error}"));
                cause = error.source();
            }
            // What a registry says is as long as it likes.
            text.truncate(text.floor_char_boundary(MAX_EXPLANATION_BYTES));
            one_line(text.trim_end())
        }
    };
    Error::Registry(text)
}
