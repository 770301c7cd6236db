//! Whether a change of a model's traffic makes sense.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::store::{ModelRecord, ShadowRecord};

pub(super) fn check_split(
    name: &str,
    record: &ModelRecord,
    traffic: &BTreeMap<String, u8>,
) -> Result<(), Error> {
    for (version, percent) in traffic {
        record.version(name, version)?;
        if !(1..=100).contains(percent) {
            return Err(Error::InvalidInput(format!(
                "split: expected 1 to 100 percent for version `{version}`, got {percent}"
            )));
        }
    }
    let total: u32 = traffic.values().map(|&percent| u32::from(percent)).sum();
    match total {
        100 => Ok(()),
        _ => Err(Error::InvalidInput(format!("split: expected 100 percent in all, got {total}"))),
    }
}

pub(super) fn check_shadow(
    name: &str,
    record: &ModelRecord,
    shadow: &ShadowRecord,
) -> Result<(), Error> {
    record.version(name, &shadow.version)?;
    if !(1..=100).contains(&shadow.percent) {
        return Err(Error::InvalidInput(format!(
            "shadow: expected 1 to 100 percent, got {}",
            shadow.percent
        )));
    }
    match record.traffic.get(&shadow.version) {
        Some(100) => Err(Error::Conflict(format!(
            "version `{}` of model `{name}` has all traffic, and cannot be its own shadow",
            shadow.version
        ))),
        _ => Ok(()),
    }
}
