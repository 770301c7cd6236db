//! Compiled plans in memory, as a mapping would hold them.

use bytes::Bytes;
use wisp_engine::{EngineKind, Graph};

const PAGE: usize = 4096;

/// The compiled plan of a file, under a key; `None` where one cannot be had.
pub fn compiled(onnx: &[u8], key: &str) -> Option<Vec<u8>> {
    let (_, compiled) = Graph::compile(onnx, EngineKind::Tract, true).ok()?;
    let mut file = Vec::new();
    compiled?.write(key, &mut file).expect("memory takes it");
    Some(file)
}

/// A file as it lies when it is mapped: from the beginning of a page on.
pub fn mapped(file: &[u8]) -> Bytes {
    let mut pages = vec![0; file.len() + PAGE];
    let from = pages.as_ptr().align_offset(PAGE);
    pages[from..from + file.len()].copy_from_slice(file);
    Bytes::from(pages).slice(from..from + file.len())
}
