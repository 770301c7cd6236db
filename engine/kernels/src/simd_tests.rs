use super::*;

/// Checks what is easy to get wrong, in the level's vectors and in its wide ones.
struct Check {
    has_dots: bool,
}

impl Kernel for Check {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        unsafe {
            moves::<S>();
            moves::<S::Wide>();
            computes::<S>();
            sums_bytes::<S, false>();
            if self.has_dots {
                sums_bytes::<S, true>();
            }
            computes::<S::Wide>();
        }
    }
}

/// Partial loads and stores, even lanes, transposition.
#[inline(always)]
unsafe fn moves<S: Simd>() {
    let values: Vec<f32> = (0..1024).map(|i| i as f32).collect();
    for n in 0..=S::LANES {
        let mut out = vec![-1.0f32; S::LANES];
        unsafe { S::store_first(out.as_mut_ptr(), S::load_first(values.as_ptr().add(1), n), n) };
        for (i, x) in out.iter().enumerate() {
            assert_eq!(*x, if i < n { i as f32 + 1.0 } else { -1.0 });
        }
        let first = lanes::<S>(unsafe { S::load_first(values.as_ptr().add(1), n) });
        assert!(
            first.iter().enumerate().all(|(i, x)| *x == if i < n { i as f32 + 1.0 } else { 0.0 })
        );
    }
    let even = lanes::<S>(unsafe { S::load_even(values.as_ptr().add(3)) });
    assert!(even.iter().enumerate().all(|(i, x)| *x == 3.0 + 2.0 * i as f32));
    let (even, odd) = unsafe {
        S::deinterleave(S::load(values.as_ptr()), S::load(values.as_ptr().add(S::LANES)))
    };
    assert!(lanes::<S>(even).iter().enumerate().all(|(i, x)| *x == 2.0 * i as f32));
    assert!(lanes::<S>(odd).iter().enumerate().all(|(i, x)| *x == 2.0 * i as f32 + 1.0));
    let mut out = vec![0.0f32; 1024];
    unsafe { S::transpose(values.as_ptr(), 20, out.as_mut_ptr(), 30) };
    for i in 0..S::LANES {
        for j in 0..S::LANES {
            assert_eq!(out[j * 30 + i], (i * 20 + j) as f32);
        }
    }
}

/// The order of operands, numbers that are none, and both ends of the range.
#[inline(always)]
unsafe fn computes<S: Simd>() {
    let nan = f32::NAN;
    unsafe {
        let [one, two, three] = [1.0, 2.0, 3.0].map(|x| S::splat(x));
        assert_eq!(all::<S>(S::fma(two, three, one)), 7.0);
        assert_eq!(all::<S>(S::div(one, three)), 1.0 / 3.0);
        assert_eq!((all::<S>(S::min(one, two)), all::<S>(S::min(two, one))), (1.0, 1.0));
        assert_eq!((all::<S>(S::max(one, two)), all::<S>(S::max(two, one))), (2.0, 2.0));
        assert!(all::<S>(S::min(one, S::splat(nan))).is_nan());
        assert!(all::<S>(S::max(one, S::splat(nan))).is_nan());
        for (x, wanted) in [(-1e-40, 1.0), (-0.0, 2.0), (0.0, 2.0), (1e-40, 2.0), (nan, 2.0)] {
            assert_eq!(all::<S>(S::pick(S::splat(x), one, two)), wanted, "{x}");
        }
        let tiny = f32::from_bits(1);
        for (x, n) in [
            (1.0, 0),
            (1.5, 127),
            (1.5, -126),
            (1.5, -149),
            (-1.25, -150),
            (tiny, 254),
            (f32::MAX, 1),
            (f32::MAX, -252),
            (-0.0, 9),
        ] {
            let wanted = (f64::from(x) * 2f64.powi(n)) as f32;
            let got = all::<S>(S::scale(S::splat(x), S::splat(n as f32)));
            assert_eq!(got.to_bits(), wanted.to_bits(), "{x} * 2^{n}: {got}, not {wanted}");
        }
    }
}

/// Both ends of the range of bytes, so that what saturates shows.
#[inline(always)]
unsafe fn sums_bytes<S: Simd, const FAST: bool>() {
    let cell = |bytes: [u8; 4]| f32::from_bits(u32::from_ne_bytes(bytes));
    for (x, w) in [
        ([255; 4], [127; 4]),
        ([255; 4], [-128; 4]),
        ([0, 1, 254, 128], [-128, 127, 3, -1]),
        ([0; 4], [-128; 4]),
        ([200, 0, 255, 7], [-128, -128, 0, 90]),
    ] {
        let products = x.iter().zip(&w).map(|(&x, &w)| (i32::from(x) - 128) * i32::from(w));
        let weights: i32 = w.iter().map(|&w| i32::from(w)).sum();
        let wanted = -70_000 + products.sum::<i32>() + if S::FLIP == 0 { 128 * weights } else { 0 };
        let flipped = f32::from_bits(cell(x).to_bits() ^ S::FLIP);
        unsafe {
            let acc = S::splat(f32::from_bits(-70_000i32 as u32));
            let sums =
                S::dots::<FAST>(S::splat(flipped), S::splat(cell(w.map(|w: i8| w as u8))), acc);
            assert_eq!(all::<S>(sums).to_bits() as i32, wanted, "{x:?} {w:?}");
        }
    }
}

#[inline(always)]
fn lanes<S: Simd>(v: S::V) -> Vec<f32> {
    let mut out = vec![-1.0f32; S::LANES];
    unsafe { S::store(out.as_mut_ptr(), v) };
    out
}

/// What all lanes are.
#[inline(always)]
fn all<S: Simd>(v: S::V) -> f32 {
    let lanes = lanes::<S>(v);
    assert!(lanes.iter().all(|x| x.to_bits() == lanes[0].to_bits()), "{lanes:?}");
    lanes[0]
}

#[test]
fn every_level_moves_and_computes_lanes_alike() {
    for level in Level::ALL.into_iter().filter(|level| level.available()) {
        unsafe { level.run(Check { has_dots: level.has_dots() }) };
    }
}
