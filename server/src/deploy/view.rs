//! What is deployed, as operators see it.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::{Deserialize, Serialize};

use super::Deployer;
use crate::error::Error;
use crate::repository::{Model, State};
use crate::store::{ModelRecord, Policy, VersionRecord};

/// A model as an operator sees it.
#[derive(Debug, Serialize, Deserialize)]
pub struct ModelView {
    pub name: String,
    /// In the order of their deployment.
    pub versions: Vec<VersionView>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub shadow: Option<ShadowView>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub policy: Option<Policy>,
    /// Whether it is served from a path, and so not to be changed from here.
    pub from_path: bool,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct VersionView {
    pub version: String,
    /// `cold`, `waking`, `prepared`, `idle`, `unloaded` or `failed`; `planned` of what is not
    /// served.
    pub state: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub reason: Option<String>,
    /// Of an idle one: since it was last used.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub idle_ms: Option<u64>,
    /// What it takes, or would if it were loaded; 0 where that is not known yet.
    pub memory_bytes: u64,
    /// Of the requests that name no version, percent.
    pub traffic: u8,
    /// Whether a client may ask for it by name.
    pub available: bool,
    #[serde(flatten, skip_serializing_if = "Option::is_none", default)]
    pub stored: Option<VersionRecord>,
}

#[derive(Debug, Serialize, Deserialize)]
pub struct ShadowView {
    pub version: String,
    pub percent: u8,
    pub equal: u64,
    pub different: u64,
    pub failed: u64,
    pub skipped: u64,
}

impl Deployer {
    /// All models, those from paths too.
    pub fn list(&self) -> Vec<ModelView> {
        let models = self.inference.repository.models();
        models.iter().map(|model| self.view_of(model)).collect()
    }

    /// One model.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn view(&self, name: &str) -> Result<ModelView, Error> {
        Ok(self.view_of(&*self.inference.repository.model(name)?))
    }

    fn view_of(&self, model: &Model) -> ModelView {
        let name = model.name.clone();
        let from_path = self.inference.repository.is_listed(&name);
        let record = match from_path {
            true => None,
            false => self.store.model(&name).ok(),
        };
        let versions = model.versions().into_iter().map(|(version, traffic, available)| {
            let state = version.state();
            let name = state.name().to_owned();
            let (reason, idle) = match state {
                State::Failed(reason) => (Some(reason), None),
                State::Idle(idle) => (None, Some(idle)),
                State::Cold | State::Waking | State::Prepared | State::Unloaded => (None, None),
            };
            let stored = record.as_ref().and_then(|record| record.versions.get(&version.label));
            VersionView {
                version: version.label.clone(),
                state: name,
                reason,
                idle_ms: idle.map(|idle| idle.as_millis() as u64),
                memory_bytes: version.memory_bytes(),
                traffic,
                available,
                stored: stored.cloned(),
            }
        });
        let shadow = model.shadow().map(|shadow| {
            let count = |count: &AtomicU64| count.load(Ordering::Relaxed);
            ShadowView {
                version: shadow.version.label.clone(),
                percent: shadow.percent,
                equal: count(&shadow.counts.equal),
                different: count(&shadow.counts.different),
                failed: count(&shadow.counts.failed),
                skipped: count(&shadow.counts.skipped),
            }
        });
        let versions = versions.collect();
        let policy = record.map(|record| record.policy);
        ModelView { name, versions, shadow, policy, from_path }
    }
}

impl ModelView {
    /// What a record would come to, were it served.
    pub(super) fn planned(name: &str, record: &ModelRecord) -> Self {
        let available = record.available();
        let versions = record.in_order().into_iter().map(|(version, stored)| VersionView {
            version: version.to_owned(),
            state: "planned".to_owned(),
            reason: None,
            idle_ms: None,
            memory_bytes: stored.loaded_bytes.unwrap_or_default(),
            traffic: record.traffic.get(version).copied().unwrap_or(0),
            available: available.contains(version),
            stored: Some(stored.clone()),
        });
        let shadow = record.shadow.as_ref().map(|shadow| ShadowView {
            version: shadow.version.clone(),
            percent: shadow.percent,
            equal: 0,
            different: 0,
            failed: 0,
            skipped: 0,
        });
        ModelView {
            name: name.to_owned(),
            versions: versions.collect(),
            shadow,
            policy: Some(record.policy.clone()),
            from_path: false,
        }
    }
}
