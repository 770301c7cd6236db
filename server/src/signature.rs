//! Signatures over a bundle's digest, as cosign makes and verifies them: ECDSA on P-256 over a
//! small JSON payload that names the digest, kept as an artifact of its own beside the bundle.
//!
//! What a signature promises: who holds the private key vouched for exactly these bytes. It says
//! nothing of when, and nothing is asked of a transparency log.

use std::collections::BTreeMap;
use std::path::Path;
use std::{fs, io};

use bytes::Bytes;
use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use p256::ecdsa::signature::{Signer, Verifier};
use p256::ecdsa::{DerSignature, SigningKey, VerifyingKey};
use p256::pkcs8::{DecodePrivateKey, DecodePublicKey, EncodePublicKey};
use serde_json::{Value, json};

use crate::digest::Digest;

// <https://github.com/sigstore/cosign/blob/main/specs/SIGNATURE_SPEC.md>
const PAYLOAD_TYPE: &str = "application/vnd.dev.cosign.simplesigning.v1+json";
const CONFIG_TYPE: &str = "application/vnd.oci.image.config.v1+json";
const ANNOTATION: &str = "dev.cosignproject.cosign/signature";
const KIND: &str = "cosign container image signature";

/// Keys and signatures are small; what is not is none.
pub const MAX_BYTES: u64 = 64 << 10;

/// Of one bundle.
const MAX_SIGNATURES: usize = 100;

/// A payload and its signature, in doubt until verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signature {
    payload: Bytes,
    /// Of the payload's layer: the signature as DER in base64, and what else cosign notes there.
    annotations: BTreeMap<String, String>,
}

/// A bundle's signatures as one artifact.
pub struct SignatureDocuments {
    /// The payloads, and the config.
    pub blobs: Vec<Bytes>,
    pub manifest: Vec<u8>,
}

/// The tag under which a bundle's signatures lie in its repository.
pub fn tag(bundle: &Digest) -> String {
    format!("sha256-{}.sig", bundle.hex())
}

impl Signature {
    /// Signs a bundle's digest. The same key and bundle give the same signature.
    pub fn sign(bundle: &Digest, key: &PrivateKey) -> Self {
        let payload = json!({
            "critical": {
                "identity": { "docker-reference": "" },
                "image": { "docker-manifest-digest": bundle.to_string() },
                "type": KIND,
            },
            "optional": null,
        });
        let payload = payload.to_string();
        let signature: DerSignature = key.0.sign(payload.as_bytes());
        let signature = to_base64(signature.as_bytes());
        let annotations = BTreeMap::from([(ANNOTATION.to_owned(), signature)]);
        Self { payload: payload.into(), annotations }
    }

    /// Whether `key` signed this, and this very bundle.
    pub fn is_by(&self, key: &PublicKey, bundle: &Digest) -> bool {
        let signature = self.annotations.get(ANNOTATION).and_then(|text| from_base64(text));
        let signature = signature.and_then(|bytes| DerSignature::from_bytes(&bytes).ok());
        if signature.is_none_or(|signature| key.key.verify(&self.payload, &signature).is_err()) {
            return false;
        }
        let Ok(payload) = serde_json::from_slice::<Value>(&self.payload) else { return false };
        let critical = &payload["critical"];
        critical["type"] == KIND
            && critical["image"]["docker-manifest-digest"] == bundle.to_string()
    }

    /// The signatures in a signature artifact; `payload` finds a blob of it.
    ///
    /// # Errors
    /// A text: it is not a signature artifact.
    pub fn read(
        manifest: &[u8],
        payload: impl Fn(&Digest) -> Option<Bytes>,
    ) -> Result<Vec<Self>, String> {
        let manifest: OciImageManifest = serde_json::from_slice(manifest)
            .map_err(|error| format!("the signature is not an OCI image manifest: {error}"))?;
        let mut signatures = Vec::new();
        for layer in manifest.layers.iter().filter(|layer| layer.media_type == PAYLOAD_TYPE) {
            let annotations = layer.annotations.clone().unwrap_or_default();
            if !annotations.contains_key(ANNOTATION) {
                return Err(format!("the signature's layer has no annotation {ANNOTATION}"));
            }
            let digest = Digest::parse(&layer.digest)?;
            let payload = payload(&digest)
                .ok_or_else(|| format!("the signature's payload {digest} is missing"))?;
            signatures.push(Self { payload, annotations });
        }
        Ok(signatures)
    }

    /// The payloads that a signature artifact names.
    ///
    /// # Errors
    /// A text: it is not one, or names too much.
    pub fn payloads(manifest: &[u8]) -> Result<Vec<Digest>, String> {
        let mut blobs = Self::blobs(manifest)?;
        // The config says nothing.
        blobs.remove(0);
        Ok(blobs)
    }

