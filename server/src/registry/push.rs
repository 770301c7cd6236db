//! Bundles and signatures on their way to a registry.

use futures_util::stream;
use oci_client::Reference;
use oci_client::manifest::OCI_IMAGE_MEDIA_TYPE;

use super::{Progress, Remote, explain};
use crate::digest::Digest;
use crate::error::Error;
use crate::signature::{self, Signature, SignatureDocuments};
use crate::store::{Blobs, Staged};

/// Sent at a time.
const PIECE: usize = 256 << 10;

impl Remote {
    /// Pushes the bundle, and the signatures that it has, and returns its pinned reference.
    ///
    /// # Errors
    /// The registry cannot be reached, or does not take it.
    pub async fn push(&self, staged: &Staged, progress: Progress<'_>) -> Result<String, Error> {
        let head = &staged.artifact.head;
        if let Some(digest) = self.reference.digest()
            && digest != head.digest.to_string()
        {
            return Err(Error::Conflict(format!(
                "the reference names {digest}, the bundle is {}",
                head.digest
            )));
        }
        let registry = self.reference.resolve_registry();
        self.client.store_auth_if_needed(registry, &self.auth).await;
        for blob in head.blobs() {
            self.push_blob(&staged.blobs, &blob.digest, progress).await?;
        }
        self.push_manifest(&self.reference, &staged.blobs.map(&head.digest)?).await?;
        self.push_signatures(&head.digest, staged.signatures()?).await?;
        let repository = self.reference.repository();
        Ok(format!("oci://{}/{repository}@{}", self.reference.registry(), head.digest))
    }

    /// Puts signatures beside the bundle of that digest, and beside those it has there.
    ///
    /// # Errors
    /// As [`Remote::push`].
    pub async fn push_signatures(&self, bundle: &Digest, new: Vec<Signature>) -> Result<(), Error> {
        if new.is_empty() {
            return Ok(());
        }
        let registry = self.reference.resolve_registry();
        self.client.store_auth_if_needed(registry, &self.auth).await;
        let mut signatures = self.signatures(bundle).await?;
        for signature in new {
            if !signatures.contains(&signature) {
                signatures.push(signature);
            }
        }
        let documents = SignatureDocuments::of(&signatures);
        for blob in documents.blobs {
            let digest = Digest::of(&blob).to_string();
            let pushed = self.client.push_blob(&self.reference, blob, &digest).await;
            pushed.map_err(|error| explain(registry, &error))?;
        }
        self.push_manifest(&self.tagged(&signature::tag(bundle)), &documents.manifest).await
    }

    async fn push_blob(
        &self,
        blobs: &Blobs,
        digest: &Digest,
        progress: Progress<'_>,
    ) -> Result<(), Error> {
        let registry = self.reference.resolve_registry();
        let content = blobs.map(digest)?;
        let size = content.len() as u64;
        let name = digest.to_string();
        // A registry that cannot say is sent it.
        if self.client.blob_exists(&self.reference, &name).await.unwrap_or(false) {
            progress(size);
            return Ok(());
        }
        let pushed = match content.is_empty() {
            true => self.client.push_blob(&self.reference, content, &name).await,
            false => {
                let pieces: Vec<_> = (0..content.len())
                    .step_by(PIECE)
                    .map(|start| content.slice(start..content.len().min(start + PIECE)))
                    .collect();
                let pieces = stream::iter(pieces.into_iter().map(Ok));
                let pushed =
                    self.client.push_blob_stream(&self.reference, pieces, &name, Some(size));
                let pushed = pushed.await;
                progress(size);
                pushed
            }
        };
        pushed.map(drop).map_err(|error| explain(registry, &error))
    }

    async fn push_manifest(&self, reference: &Reference, manifest: &[u8]) -> Result<(), Error> {
        let media_type = reqwest::header::HeaderValue::from_static(OCI_IMAGE_MEDIA_TYPE);
        let pushed = self.client.push_manifest_raw(reference, manifest.to_vec(), media_type).await;
        pushed.map(drop).map_err(|error| explain(reference.resolve_registry(), &error))
    }
}
