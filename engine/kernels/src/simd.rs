//! The vector instructions that the kernels are written in, and the choice of instruction set at run time.
//!
//! A kernel is a struct of its arguments that implements [`Kernel`]; its body is generic over [`Simd`] and
//! `#[inline(always)]` all the way down, because only code inlined into one of the `run_*` functions below may use
//! their instructions. What must never live here: anything that knows about matrices or images.

use std::sync::OnceLock;

/// A vector of `LANES` f32 values and what the kernels do with it.
///
/// Every function is unsafe for the same two reasons: the processor must have the instruction set, and pointers must
/// be valid for the lanes that are touched (no alignment is needed anywhere).
pub(crate) trait Simd: Copy {
    /// Lanes of one vector.
    const LANES: usize;
    /// What the bits of unsigned bytes are changed by for [`Simd::dots`]: nothing, or each is 128 less and signed.
    const FLIP: u32 = 0;
    /// The vector.
    type V: Copy;
    /// The same instructions taken 16 lanes at a time, the width of a panel of a packed matrix.
    type Wide: crate::tile::Tiles;

    /// All lanes zero.
    unsafe fn zero() -> Self::V;
    /// All lanes `x`.
    unsafe fn splat(x: f32) -> Self::V;
    /// Loads `LANES` values.
    unsafe fn load(p: *const f32) -> Self::V;
    /// Loads the first `n <= LANES` values and touches no others; the other lanes are zero.
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V;
    /// Loads `p[0], p[2], p[4], …`; touches exactly `2 * LANES - 1` values.
    unsafe fn load_even(p: *const f32) -> Self::V;
    /// The even lanes, then the odd lanes, of `a` followed by `b`.
    unsafe fn deinterleave(a: Self::V, b: Self::V) -> (Self::V, Self::V);
    /// `a / b`.
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V;
    /// `x * 2^n`, rounded once at most, for whole `n` from -252 to 254.
    unsafe fn scale(x: Self::V, n: Self::V) -> Self::V;
    /// `negative` where `x < 0`, else `other`.
    unsafe fn pick(x: Self::V, negative: Self::V, other: Self::V) -> Self::V;
    /// Stores `LANES` values.
    unsafe fn store(p: *mut f32, v: Self::V);
    /// Stores the first `n <= LANES` lanes and touches nothing behind them.
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize);
    /// `a * b + acc`, rounded once where the processor can.
    unsafe fn fma(a: Self::V, b: Self::V, acc: Self::V) -> Self::V;
    /// Lanes as whole numbers of 32 bits: `acc`, and the products of the four bytes of `x`, flipped by
    /// [`Simd::FLIP`], and of `w`, which are signed. `FAST`: by the instruction that [`Level::has_dots`] asks for.
    unsafe fn dots<const FAST: bool>(x: Self::V, w: Self::V, acc: Self::V) -> Self::V;
    /// The whole numbers of 32 bits that the lanes are, as floats.
    unsafe fn whole(v: Self::V) -> Self::V;
    /// Lane by lane sum.
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V;
    /// Lane by lane product.
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V;
    /// Lane by lane minimum; where the second operand is not a number, that; where only the first is
    /// not, either. So put the constant first.
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V;
    /// Lane by lane maximum; where the second operand is not a number, that; where only the first is
    /// not, either. So put the constant first.
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V;
    /// Runs a kernel as a function of its own with this instruction set, where inlining would only cost the compiler's
    /// time.
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output;
    /// Copies a block of `LANES` by `LANES` values with rows and columns exchanged; steps are in values.
    unsafe fn transpose(src: *const f32, src_step: usize, dst: *mut f32, dst_step: usize);
}

/// A kernel's arguments; `run` is its body.
pub(crate) trait Kernel {
    /// What the kernel gives back.
    type Output;
    /// The body, to be marked `#[inline(always)]`.
    ///
    /// # Safety
    /// The processor has the instruction set of `S`, and the kernel's own pointers are valid.
    unsafe fn run<S: Simd>(self) -> Self::Output;
}

/// The instruction sets that kernels are compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Level {
    /// 16 lanes, x86-64 with AVX-512F.
    Avx512,
    /// 8 lanes, x86-64 with AVX2 and FMA.
    Avx2,
    /// 4 lanes, aarch64.
    Neon,
    /// 8 lanes of plain Rust.
    Scalar,
}

impl Level {
    /// The best level of this processor, found once.
    pub fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(|| {
            Level::ALL.into_iter().find(|level| level.available()).unwrap_or(Level::Scalar)
        })
    }

    /// Every level, best first.
    pub const ALL: [Level; 4] = [Level::Avx512, Level::Avx2, Level::Neon, Level::Scalar];

    /// Whether this processor has the level's instructions.
    pub fn available(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => std::is_x86_feature_detected!("avx512f") && Level::Avx2.available(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => {
                std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma")
            }
            #[cfg(target_arch = "aarch64")]
            Level::Neon => true,
            Level::Scalar => true,
            _ => false,
        }
    }

    /// Whether bytes are flipped, see [`Simd::FLIP`].
    pub(crate) fn flips(self) -> bool {
        self == Level::Neon
    }

    /// Whether the processor sums products of bytes by instructions of their own, much faster than those of floats.
    pub fn has_dots(self) -> bool {
        match self {
            #[cfg(target_arch = "x86_64")]
            Level::Avx512 => std::is_x86_feature_detected!("avx512vnni") && self.available(),
            #[cfg(target_arch = "x86_64")]
            Level::Avx2 => std::is_x86_feature_detected!("avxvnni") && self.available(),
            #[cfg(target_arch = "aarch64")]
            Level::Neon => std::arch::is_aarch64_feature_detected!("dotprod"),
            _ => false,
        }
    }

    /// Whether products of `k` bytes are faster than those of floats.
    pub fn favours_bytes(self, k: usize) -> bool {
        // Made of 16-bit ones they take 0.7 of the time, and turning values into bytes takes some.
        self.has_dots() || self == Level::Avx2 && k >= 128
    }

    /// Lanes of the level's vectors.
    pub fn lanes(self) -> usize {
        match self {
            Level::Avx512 => 16,
            Level::Avx2 | Level::Scalar => 8,
            Level::Neon => 4,
        }
    }

    /// Runs a kernel at this level, or in plain Rust where the processor lacks it.
    ///
    /// # Safety
    /// The kernel's pointers are valid.
    #[inline]
    pub(crate) unsafe fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // SAFETY: `available` has seen the instruction set; the caller vouches for the pointers.
        unsafe {
            match self {
                #[cfg(target_arch = "x86_64")]
                Level::Avx512 if self.available() => run_avx512(kernel),
                #[cfg(target_arch = "x86_64")]
                Level::Avx2 if self.available() => run_avx2(kernel),
                #[cfg(target_arch = "aarch64")]
                Level::Neon => kernel.run::<Neon>(),
                _ => kernel.run::<Scalar>(),
            }
        }
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the attribute above is the instruction set; the caller vouches for the pointers.
    unsafe { kernel.run::<x86::Avx512>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
unsafe fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as above.
    unsafe { kernel.run::<x86::Avx2>() }
}

