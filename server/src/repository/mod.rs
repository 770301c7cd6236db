//! All models: those served from paths, and those deployed to the store. The only owner of what
//! is served, and the one place where it is switched.

mod graphs;
mod load;
mod residency;
mod state;
mod version;

pub use load::{EngineSettings, LoadOptions, Revision, guest_key, load};
pub use residency::{Charge, Eviction, ResidencyOptions};
pub use state::State;
pub use version::Version;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::bundle::{Loading, Source, check_name};
use crate::error::Error;
use crate::store::{ModelRecord, Store, VersionRecord};
use residency::Residency;
use version::{Loader, Origin};

/// All models by name.
pub struct Repository {
    loader: Arc<Loader>,
    /// Served from paths: fixed once found, in the order given.
    listed: Vec<Arc<Model>>,
    by_path: HashMap<String, Arc<Model>>,
    deployed: RwLock<BTreeMap<String, Arc<Model>>>,
    settled: AtomicBool,
}

/// Where bundles are served from.
#[derive(Debug, Clone)]
pub struct Place {
    pub path: PathBuf,
    /// Why there is nothing to serve, where that is known already.
    pub failed: Option<String>,
}

impl From<PathBuf> for Place {
    fn from(path: PathBuf) -> Self {
        Self { path, failed: None }
    }
}

/// A public name, and what is behind it now.
pub struct Model {
    pub name: String,
    serving: RwLock<Arc<Serving>>,
    turn: AtomicU32,
}

/// What a model serves: replaced as a whole, so that no request sees half a switch.
struct Serving {
    /// In the order of their deployment.
    versions: Vec<Arc<Version>>,
    /// Those a client may ask for by name.
    available: BTreeSet<String>,
    /// Percent of the requests that name none; they make 100.
    traffic: Vec<(Arc<Version>, u8)>,
    shadow: Option<Shadow>,
}

/// A version that is shown requests, its answers dropped.
#[derive(Clone)]
pub struct Shadow {
    pub version: Arc<Version>,
    pub percent: u8,
    pub counts: Arc<ShadowCounts>,
}

/// What became of shadowed requests since the shadow was set.
#[derive(Debug, Default)]
pub struct ShadowCounts {
    pub equal: AtomicU64,
    pub different: AtomicU64,
    pub failed: AtomicU64,
    /// Not run, as too many were running.
    pub skipped: AtomicU64,
}

/// The version that answers one request.
pub struct Picked {
    pub revision: Arc<Revision>,
    /// Set for the share of requests that a shadow is to see.
    pub shadow: Option<Shadow>,
}

impl Repository {
    /// Finds the bundles at `places`. Nothing is loaded yet: see [`Repository::load_first`]. A
    /// path without a bundle, and a name that is taken, become models that have failed. Callers
    /// wait `patience` for a version that loads.
    pub fn find(
        places: &[Place],
        options: LoadOptions,
        residency: ResidencyOptions,
        patience: Duration,
    ) -> Self {
        // A load is mostly one thread's work.
        let turns = std::thread::available_parallelism().map_or(1, usize::from);
        let turns = Arc::new(Semaphore::new(turns));
        let residency = Residency::new(residency, options.engine.clone());
        let loader = Loader { options, patience, turns, residency };
        let mut repository = Self {
            loader: Arc::new(loader),
            listed: Vec::new(),
            by_path: HashMap::new(),
            deployed: RwLock::default(),
            settled: AtomicBool::new(false),
        };
        for Place { path, failed } in places {
            if failed.is_some() {
                repository.add(&Source::at(path), failed.clone());
                continue;
            }
            match Source::find(path) {
                Ok(sources) => sources.into_iter().for_each(|source| repository.add(&source, None)),
                Err(error) => repository.add(&Source::at(path), Some(error.to_string())),
            }
        }
        repository
    }