    /// All blobs that a signature artifact names, the config first.
    ///
    /// # Errors
    /// As [`Signature::payloads`].
    pub fn blobs(manifest: &[u8]) -> Result<Vec<Digest>, String> {
        let manifest: OciImageManifest = serde_json::from_slice(manifest)
            .map_err(|error| format!("the signature is not an OCI image manifest: {error}"))?;
        let blobs = std::iter::once(&manifest.config).chain(&manifest.layers);
        if manifest.layers.len() > MAX_SIGNATURES {
            return Err(format!(
                "it has {} signatures, expected at most {MAX_SIGNATURES}",
                manifest.layers.len()
            ));
        }
        if blobs.clone().any(|blob| u64::try_from(blob.size).map_or(true, |size| size > MAX_BYTES))
        {
            return Err(format!("a signature has a blob of more than {MAX_BYTES} bytes"));
        }
        blobs.map(|blob| Digest::parse(&blob.digest)).collect()
    }
}

impl SignatureDocuments {
    /// Writes them as cosign does: a layer each.
    pub fn of(signatures: &[Signature]) -> Self {
        let digests: Vec<_> =
            signatures.iter().map(|signature| Digest::of(&signature.payload).to_string()).collect();
        let config = json!({
            "architecture": "",
            "created": "0001-01-01T00:00:00Z",
            "history": signatures.iter().map(|_| json!({ "created": "0001-01-01T00:00:00Z" })).collect::<Vec<_>>(),
            "os": "",
            "rootfs": { "type": "layers", "diff_ids": digests },
            "config": {},
        });
        let config = Bytes::from(config.to_string());
        let descriptor = |media_type: &str, content: &[u8]| OciDescriptor {
            media_type: media_type.to_owned(),
            digest: Digest::of(content).to_string(),
            size: content.len() as i64,
            ..OciDescriptor::default()
        };
        let layers = signatures.iter().map(|signature| OciDescriptor {
            annotations: Some(signature.annotations.clone()),
            ..descriptor(PAYLOAD_TYPE, &signature.payload)
        });
        let manifest = OciImageManifest {
            schema_version: 2,
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            config: descriptor(CONFIG_TYPE, &config),
            layers: layers.collect(),
            subject: None,
            artifact_type: None,
            annotations: None,
        };
        let manifest = serde_json::to_vec(&manifest).expect("strings and numbers only");
        let payloads = signatures.iter().map(|signature| signature.payload.clone());
        Self { blobs: payloads.chain([config]).collect(), manifest }
    }
}

/// A key to sign with.
pub struct PrivateKey(SigningKey);

impl PrivateKey {
    /// Reads a P-256 key: PKCS#8 in PEM, not encrypted.
    ///
    /// # Errors
    /// A text: the file, and what was expected.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = read_text(path).map_err(|error| format!("{}: {error}", path.display()))?;
        if text.contains("ENCRYPTED") {
            return Err(format!(
                "{}: the key is encrypted, expected it in the clear",
                path.display()
            ));
        }
        let key = SigningKey::from_pkcs8_pem(&text).map_err(|error| {
            format!("{}: expected a P-256 private key as PKCS#8 in PEM: {error}", path.display())
        })?;
        Ok(Self(key))
    }
}

/// A key to verify with.
#[derive(Debug, Clone)]
pub struct PublicKey {
    key: VerifyingKey,
    /// The digest of the key's DER form, shortened: names it in lists and logs.
    pub fingerprint: String,
}

impl PublicKey {
    /// Reads the P-256 key in a PEM file, or all those in a folder's `.pem` and `.pub` files.
    ///
    /// # Errors
    /// A text: the file, and what was expected.
    pub fn read_all(path: &Path) -> Result<Vec<Self>, String> {
        let failed = |error: io::Error| format!("{}: {error}", path.display());
        if !fs::metadata(path).map_err(failed)?.is_dir() {
            return Ok(vec![Self::read(path)?]);
        }
        let entries = fs::read_dir(path).map_err(failed)?;
        let mut paths: Vec<_> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
        paths.retain(|path| path.extension().is_some_and(|ext| ext == "pem" || ext == "pub"));
        paths.sort();
        if paths.is_empty() {
            return Err(format!("{}: expected .pem or .pub files", path.display()));
        }
        paths.iter().map(|path| Self::read(path)).collect()
    }

    fn read(path: &Path) -> Result<Self, String> {
        let text = read_text(path).map_err(|error| format!("{}: {error}", path.display()))?;
        let odd = |error: String| {
            format!("{}: expected a P-256 public key in PEM: {error}", path.display())
        };
        let key =
            VerifyingKey::from_public_key_pem(&text).map_err(|error| odd(error.to_string()))?;
        let der = key.to_public_key_der().map_err(|error| odd(error.to_string()))?;
        let fingerprint = Digest::of(der.as_bytes()).short().to_owned();
        Ok(Self { key, fingerprint })
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    use io::Read;
    let mut text = String::new();
    fs::File::open(path)?.take(MAX_BYTES).read_to_string(&mut text)?;
    Ok(text)
}

fn to_base64(bytes: &[u8]) -> String {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.encode(bytes)
}

fn from_base64(text: &str) -> Option<Vec<u8>> {
    use base64::Engine;
    base64::engine::general_purpose::STANDARD.decode(text).ok()
}
