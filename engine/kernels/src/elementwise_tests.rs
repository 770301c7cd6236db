use super::*;

/// `erf` in f64, near zero: a series.
fn near_erf(x: f64) -> f64 {
    let (mut term, mut sum, mut n) = (x, x, 0.0);
    while term.abs() > 1e-18 * sum.abs() {
        n += 1.0;
        term *= -x * x / n;
        sum += term / (2.0 * n + 1.0);
    }
    sum * std::f64::consts::FRAC_2_SQRT_PI
}

/// `erfc` in f64: a continued fraction far out.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    if x < 2.5 {
        return 1.0 - near_erf(x);
    }
    let mut tail = x;
    for k in (1..120).rev() {
        tail = x + f64::from(k) / 2.0 / tail;
    }
    (-x * x).exp() / tail / std::f64::consts::PI.sqrt()
}

fn exact(function: Function, x: f64) -> f64 {
    match function {
        Function::Activation(Activation::Relu) => x.max(0.0),
        Function::Activation(_) => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Function::Exp => x.exp(),
        Function::Sigmoid => 1.0 / (1.0 + (-x).exp()),
        Function::Silu => x / (1.0 + (-x).exp()),
        Function::Gelu => x * erfc(-x * std::f64::consts::FRAC_1_SQRT_2) / 2.0,
        Function::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x);
            x / (1.0 + (-2.0 * u).exp())
        }
        Function::Erf if x.abs() < 2.0 => near_erf(x),
        Function::Erf => 1.0 - erfc(x),
        Function::Tanh => x.tanh(),
    }
}

#[test]
fn functions_are_accurate() {
    // Bounds on the relative error; where e^x of a large rounded number is part, it grows with that number.
    for (function, bound) in [
        (Function::Activation(Activation::Relu), 0.0),
        (Function::Activation(Activation::HardSwish), 2e-7),
        (Function::Exp, 2e-7),
        (Function::Sigmoid, 3e-7),
        (Function::Silu, 3e-7),
        (Function::Gelu, 5e-7),
        (Function::GeluTanh, 1.2e-5),
        (Function::Erf, 3e-7),
        (Function::Tanh, 3e-7),
    ] {
        let inputs: Vec<f32> = (-400_003..400_000)
            .map(|i| i as f32 * 3.1e-5)
            .chain([0.0, -0.0, 1e-20, -1e-20])
            .collect();
        for level in Level::ALL {
            let mut values = inputs.clone();
            apply_at(level, function, &mut values);
            let mut worst = (0.0, 0.0);
            for (x, y) in inputs.iter().zip(&values) {
                let want = exact(function, f64::from(*x));
                // Hard swish cancels near -3, and so does its definition.
                let size = if matches!(function, Function::Activation(_)) {
                    want.abs().max(1.0)
                } else {
                    want.abs()
                };
                let error = (f64::from(*y) - want).abs() / size.max(1e-30);
                if error > worst.0 {
                    worst = (error, *x);
                }
            }
            println!("{level:?} {function:?}: {:.2e} at {}", worst.0, worst.1);
            // Without a fused step the square in GELU and erf keeps its rounding.
            let slack = if level.lanes() == 8 && level != Level::Avx2 || !level.available() {
                12.0
            } else {
                1.0
            };
            assert!(
                worst.0 <= bound * slack,
                "{level:?} {function:?}: {:.2e} at {}",
                worst.0,
                worst.1
            );
        }
    }
}

#[test]
fn functions_keep_their_limits() {
    for level in Level::ALL {
        let at = |function, x: f32| {
            let mut values = [x; 3];
            apply_at(level, function, &mut values);
            values[1]
        };
        let infinity = f32::INFINITY;
        assert_eq!(at(Function::Exp, -infinity), 0.0);
        assert_eq!(at(Function::Exp, -200.0), 0.0);
        assert_eq!(at(Function::Exp, infinity), infinity);
        assert_eq!(at(Function::Exp, 0.0), 1.0);
        assert!((at(Function::Exp, 88.5) / 88.5f32.exp() - 1.0).abs() < 1e-6);
        assert!(
            (at(Function::Exp, -100.0) / 3.8e-44 - 1.0).abs() < 0.1,
            "{level:?}: {}",
            at(Function::Exp, -100.0)
        );
        for (function, low, high) in
            [(Function::Sigmoid, 0.0, 1.0), (Function::Erf, -1.0, 1.0), (Function::Tanh, -1.0, 1.0)]
        {
            assert_eq!((at(function, -infinity), at(function, infinity)), (low, high));
            assert!((at(function, -50.0) - low).abs() < 1e-20);
        }
        assert_eq!((at(Function::Gelu, 50.0), at(Function::Silu, 200.0)), (50.0, 200.0));
        for function in [
            Function::Exp,
            Function::Sigmoid,
            Function::Silu,
            Function::Gelu,
            Function::Erf,
            Function::Tanh,
        ] {
            assert!(at(function, f32::NAN).is_nan(), "{level:?} {function:?}");
        }
    }
}