    fn add(&mut self, source: &Source, failed: Option<String>) {
        let taken = self.by_path.get(&source.name).and_then(|taken| taken.main_version());
        let taken = taken.map(|taken| format!("the name is taken by {}", taken.origin));
        let is_taken = taken.is_some();
        let reason = failed.or(taken).or_else(|| check_name(&source.name).err());
        let origin = match reason {
            Some(_) => Origin::Nowhere,
            None => Origin::Path(source.path.clone()),
        };
        let version = Version::new(&source.name, &source.version, origin, &self.loader);
        if let Some(reason) = reason {
            version.fail(reason);
        }
        let model = Arc::new(Model::new(&source.name, Serving::only(version)));
        if !is_taken {
            self.by_path.insert(source.name.clone(), model.clone());
        }
        // Listed in any case, so that the operator sees it.
        self.listed.push(model);
    }

    /// Loads what is served from paths, then what is deployed and not to wait for its first
    /// request, one after the other.
    pub async fn load_first(&self) {
        let listed = self.listed.iter().filter_map(|model| model.main_version());
        let deployed: Vec<_> = self.deployed().values().cloned().collect();
        let eager = deployed.iter().flat_map(|model| {
            let with_traffic = model.versions().into_iter().filter(|(_, percent, _)| *percent > 0);
            with_traffic.map(|(version, ..)| version)
        });
        let eager = eager.filter(|version| version.loading() != Loading::Lazy);
        for version in listed.chain(eager) {
            if version.state() == State::Cold {
                // Told where it is loaded, and in the table.
                let _ = version.revision().await;
            }
        }
        self.settled.store(true, Ordering::Relaxed);
    }

    /// Has go cold what is not asked for, and what there is no memory for; for ever.
    pub async fn tend(&self) {
        self.loader.residency.tend().await;
    }

    /// Bytes of what is loaded, of live sandboxes, and what both may have together.
    pub fn memory(&self) -> (u64, u64, u64) {
        let (loaded, sandboxes) = self.loader.residency.used();
        (loaded, sandboxes, self.loader.residency.budget())
    }

    /// The model of that name.
    ///
    /// # Errors
    /// There is none.
    pub fn model(&self, name: &str) -> Result<Arc<Model>, Error> {
        let found = self.by_path.get(name).cloned().or_else(|| self.deployed().get(name).cloned());
        found.ok_or_else(|| Error::UnknownModel(name.to_owned()))
    }

    /// The models served from paths, failed ones too, in the order they were given.
    pub fn listed(&self) -> &[Arc<Model>] {
        &self.listed
    }

    /// Whether the name belongs to a model served from a path.
    pub fn is_listed(&self, name: &str) -> bool {
        self.by_path.contains_key(name)
    }

    /// All models that can be asked: those from paths, then those deployed.
    pub fn models(&self) -> Vec<Arc<Model>> {
        let deployed = self.deployed();
        self.listed.iter().chain(deployed.values()).cloned().collect()
    }

    /// Sandboxes alive now.
    pub fn live_sandboxes(&self) -> usize {
        self.loader.options.engine.live_sandboxes()
    }

    /// Whether all that is loaded at the start has been, or has failed to. It stays so.
    pub fn is_settled(&self) -> bool {
        self.settled.load(Ordering::Relaxed)
    }

