use super::*;

/// The definition, element by element.
fn naive(pool: &Pool, x: &[f32], shape: [usize; 4]) -> Vec<f32> {
    let [batch, channels, h, w] = shape;
    let [.., oh, ow] = pool.output_shape(shape).unwrap();
    let Window { kernel, strides, dilations, pads } = pool.window;
    let mut y = Vec::new();
    for plane in x.chunks(h * w).take(batch * channels) {
        for oy in 0..oh {
            for ox in 0..ow {
                let (mut max, mut sum, mut values, mut cells) = (f32::NEG_INFINITY, 0.0, 0, 0);
                for ky in 0..kernel[0] {
                    for kx in 0..kernel[1] {
                        let (py, px) = (
                            oy * strides[0] + ky * dilations[0],
                            ox * strides[1] + kx * dilations[1],
                        );
                        cells +=
                            usize::from(py < pads[0] + h + pads[2] && px < pads[1] + w + pads[3]);
                        if py >= pads[0] && px >= pads[1] && py - pads[0] < h && px - pads[1] < w {
                            let value = plane[(py - pads[0]) * w + px - pads[1]];
                            (max, sum, values) =
                                (max.max(value), sum + f64::from(value), values + 1);
                        }
                    }
                }
                y.push(match pool.pooling {
                    Pooling::Max => max,
                    Pooling::Average => (sum / values as f64) as f32,
                    Pooling::AverageWithPads => (sum / cells as f64) as f32,
                });
            }
        }
    }
    y
}

#[test]
fn agrees_with_the_definition_on_random_windows() {
    let mut state = 7u64;
    let mut below = |n: usize| {
        state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (state >> 33) as usize % n
    };
    for _ in 0..1500 {
        let kernel = [1 + below(5), 1 + below(5)];
        let window = Window {
            kernel,
            strides: [1 + below(3), 1 + below(3)],
            dilations: [1 + below(4) / 3, 1 + below(4) / 3],
            // A window wholly in the pad has no mean and no maximum; ONNX forbids pads that large.
            pads: [below(kernel[0]), below(kernel[1]), below(kernel[0]), below(kernel[1])],
        };
        let pooling = [Pooling::Max, Pooling::Average, Pooling::AverageWithPads][below(3)];
        let pool = Pool { window, pooling, ceil: below(2) == 0 };
        let shape = [1 + below(2), 1 + below(3), 1 + below(130), 1 + below(130)];
        let Ok(output) = pool.output_shape(shape) else { continue };
        let x: Vec<f32> =
            (0..shape.iter().product()).map(|_| below(1000) as f32 / 100.0 - 5.0).collect();
        let expected = naive(&pool, &x, shape);
        assert_eq!(expected.len(), output.iter().product());
        for level in Level::ALL {
            let mut y = vec![f32::NAN; expected.len()];
            pool.run_at(level, &x, shape, &mut y, &mut vec![f32::NAN; 500]).unwrap();
            for (i, (got, want)) in y.iter().zip(&expected).enumerate() {
                let same =
                    got == want || (got - want).abs() <= 1e-5 || (got.is_nan() && want.is_nan());
                assert!(same, "{level:?} {pool:?} {shape:?}: y[{i}] = {got}, not {want}");
            }
        }
    }
}

#[test]
fn ceil_mode_drops_a_window_that_starts_in_the_trailing_pad() {
    let window = Window { kernel: [1, 1], strides: [1, 2], dilations: [1, 1], pads: [0, 0, 0, 1] };
    let pool = Pool { window, pooling: Pooling::Max, ceil: true };
    assert_eq!(pool.output_shape([1, 1, 1, 4]).unwrap(), [1, 1, 1, 2]);
    assert_eq!(Pool { ceil: false, ..pool }.output_shape([1, 1, 1, 4]).unwrap(), [1, 1, 1, 3]);
    let window = Window { kernel: [1, 2], strides: [1, 3], dilations: [1, 1], pads: [0, 0, 0, 2] };
    let pool = Pool { window, ..pool };
    assert_eq!(pool.output_shape([1, 1, 1, 3]).unwrap(), [1, 1, 1, 1]);
    let window = Window { kernel: [1, 3], strides: [1, 2], dilations: [1, 1], pads: [0; 4] };
    let pool = Pool { window, ..pool };
    assert_eq!(pool.output_shape([1, 1, 1, 6]).unwrap(), [1, 1, 1, 3]);
}

#[test]
fn means_of_planes() {
    for plane in [1, 3, 15, 16, 49, 64, 100, 12_544] {
        let x: Vec<f32> = (0..3 * plane).map(|i| (i * 7 % 31) as f32 - 10.0).collect();
        for level in Level::ALL {
            let mut y = [0.0; 3];
            global_average_at(level, &x, plane, &mut y).unwrap();
            for (mean, values) in y.iter().zip(x.chunks(plane)) {
                let want = values.iter().map(|x| f64::from(*x)).sum::<f64>() / plane as f64;
                assert!(
                    (f64::from(*mean) - want).abs() < 1e-5,
                    "{level:?} {plane}: {mean}, not {want}"
                );
            }
        }
    }
    assert_eq!(global_average(&[], 0, &mut []), Err(WindowError::Input));
    assert_eq!(global_average(&[1.0], 2, &mut [0.0]), Err(WindowError::Output));
}

#[test]
fn refuses_what_does_not_fit() {
    let window = Window { kernel: [2, 2], strides: [2, 2], dilations: [1, 1], pads: [0; 4] };
    let pool = Pool { window, pooling: Pooling::Max, ceil: false };
    let run = |pool: Pool, shape, x: usize, y: usize| {
        pool.run(&vec![0.0; x], shape, &mut vec![0.0; y], &mut Vec::new())
    };
    assert_eq!(run(pool, [1, 1, 4, 4], 16, 4), Ok(()));
    assert_eq!(run(pool, [1, 1, 4, 4], 15, 4), Err(WindowError::Input));
    assert_eq!(run(pool, [1, 1, 4, 4], 16, 5), Err(WindowError::Output));
    assert_eq!(run(pool, [1, 1, 1, 4], 4, 0), Err(WindowError::Input));
    let still = Pool { window: Window { strides: [0, 2], ..window }, ..pool };
    assert_eq!(run(still, [1, 1, 4, 4], 16, 4), Err(WindowError::Input));
}