#[cfg(target_arch = "aarch64")]
pub(crate) use neon::Neon;

/// Plain Rust on arrays, which the compiler turns into whatever vectors the target has.
#[derive(Clone, Copy)]
pub(crate) struct Scalar;

/// Lane by lane, written as a loop because closures would not be inlined for certain.
macro_rules! lanes {
    ($i:ident, $value:expr) => {{
        let mut out = [0.0f32; 8];
        let mut $i = 0;
        while $i < 8 {
            out[$i] = $value;
            $i += 1;
        }
        out
    }};
}

impl Simd for Scalar {
    const LANES: usize = 8;
    type V = [f32; 8];
    type Wide = Several<Scalar, 2>;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        [0.0; 8]
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        [x; 8]
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        // SAFETY: the caller vouches for eight values.
        unsafe { p.cast::<[f32; 8]>().read_unaligned() }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        // SAFETY: only the first `n` values are read.
        unsafe { lanes!(i, if i < n { *p.add(i) } else { 0.0 }) }
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32) -> Self::V {
        // SAFETY: the last value read is `p[14]`.
        unsafe { lanes!(i, *p.add(2 * i)) }
    }
    #[inline(always)]
    unsafe fn deinterleave(a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        (
            lanes!(i, if i < 4 { a[2 * i] } else { b[2 * i - 8] }),
            lanes!(i, if i < 4 { a[2 * i + 1] } else { b[2 * i - 7] }),
        )
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i, a[i] / b[i])
    }
    #[inline(always)]
    unsafe fn scale(x: Self::V, n: Self::V) -> Self::V {
        // In two halves, because 2^n itself may be beyond the range where the product is not.
        lanes!(i, {
            let n = n[i] as i32;
            let half = n >> 1;
            let power = [
                f32::from_bits(((half + 127) << 23) as u32),
                f32::from_bits(((n - half + 127) << 23) as u32),
            ];
            x[i] * power[0] * power[1]
        })
    }
    #[inline(always)]
    unsafe fn pick(x: Self::V, negative: Self::V, other: Self::V) -> Self::V {
        lanes!(i, if x[i] < 0.0 { negative[i] } else { other[i] })
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        // SAFETY: the caller vouches for eight values.
        unsafe { p.cast::<[f32; 8]>().write_unaligned(v) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        for (i, x) in v.iter().enumerate().take(n) {
            // SAFETY: only the first `n` values are written.
            unsafe { *p.add(i) = *x }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, acc: Self::V) -> Self::V {
        // Not `mul_add`: without the instruction that is a call into libm for every lane.
        lanes!(i, a[i] * b[i] + acc[i])
    }
    #[inline(always)]
    unsafe fn dots<const FAST: bool>(x: Self::V, w: Self::V, acc: Self::V) -> Self::V {
        lanes!(i, {
            let (x, w) = (x[i].to_bits().to_ne_bytes(), w[i].to_bits().to_ne_bytes());
            let of = |at: usize| i32::from(x[at]) * i32::from(w[at] as i8);
            let sum = (acc[i].to_bits() as i32).wrapping_add(of(0) + of(1) + of(2) + of(3));
            f32::from_bits(sum as u32)
        })
    }
    #[inline(always)]
    unsafe fn whole(v: Self::V) -> Self::V {
        lanes!(i, v[i].to_bits() as i32 as f32)
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i, a[i] + b[i])
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i, a[i] * b[i])
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i, if a[i] < b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        lanes!(i, if a[i] > b[i] { a[i] } else { b[i] })
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        // SAFETY: as promised to this function.
        unsafe { kernel.run::<Scalar>() }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_step: usize, dst: *mut f32, dst_step: usize) {
        for i in 0..8 {
            for j in 0..8 {
                // SAFETY: inside the two blocks that the caller vouches for.
                unsafe { *dst.add(j * dst_step + i) = *src.add(i * src_step + j) }
            }
        }
    }
}

#[path = "simd_several.rs"]
mod several;
pub(crate) use several::Several;

#[cfg(target_arch = "x86_64")]
#[path = "simd_x86.rs"]
mod x86;
#[cfg(target_arch = "x86_64")]
pub(crate) use x86::{Avx2, Avx512};

#[cfg(target_arch = "aarch64")]
#[path = "simd_neon.rs"]
mod neon;

#[cfg(test)]
#[path = "simd_tests.rs"]
mod tests;