    fn deployed(&self) -> std::sync::RwLockReadGuard<'_, BTreeMap<String, Arc<Model>>> {
        self.deployed.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the model serve what its record says, from now on and all at once: requests in flight
    /// finish on what they started with. `None` takes the model out. `warm` are versions that
    /// were loaded for this switch; those that `refuse` has a reason for fail. Versions that no longer have traffic go cold, but for those
    /// that a rollback would need.
    pub fn apply(
        &self,
        name: &str,
        record: Option<&ModelRecord>,
        store: &Arc<Store>,
        warm: &[Arc<Version>],
        refuse: &dyn Fn(&VersionRecord) -> Option<String>,
    ) {
        let mut deployed = self.deployed.write().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = record else {
            deployed.remove(name);
            return;
        };
        let model = deployed.get(name).cloned();
        let before = model.as_ref().map(|model| model.serving());
        let known = before.iter().flat_map(|before| &before.versions).chain(warm);
        let known: Vec<_> = known.cloned().collect();
        let versions = record.in_order().into_iter().map(|(label, stored)| {
            if let Some(reason) = refuse(stored) {
                let version = Version::new(name, label, Origin::Nowhere, &self.loader);
                version.fail(reason);
                return version;
            }
            let same = |version: &&Arc<Version>| {
                version.label == label && version.digest() == Some(&stored.digest)
            };
            known.iter().rev().find(same).cloned().unwrap_or_else(|| {
                let origin = Origin::Stored(Box::new(stored.clone()), store.clone());
                Version::new(name, label, origin, &self.loader)
            })
        });
        let serving = Serving::new(record, versions.collect(), before.as_deref());
        serving.cool_unused(record);
        match model {
            Some(model) => {
                *model.serving.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(serving);
            }
            None => {
                deployed.insert(name.to_owned(), Arc::new(Model::new(name, serving)));
            }
        }
    }

    /// The version of that record, to be loaded before it gets traffic: the one that is served
    /// already, else a new one.
    pub fn version(
        &self,
        name: &str,
        label: &str,
        record: &ModelRecord,
        store: &Arc<Store>,
    ) -> Option<Arc<Version>> {
        let stored = record.versions.get(label)?;
        let served = self.deployed().get(name).and_then(|model| model.serving().version(label));
        let served = served.filter(|version| version.digest() == Some(&stored.digest));
        Some(served.unwrap_or_else(|| {
            let origin = Origin::Stored(Box::new(stored.clone()), store.clone());
            Version::new(name, label, origin, &self.loader)
        }))
    }
}

impl Serving {
    fn only(version: Arc<Version>) -> Self {
        Self {
            available: [version.label.clone()].into(),
            traffic: vec![(version.clone(), 100)],
            versions: vec![version],
            shadow: None,
        }
    }

    fn new(record: &ModelRecord, versions: Vec<Arc<Version>>, before: Option<&Self>) -> Self {
        let find = |label: &String| versions.iter().find(|version| version.label == *label);
        let traffic = record.traffic.iter();
        let traffic = traffic.filter_map(|(label, &percent)| Some((find(label)?.clone(), percent)));
        let traffic = traffic.collect();
        let shadow = record.shadow.as_ref().and_then(|shadow| {
            let version = find(&shadow.version)?.clone();
            let kept = before.and_then(|before| before.shadow.clone());
            let kept = kept.filter(|kept| Arc::ptr_eq(&kept.version, &version));
            let counts = kept.map(|kept| kept.counts).unwrap_or_default();
            Some(Shadow { version, percent: shadow.percent, counts })
        });
        let available = record.available().into_iter().map(str::to_owned).collect();
        Self { versions, available, traffic, shadow }
    }

    fn version(&self, label: &str) -> Option<Arc<Version>> {
        self.versions.iter().find(|version| version.label == label).cloned()
    }

    fn cool_unused(&self, record: &ModelRecord) {
        let shadow = self.shadow.iter().map(|shadow| shadow.version.label.as_str());
        let used: BTreeSet<&str> = record
            .traffic
            .keys()
            .chain(record.history.last().into_iter().flat_map(BTreeMap::keys))
            .map(String::as_str)
            .chain(shadow)
            .collect();
        for version in self.versions.iter().filter(|version| !used.contains(&*version.label)) {
            version.cool();
        }
    }
}

impl Model {
    fn new(name: &str, serving: Serving) -> Self {
        let serving = RwLock::new(Arc::new(serving));
        Self { name: name.to_owned(), serving, turn: AtomicU32::new(0) }
    }

