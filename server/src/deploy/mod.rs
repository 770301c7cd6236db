//! What changes what is served: bundles taken in, traffic moved, versions taken out. Every
//! change is whole on disk before it is seen, and none is seen by half.

mod traffic;
mod view;

pub use view::{ModelView, ShadowView, VersionView};

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use crate::bundle::{check_name, check_version};
use crate::digest::Digest;
use crate::error::Error;
use crate::examine::{Examination, ExamineLimits, Report};
use crate::infer::Inference;
use crate::repository::{EngineSettings, Version};
use crate::signature::PublicKey;
use crate::store::{ModelRecord, Policy, ShadowRecord, Staged, Staging, Store, VersionRecord};
use traffic::{check_shadow, check_split};

/// Takes changes, one at a time.
pub struct Deployer {
    store: Arc<Store>,
    inference: Arc<Inference>,
    options: DeployOptions,
    /// Examinations take a core each and much memory: one at a time.
    examining: Mutex<()>,
    /// Held from the first look at the index to the switch.
    changing: Mutex<()>,
}

/// What may be deployed, and how it is examined.
pub struct DeployOptions {
    pub engine: EngineSettings,
    pub examine: ExamineLimits,
    /// Largest bundle, bytes.
    pub bundle_limit: u64,
    /// Empty: bundles need no signature. Else one of these keys must have signed.
    pub trusted: Vec<PublicKey>,
}

/// How a bundle is to be deployed.
#[derive(Debug, Clone, Default)]
pub struct Deployment {
    /// The manifest's name where it is not given.
    pub name: Option<String>,
    /// The manifest's, else the next free number.
    pub version: Option<String>,
    /// Whether it gets all traffic at once. A model's first version always does.
    pub activate: bool,
    /// Examine and report, and change nothing.
    pub dry_run: bool,
    /// Where it came from, for people.
    pub source: String,
    /// The file in the watched folder that it came from: then a version that is taken by other
    /// content gets a suffix of its digest.
    pub watched: Option<String>,
}

/// What became of a deployment.
#[derive(Debug, Serialize, Deserialize)]
pub struct Deployed {
    pub name: String,
    pub version: String,
    pub digest: Digest,
    /// Whether it gets all traffic now.
    pub active: bool,
    /// Whether the model had this very bundle already.
    pub unchanged: bool,
    pub dry_run: bool,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signed_by: Option<String>,
    /// `None` where the bundle was here already, examined before.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub report: Option<Report>,
}

/// A change to a model that is deployed.
#[derive(Debug, Clone)]
pub enum Change {
    /// The traffic as it was before the last change of it.
    Rollback,
    /// Percent by version; they make 100.
    Split(BTreeMap<String, u8>),
    /// `None` ends it.
    Shadow(Option<ShadowRecord>),
    Policy(Policy),
    RemoveVersion(String),
    Remove,
}

impl Deployer {
    /// Serves what the store has deployed, and clears away what nothing refers to.
    pub fn new(store: Arc<Store>, inference: Arc<Inference>, options: DeployOptions) -> Self {
        let deployer =
            Self { store, inference, options, examining: Mutex::new(()), changing: Mutex::new(()) };
        for (name, record) in &deployer.store.index().models {
            if deployer.inference.repository.is_listed(name) {
                tracing::warn!(
                    model = name,
                    "the deployed model is hidden by one that is served from a path"
                );
                continue;
            }
            for (label, stored) in &record.versions {
                if let Some(reason) = deployer.distrust(stored) {
                    tracing::warn!(model = name, version = label, "not served: {reason}");
                }
            }
            deployer.apply(name, Some(record), &[]);
        }
        deployer.collect();
        deployer
    }

    pub fn inference(&self) -> &Arc<Inference> {
        &self.inference
    }

    pub fn store(&self) -> &Arc<Store> {
        &self.store
    }

    /// A folder for a bundle on its way in.
    ///
    /// # Errors
    /// The disk.
    pub fn stage(&self) -> Result<Staging, Error> {
        self.store.stage(self.options.bundle_limit)
    }

