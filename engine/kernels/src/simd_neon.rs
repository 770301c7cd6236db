//! NEON vectors. Every aarch64 processor has them.

use super::{Kernel, Several, Simd};
use std::arch::{aarch64::*, asm};

/// 4 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Neon;

impl Simd for Neon {
    const LANES: usize = 4;
    const FLIP: u32 = 0x8080_8080;
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
        // By cases, as a loop over lanes becomes a call of memcpy.
        unsafe {
            match n {
                0 => vdupq_n_f32(0.0),
                1 => vsetq_lane_f32::<0>(*p, vdupq_n_f32(0.0)),
                2 => vcombine_f32(vld1_f32(p), vdup_n_f32(0.0)),
                3 => vcombine_f32(vld1_f32(p), vset_lane_f32::<0>(*p.add(2), vdup_n_f32(0.0))),
                _ => vld1q_f32(p),
            }
        }
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32) -> Self::V {
        // Lanes 0 2 of the first load, 1 3 of one that starts a value early: nothing behind the last is touched.
        unsafe {
            let high = vld1q_f32(p.add(3));
            vuzp1q_f32(vld1q_f32(p), vextq_f32::<1>(high, high))
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
        unsafe {
            match n {
                0 => {}
                1 => *p = vgetq_lane_f32::<0>(v),
                2 => vst1_f32(p, vget_low_f32(v)),
                3 => {
                    vst1_f32(p, vget_low_f32(v));
                    *p.add(2) = vgetq_lane_f32::<2>(v);
                }
                _ => vst1q_f32(p, v),
            }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, acc: Self::V) -> Self::V {
        unsafe { vfmaq_f32(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn dots<const FAST: bool>(x: Self::V, w: Self::V, acc: Self::V) -> Self::V {
        let mut acc = acc;
        unsafe {
            if FAST {
                asm!(
                    ".arch_extension dotprod",
                    "sdot {acc:v}.4s, {x:v}.16b, {w:v}.16b",
                    acc = inout(vreg) acc, x = in(vreg) x, w = in(vreg) w,
                    options(pure, nomem, nostack, preserves_flags)
                );
                return acc;
            }
            let (x, w) = (vreinterpretq_s8_f32(x), vreinterpretq_s8_f32(w));
            let low = vpaddlq_s16(vmull_s8(vget_low_s8(x), vget_low_s8(w)));
            let sums = vpaddq_s32(low, vpaddlq_s16(vmull_high_s8(x, w)));
            vreinterpretq_f32_s32(vaddq_s32(vreinterpretq_s32_f32(acc), sums))
        }
    }
    #[inline(always)]
    unsafe fn whole(v: Self::V) -> Self::V {
        unsafe { vcvtq_f32_s32(vreinterpretq_s32_f32(v)) }
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
        unsafe { call_neon(kernel) }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_step: usize, dst: *mut f32, dst_step: usize) {
        unsafe {
            let row = |i: usize| vld1q_f32(src.add(i * src_step));
            let (a, b, c, d) = (row(0), row(1), row(2), row(3));
            // Columns 0 2 and 1 3 of two rows each, then pairs of lanes into order.
            let pairs = |even, odd| (vreinterpretq_f64_f32(even), vreinterpretq_f64_f32(odd));
            let (ab02, ab13) = pairs(vtrn1q_f32(a, b), vtrn2q_f32(a, b));
            let (cd02, cd13) = pairs(vtrn1q_f32(c, d), vtrn2q_f32(c, d));
            let put = |j: usize, v| vst1q_f32(dst.add(j * dst_step), vreinterpretq_f32_f64(v));
            put(0, vtrn1q_f64(ab02, cd02));
            put(1, vtrn1q_f64(ab13, cd13));
            put(2, vtrn2q_f64(ab02, cd02));
            put(3, vtrn2q_f64(ab13, cd13));
        }
    }
}

#[inline(never)]
unsafe fn call_neon<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: NEON is part of the target; the caller vouches for the pointers.
    unsafe { kernel.run::<Neon>() }
}
