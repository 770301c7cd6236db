//! Bundles in OCI registries: pulled blob by blob, each checked as it comes and resumed where it
//! breaks off, and pushed so that any other client can copy them.

mod push;
mod reference;

pub use reference::is_reference;

use std::time::Duration;

use futures_util::StreamExt;
use oci_client::Reference;
use oci_client::client::{BlobResponse, Client, ClientConfig, ClientProtocol};
use oci_client::errors::OciDistributionError;
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor};
use oci_client::secrets::RegistryAuth;

use crate::bundle::{Blob, Head, MAX_DOCUMENT_BYTES};
use crate::digest::Digest;
use crate::error::Error;
use crate::signature::{self, Signature};
use crate::store::{BlobWriter, Blobs, Staged, Staging};
use reference::{credentials, is_loopback, parse};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Without a byte.
const READ_TIMEOUT: Duration = Duration::from_secs(20);
/// For a whole manifest.
const MANIFEST_TIMEOUT: Duration = Duration::from_secs(60);

/// Times a blob is asked for before it is given up.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_millis(200);

/// Told of the bytes that have come or gone, as they do.
pub type Progress<'a> = &'a (dyn Fn(u64) + Sync);

/// A repository of bundles, and the way to it.
pub struct Remote {
    client: Client,
    reference: Reference,
    auth: RegistryAuth,
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
        let protocol = match plain_http || is_loopback(&registry) {
            true => ClientProtocol::HttpsExcept(vec![registry.clone()]),
            false => ClientProtocol::Https,
        };
        // Already there, where another remote was made before.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = Client::try_from(ClientConfig {
            protocol,
            connect_timeout: Some(CONNECT_TIMEOUT),
            read_timeout: Some(READ_TIMEOUT),
            user_agent: concat!("wisp/", env!("CARGO_PKG_VERSION")),
            ..ClientConfig::default()
        });
        let client = client.map_err(|error| explain(&registry, &error))?;
        let auth = credentials(&registry)?;
        Ok(Self { client, reference, auth })
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
        if let Some(asked) = self.reference.digest()
            && asked != digest.to_string()
        {
            return Err(Error::Registry(format!("asked for the manifest {asked}, got {digest}")));
        }
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

    async fn manifest(&self, reference: &Reference) -> Result<Option<Vec<u8>>, Error> {
        let registry = self.reference.resolve_registry();
        let pull = self.client.pull_manifest_raw(reference, &self.auth, &[OCI_IMAGE_MEDIA_TYPE]);
        let pulled = tokio::time::timeout(MANIFEST_TIMEOUT, pull).await.map_err(|_| {
            Error::Registry(format!("{registry} sent no manifest within {MANIFEST_TIMEOUT:?}"))
        })?;
        match pulled {
            Ok((bytes, _)) if bytes.len() as u64 > MAX_DOCUMENT_BYTES => {
                Err(Error::BundleRefused(format!(
                    "the manifest has {} bytes, expected at most {MAX_DOCUMENT_BYTES}",
                    bytes.len()
                )))
            }
            Ok((bytes, _)) => Ok(Some(bytes.to_vec())),
            Err(error) if is_not_found(&error) => Ok(None),
            Err(error) => Err(explain(registry, &error)),
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
        let mut attempt = 1;
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
            attempt += 1;
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
        let reference = self.tagged(&signature::tag(bundle));
        let Some(manifest) = self.manifest(&reference).await? else { return Ok(Vec::new()) };
        let parts = Signature::blobs(&manifest).map_err(Error::BundleRefused)?;
        for digest in parts {
            if blobs.size(&digest).is_none() {
                let limit = signature::MAX_BYTES;
                let bytes = self.small_blob(&digest, limit).await?;
                blobs.receive("a signature", &digest, &mut &bytes[..], limit)?;
            }
        }
        blobs.put("a signature", &mut &manifest[..], MAX_DOCUMENT_BYTES)?;
        Ok(vec![Digest::of(&manifest)])
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
    )
}

fn explain(registry: &str, error: &OciDistributionError) -> Error {
    use std::error::Error as _;
    let text = match error {
        OciDistributionError::UnauthorizedError { .. }
        | OciDistributionError::AuthenticationFailure(_) => {
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
            text
        }
    };
    Error::Registry(text)
}
