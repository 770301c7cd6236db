//! AVX-512 and AVX2 vectors.

use super::{Kernel, Several, Simd};
use std::arch::{asm, x86_64::*};

/// 16 lanes.
#[derive(Clone, Copy)]
pub(crate) struct Avx512;

/// The first `n` lanes.
#[inline(always)]
fn mask16(n: usize) -> __mmask16 {
    ((1u32 << n) - 1) as __mmask16
}

impl Simd for Avx512 {
    const LANES: usize = 16;
    type V = __m512;
    type Wide = Avx512;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: AVX-512F, see the trait; so for every function of this impl.
        unsafe { _mm512_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { _mm512_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { _mm512_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        unsafe { _mm512_maskz_loadu_ps(mask16(n), p) }
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32) -> Self::V {
        // The second load starts one early so that nothing behind the last even value is touched.
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 17, 19, 21, 23, 25, 27, 29, 31);
            _mm512_permutex2var_ps(_mm512_loadu_ps(p), even, _mm512_loadu_ps(p.add(15)))
        }
    }
    #[inline(always)]
    unsafe fn deinterleave(a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        unsafe {
            let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
            let odd = _mm512_setr_epi32(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31);
            (_mm512_permutex2var_ps(a, even, b), _mm512_permutex2var_ps(a, odd, b))
        }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn scale(x: Self::V, n: Self::V) -> Self::V {
        unsafe { _mm512_scalef_ps(x, n) }
    }
    #[inline(always)]
    unsafe fn pick(x: Self::V, negative: Self::V, other: Self::V) -> Self::V {
        unsafe {
            _mm512_mask_blend_ps(
                _mm512_cmp_ps_mask::<_CMP_LT_OQ>(x, _mm512_setzero_ps()),
                other,
                negative,
            )
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { _mm512_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        unsafe { _mm512_mask_storeu_ps(p, mask16(n), v) }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, acc: Self::V) -> Self::V {
        unsafe { _mm512_fmadd_ps(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn dots<const FAST: bool>(x: Self::V, w: Self::V, acc: Self::V) -> Self::V {
        unsafe {
            if FAST {
                return dots_avx512(x, w, acc);
            }
            let [x, w, acc] = [x, w, acc].map(|v| {
                let v = _mm512_castps_pd(v);
                [_mm512_castpd512_pd256(v), _mm512_extractf64x4_pd::<1>(v)]
                    .map(|v| _mm256_castpd_ps(v))
            });
            let half = |i: usize| _mm256_castps_pd(Avx2::dots::<false>(x[i], w[i], acc[i]));
            _mm512_castpd_ps(_mm512_insertf64x4::<1>(_mm512_castpd256_pd512(half(0)), half(1)))
        }
    }
    #[inline(always)]
    unsafe fn whole(v: Self::V) -> Self::V {
        unsafe { _mm512_cvtepi32_ps(_mm512_castps_si512(v)) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm512_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        unsafe { call_avx512(kernel) }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_step: usize, dst: *mut f32, dst_step: usize) {
        unsafe {
            // Rows i, i+4, i+8, i+12 meet in one register by quarters while loading, so that the rest of the work
            // stays inside quarters: a 4x4 exchange on each.
            for q in 0..4 {
                let mut r = [_mm512_setzero_ps(); 4];
                for i in 0..4 {
                    let at = |row: usize| _mm_loadu_ps(src.add((i + 4 * row) * src_step + 4 * q));
                    let v = _mm512_castps128_ps512(at(0));
                    let v = _mm512_insertf32x4::<1>(v, at(1));
                    let v = _mm512_insertf32x4::<2>(v, at(2));
                    r[i] = _mm512_insertf32x4::<3>(v, at(3));
                }
                let (a, b) = (_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
                let (c, d) = (_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
                let row = |j: usize| dst.add((4 * q + j) * dst_step);
                _mm512_storeu_ps(row(0), _mm512_shuffle_ps::<0x44>(a, c));
                _mm512_storeu_ps(row(1), _mm512_shuffle_ps::<0xee>(a, c));
                _mm512_storeu_ps(row(2), _mm512_shuffle_ps::<0x44>(b, d));
                _mm512_storeu_ps(row(3), _mm512_shuffle_ps::<0xee>(b, d));
            }
        }
    }
}

/// 8 lanes, with fused multiply-add.
#[derive(Clone, Copy)]
pub(crate) struct Avx2;

/// A sliding window over this array is a mask of the first lanes.
static MASK8: [i32; 16] = [-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0];

#[inline(always)]
unsafe fn mask8(n: usize) -> __m256i {
    // SAFETY: `n <= 8`, so the window lies inside the array.
    unsafe { _mm256_loadu_si256(MASK8.as_ptr().add(8 - n).cast()) }
}

impl Simd for Avx2 {
    const LANES: usize = 8;
    type V = __m256;
    type Wide = Several<Avx2, 2>;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: AVX2 and FMA, see the trait; so for every function of this impl.
        unsafe { _mm256_setzero_ps() }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { _mm256_set1_ps(x) }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        unsafe { _mm256_loadu_ps(p) }
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        unsafe { _mm256_maskload_ps(p, mask8(n)) }
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32) -> Self::V {
        unsafe {
            let (low, high) = (_mm256_loadu_ps(p), _mm256_loadu_ps(p.add(7)));
            // Lanes 0 2 | 9 11 and 4 6 | 13 15 of the pair, then quarters into order.
            let mixed = _mm256_shuffle_ps::<0b11_01_10_00>(low, high);
            _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(_mm256_castps_pd(mixed)))
        }
    }
    #[inline(always)]
    unsafe fn deinterleave(a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        unsafe {
            let even = _mm256_castps_pd(_mm256_shuffle_ps::<0b10_00_10_00>(a, b));
            let odd = _mm256_castps_pd(_mm256_shuffle_ps::<0b11_01_11_01>(a, b));
            (
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(even)),
                _mm256_castpd_ps(_mm256_permute4x64_pd::<0b11_01_10_00>(odd)),
            )
        }
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_div_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn scale(x: Self::V, n: Self::V) -> Self::V {
        // In two halves, because 2^n itself may be beyond the range where the product is not.
        unsafe {
            let n = _mm256_cvtps_epi32(n);
            let half = _mm256_srai_epi32::<1>(n);
            let power = |n| {
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(
                    n,
                    _mm256_set1_epi32(127),
                )))
            };
            _mm256_mul_ps(_mm256_mul_ps(x, power(half)), power(_mm256_sub_epi32(n, half)))
        }
    }
    #[inline(always)]
    unsafe fn pick(x: Self::V, negative: Self::V, other: Self::V) -> Self::V {
        unsafe {
            let below = _mm256_cmp_ps::<_CMP_LT_OQ>(x, _mm256_setzero_ps());
            _mm256_blendv_ps(other, negative, below)
        }
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        unsafe { _mm256_storeu_ps(p, v) }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        // Masks take some processors many times as long.
        unsafe {
            match n {
                0 => {}
                8 => _mm256_storeu_ps(p, v),
                _ => _mm256_maskstore_ps(p, mask8(n), v),
            }
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, acc: Self::V) -> Self::V {
        unsafe { _mm256_fmadd_ps(a, b, acc) }
    }
    #[inline(always)]
    unsafe fn dots<const FAST: bool>(x: Self::V, w: Self::V, acc: Self::V) -> Self::V {
        unsafe {
            if FAST {
                return dots_avx2(x, w, acc);
            }
            // Even and odd bytes as pairs of 16 bits: the instruction that takes bytes saturates.
            let (x, w) = (_mm256_castps_si256(x), _mm256_castps_si256(w));
            let even = _mm256_madd_epi16(
                _mm256_and_si256(x, _mm256_set1_epi16(0xff)),
                _mm256_srai_epi16::<8>(_mm256_slli_epi16::<8>(w)),
            );
            let odd = _mm256_madd_epi16(_mm256_srli_epi16::<8>(x), _mm256_srai_epi16::<8>(w));
            let acc = _mm256_add_epi32(_mm256_castps_si256(acc), even);
            _mm256_castsi256_ps(_mm256_add_epi32(acc, odd))
        }
    }
    #[inline(always)]
    unsafe fn whole(v: Self::V) -> Self::V {
        unsafe { _mm256_cvtepi32_ps(_mm256_castps_si256(v)) }
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_add_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_mul_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_min_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        unsafe { _mm256_max_ps(a, b) }
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        unsafe { call_avx2(kernel) }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_step: usize, dst: *mut f32, dst_step: usize) {
        unsafe {
            for q in 0..2 {
                let mut r = [_mm256_setzero_ps(); 4];
                for i in 0..4 {
                    let at = |row: usize| _mm_loadu_ps(src.add((i + 4 * row) * src_step + 4 * q));
                    r[i] = _mm256_insertf128_ps::<1>(_mm256_castps128_ps256(at(0)), at(1));
                }
                let (a, b) = (_mm256_unpacklo_ps(r[0], r[1]), _mm256_unpackhi_ps(r[0], r[1]));
                let (c, d) = (_mm256_unpacklo_ps(r[2], r[3]), _mm256_unpackhi_ps(r[2], r[3]));
                let row = |j: usize| dst.add((4 * q + j) * dst_step);
                _mm256_storeu_ps(row(0), _mm256_shuffle_ps::<0x44>(a, c));
                _mm256_storeu_ps(row(1), _mm256_shuffle_ps::<0xee>(a, c));
                _mm256_storeu_ps(row(2), _mm256_shuffle_ps::<0x44>(b, d));
                _mm256_storeu_ps(row(3), _mm256_shuffle_ps::<0xee>(b, d));
            }
        }
    }
}

#[inline(never)]
#[target_feature(enable = "avx512f,avx2,fma")]
unsafe fn call_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: the attribute above is the instruction set; the caller vouches for the pointers.
    unsafe { kernel.run::<Avx512>() }
}

#[inline(never)]
#[target_feature(enable = "avx2,fma")]
unsafe fn call_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: as above.
    unsafe { kernel.run::<Avx2>() }
}

// Not intrinsics: kernels are compiled for all processors of a level, and those could not be inlined.

#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn dots_avx512(x: __m512, w: __m512, mut acc: __m512) -> __m512 {
    // SAFETY: the caller has seen AVX512-VNNI.
    unsafe {
        asm!(
            "vpdpbusd {acc}, {x}, {w}",
            acc = inout(zmm_reg) acc, x = in(zmm_reg) x, w = in(zmm_reg) w,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}

#[inline]
#[target_feature(enable = "avx2")]
unsafe fn dots_avx2(x: __m256, w: __m256, mut acc: __m256) -> __m256 {
    // SAFETY: the caller has seen AVX-VNNI.
    unsafe {
        asm!(
            "{{vex}} vpdpbusd {acc}, {x}, {w}",
            acc = inout(ymm_reg) acc, x = in(ymm_reg) x, w = in(ymm_reg) w,
            options(pure, nomem, nostack, preserves_flags)
        );
    }
    acc
}
