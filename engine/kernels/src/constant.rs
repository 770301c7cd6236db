//! Constant values: of one's own, or in memory that many share and nobody writes, as a mapped file.
//!
//! What must never live here: arithmetic, files.

use std::marker::PhantomData;
use std::ops::Deref;

use bytes::Bytes;

use crate::packed::Line;

/// Types of which any bytes are a value, and all of whose bytes are values.
///
/// # Safety
/// That is so.
pub(crate) unsafe trait Plain: Copy {}

// SAFETY: four bytes without padding; any bits are a float.
unsafe impl Plain for f32 {}
// SAFETY: sixteen floats, as large as its alignment.
unsafe impl Plain for Line {}

/// Constant values of one type.
#[derive(Clone)]
pub(crate) enum Constant<T> {
    Own(Vec<T>),
    /// Aligned for `T`, and a whole number of them.
    Shared(Bytes, PhantomData<T>),
}

impl<T: Plain> Constant<T> {
    /// Values that lie in memory as `bytes`; `None` where they do not lie as `T` must.
    pub fn shared(bytes: Bytes) -> Option<Self> {
        let fits = bytes.as_ptr().cast::<T>().is_aligned();
        let whole = bytes.len().is_multiple_of(size_of::<T>());
        (fits && whole).then_some(Self::Shared(bytes, PhantomData))
    }

    pub fn as_bytes(&self) -> &[u8] {
        let values: &[T] = self;
        // SAFETY: all bytes of a plain type are values.
        unsafe { std::slice::from_raw_parts(values.as_ptr().cast(), size_of_val(values)) }
    }
}

impl<T: Plain> Deref for Constant<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        match self {
            Self::Own(values) => values,
            // SAFETY: alignment and length were checked when it was made, any bytes are values,
            // and `Bytes` neither move nor change.
            Self::Shared(bytes, _) => unsafe {
                std::slice::from_raw_parts(bytes.as_ptr().cast(), bytes.len() / size_of::<T>())
            },
        }
    }
}

impl<T> From<Vec<T>> for Constant<T> {
    fn from(values: Vec<T>) -> Self {
        Self::Own(values)
    }
}

impl<T: Plain + PartialEq> PartialEq for Constant<T> {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl<T> std::fmt::Debug for Constant<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Own(_) => "Own",
            Self::Shared(..) => "Shared",
        })
    }
}
