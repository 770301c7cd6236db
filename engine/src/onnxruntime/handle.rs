//! What ONNX Runtime gives and wants back.

use std::fmt;
use std::ptr::NonNull;

/// A thing of ONNX Runtime's, released when it is dropped.
pub(super) struct Handle<T> {
    pointer: NonNull<T>,
    release: unsafe extern "system" fn(*mut T),
}

impl<T> Handle<T> {
    /// Takes what a function of ONNX Runtime gave; `release` is the function for its kind.
    ///
    /// # Safety
    /// The pointer is null or to a thing that `release` takes and nobody else releases.
    ///
    /// # Errors
    /// It is null.
    pub(super) unsafe fn new(
        pointer: *mut T,
        release: unsafe extern "system" fn(*mut T),
    ) -> Result<Self, String> {
        let pointer = NonNull::new(pointer).ok_or("ONNX Runtime gave nothing")?;
        Ok(Self { pointer, release })
    }

    pub(super) fn get(&self) -> *mut T {
        self.pointer.as_ptr()
    }
}

impl<T> Drop for Handle<T> {
    fn drop(&mut self) {
        // SAFETY: `new`'s caller gave a live thing and its function, and this is the only call.
        unsafe { (self.release)(self.pointer.as_ptr()) }
    }
}

impl<T> fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.pointer.fmt(f)
    }
}
