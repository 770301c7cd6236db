//! NEON vectors. Every aarch64 processor has them.

use super::{Kernel, Several, Simd};
use std::arch::aarch64::*;

/// 4 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

impl Simd for Neon {
    const LANES: usize = 4;
    type V = float32x4_t;
    type Wide = Several<Neon, 4>;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: NEON is part of the target; pointers see the trait. So for every function of this impl.
        unsafe { vdupq_n_f32(0.0) }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { vdupq_n_f32(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { vld1q_f32(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        let mut lanes = [0.0f32; 4];
        for (i, lane) in lanes.iter_mut().enumerate().take(n) {
            unsafe { *lane = *p.add(i) }
        }
        unsafe { vld1q_f32(lanes.as_ptr()) }
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32) -> Self::V {
        // Lanes 0 2 of the first load, 1 3 of one that starts a value early: nothing behind the last is touched.
        unsafe {
            let high = vld1q_f32(p.add(3));
            let even = vuzp1q_f32(vld1q_f32(p), vextq_f32::<1>(high, high));
            even
        }
    }
    #[inline(always)]
    unsafe fn deinterleave(a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        unsafe { (vuzp1q_f32(a, b), vuzp2q_f32(a, b)) }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { vdivq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn scale(x: Self::V, n: Self::V) -> Self::V {
        // In two halves, because 2^n itself may be beyond the range where the product is not.
        unsafe {
            let n = vcvtnq_s32_f32(n);
            let half = vshrq_n_s32::<1>(n);
            let low = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(half, vdupq_n_s32(127))));
            let high = vreinterpretq_f32_s32(vshlq_n_s32::<23>(vaddq_s32(
                vsubq_s32(n, half),
                vdupq_n_s32(127),
            )));
            vmulq_f32(vmulq_f32(x, low), high)
        }
    }
    #[inline(always)]
    unsafe fn pick(x: Self::V, negative: Self::V, other: Self::V) -> Self::V {
        unsafe { vbslq_f32(vcltzq_f32(x), negative, other) }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { vst1q_f32(p, v) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        let mut lanes = [0.0f32; 4];
        unsafe { vst1q_f32(lanes.as_mut_ptr(), v) }
        for (i, lane) in lanes.iter().enumerate().take(n) {
            unsafe { *p.add(i) = *lane }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, acc: Self::V) -> Self::V {
        unsafe { vfmaq_f32(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { vaddq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { vmulq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { vminq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { vmaxq_f32(a, b) }
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        unsafe { kernel.run::<Neon>() }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_step: usize, dst: *mut f32, dst_step: usize) {
        for i in 0..4 {
            for j in 0..4 {
                unsafe { *dst.add(j * dst_step + i) = *src.add(i * src_step + j) }
            }
        }
    }
}
