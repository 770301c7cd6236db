//! A bundle as an OCI artifact: an image manifest whose config is the bundle's manifest as JSON
//! and whose layers are its files, raw. A layer's digest is its file's digest.

use std::collections::BTreeMap;

use oci_client::manifest::{OCI_IMAGE_MEDIA_TYPE, OciDescriptor, OciImageManifest};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::manifest::{FileKind, Manifest, check_file};
use crate::digest::Digest;
use crate::sandbox::ComponentInfo;

/// What kind of artifact a bundle is.
pub const ARTIFACT_TYPE: &str = "application/vnd.wisp.bundle.v1+json";
const CONFIG_TYPE: &str = "application/vnd.wisp.bundle.config.v1+json";
const COMPONENT_TYPE: &str = "application/wasm";
// CNCF ModelPack's types, <https://github.com/modelpack/model-spec>.
const GRAPH_TYPE: &str = "application/vnd.cncf.model.weight.v1.raw";
const ASSET_TYPE: &str = "application/vnd.cncf.model.weight.config.v1.raw";
const TEST_TYPE: &str = "application/vnd.cncf.model.dataset.v1.raw";
const TITLE: &str = "org.opencontainers.image.title";
const MODEL_PATH: &str = "org.cncf.model.filepath";

/// The form of the config that this wisp reads and writes.
const FORMAT: u64 = 1;

/// A manifest or config is read into memory; registries refuse larger ones too.
pub const MAX_DOCUMENT_BYTES: u64 = 4 << 20;

const MAX_LAYERS: usize = 1000;

/// A blob that an artifact names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
}

/// A file of the bundle.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Its path in the bundle's folder.
    pub title: String,
    pub blob: Blob,
}

/// An image manifest, checked as far as can be without its config: enough to fetch the rest.
#[derive(Debug, Clone)]
pub struct Head {
    /// Of the manifest's own bytes: names the bundle.
    pub digest: Digest,
    pub manifest_size: u64,
    pub config: Blob,
    pub layers: Vec<Layer>,
}

/// A bundle whose every part is known.
#[derive(Debug, Clone)]
pub struct Artifact {
    pub head: Head,
    pub manifest: Manifest,
    /// What its component imports and exports.
    pub component: ComponentInfo,
}

/// The config as it is written. Its upper part is what the CNCF's Wasm artifacts say of a
/// component (<https://tag-runtime.cncf.io/wgs/wasm/deliverables/wasm-oci-artifact/>), for tools
/// that know nothing of wisp.
#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Config {
    architecture: String,
    os: String,
    layer_digests: Vec<Digest>,
    component: ComponentInfo,
    bundle: ConfigBundle,
}

#[derive(Serialize, Deserialize)]
struct ConfigBundle {
    format: u64,
    manifest: Manifest,
}

impl Head {
    /// Reads an image manifest whose digest is known to be that of its bytes. `limit` bounds the
    /// sum of its layers, bytes.
    ///
    /// # Errors
    /// A text: not a bundle, layers that are missing, too many, too large or badly named.
    pub fn read(bytes: &[u8], limit: u64) -> Result<Self, String> {
        let manifest: OciImageManifest = serde_json::from_slice(bytes)
            .map_err(|error| format!("the manifest is not an OCI image manifest: {error}"))?;
        let artifact_type = manifest.artifact_type.as_deref();
        if artifact_type != Some(ARTIFACT_TYPE) || manifest.config.media_type != CONFIG_TYPE {
            return Err(format!(
                "not a wisp bundle: expected artifact type {ARTIFACT_TYPE} and config type {CONFIG_TYPE}, got {} and {}",
                artifact_type.unwrap_or("none"),
                manifest.config.media_type
            ));
        }
        if manifest.layers.len() > MAX_LAYERS {
            return Err(format!(
                "it has {} layers, expected at most {MAX_LAYERS}",
                manifest.layers.len()
            ));
        }
        let config = read_blob(&manifest.config).map_err(|reason| format!("config: {reason}"))?;
        if config.size > MAX_DOCUMENT_BYTES {
            return Err(format!(
                "config: expected at most {MAX_DOCUMENT_BYTES} bytes, got {}",
                config.size
            ));
        }
        let mut layers: Vec<Layer> = Vec::new();
        let mut total = 0u64;
        for (index, descriptor) in manifest.layers.iter().enumerate() {
            let layer =
                read_layer(descriptor).map_err(|reason| format!("layer {index}: {reason}"))?;
            if layers.iter().any(|earlier| earlier.title == layer.title) {
                return Err(format!("two layers have the title `{}`", layer.title));
            }
            total = total.saturating_add(layer.blob.size);
            if total > limit {
                return Err(format!(
                    "layer {index}, `{}`: with its {} bytes the bundle is over the {limit} bytes that are taken here",
                    layer.title, layer.blob.size
                ));
            }
            layers.push(layer);
        }
        let components = layers.iter().filter(|layer| layer.blob.media_type == COMPONENT_TYPE);
        let components: Vec<_> = components.map(|layer| layer.title.as_str()).collect();
        match components[..] {
            [_] if layers[0].blob.media_type == COMPONENT_TYPE => {}
            [one] => return Err(format!("the component `{one}` must be the first layer")),
            _ => {
                return Err(format!(
                    "expected one layer of type {COMPONENT_TYPE}, got {}: {components:?}",
                    components.len()
                ));
            }
        }
        let manifest_size = bytes.len() as u64;
        Ok(Self { digest: Digest::of(bytes), manifest_size, config, layers })
    }

    /// The config and all layers.
    pub fn blobs(&self) -> impl Iterator<Item = &Blob> {
        std::iter::once(&self.config).chain(self.layers.iter().map(|layer| &layer.blob))
    }

