//! What is deployed, on disk: models, their versions, and who gets which traffic.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use wisp_engine::EngineKind;

use crate::bundle::{Loading, Task};
use crate::digest::Digest;
use crate::error::Error;

/// The form of the file that this wisp reads and writes.
pub(super) const FORMAT: u64 = 1;

/// Traffic settings remembered for a rollback.
const REMEMBERED: usize = 20;

/// Everything that is deployed.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Index {
    pub(super) format: u64,
    pub models: BTreeMap<String, ModelRecord>,
}

impl Default for Index {
    fn default() -> Self {
        Self { format: FORMAT, models: BTreeMap::new() }
    }
}

/// A deployed model.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ModelRecord {
    pub versions: BTreeMap<String, VersionRecord>,
    /// Percent of the requests that name no version, by version; they make 100, or there are
    /// none yet.
    pub traffic: BTreeMap<String, u8>,
    /// Earlier settings of `traffic`, the last one last.
    pub history: Vec<BTreeMap<String, u8>>,
    pub shadow: Option<ShadowRecord>,
    pub policy: Policy,
}

/// A deployed bundle; it never changes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct VersionRecord {
    pub digest: Digest,
    /// Grows with each deployment to the model.
    pub sequence: u64,
    /// Seconds since 1970.
    pub deployed: u64,
    /// Of the whole bundle.
    pub bytes: u64,
    /// Where it came from, for people.
    pub source: String,
    /// The trusted key that signed it, by its fingerprint.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub signed_by: Option<String>,
    /// The file in the watched folder that it came from.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub watched: Option<String>,
    /// As its manifest says, so that it can be told without loading it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub task: Option<Task>,
    /// What runs each graph, as its examination found.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", default)]
    pub engines: BTreeMap<String, EngineRecord>,
    /// As its manifest says.
    #[serde(skip_serializing_if = "Loading::is_lazy", default)]
    pub loading: Loading,
    /// What it took in memory when it was examined.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub loaded_bytes: Option<u64>,
}

/// The engine that runs a graph, and why.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EngineRecord {
    pub engine: String,
    pub reason: String,
    /// Sizes of batches that pay, the least first.
    #[serde(skip_serializing_if = "Vec::is_empty", default)]
    pub batch_sizes: Vec<usize>,
    /// Why these, or none, where the manifest asks for batches.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub batching: Option<String>,
}

impl VersionRecord {
    /// The engines by graph; those that this program does not know are left out.
    pub fn engine_kinds(&self) -> BTreeMap<String, EngineKind> {
        let known = self.engines.iter().filter_map(|(graph, record)| {
            Some((graph.clone(), EngineKind::parse(&record.engine)?))
        });
        known.collect()
    }

    /// The sizes of batches by graph.
    pub fn batch_sizes(&self) -> BTreeMap<String, Vec<usize>> {
        let sizes =
            |(graph, record): (&String, &EngineRecord)| (graph.clone(), record.batch_sizes.clone());
        self.engines.iter().map(sizes).collect()
    }
}

/// A version that is shown a part of the requests, its answers dropped.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShadowRecord {
    pub version: String,
    pub percent: u8,
}

/// Which versions a client may ask for by name. Those with traffic can always be.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    #[default]
    All,
    /// The last so many that were deployed.
    Latest(usize),
    Specific(BTreeSet<String>),
}

impl Policy {
    /// Reads `all`, `latest=2` or `specific=1,3`.
    ///
    /// # Errors
    /// A text: what was expected.
    pub fn parse(text: &str) -> Result<Self, String> {
        let odd = || format!("policy `{text}`: expected all, latest=N or specific=VERSION,…");
        match text.split_once('=') {
            None if text == "all" => Ok(Self::All),
            Some(("latest", count)) => {
                let count = count.parse().ok().filter(|&count: &usize| count >= 1);
                Ok(Self::Latest(count.ok_or_else(odd)?))
            }
            Some(("specific", versions)) if !versions.is_empty() => {
                Ok(Self::Specific(versions.split(',').map(str::to_owned).collect()))
            }
            _ => Err(odd()),
        }
    }

    /// Checks what serde cannot.
    ///
    /// # Errors
    /// A text: what was expected.
    pub fn check(&self) -> Result<(), String> {
        match self {
            Self::Latest(0) => Err("policy: expected `latest` to be 1 or more, got 0".to_owned()),
            Self::Specific(versions) if versions.is_empty() => {
                Err("policy: expected `specific` to name a version or more".to_owned())
            }
            _ => Ok(()),
        }
    }
}

impl ModelRecord {
    /// The versions in the order of their deployment.
    pub fn in_order(&self) -> Vec<(&str, &VersionRecord)> {
        let mut versions: Vec<_> =
            self.versions.iter().map(|(version, record)| (version.as_str(), record)).collect();
        versions.sort_by_key(|(_, record)| record.sequence);
        versions
    }