    /// Examines a bundle, stores it, and has the model serve it. Blocks; to be called where that
    /// is allowed, within a runtime.
    ///
    /// # Errors
    /// The bundle is refused or contradicts what is deployed; nothing has changed then.
    pub fn deploy(&self, staged: &Staged, ask: Deployment) -> Result<Deployed, Error> {
        let name = ask.name.clone().or_else(|| staged.artifact.manifest.name.clone());
        let name = name.ok_or_else(|| {
            Error::InvalidInput("the bundle has no name of its own: give one".to_owned())
        })?;
        check_name(&name).map_err(Error::InvalidInput)?;
        self.check_free(&name)?;
        let signed_by = self.check_signature(staged)?;
        // Looked at before the long work, and again after it.
        let known = self.plan(&name, staged.digest(), &ask, staged)?;
        let report = match known {
            Plan::Known(_) => None,
            Plan::New(_) => Some(self.examine(staged, &name)?),
        };

        let _changing = self.changing();
        let plan = self.plan(&name, staged.digest(), &ask, staged)?;
        let mut record = self.store.model(&name).unwrap_or_default();
        let (version, unchanged) = match plan {
            Plan::Known(version) => {
                if let (Some(known), Some(_)) = (record.versions.get_mut(&version), &signed_by) {
                    known.signed_by.clone_from(&signed_by);
                }
                (version, true)
            }
            // It was here, and so not examined now.
            Plan::New(version) if report.is_none() => {
                return Err(Error::Conflict(format!(
                    "version `{version}` of model `{name}` was undeployed meanwhile: deploy it again"
                )));
            }
            Plan::New(version) => {
                let made = VersionRecord {
                    digest: staged.digest().clone(),
                    sequence: record.next_sequence(),
                    deployed: now(),
                    bytes: staged.artifact.head.total_size(),
                    source: ask.source.clone(),
                    signed_by: signed_by.clone(),
                    watched: ask.watched.clone(),
                    task: staged.artifact.manifest.task,
                    engines: report.as_ref().map(Report::engines).unwrap_or_default(),
                    loading: staged.artifact.manifest.loading,
                    loaded_bytes: report.as_ref().map(|report| report.memory_bytes),
                };
                record.versions.insert(version.clone(), made);
                (version, false)
            }
        };
        if ask.activate || record.traffic.is_empty() {
            record.route(BTreeMap::from([(version.clone(), 100)]));
        }
        let active = record.traffic.get(&version) == Some(&100);
        let (digest, dry_run) = (staged.digest().clone(), ask.dry_run);
        let deployed =
            Deployed { name, version, digest, active, unchanged, dry_run, signed_by, report };
        if dry_run {
            return Ok(deployed);
        }
        // Also what is here already: it may have been damaged since.
        let stored = self.store.adopt(staged).and_then(|()| self.switch(&deployed.name, &record));
        stored.inspect_err(|_| self.collect_locked())?;
        let Deployed { name, version, digest, .. } = &deployed;
        tracing::info!(model = name, version, %digest, active, source = ask.source, "deployed");
        Ok(deployed)
    }

    /// Makes a change, or with `dry_run` says what it would come to.
    ///
    /// # Errors
    /// Unknown model or version, or a change that makes no sense; nothing has changed then.
    pub fn change(&self, name: &str, change: Change, dry_run: bool) -> Result<ModelView, Error> {
        let _changing = self.changing();
        self.check_free(name)?;
        let mut record = self.store.model(name)?;
        let what = format!("{change:?}");
        let removes = matches!(change, Change::Remove | Change::RemoveVersion(_));
        match change {
            Change::Rollback => {
                record.roll_back().ok_or_else(|| {
                    Error::Conflict(format!(
                        "model `{name}` has no earlier traffic to roll back to"
                    ))
                })?;
            }
            Change::Split(traffic) => {
                check_split(name, &record, &traffic)?;
                record.route(traffic);
            }
            Change::Shadow(shadow) => {
                if let Some(shadow) = &shadow {
                    check_shadow(name, &record, shadow)?;
                }
                record.shadow = shadow;
            }
            Change::Policy(policy) => {
                policy.check().map_err(Error::InvalidInput)?;
                record.policy = policy;
            }
            Change::RemoveVersion(version) => record.remove(name, &version)?,
            Change::Remove => record = ModelRecord::default(),
        }
        if dry_run {
            return Ok(ModelView::planned(name, &record));
        }
        match record.versions.is_empty() {
            true => {
                self.store.put_model(name, None)?;
                self.apply(name, None, &[]);
            }
            false => self.switch(name, &record)?,
        }
        tracing::info!(model = name, "changed: {what}");
        if removes {
            self.collect_locked();
        }
        // A model that was taken out is not there to be viewed.
        Ok(self.view(name).unwrap_or_else(|_| ModelView::planned(name, &record)))
    }

    /// Loads what will have traffic, writes the record, and has it served.
    fn switch(&self, name: &str, record: &ModelRecord) -> Result<(), Error> {
        let repository = &self.inference.repository;
        let mut warm: Vec<Arc<Version>> = Vec::new();
        let before = self.store.model(name).unwrap_or_default().traffic;
        // Not those that lose some: a version that is not well must not keep its traffic by it.
        let gains = |label: &&String| record.traffic.get(*label) > before.get(*label);
        for label in record.traffic.keys().filter(gains) {
            if let Some(reason) =
                record.versions.get(label).and_then(|stored| self.distrust(stored))
            {
                return Err(Error::Conflict(format!(
                    "version `{label}` of model `{name}` cannot be served: {reason}"
                )));
            }
            if let Some(version) = repository.version(name, label, record, &self.store) {
                Handle::current().block_on(version.load())?;
                warm.push(version);
            }
        }
        self.store.put_model(name, Some(record.clone()))?;
        self.apply(name, Some(record), &warm);
        Ok(())
    }

