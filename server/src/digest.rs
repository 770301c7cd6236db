//! Content digests, as OCI writes them: `sha256:` and 64 hexadecimal digits. Nothing else is
//! taken, so that a digest can stand in a path.

use std::fmt;
use std::io::{self, Write};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

/// The SHA-256 of some content.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest(String);

impl Digest {
    pub fn of(content: &[u8]) -> Self {
        Self(hex(&Sha256::digest(content)))
    }

    /// Reads `sha256:…`.
    ///
    /// # Errors
    /// A text: it is something else.
    pub fn parse(text: &str) -> Result<Self, String> {
        let hex = text.strip_prefix("sha256:").filter(|hex| {
            hex.len() == 64 && hex.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
        });
        hex.map(|hex| Self(hex.to_owned())).ok_or_else(|| {
            let came: String = text.chars().take(100).collect();
            format!("expected a digest `sha256:` and 64 hexadecimal digits, got `{came}`")
        })
    }

    /// The 64 digits alone.
    pub fn hex(&self) -> &str {
        &self.0
    }

    /// Enough of it to tell two apart by eye.
    pub fn short(&self) -> &str {
        &self.0[..12]
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "sha256:{}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, formatter)
    }
}

impl TryFrom<String> for Digest {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Passes bytes on and digests them.
pub struct Digesting<W> {
    inner: W,
    hasher: Sha256,
    written: u64,
}

impl<W> Digesting<W> {
    pub fn new(inner: W) -> Self {
        Self { inner, hasher: Sha256::new(), written: 0 }
    }

    /// The inner writer, and the digest and number of the bytes it was given.
    pub fn finish(self) -> (W, Digest, u64) {
        (self.inner, Digest(hex(&self.hasher.finalize())), self.written)
    }
}

impl<W: Write> Write for Digesting<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(bytes)?;
        self.hasher.update(&bytes[..written]);
        self.written += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_whole_sha256_is_a_digest() {
        let good = Digest::of(b"");
        assert_eq!(
            good.to_string(),
            "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(Digest::parse(&good.to_string()), Ok(good.clone()));
        let upper = format!("sha256:{}", good.hex().to_uppercase());
        for bad in ["", "sha256:", "sha512:00", "sha256:../../etc/passwd", &upper, good.hex()] {
            assert!(Digest::parse(bad).is_err(), "{bad}");
        }
    }
}
