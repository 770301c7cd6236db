//! A file of a bundle.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::digest::Digest;

/// A file's bytes, in memory or mapped, and their digest.
#[derive(Debug, Clone)]
pub struct Content {
    bytes: Bytes,
    digest: Digest,
    /// Whether the bytes have the digest, once that is known.
    whole: Arc<OnceLock<Result<(), String>>>,
}

impl Content {
    pub fn new(bytes: Bytes) -> Self {
        let digest = Digest::of(&bytes);
        Self { bytes, digest, whole: Arc::new(OnceLock::from(Ok(()))) }
    }

    /// What is stored as the blob of that digest. It is digested when it is first asked for, as
    /// most of it is not where a model wakes: its guest and its graphs are there, compiled.
    pub fn stored(bytes: Bytes, digest: Digest) -> Self {
        Self { bytes, digest, whole: Arc::default() }
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// # Errors
    /// A text: the disk has made something else of it.
    pub fn bytes(&self) -> Result<&Bytes, String> {
        let whole = self.whole.get_or_init(|| match Digest::of(&self.bytes) {
            actual if actual == self.digest => Ok(()),
            actual => Err(format!(
                "the blob {} is damaged, its content is {actual}: deploy the bundle again",
                self.digest
            )),
        });
        whole.clone().map(|()| &self.bytes)
    }
}
