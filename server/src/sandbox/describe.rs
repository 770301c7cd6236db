//! What a component asks for and offers, read from its bytes; nothing is compiled or run.

use serde::{Deserialize, Serialize};
use wasmparser::{Parser, Payload};

use super::guest::{PrepareError, check_kind};

/// The names of a component's imports and exports, as WIT has them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ComponentInfo {
    pub imports: Vec<String>,
    pub exports: Vec<String>,
    /// The world it is made for.
    pub target: String,
}

/// The world of all guests.
const TARGET: &str = "wisp:model/model@0.1.0";

impl ComponentInfo {
    /// Reads the outermost imports and exports.
    ///
    /// # Errors
    /// The bytes are not a component.
    pub fn of(component: &[u8]) -> Result<Self, PrepareError> {
        check_kind(component)?;
        let mut info = Self { imports: vec![], exports: vec![], target: TARGET.to_owned() };
        let mut depth = 0usize;
        let broken = |error: wasmparser::BinaryReaderError| {
            PrepareError::of(format!("not a component: {error}"))
        };
        for payload in Parser::new(0).parse_all(component) {
            match payload.map_err(broken)? {
                Payload::ModuleSection { .. } | Payload::ComponentSection { .. } => depth += 1,
                Payload::End(_) => depth = depth.saturating_sub(1),
                Payload::ComponentImportSection(section) if depth == 0 => {
                    for import in section {
                        info.imports.push(import.map_err(broken)?.name.name.to_owned());
                    }
                }
                Payload::ComponentExportSection(section) if depth == 0 => {
                    for export in section {
                        info.exports.push(export.map_err(broken)?.name.name.to_owned());
                    }
                }
                _ => {}
            }
        }
        Ok(info)
    }
}
