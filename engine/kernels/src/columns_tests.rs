use super::*;
use crate::testing::{Random, levels};

#[test]
fn columns_are_normalised_as_defined() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for (length, width) in [(1, 5), (3, 1), (17, 15), (40, 16), (33, 64), (512, 70), (20, 200)] {
        let x: Vec<f32> = random.values(2 * length * width).iter().map(|x| x * 3.0 + 1.0).collect();
        let (gain, bias) = (random.values(length), random.values(length));
        for level in levels() {
            let mut got = x.clone();
            layer_norm_columns_at(level, &mut got, width, &gain, &bias, 1e-5).unwrap();
            for (got, x) in got.chunks(length * width).zip(x.chunks(length * width)) {
                for column in 0..width {
                    let values = || (0..length).map(|row| f64::from(x[row * width + column]));
                    let mean = values().sum::<f64>() / length as f64;
                    let variance =
                        values().map(|x| (x - mean).powi(2)).sum::<f64>() / length as f64;
                    for (row, x) in values().enumerate() {
                        let want = (x - mean) / (variance + 1e-5).sqrt() * f64::from(gain[row])
                            + f64::from(bias[row]);
                        let got = f64::from(got[row * width + column]);
                        assert!(
                            (got - want).abs() < 5e-6,
                            "{level:?} {length}x{width}: {got}, not {want}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn matrices_are_turned_over() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    for sizes in [[0, 3], [1, 1], [15, 40], [40, 15], [16, 16], [17, 31], [64, 48], [100, 33]] {
        let [rows, columns] = sizes;
        let from = random.values(rows * columns);
        for level in levels() {
            let mut to = vec![f32::NAN; from.len()];
            transpose_at(level, &from, sizes, &mut to).unwrap();
            for (at, value) in from.iter().enumerate() {
                assert_eq!(to[at % columns * rows + at / columns], *value, "{level:?} {sizes:?}");
            }
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    assert_eq!(transpose(&[0.0; 6], [2, 3], &mut [0.0; 5]), Err(LengthMismatch));
    assert_eq!(transpose(&[0.0; 6], [2, 2], &mut [0.0; 6]), Err(LengthMismatch));
    let norm = |values: &mut [f32], width, gain: &[f32], bias: &[f32]| {
        layer_norm_columns(values, width, gain, bias, 0.0)
    };
    assert_eq!(norm(&mut [], 2, &[1.0], &[]), Ok(()));
    assert_eq!(norm(&mut [1.0; 6], 2, &[1.0; 2], &[1.0; 2]), Err(LengthMismatch));
    assert_eq!(norm(&mut [1.0; 4], 2, &[1.0; 2], &[1.0]), Err(LengthMismatch));
    assert_eq!(norm(&mut [1.0; 4], 0, &[1.0; 2], &[1.0; 2]), Err(LengthMismatch));
}
