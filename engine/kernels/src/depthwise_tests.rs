use super::*;
use crate::epilogue::{Activation, ResidualOrder};
use crate::team::Alone;
use crate::testing::Threads;

/// A small deterministic source of numbers.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        self.0 >> 33
    }
    fn below(&mut self, n: usize) -> usize {
        self.next() as usize % n
    }
    fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| (self.next() % 2001) as f32 / 500.0 - 2.0).collect()
    }
}

fn activate(activation: Activation, x: f32) -> f32 {
    match activation {
        Activation::None => x,
        Activation::Relu => x.max(0.0),
        Activation::Clip { min, max } => x.max(min).min(max),
        Activation::HardSwish => x * (x / 6.0 + 0.5).clamp(0.0, 1.0),
        Activation::HardSigmoid { alpha, beta } => (alpha * x + beta).clamp(0.0, 1.0),
        Activation::Steps(_) => unreachable!("tested by itself"),
        Activation::LeakyRelu(alpha) => {
            if x > 0.0 {
                x
            } else {
                alpha * x
            }
        }
    }
}

/// The definition, element by element.
fn naive(op: &Depthwise, x: &[f32], shape: [usize; 4], epilogue: &Epilogue<'_>) -> Vec<f32> {
    let [batch, channels, h, w] = shape;
    let [_, out_channels, oh, ow] = op.output_shape(shape).unwrap();
    let Window { kernel: [kh, kw], strides, dilations, pads } = op.window;
    let mut y = Vec::new();
    for b in 0..batch {
        for o in 0..out_channels {
            let plane = &x[(b * channels + o / op.multiplier) * h * w..][..h * w];
            for oy in 0..oh {
                for ox in 0..ow {
                    let mut sum = f64::from(epilogue.bias.map_or(0.0, |bias| bias[o]));
                    for ky in 0..kh {
                        for kx in 0..kw {
                            let iy = (oy * strides[0] + ky * dilations[0]).wrapping_sub(pads[0]);
                            let ix = (ox * strides[1] + kx * dilations[1]).wrapping_sub(pads[1]);
                            if iy < h && ix < w {
                                sum += f64::from(plane[iy * w + ix])
                                    * f64::from(op.weights[(o * kh + ky) * kw + kx]);
                            }
                        }
                    }
                    let residual = epilogue.residual.map_or(0.0, |r| r[y.len()]);
                    y.push(match epilogue.order {
                        ResidualOrder::BeforeActivation => {
                            activate(epilogue.activation, sum as f32 + residual)
                        }
                        ResidualOrder::AfterActivation => {
                            activate(epilogue.activation, sum as f32) + residual
                        }
                    });
                }
            }
        }
    }
    y
}

fn check(
    random: &mut Random,
    channels: usize,
    multiplier: usize,
    window: Window,
    batch: usize,
    h: usize,
    w: usize,
) {
    let taps = window.kernel[0] * window.kernel[1];
    let op =
        Depthwise::new(channels, multiplier, window, random.values(channels * multiplier * taps))
            .unwrap();
    let shape = [batch, channels, h, w];
    let Ok(output) = op.output_shape(shape) else { return };
    let x = random.values(shape.iter().product());
    let residual = random.values(output.iter().product());
    let bias = random.values(output[1]);
    let activation = [
        Activation::None,
        Activation::Relu,
        Activation::Clip { min: -0.5, max: 1.5 },
        Activation::HardSwish,
        Activation::HardSigmoid { alpha: 0.2, beta: 0.5 },
        Activation::LeakyRelu(0.1),
    ][random.below(6)];
    let epilogue = Epilogue {
        bias: (random.below(3) > 0).then_some(&bias[..]),
        residual: (random.below(3) > 0).then_some(&residual[..]),
        order: [ResidualOrder::BeforeActivation, ResidualOrder::AfterActivation][random.below(2)],
        activation,
    };
    let expected = naive(&op, &x, shape, &epilogue);
    for level in Level::ALL {
        // Rubbish in the scratch and around the output would show reads of what was never filled, or stores beyond.
        let alone = Alone::default();
        alone.share(1, &|_, room| room.panels.room(1000).fill(f32::NAN));
        let mut guarded = vec![f32::NAN; expected.len() + 64];
        let y = &mut guarded[32..32 + expected.len()];
        op.run_at(level, &x, shape, &epilogue, y, &alone).unwrap();
        for (i, (got, want)) in y.iter().zip(&expected).enumerate() {
            let close = (got - want).abs() <= 2e-5 * (1.0 + taps as f32);
            assert!(
                close,
                "{level:?} {window:?} {shape:?} ×{multiplier} {activation:?}: y[{i}] = {got}, not {want}"
            );
        }
        let mut shared = vec![f32::NAN; y.len()];
        op.run_at(level, &x, shape, &epilogue, &mut shared, &Threads(2)).unwrap();
        assert_eq!(shared, y, "{level:?} {window:?} {shape:?} ×{multiplier}: by threads");
        assert!(guarded[..32].iter().chain(&guarded[32 + expected.len()..]).all(|x| x.is_nan()));
    }
}

