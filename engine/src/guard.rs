//! Engines are large, and some of their panics can be had by input: a panic is an error here.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Runs `work`, or says on one line what its panic said.
pub(crate) fn guarded<T>(work: impl FnOnce() -> T) -> Result<T, String> {
    let result = catch_unwind(AssertUnwindSafe(work));
    clear_upper_registers();
    result.map_err(|panic| panic_text(&*panic))
}

/// tract's AVX kernels leave the upper halves of the vector registers in use. Every SSE
/// instruction after that has to merge with them, in the next operator as in the next guest:
/// a JPEG that decodes in 4 ms then takes 110.
fn clear_upper_registers() {
    #[cfg(target_arch = "x86_64")]
    if std::is_x86_feature_detected!("avx") {
        // SAFETY: AVX is there. The instruction clears what no compiled code of ours keeps
        // across a call: the ABI has no callee-saved vector registers.
        unsafe { std::arch::x86_64::_mm256_zeroupper() };
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no reason given");
    text.lines().next().unwrap_or_default().to_owned()
}
