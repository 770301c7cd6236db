//! The API keys that an operator has given out, by name. Only their digests are held: comparing
//! those tells nothing of a key, however long it takes.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::digest::Digest;

/// Names by the digests of their keys.
#[derive(Debug, Default)]
pub struct ApiKeys(HashMap<Digest, Arc<str>>);

/// Of a key; shorter ones can be guessed.
const LEAST_BYTES: usize = 16;

impl ApiKeys {
    /// Reads a file with a name and a key a line; from a word on that begins with `#` it is for
    /// people.
    ///
    /// # Errors
    /// It cannot be read, a line is no name and key, or one of them comes twice.
    pub fn read(path: &Path) -> Result<Self, String> {
        let text = fs::read_to_string(path)
            .map_err(|error| format!("the file of API keys {}: {error}", path.display()))?;
        let mut keys = HashMap::new();
        for (number, line) in text.lines().enumerate() {
            let words = line.split_whitespace().take_while(|word| !word.starts_with('#'));
            let words: Vec<_> = words.collect();
            let odd = |reason: &str| {
                format!("the file of API keys {}, line {}: {reason}", path.display(), number + 1)
            };
            let (name, key) = match words[..] {
                [] => continue,
                [name, key] => (name, key),
                _ => return Err(odd("expected a name and a key")),
            };
            if key.len() < LEAST_BYTES {
                return Err(odd("expected a key of 16 or more characters"));
            }
            if keys.values().any(|known: &Arc<str>| **known == *name) {
                return Err(odd("the name came before"));
            }
            if keys.insert(Digest::of(key.as_bytes()), Arc::from(name)).is_some() {
                return Err(odd("the key came before"));
            }
        }
        match keys.is_empty() {
            true => Err(format!("the file of API keys {} has none", path.display())),
            false => Ok(Self(keys)),
        }
    }

    /// The name of a key, if it is one.
    pub fn name(&self, key: &[u8]) -> Option<Arc<str>> {
        self.0.get(&Digest::of(key)).cloned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_and_odd_files_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("keys");
        let read = |text: &str| {
            fs::write(&file, text).unwrap();
            ApiKeys::read(&file)
        };
        let keys = read("# ours\nshop  0123456789abcdef # the till\n\ngate fedcba9876543210\n");
        let keys = keys.unwrap();
        assert_eq!(keys.name(b"0123456789abcdef").as_deref(), Some("shop"));
        assert_eq!(keys.name(b"0123456789abcdeF"), None);
        for (text, expected) in [
            ("", "has none"),
            ("shop\n", "line 1: expected a name and a key"),
            ("shop short\n", "line 1: expected a key of 16"),
            ("a 0123456789abcdef\na fedcba9876543210\n", "line 2: the name came before"),
            ("a 0123456789abcdef\nb 0123456789abcdef\n", "line 2: the key came before"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
