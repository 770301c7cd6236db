//! ONNX Runtime's shared library: loaded from a path once a process, and never unloaded.

use std::ffi::{CStr, c_char};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use libloading::{Library, Symbol};
use ort_sys::{ORT_API_VERSION, OrtApi, OrtApiBase, OrtEnv, OrtLoggingLevel, OrtStatusPtr};

use crate::graph::LoadError;

static OPENED: OnceLock<OnnxRuntime> = OnceLock::new();

/// ONNX Runtime, an engine that is not part of this program. Where its library has been opened,
/// [`crate::EngineKind::OnnxRuntime`] can be asked for.
#[derive(Debug)]
pub struct OnnxRuntime {
    pub(super) api: &'static OrtApi,
    /// Its state, which all sessions share. Lives as long as the process.
    pub(super) environment: *mut OrtEnv,
    version: String,
    path: PathBuf,
}

// SAFETY: the functions of the table may be called from any thread, and so may the environment
// be used, as ONNX Runtime's C API documents.
unsafe impl Send for OnnxRuntime {}
// SAFETY: see above.
unsafe impl Sync for OnnxRuntime {}

impl OnnxRuntime {
    /// Loads the library, as `libonnxruntime.so.1.32.0` out of the PyPI wheel, for the rest of
    /// the process; 1.17 is the oldest that works. A second call with the same path gives what
    /// the first one gave; after a call that failed another path may be tried.
    ///
    /// # Safety
    /// Code of the library runs in this process: the path must name an ONNX Runtime that can be
    /// trusted as much as this program.
    ///
    /// # Errors
    /// There is no such library, it is not ONNX Runtime, too old, or another one is open.
    pub unsafe fn open(path: &Path) -> Result<&'static Self, LoadError> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = OPENED.get() {
            return match open.path == path {
                true => Ok(open),
                false => Err(LoadError(format!("{} is open already", open.path.display()))),
            };
        }
        // SAFETY: the caller says that it is ONNX Runtime.
        let opened = unsafe { load(path) }
            .map_err(|reason| LoadError(format!("{}: {reason}", path.display())))?;
        Ok(OPENED.get_or_init(|| opened))
    }

    /// As `1.32.0`.
    pub fn version(&self) -> &str {
        &self.version
    }

    /// Whether it has been opened.
    pub fn is_open() -> bool {
        OPENED.get().is_some()
    }

    pub(super) fn get() -> Result<&'static Self, LoadError> {
        OPENED.get().ok_or_else(|| {
            LoadError("ONNX Runtime's library is not there: `--onnxruntime` names it".into())
        })
    }

    /// The text of a status, if it is an error; takes the status.
    pub(super) fn check(&self, status: OrtStatusPtr) -> Result<(), String> {
        check(self.api, status)
    }
}

/// # Safety
/// The path names ONNX Runtime.
unsafe fn load(path: &Path) -> Result<OnnxRuntime, String> {
    // SAFETY: the caller trusts what the library does when it is loaded. It is never unloaded:
    // its threads and the table of its functions have no end.
    let library =
        Box::leak(Box::new(unsafe { Library::new(path) }.map_err(|error| error.to_string())?));
    // SAFETY: the symbol has had this type in every version.
    let base: Symbol<'_, unsafe extern "system" fn() -> *const OrtApiBase> =
        unsafe { library.get(b"OrtGetApiBase") }
            .map_err(|_| "it is not ONNX Runtime".to_owned())?;
    // SAFETY: gives a pointer to a constant of the library, or null.
    let base = unsafe { base().as_ref() }.ok_or("it is not ONNX Runtime")?;
    // SAFETY: gives a constant text that ends in 0.
    let version = unsafe { text((base.GetVersionString)()) };
    // SAFETY: gives a pointer to a constant table with at least the functions of the version
    // asked for, or null.
    let api = unsafe { (base.GetApi)(ORT_API_VERSION).as_ref() };
    let api =
        api.ok_or_else(|| format!("version {version}, expected 1.{ORT_API_VERSION} or newer"))?;
    let mut environment = ptr::null_mut();
    // A node that fails is an error to the caller; ONNX Runtime would also write it to the
    // server's log, as often as a client likes.
    let level = OrtLoggingLevel::ORT_LOGGING_LEVEL_FATAL;
    // SAFETY: a name that ends in 0 and a place for the result.
    check(api, unsafe { (api.CreateEnv)(level, c"wisp".as_ptr(), &raw mut environment) })?;
    // SAFETY: the environment was just made.
    check(api, unsafe { (api.DisableTelemetryEvents)(environment) })?;
    Ok(OnnxRuntime { api, environment, version, path: path.to_owned() })
}

fn check(api: &OrtApi, status: OrtStatusPtr) -> Result<(), String> {
    if status.0.is_null() {
        return Ok(());
    }
    // SAFETY: a status that is not null is an error with a text; it is released once, here.
    let message = unsafe {
        let message = text((api.GetErrorMessage)(status.0));
        (api.ReleaseStatus)(status.0);
        message
    };
    Err(message.lines().map(str::trim).collect::<Vec<_>>().join(" "))
}

/// # Safety
/// The pointer is null or to a text that ends in 0.
unsafe fn text(text: *const c_char) -> String {
    if text.is_null() {
        return String::new();
    }
    // SAFETY: as the caller says.
    unsafe { CStr::from_ptr(text) }.to_string_lossy().into_owned()
}