#[test]
fn agrees_with_the_definition_on_random_windows() {
    let mut random = Random(1);
    for _ in 0..1500 {
        let kernel = match random.below(3) {
            0 => [3, 3],
            1 => [5, 5],
            _ => [1 + random.below(7), 1 + random.below(7)],
        };
        let dilations =
            if random.below(3) == 0 { [1 + random.below(3), 1 + random.below(3)] } else { [1, 1] };
        let strides = match random.below(3) {
            0 => [1, 1],
            1 => [2, 2],
            _ => [1 + random.below(3), 1 + random.below(3)],
        };
        let pads = [0; 4].map(|_: usize| random.below(4));
        let window = Window { kernel, strides, dilations, pads };
        let (h, w) = (1 + random.below(40), 1 + random.below(60));
        let (channels, multiplier, batch) =
            (1 + random.below(3), 1 + random.below(2), 1 + random.below(2));
        check(&mut random, channels, multiplier, window, batch, h, w);
    }
}

#[test]
fn agrees_with_the_definition_on_the_shapes_of_nets() {
    let mut random = Random(2);
    for (side, kernel, stride, low, high) in [
        (112, 3, 1, 1, 1),
        (112, 3, 2, 0, 1),
        (56, 3, 1, 1, 1),
        (56, 5, 2, 1, 2),
        (28, 5, 1, 2, 2),
        (28, 3, 2, 0, 1),
        (14, 3, 1, 1, 1),
        (14, 5, 1, 2, 2),
        (14, 5, 2, 1, 2),
        (7, 5, 1, 2, 2),
        (7, 3, 1, 1, 1),
    ] {
        let window = Window {
            kernel: [kernel; 2],
            strides: [stride; 2],
            dilations: [1, 1],
            pads: [low, low, high, high],
        };
        check(&mut random, 3, 1, window, 1, side, side);
    }
}

#[test]
fn narrow_planes_of_many_channels_agree_with_the_definition() {
    let mut random = Random(4);
    for _ in 0..600 {
        let window = Window {
            kernel: [1 + random.below(5), 1 + random.below(5)],
            strides: [1 + random.below(2), 1 + random.below(2)],
            dilations: [1 + random.below(4) / 3, 1 + random.below(4) / 3],
            pads: [0; 4].map(|_: usize| random.below(4)),
        };
        let (h, w) = (1 + random.below(20), 1 + random.below(16));
        let (channels, batch) = (8 + random.below(40), 1 + random.below(2));
        check(&mut random, channels, 1, window, batch, h, w);
    }
}

#[test]
fn many_bands_agree_with_the_definition() {
    let mut random = Random(3);
    for (strides, dilations) in
        [([1, 1], [1, 1]), ([2, 2], [1, 1]), ([2, 1], [2, 3]), ([3, 3], [1, 1])]
    {
        for kernel in [[3, 3], [5, 5]] {
            let window = Window { kernel, strides, dilations, pads: [2, 1, 3, 2] };
            check(&mut random, 2, 1, window, 1, 203, 331);
        }
    }
    let long = Window { kernel: [1, 7], strides: [1, 1], dilations: [1, 2], pads: [0, 6, 0, 6] };
    check(&mut random, 2, 1, long, 1, 1, 10_000);
    let tall = Window { kernel: [7, 1], strides: [2, 1], dilations: [1, 1], pads: [3, 0, 3, 0] };
    check(&mut random, 2, 1, tall, 1, 5_000, 3);
}

#[test]
fn refuses_what_does_not_fit() {
    let window = Window { kernel: [3, 3], strides: [1, 1], dilations: [1, 1], pads: [1; 4] };
    let zero_stride = Window { strides: [0, 1], ..window };
    assert_eq!(Depthwise::new(1, 1, zero_stride, vec![0.0; 9]).unwrap_err(), WindowError::Geometry);
    let no_kernel = Window { kernel: [0, 3], ..window };
    assert_eq!(Depthwise::new(1, 1, no_kernel, vec![]).unwrap_err(), WindowError::Geometry);
    assert_eq!(Depthwise::new(2, 1, window, vec![0.0; 9]).unwrap_err(), WindowError::Parameters);
    assert_eq!(
        Depthwise::new(usize::MAX, 2, window, vec![0.0; 9]).unwrap_err(),
        WindowError::Parameters
    );

    let op = Depthwise::new(1, 1, window, vec![0.0; 9]).unwrap();
    let run = |shape, x: usize, y: usize, bias: usize| {
        let bias = vec![0.0; bias];
        let epilogue = Epilogue { bias: Some(&bias), ..Epilogue::default() };
        op.run(&vec![0.0; x], shape, &epilogue, &mut vec![0.0; y], &Alone::default())
    };
    assert_eq!(run([1, 1, 4, 4], 16, 16, 1), Ok(()));
    assert_eq!(run([0, 1, 4, 4], 0, 0, 1), Ok(()));
    assert_eq!(run([1, 2, 4, 4], 32, 32, 2), Err(WindowError::Input));
    assert_eq!(run([1, 1, 4, 4], 15, 16, 1), Err(WindowError::Input));
    assert_eq!(run([1, 1, 0, 4], 0, 0, 1), Err(WindowError::Input));
    assert_eq!(run([1, 1, 4, 4], 16, 15, 1), Err(WindowError::Output));
    assert_eq!(run([1, 1, 4, 4], 16, 16, 2), Err(WindowError::Parameters));

    let far = Window { dilations: [1 << 40, 1], pads: [0, 0, 1 << 41, 0], ..window };
    let op = Depthwise::new(1, 1, far, vec![0.0; 9]).unwrap();
    let shape = op.output_shape([1, 1, 4, 4]).unwrap();
    let mut y = vec![0.0; shape.iter().product()];
    let run = op.run(&[0.0; 16], [1, 1, 4, 4], &Epilogue::default(), &mut y, &Alone::default());
    assert_eq!(run, Err(WindowError::TooLarge));
}