    fn serving(&self) -> Arc<Serving> {
        self.serving.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The version that stands for the model in a list: the one with the most traffic.
    pub fn main_version(&self) -> Option<Arc<Version>> {
        let serving = self.serving();
        let most = serving.traffic.iter().max_by_key(|(_, percent)| *percent);
        most.map(|(version, _)| version.clone())
    }

    /// All versions in the order of their deployment, each with its percent of the traffic and
    /// whether a client may ask for it by name.
    pub fn versions(&self) -> Vec<(Arc<Version>, u8, bool)> {
        let serving = self.serving();
        let share = |version: &Arc<Version>| {
            let entry = serving.traffic.iter().find(|(other, _)| Arc::ptr_eq(other, version));
            entry.map_or(0, |(_, percent)| *percent)
        };
        let all = serving.versions.iter();
        all.map(|version| {
            (version.clone(), share(version), serving.available.contains(&version.label))
        })
        .collect()
    }

    pub fn shadow(&self) -> Option<Shadow> {
        self.serving().shadow.clone()
    }

    /// The labels that a client may ask for, in the order of their deployment.
    pub fn available(&self) -> Vec<String> {
        let serving = self.serving();
        let labels = serving.versions.iter().map(|version| &version.label);
        labels.filter(|label| serving.available.contains(*label)).cloned().collect()
    }

    /// The version that stands for `label`; without one, for the model.
    ///
    /// # Errors
    /// There is no such version, or none has traffic.
    pub fn version(&self, label: Option<&str>) -> Result<Arc<Version>, Error> {
        match label {
            Some(label) => self.labelled(&self.serving(), label),
            None => self.main_version().ok_or_else(|| self.no_traffic()),
        }
    }

    fn no_traffic(&self) -> Error {
        let reason = "none of its versions has traffic: promote one".to_owned();
        Error::NotReady { model: self.name.clone(), reason }
    }

    fn labelled(&self, serving: &Serving, label: &str) -> Result<Arc<Version>, Error> {
        let found = serving.version(label).filter(|_| serving.available.contains(label));
        found.ok_or_else(|| {
            let known = serving.available.iter().cloned().collect::<Vec<_>>();
            let (model, version) = (self.name.clone(), label.to_owned());
            Error::UnknownVersion { model, version, known: known.join(", ") }
        })
    }

    /// The revision that answers a request, loaded where it is cold, and the shadow that is to
    /// see the request too. A request that names no version takes its turn.
    ///
    /// # Errors
    /// As [`Model::version`] and [`Version::revision`].
    pub async fn pick(&self, label: Option<&str>) -> Result<Picked, Error> {
        let serving = self.serving();
        if let Some(label) = label {
            let revision = self.labelled(&serving, label)?.revision().await?;
            return Ok(Picked { revision, shadow: None });
        }
        let turn = self.turn.fetch_add(1, Ordering::Relaxed);
        let version = pick(&serving.traffic, turn).ok_or_else(|| self.no_traffic())?;
        let revision = version.revision().await?;
        // Other turns than those of a split, so that each of its versions is compared.
        let is_shadowed = |shadow: &&Shadow| slot(turn.wrapping_mul(7)) < u32::from(shadow.percent);
        let shadow = serving.shadow.as_ref().filter(is_shadowed).cloned();
        Ok(Picked { revision, shadow })
    }
}

/// Spreads a hundred turns over 0 to 99, each once, neighbours far apart: so a split of 90 to
/// 10 is exactly that in any hundred requests.
fn slot(turn: u32) -> u32 {
    turn.wrapping_mul(61) % 100
}

fn pick(traffic: &[(Arc<Version>, u8)], turn: u32) -> Option<&Arc<Version>> {
    let mut slot = slot(turn);
    for (version, percent) in traffic {
        match slot.checked_sub(u32::from(*percent)) {
            None => return Some(version),
            Some(rest) => slot = rest,
        }
    }
    None
}