    /// The versions that a client may ask for by name.
    pub fn available(&self) -> BTreeSet<&str> {
        let ordered = self.in_order();
        let mut available: BTreeSet<&str> = match &self.policy {
            Policy::All => ordered.iter().map(|(version, _)| *version).collect(),
            Policy::Latest(count) => {
                ordered.iter().rev().take(*count).map(|(version, _)| *version).collect()
            }
            Policy::Specific(versions) => versions
                .iter()
                .map(String::as_str)
                .filter(|version| self.versions.contains_key(*version))
                .collect(),
        };
        available.extend(self.traffic.keys().map(String::as_str));
        available
    }

    /// The lowest whole number above all versions that are one.
    pub fn next_version(&self) -> String {
        let numbers = self.versions.keys().filter_map(|version| version.parse::<u64>().ok());
        (numbers.max().unwrap_or(0) + 1).to_string()
    }

    pub fn next_sequence(&self) -> u64 {
        self.versions.values().map(|record| record.sequence + 1).max().unwrap_or(1)
    }

    /// Sets who gets the traffic and remembers who had it.
    pub fn route(&mut self, traffic: BTreeMap<String, u8>) {
        if traffic == self.traffic {
            return;
        }
        let before = std::mem::replace(&mut self.traffic, traffic);
        if !before.is_empty() {
            self.history.push(before);
        }
        let surplus = self.history.len().saturating_sub(REMEMBERED);
        self.history.drain(..surplus);
        self.end_own_shadow();
    }

    /// Gives the traffic back to who had it before the last change, if there was one.
    pub fn roll_back(&mut self) -> Option<()> {
        self.traffic = self.history.pop()?;
        self.end_own_shadow();
        Some(())
    }

    /// A shadow that gets all traffic has become what it was compared with.
    fn end_own_shadow(&mut self) {
        let traffic = &self.traffic;
        self.shadow.take_if(|shadow| traffic.get(&shadow.version) == Some(&100));
    }

    /// Takes a version out, from the history too.
    ///
    /// # Errors
    /// It has traffic, or there is no such version.
    pub fn remove(&mut self, model: &str, version: &str) -> Result<(), Error> {
        if let Some(percent) = self.traffic.get(version) {
            return Err(Error::Conflict(format!(
                "version `{version}` of model `{model}` gets {percent} % of the traffic: promote another first, or undeploy the model"
            )));
        }
        self.version(model, version)?;
        self.versions.remove(version);
        self.history.retain(|traffic| !traffic.contains_key(version));
        // What is left must be another setting each, or a rollback would change nothing.
        self.history.dedup();
        self.history.pop_if(|traffic| *traffic == self.traffic);
        if self.shadow.as_ref().is_some_and(|shadow| shadow.version == version) {
            self.shadow = None;
        }
        Ok(())
    }

    /// The version of that name.
    ///
    /// # Errors
    /// There is none; the text names those there are.
    pub fn version(&self, model: &str, version: &str) -> Result<&VersionRecord, Error> {
        self.versions.get(version).ok_or_else(|| Error::UnknownVersion {
            model: model.to_owned(),
            version: version.to_owned(),
            known: self.versions.keys().cloned().collect::<Vec<_>>().join(", "),
        })
    }

    /// Whether everything it says of versions is so.
    pub(super) fn check(&self, model: &str) -> Result<(), String> {
        let earlier = self.history.iter().flat_map(BTreeMap::keys);
        let shadow = self.shadow.iter().map(|shadow| &shadow.version);
        let named = self.traffic.keys().chain(earlier).chain(shadow);
        for version in named {
            if !self.versions.contains_key(version) {
                return Err(format!(
                    "model `{model}` has traffic for the unknown version `{version}`"
                ));
            }
        }
        let total: u32 = self.traffic.values().map(|&percent| u32::from(percent)).sum();
        match self.traffic.is_empty() || total == 100 {
            true => Ok(()),
            false => Err(format!("the traffic of model `{model}` makes {total} %, expected 100")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(versions: &[&str]) -> ModelRecord {
        let mut record = ModelRecord::default();
        for version in versions {
            let sequence = record.next_sequence();
            let made = VersionRecord {
                digest: Digest::of(version.as_bytes()),
                sequence,
                deployed: 0,
                bytes: 0,
                source: String::new(),
                signed_by: None,
                watched: None,
                task: None,
                engines: BTreeMap::new(),
                loading: Loading::Lazy,
                loaded_bytes: None,
            };
            record.versions.insert((*version).to_owned(), made);
        }
        record
    }

    #[test]
    fn policies_say_what_is_available() {
        let mut record = record(&["1", "2", "10"]);
        record.traffic.insert("1".into(), 100);
        let available = |record: &ModelRecord| {
            record.available().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(available(&record), ["1", "10", "2"]);
        record.policy = Policy::parse("latest=1").expect("a policy");
        assert_eq!(available(&record), ["1", "10"]);
        record.policy = Policy::parse("specific=2,7").expect("a policy");
        assert_eq!(available(&record), ["1", "2"]);
        for odd in ["", "latest", "latest=0", "latest=x", "specific=", "some"] {
            assert!(Policy::parse(odd).is_err(), "{odd}");
        }
    }

    #[test]
    fn the_next_version_is_above_all_numbers() {
        assert_eq!(record(&[]).next_version(), "1");
        assert_eq!(record(&["2", "9", "beta"]).next_version(), "10");
    }
}