    /// What the bundle takes in a store or on the wire, bytes.
    pub fn total_size(&self) -> u64 {
        self.manifest_size + self.blobs().map(|blob| blob.size).sum::<u64>()
    }
}

impl Artifact {
    /// Reads the config of a bundle.
    ///
    /// # Errors
    /// A text: written by a newer wisp, unknown keys, or a file that no layer holds.
    pub fn read(head: Head, config: &[u8]) -> Result<Self, String> {
        let config: Value = serde_json::from_slice(config)
            .map_err(|error| format!("the config is not JSON: {error}"))?;
        // First, as a newer form may have any other keys.
        match config["bundle"]["format"].as_u64() {
            Some(FORMAT) => {}
            Some(newer) if newer > FORMAT => {
                return Err(format!(
                    "its manifest has format {newer} of a newer wisp, this one reads format {FORMAT}"
                ));
            }
            _ => return Err(format!("the config: expected `bundle.format` {FORMAT}")),
        }
        let config: Config = serde_json::from_value(config)
            .map_err(|error| format!("the config is not a bundle's: {error}"))?;
        let manifest = config.bundle.manifest;
        manifest.check()?;
        for (kind, file) in manifest.files() {
            let layer = head.layers.iter().find(|layer| layer.title == file);
            let layer =
                layer.ok_or_else(|| format!("no layer has the manifest's file `{file}`"))?;
            let is_component = layer.blob.media_type == COMPONENT_TYPE;
            if is_component != (kind == FileKind::Component) {
                return Err(format!("the layer `{file}` has the type {}", layer.blob.media_type));
            }
        }
        if manifest.component.is_none() {
            return Err("its manifest names no component".to_owned());
        }
        Ok(Self { head, manifest, component: config.component })
    }

    /// The layer of that file.
    pub fn layer(&self, file: &str) -> Option<&Layer> {
        self.head.layers.iter().find(|layer| layer.title == file)
    }

    /// Writes config and image manifest for these files; the component comes first. The same
    /// input gives the same bytes.
    ///
    /// # Errors
    /// A text, where the result would be refused: [`Head::read`], [`Artifact::read`].
    pub fn write(
        manifest: Manifest,
        files: &[(FileKind, String, Digest, u64)],
        component: ComponentInfo,
    ) -> Result<(Self, Documents), String> {
        let mut files: Vec<_> = files.iter().collect();
        files.sort_by(|(kind, name, ..), (other_kind, other, ..)| {
            (kind, name).cmp(&(other_kind, other))
        });
        files.dedup_by(|(_, name, ..), (_, other, ..)| name == other);
        let layers = files.iter().map(|(kind, title, digest, size)| {
            let mut annotations = BTreeMap::from([(TITLE.to_owned(), title.clone())]);
            if matches!(kind, FileKind::Graph | FileKind::Asset) {
                annotations.insert(MODEL_PATH.to_owned(), title.clone());
            }
            descriptor(media_type(*kind), digest, *size, Some(annotations))
        });
        let config = Config {
            architecture: "wasm".to_owned(),
            os: "wasip2".to_owned(),
            layer_digests: files.iter().map(|(_, _, digest, _)| digest.clone()).collect(),
            component,
            bundle: ConfigBundle { format: FORMAT, manifest },
        };
        let unwritable = |error: serde_json::Error| format!("it cannot be written: {error}");
        let config = serde_json::to_vec(&config).map_err(unwritable)?;
        let image = OciImageManifest {
            schema_version: 2,
            media_type: Some(OCI_IMAGE_MEDIA_TYPE.to_owned()),
            config: descriptor(CONFIG_TYPE, &Digest::of(&config), config.len() as u64, None),
            layers: layers.collect(),
            subject: None,
            artifact_type: Some(ARTIFACT_TYPE.to_owned()),
            annotations: None,
        };
        let manifest = serde_json::to_vec(&image).map_err(unwritable)?;
        let artifact = Self::read(Head::read(&manifest, u64::MAX)?, &config)?;
        Ok((artifact, Documents { manifest, config }))
    }
}

/// The two JSON documents of an artifact, as bytes.
pub struct Documents {
    pub manifest: Vec<u8>,
    pub config: Vec<u8>,
}

fn media_type(kind: FileKind) -> &'static str {
    match kind {
        FileKind::Component => COMPONENT_TYPE,
        FileKind::Graph => GRAPH_TYPE,
        FileKind::Asset => ASSET_TYPE,
        FileKind::Test => TEST_TYPE,
    }
}

fn descriptor(
    media_type: &str,
    digest: &Digest,
    size: u64,
    annotations: Option<BTreeMap<String, String>>,
) -> OciDescriptor {
    OciDescriptor {
        media_type: media_type.to_owned(),
        digest: digest.to_string(),
        size: size.cast_signed(),
        annotations,
        ..OciDescriptor::default()
    }
}

fn read_blob(descriptor: &OciDescriptor) -> Result<Blob, String> {
    Ok(Blob {
        media_type: descriptor.media_type.clone(),
        digest: Digest::parse(&descriptor.digest)?,
        size: u64::try_from(descriptor.size)
            .map_err(|_| format!("expected a size of 0 or more, got {}", descriptor.size))?,
    })
}

fn read_layer(descriptor: &OciDescriptor) -> Result<Layer, String> {
    let blob = read_blob(descriptor)?;
    let title = descriptor.annotations.as_ref().and_then(|annotations| annotations.get(TITLE));
    let title = title.ok_or_else(|| format!("expected the annotation {TITLE}"))?;
    check_file(title).map_err(|reason| format!("title {reason}"))?;
    Ok(Layer { title: title.clone(), blob })
}
