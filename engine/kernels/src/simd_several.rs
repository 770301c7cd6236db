//! Several vectors taken as one wide vector.

use super::{Kernel, Simd};

/// `N` vectors of `S`, lane by lane.
#[derive(Clone, Copy)]
pub(crate) struct Several<S, const N: usize>(std::marker::PhantomData<S>);

/// Part by part, written as a loop because closures would not be inlined for certain.
macro_rules! parts {
    ($i:ident, $value:expr) => {{
        // SAFETY: as promised to the calling function.
        unsafe {
            let mut out = [S::zero(); N];
            let mut $i = 0;
            while $i < N {
                out[$i] = $value;
                $i += 1;
            }
            out
        }
    }};
}

/// How many of the first `n` lanes fall into a part of `lanes` lanes that starts at `from`.
#[inline(always)]
fn share(n: usize, from: usize, lanes: usize) -> usize {
    n.saturating_sub(from).min(lanes)
}

impl<S: Simd, const N: usize> Simd for Several<S, N> {
    const LANES: usize = S::LANES * N;
    const FLIP: u32 = S::FLIP;
    type V = [S::V; N];
    type Wide = S::Wide;

    #[inline(always)]
    unsafe fn zero() -> Self::V {
        // SAFETY: as promised to this function; so for every function of this impl.
        unsafe { [S::zero(); N] }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> Self::V {
        unsafe { [S::splat(x); N] }
    }
    #[inline(always)]
    unsafe fn load(p: *const f32) -> Self::V {
        parts!(i, S::load(p.add(i * S::LANES)))
    }
    #[inline(always)]
    unsafe fn load_first(p: *const f32, n: usize) -> Self::V {
        parts!(i, S::load_first(p.wrapping_add(i * S::LANES), share(n, i * S::LANES, S::LANES)))
    }
    #[inline(always)]
    unsafe fn load_even(p: *const f32) -> Self::V {
        parts!(i, S::load_even(p.add(2 * i * S::LANES)))
    }
    #[inline(always)]
    unsafe fn deinterleave(a: Self::V, b: Self::V) -> (Self::V, Self::V) {
        let (mut even, mut odd) = (a, a);
        let mut i = 0;
        while i < N {
            let low = if 2 * i < N { a[2 * i] } else { b[2 * i - N] };
            let high = if 2 * i + 1 < N { a[2 * i + 1] } else { b[2 * i + 1 - N] };
            (even[i], odd[i]) = unsafe { S::deinterleave(low, high) };
            i += 1;
        }
        (even, odd)
    }
    #[inline(always)]
    unsafe fn div(a: Self::V, b: Self::V) -> Self::V {
        parts!(i, S::div(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn scale(x: Self::V, n: Self::V) -> Self::V {
        parts!(i, S::scale(x[i], n[i]))
    }
    #[inline(always)]
    unsafe fn pick(x: Self::V, negative: Self::V, other: Self::V) -> Self::V {
        parts!(i, S::pick(x[i], negative[i], other[i]))
    }
    #[inline(always)]
    unsafe fn store(p: *mut f32, v: Self::V) {
        let mut i = 0;
        while i < N {
            unsafe { S::store(p.add(i * S::LANES), v[i]) };
            i += 1;
        }
    }
    #[inline(always)]
    unsafe fn store_first(p: *mut f32, v: Self::V, n: usize) {
        let mut i = 0;
        while i < N {
            unsafe {
                S::store_first(p.wrapping_add(i * S::LANES), v[i], share(n, i * S::LANES, S::LANES))
            };
            i += 1;
        }
    }
    #[inline(always)]
    unsafe fn fma(a: Self::V, b: Self::V, acc: Self::V) -> Self::V {
        parts!(i, S::fma(a[i], b[i], acc[i]))
    }
    #[inline(always)]
    unsafe fn dots<const FAST: bool>(x: Self::V, w: Self::V, acc: Self::V) -> Self::V {
        parts!(i, S::dots::<FAST>(x[i], w[i], acc[i]))
    }
    #[inline(always)]
    unsafe fn whole(v: Self::V) -> Self::V {
        parts!(i, S::whole(v[i]))
    }
    #[inline(always)]
    unsafe fn add(a: Self::V, b: Self::V) -> Self::V {
        parts!(i, S::add(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn mul(a: Self::V, b: Self::V) -> Self::V {
        parts!(i, S::mul(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn min(a: Self::V, b: Self::V) -> Self::V {
        parts!(i, S::min(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn max(a: Self::V, b: Self::V) -> Self::V {
        parts!(i, S::max(a[i], b[i]))
    }
    #[inline(always)]
    unsafe fn call<K: Kernel>(kernel: K) -> K::Output {
        unsafe { S::call(kernel) }
    }
    #[inline(always)]
    unsafe fn transpose(src: *const f32, src_step: usize, dst: *mut f32, dst_step: usize) {
        for i in 0..N {
            for j in 0..N {
                let (row, column) = (i * S::LANES, j * S::LANES);
                unsafe {
                    let from = src.add(row * src_step + column);
                    S::transpose(from, src_step, dst.add(column * dst_step + row), dst_step);
                }
            }
        }
    }
}
