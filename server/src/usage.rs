//! What requests have used, by model, version and API key: CPU time of their guests, their graphs
//! and the server, memory, bytes. Kept over restarts where there is a state folder. Knows nothing of protocols.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::nn::Run;

/// How often what was used is written down: as much is lost where the process is killed.
const WRITE: Duration = Duration::from_secs(2);

/// Versions of a model that are told apart; those that were not asked for for longest are one
/// together beyond that.
const MOST_VERSIONS: usize = 100;

/// What they are called then.
const EARLIER: &str = "earlier";

/// What requests of one model, version and API key have used.
#[derive(Debug, Default)]
pub struct Totals {
    requests: AtomicU64,
    answered: AtomicU64,
    cached: AtomicU64,
    guest_cpu_ns: AtomicU64,
    compute_cpu_ns: AtomicU64,
    server_cpu_ns: AtomicU64,
    peak_memory_bytes: AtomicU64,
    bytes_in: AtomicU64,
    bytes_out: AtomicU64,
    /// When they were asked for last, as a count of such.
    asked: AtomicU64,
}

/// [`Totals`] as they are told and kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsageRecord {
    pub model: String,
    pub version: String,
    /// The name of the API key; `None` of requests that needed none.
    pub key: Option<String>,
    /// That ran, to their end or not.
    pub requests: u64,
    /// Of those, answered.
    pub answered: u64,
    /// Answered from the cache, in addition.
    pub cached: u64,
    pub guest_cpu_us: u64,
    pub compute_cpu_us: u64,
    /// Of the server itself, for their connections.
    #[serde(default)]
    pub server_cpu_us: u64,
    /// The most that one request held, in its sandbox and in tensors.
    pub peak_memory_bytes: u64,
    /// Of input tensors.
    pub bytes_in: u64,
    /// Of output tensors.
    pub bytes_out: u64,
}

type ByKey = BTreeMap<Option<Arc<str>>, Arc<Totals>>;
type ByModel = BTreeMap<String, BTreeMap<String, ByKey>>;

/// All totals.
#[derive(Debug, Default)]
pub struct Usage {
    totals: Mutex<ByModel>,
    asked: AtomicU64,
    has_changed: AtomicBool,
    file: Option<PathBuf>,
}