#[test]
fn rows_agree_with_their_definitions() {
    for row in [1, 2, 7, 8, 15, 16, 17, 33, 128, 384, 1000] {
        let x: Vec<f32> =
            (0..3 * row).map(|i| ((i * 37 + i / 7) % 101) as f32 / 10.0 - 4.0).collect();
        let gain: Vec<f32> = (0..row).map(|i| 0.5 + (i % 5) as f32 / 4.0).collect();
        let bias: Vec<f32> = (0..row).map(|i| (i % 3) as f32 - 1.0).collect();
        for level in Level::ALL {
            let mut soft = x.clone();
            softmax_at(level, &mut soft, row).unwrap();
            let mut norm = x.clone();
            layer_norm_at(level, &mut norm, &gain, Some(&bias), 1e-5).unwrap();
            for (r, values) in x.chunks(row).enumerate() {
                let values: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
                let max = values.iter().fold(f64::MIN, |a, b| a.max(*b));
                let sum: f64 = values.iter().map(|x| (x - max).exp()).sum();
                let mean = values.iter().sum::<f64>() / row as f64;
                let variance = values.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / row as f64;
                for (i, x) in values.iter().enumerate() {
                    let want = (x - max).exp() / sum;
                    assert!(
                        (f64::from(soft[r * row + i]) / want - 1.0).abs() < 1e-6,
                        "{level:?} softmax {row}"
                    );
                    let want = (x - mean) / (variance + 1e-5).sqrt() * f64::from(gain[i])
                        + f64::from(bias[i]);
                    let got = f64::from(norm[r * row + i]);
                    assert!(
                        (got - want).abs() < 3e-6,
                        "{level:?} layer norm {row}: {got}, not {want}"
                    );
                }
            }
        }
    }
}

#[test]
fn masked_entries_of_a_softmax_are_zero() {
    for level in Level::ALL {
        let mut values = vec![f32::NEG_INFINITY; 40];
        values[3] = 1.0;
        values[35] = 1.0;
        softmax_at(level, &mut values, 40).unwrap();
        assert!(
            values.iter().enumerate().all(|(i, x)| *x == if i == 3 || i == 35 { 0.5 } else { 0.0 })
        );
    }
}

#[test]
fn sums_and_scales() {
    for level in Level::ALL {
        for n in [0, 1, 7, 16, 37, 100] {
            let a: Vec<f32> = (0..3 * n).map(|i| i as f32).collect();
            let b: Vec<f32> = (0..3 * n).map(|i| 0.5 * i as f32).collect();
            let mut y = vec![0.0; 3 * n];
            add_at(level, &a, &b, &mut y).unwrap();
            assert!(y.iter().enumerate().all(|(i, y)| *y == 1.5 * i as f32));
            scale_planes_at(level, &mut y, &[1.0, 2.0, -1.0]).unwrap();
            assert!(
                y.iter().enumerate().all(|(i, y)| *y == 1.5 * i as f32 * [1.0, 2.0, -1.0][i / n])
            );
        }
    }
    assert_eq!(add(&[1.0], &[1.0], &mut []), Err(LengthMismatch));
    assert_eq!(scale_planes(&mut [1.0; 3], &[1.0; 2]), Err(LengthMismatch));
    assert_eq!(scale_planes(&mut [1.0; 3], &[]), Err(LengthMismatch));
    assert_eq!(softmax(&mut [1.0; 3], 2), Err(LengthMismatch));
    assert_eq!(softmax(&mut [1.0; 3], 0), Err(LengthMismatch));
    assert_eq!(layer_norm(&mut [1.0; 4], &[1.0; 2], Some(&[1.0]), 0.0), Err(LengthMismatch));
}
