use super::*;

/// Checks what is easy to get wrong: partial loads and stores, even lanes, transposition.
struct Check;

impl Kernel for Check {
    type Output = ();
    #[inline(always)]
    unsafe fn run<S: Simd>(self) {
        let values: Vec<f32> = (0..1024).map(|i| i as f32).collect();
        for n in 0..=S::LANES {
            let mut out = vec![-1.0f32; S::LANES];
            unsafe {
                S::store_first(out.as_mut_ptr(), S::load_first(values.as_ptr().add(1), n), n)
            };
            for (i, x) in out.iter().enumerate() {
                assert_eq!(*x, if i < n { i as f32 + 1.0 } else { -1.0 });
            }
        }
        let mut out = vec![0.0f32; S::LANES];
        unsafe { S::store(out.as_mut_ptr(), S::load_even(values.as_ptr().add(3))) };
        assert!(out.iter().enumerate().all(|(i, x)| *x == 3.0 + 2.0 * i as f32));
        let mut out = vec![0.0f32; 1024];
        unsafe { S::transpose(values.as_ptr(), 20, out.as_mut_ptr(), 30) };
        for i in 0..S::LANES {
            for j in 0..S::LANES {
                assert_eq!(out[j * 30 + i], (i * 20 + j) as f32);
            }
        }
    }
}

#[test]
fn every_level_moves_lanes_alike() {
    for level in Level::ALL.into_iter().filter(|level| level.available()) {
        unsafe { level.run(Check) };
    }
}