impl Usage {
    /// What was used before, from a file; to be kept there by [`Usage::keep`]. A file that cannot
    /// be read is set aside.
    ///
    /// # Errors
    /// It is there, and can be neither read nor set aside.
    pub fn open(file: PathBuf) -> io::Result<Self> {
        let text = match fs::read(&file) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Ok(Self { file: Some(file), ..Self::default() });
            }
            Err(error) => return Err(error),
        };
        let records: Vec<UsageRecord> = match serde_json::from_slice(&text) {
            Ok(records) => records,
            Err(error) => {
                let (name, aside) = (file.display(), file.with_extension("damaged"));
                let there = aside.display();
                tracing::error!("the usage in {name} cannot be read: {error}; it is now {there}");
                fs::rename(&file, &aside)?;
                Vec::new()
            }
        };
        let usage = Self { file: Some(file), ..Self::default() };
        for record in records {
            let key = record.key.as_deref().map(Arc::from);
            usage.totals(&record.model, &record.version, key).restore(&record);
        }
        Ok(usage)
    }

    /// The totals of a model's version and an API key.
    pub fn totals(&self, model: &str, version: &str, key: Option<Arc<str>>) -> Arc<Totals> {
        let asked = self.asked.fetch_add(1, Ordering::Relaxed);
        let mut models = self.lock();
        self.has_changed.store(true, Ordering::Relaxed);
        // Looked for first, so that what is there takes no allocation.
        let found = models.get(model).and_then(|versions| versions.get(version)?.get(&key));
        let totals = found.cloned().unwrap_or_else(|| {
            let versions = models.entry(model.to_owned()).or_default();
            if versions.len() >= MOST_VERSIONS && !versions.contains_key(version) {
                fold(versions);
            }
            versions.entry(version.to_owned()).or_default().entry(key).or_default().clone()
        });
        totals.asked.store(asked, Ordering::Relaxed);
        totals
    }

    /// All that was used, or by one API key.
    pub fn records(&self, key: Option<&str>) -> Vec<UsageRecord> {
        Self::records_of(&self.lock(), key)
    }

    fn records_of(models: &ByModel, key: Option<&str>) -> Vec<UsageRecord> {
        let all = models.iter().flat_map(|(model, versions)| {
            versions.iter().flat_map(move |(version, keys)| {
                keys.iter().map(move |(key, totals)| totals.record(model, version, key.as_deref()))
            })
        });
        all.filter(|record| key.is_none() || record.key.as_deref() == key).collect()
    }

    /// Writes it down as it changes; for ever.
    pub async fn keep(self: Arc<Self>) {
        loop {
            tokio::time::sleep(WRITE).await;
            let usage = self.clone();
            // Told in the log.
            let _ = tokio::task::spawn_blocking(move || usage.write()).await;
        }
    }

    /// Writes it down if it has changed.
    pub fn write(&self) {
        let Some(file) = &self.file else { return };
        let records = {
            let models = self.lock();
            // What runs is counted when it ends.
            let runs = totals_of(&models).any(|totals| Arc::strong_count(totals) > 1);
            if !self.has_changed.swap(runs, Ordering::Relaxed) {
                return;
            }
            Self::records_of(&models, None)
        };
        if let Err(error) = write_whole(file, &records) {
            self.has_changed.store(true, Ordering::Relaxed);
            tracing::error!("the usage cannot be written to {}: {error}", file.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, ByModel> {
        self.totals.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn totals_of(models: &ByModel) -> impl Iterator<Item = &Arc<Totals>> {
    models.values().flat_map(BTreeMap::values).flat_map(BTreeMap::values)
}

/// Adds the version that was not asked for for longest, and does not run, to the earlier ones.
fn fold(versions: &mut BTreeMap<String, ByKey>) {
    let runs = |keys: &ByKey| keys.values().any(|totals| Arc::strong_count(totals) > 1);
    let asked =
        |keys: &ByKey| keys.values().map(|totals| totals.asked.load(Ordering::Relaxed)).max();
    let foldable = versions.iter().filter(|(label, keys)| *label != EARLIER && !runs(keys));
    let oldest = foldable.min_by_key(|(_, keys)| asked(keys)).map(|(label, _)| label.clone());
    let Some(keys) = oldest.and_then(|label| versions.remove(&label)) else { return };
    let earlier = versions.entry(EARLIER.to_owned()).or_default();
    for (key, totals) in keys {
        earlier.entry(key).or_default().absorb(&totals);
    }
}

/// To another name first, so that the file is whole at any time.
fn write_whole(path: &Path, records: &[UsageRecord]) -> io::Result<()> {
    let scratch = path.with_extension("tmp");
    let mut file = File::create(&scratch)?;
    file.write_all(&serde_json::to_vec(records)?)?;
    file.sync_data()?;
    fs::rename(scratch, path)
}

impl Totals {
    /// Counts a request that runs now, until the meter goes.
    pub fn meter(self: Arc<Self>, run: Arc<Run>, bytes_in: usize) -> Meter {
        self.requests.fetch_add(1, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes_in as u64, Ordering::Relaxed);
        Meter { totals: self, run, bytes_in }
    }

    /// Counts a request that was answered from the cache.
    pub fn answered_from_cache(&self, bytes_in: usize, bytes_out: usize) -> Used {
        self.cached.fetch_add(1, Ordering::Relaxed);
        self.bytes_in.fetch_add(bytes_in as u64, Ordering::Relaxed);
        self.bytes_out.fetch_add(bytes_out as u64, Ordering::Relaxed);
        Used { bytes_in, bytes_out, ..Used::default() }
    }

    /// Counts CPU time that the server spent on their requests beside sandboxes.
    pub fn served(&self, ns: u64) {
        self.server_cpu_ns.fetch_add(ns, Ordering::Relaxed);
    }

    fn record(&self, model: &str, version: &str, key: Option<&str>) -> UsageRecord {
        let load = |count: &AtomicU64| count.load(Ordering::Relaxed);
        UsageRecord {
            model: model.to_owned(),
            version: version.to_owned(),
            key: key.map(str::to_owned),
            requests: load(&self.requests),
            answered: load(&self.answered),
            cached: load(&self.cached),
            guest_cpu_us: load(&self.guest_cpu_ns) / 1000,
            compute_cpu_us: load(&self.compute_cpu_ns) / 1000,
            server_cpu_us: load(&self.server_cpu_ns) / 1000,
            peak_memory_bytes: load(&self.peak_memory_bytes),
            bytes_in: load(&self.bytes_in),
            bytes_out: load(&self.bytes_out),
        }
    }

    fn absorb(&self, other: &Self) {
        let sums = [
            (&self.requests, &other.requests),
            (&self.answered, &other.answered),
            (&self.cached, &other.cached),
            (&self.guest_cpu_ns, &other.guest_cpu_ns),
            (&self.compute_cpu_ns, &other.compute_cpu_ns),
            (&self.server_cpu_ns, &other.server_cpu_ns),
            (&self.bytes_in, &other.bytes_in),
            (&self.bytes_out, &other.bytes_out),
        ];
        for (sum, count) in sums {
            sum.fetch_add(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
        let peak = other.peak_memory_bytes.load(Ordering::Relaxed);
        self.peak_memory_bytes.fetch_max(peak, Ordering::Relaxed);
    }

    fn restore(&self, record: &UsageRecord) {
        let counts = [
            (&self.requests, record.requests),
            (&self.answered, record.answered),
            (&self.cached, record.cached),
            (&self.guest_cpu_ns, record.guest_cpu_us.saturating_mul(1000)),
            (&self.compute_cpu_ns, record.compute_cpu_us.saturating_mul(1000)),
            (&self.server_cpu_ns, record.server_cpu_us.saturating_mul(1000)),
            (&self.peak_memory_bytes, record.peak_memory_bytes),
            (&self.bytes_in, record.bytes_in),
            (&self.bytes_out, record.bytes_out),
        ];
        counts.into_iter().for_each(|(count, value)| count.store(value, Ordering::Relaxed));
    }
}

/// What one request used, until its sandbox answered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Used {
    pub guest_cpu: Duration,
    /// Of its graphs; of those run with others' its part.
    pub compute_cpu: Duration,
    /// The most that its sandbox held, and the most that it held in tensors: never less than both at
    /// a time.
    pub peak_memory_bytes: u64,
    /// Of input tensors.
    pub bytes_in: usize,
    /// Of output tensors.
    pub bytes_out: usize,
}

/// A request that runs. What it used is counted when this goes, however it ended: a run may
/// outlive its request.
pub struct Meter {
    totals: Arc<Totals>,
    run: Arc<Run>,
    bytes_in: usize,
}

impl Meter {
    pub fn answered(&self, bytes_out: usize) -> Used {
        self.totals.answered.fetch_add(1, Ordering::Relaxed);
        self.totals.bytes_out.fetch_add(bytes_out as u64, Ordering::Relaxed);
        Used { bytes_out, ..self.used() }
    }

    fn used(&self) -> Used {
        let (cpu, compute_cpu) = (self.run.cpu(), self.run.compute_cpu());
        Used {
            guest_cpu: cpu.saturating_sub(compute_cpu),
            compute_cpu,
            peak_memory_bytes: self.run.peak_memory(),
            bytes_in: self.bytes_in,
            bytes_out: 0,
        }
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let (used, totals) = (self.used(), &self.totals);
        let (guest_ns, compute_ns) = (used.guest_cpu.as_nanos(), used.compute_cpu.as_nanos());
        totals.guest_cpu_ns.fetch_add(guest_ns as u64, Ordering::Relaxed);
        totals.compute_cpu_ns.fetch_add(compute_ns as u64, Ordering::Relaxed);
        totals.served(self.run.cpu_around().as_nanos() as u64);
        totals.peak_memory_bytes.fetch_max(used.peak_memory_bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_used_outlives_the_process_that_counted_it() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("usage.json");
        let usage = Usage::open(file.clone()).unwrap();
        let key: Option<Arc<str>> = Some("shop".into());
        let run = Run::limited(std::time::Instant::now(), None, 0, None);
        usage.totals("digits", "1", key.clone()).meter(run, 10).answered(20);
        usage.totals("digits", "1", None).answered_from_cache(1, 2);
        usage.write();
        let again = Usage::open(file.clone()).unwrap();
        assert_eq!(again.records(None), usage.records(None));
        let of_key = again.records(Some("shop"));
        assert_eq!(of_key.len(), 1);
        assert_eq!((of_key[0].requests, of_key[0].bytes_in, of_key[0].bytes_out), (1, 10, 20));

        let run = Run::limited(std::time::Instant::now(), None, 0, None);
        let meter = usage.totals("digits", "2", None).meter(run, 1);
        usage.write();
        meter.answered(3);
        drop(meter);
        usage.write();
        assert_eq!(Usage::open(file.clone()).unwrap().records(None), usage.records(None));

        fs::write(&file, "[{").unwrap();
        assert_eq!(Usage::open(file.clone()).unwrap().records(None), []);
        assert!(file.with_extension("damaged").exists());
    }

    #[test]
    fn versions_of_long_ago_are_one_together() {
        let usage = Usage::default();
        for version in 0..2 * MOST_VERSIONS {
            usage.totals("digits", &version.to_string(), None).answered_from_cache(1, 0);
            usage.totals("digits", "0", None).answered_from_cache(1, 0);
        }
        let records = usage.records(None);
        assert_eq!(records.len(), MOST_VERSIONS + 1);
        let cached = |label: &str| records.iter().find(|record| record.version == label);
        assert_eq!(cached("0").unwrap().cached, 2 * MOST_VERSIONS as u64 + 1);
        assert!(cached(EARLIER).unwrap().cached >= MOST_VERSIONS as u64);
        let all: u64 = records.iter().map(|record| record.cached).sum();
        assert_eq!(all, 4 * MOST_VERSIONS as u64);
    }
}