    fn apply(&self, name: &str, record: Option<&ModelRecord>, warm: &[Arc<Version>]) {
        let refuse = |stored: &VersionRecord| self.distrust(stored);
        self.inference.repository.apply(name, record, &self.store, warm, &refuse);
    }

    /// Why a version that is here already is not served, if so: the keys may be others than when
    /// it was deployed.
    fn distrust(&self, stored: &VersionRecord) -> Option<String> {
        let trusted = &self.options.trusted;
        let by = stored.signed_by.as_deref();
        let is_trusted =
            trusted.is_empty() || trusted.iter().any(|key| Some(&*key.fingerprint) == by);
        (!is_trusted).then(|| {
            "it was deployed without a signature by a key that is trusted now: sign it and deploy it again".to_owned()
        })
    }

    fn examine(&self, staged: &Staged, name: &str) -> Result<Report, Error> {
        let _examining = self.examining.lock().unwrap_or_else(PoisonError::into_inner);
        let examination = Examination {
            model: name,
            engine: &self.options.engine,
            limits: self.options.examine,
            runs_tests: true,
        };
        examination.run(staged)
    }

    fn changing(&self) -> MutexGuard<'_, ()> {
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Which version a bundle is, or will be.
    fn plan(
        &self,
        name: &str,
        digest: &Digest,
        ask: &Deployment,
        staged: &Staged,
    ) -> Result<Plan, Error> {
        let record = self.store.model(name).unwrap_or_default();
        let manifest = &staged.artifact.manifest;
        if let Some(version) = &ask.version {
            check_version(version).map_err(Error::InvalidInput)?;
        } else {
            let known = record.in_order().into_iter().rfind(|(_, known)| known.digest == *digest);
            if let Some((version, _)) = known {
                return Ok(Plan::Known(version.to_owned()));
            }
        }
        let wanted = ask.version.clone().or_else(|| manifest.version.clone());
        let version = wanted.unwrap_or_else(|| record.next_version());
        match record.versions.get(&version) {
            None => Ok(Plan::New(version)),
            Some(taken) if taken.digest == *digest => Ok(Plan::Known(version)),
            Some(_) if ask.watched.is_some() => {
                Ok(Plan::New(format!("{version}-{}", digest.short())))
            }
            Some(taken) => Err(Error::Conflict(format!(
                "version `{version}` of model `{name}` is {}, and a version never changes; this is {digest}: give it another version",
                taken.digest
            ))),
        }
    }

    fn check_free(&self, name: &str) -> Result<(), Error> {
        match self.inference.repository.is_listed(name) {
            true => Err(Error::Conflict(format!(
                "model `{name}` is served from a path, and cannot be changed from here"
            ))),
            false => Ok(()),
        }
    }

    /// The fingerprint of the trusted key that signed, where one is asked for.
    fn check_signature(&self, staged: &Staged) -> Result<Option<String>, Error> {
        let trusted = &self.options.trusted;
        if trusted.is_empty() {
            return Ok(None);
        }
        let signatures = staged.signatures()?;
        let signer = trusted
            .iter()
            .find(|key| signatures.iter().any(|signature| signature.is_by(key, staged.digest())));
        match (signer, signatures.len()) {
            (Some(key), _) => Ok(Some(key.fingerprint.clone())),
            (None, 0) => Err(Error::BundleRefused(
                "it is not signed, and this server takes only what a trusted key has signed"
                    .to_owned(),
            )),
            (None, count) => Err(Error::BundleRefused(format!(
                "none of its {count} signatures is by a key that this server trusts and over {}",
                staged.digest()
            ))),
        }
    }

    /// Removes blobs that nothing refers to.
    pub fn collect(&self) {
        let _changing = self.changing();
        self.collect_locked();
    }

    fn collect_locked(&self) {
        match self.store.collect() {
            Ok((0, _)) => {}
            Ok((blobs, bytes)) => tracing::info!(blobs, bytes, "unused blobs are removed"),
            Err(error) => tracing::error!("unused blobs stay: {error}"),
        }
    }

    /// The versions that came from files of the watched folder: model, version and file.
    pub fn watched(&self) -> Vec<(String, String, String)> {
        let index = self.store.index();
        let models = index.models.into_iter();
        models
            .flat_map(|(name, record)| {
                let versions = record.versions.into_iter();
                versions.filter_map(move |(version, stored)| {
                    Some((name.clone(), version, stored.watched?))
                })
            })
            .collect()
    }
}

enum Plan {
    /// The model has this very bundle as this version.
    Known(String),
    New(String),
}

fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
