use super::*;
use crate::team::Alone;
use crate::testing::{Random, Threads, levels};
use crate::{Activation, Conv2d, Geometry, Images, ResidualOrder, linear};

/// Values of a grid, and that.
fn on_grid(random: &mut Random, count: usize) -> (Vec<f32>, Grid) {
    let zero = [0, 255, random.between(0, 255)][random.between(0, 2)];
    let least = -(zero as f32);
    let grid = match random.between(0, 1) {
        0 => Grid::Steps(Steps { scale: 0.25, least, most: least + 255.0 }),
        _ => Grid::Whole,
    };
    let scale = if grid == Grid::Whole { 1.0 } else { 0.25 };
    let mut step = || (random.between(0, 255) as f32 + least) * scale;
    ((0..count).map(|_| step()).collect(), grid)
}

/// Weights of some vectors, with a scale each that floats hold exactly.
fn weights(random: &mut Random, extent: usize, k: usize) -> Vec<f32> {
    let mut weights = Vec::new();
    for vector in 0..extent {
        let most = [0, 1, 50, 127, 128, 200, 255][random.between(0, 6)];
        let scale = 0.5f32.powi((vector % 5) as i32);
        // At most 255 apart.
        let mut whole = || random.between(0, (2 * most).min(255)) as f32 - most as f32;
        weights.extend((0..k).map(|_| whole() * scale));
    }
    weights
}

/// Whatever keeps sums exact.
fn epilogue<'a>(random: &mut Random, bias: &'a [f32], residual: &'a [f32]) -> Epilogue<'a> {
    Epilogue {
        bias: (random.between(0, 2) > 0).then_some(bias),
        residual: (random.between(0, 2) > 0).then_some(residual),
        order: match random.between(0, 1) {
            0 => ResidualOrder::BeforeActivation,
            _ => ResidualOrder::AfterActivation,
        },
        activation: match random.between(0, 3) {
            0 => Activation::None,
            1 => Activation::Relu,
            2 => Activation::Clip { min: -900.0, max: 5000.0 },
            _ => Activation::Steps(Steps { scale: 2.0, least: -100.0, most: 155.0 }),
        },
    }
}

fn whole_values(random: &mut Random, count: usize) -> Vec<f32> {
    (0..count).map(|_| random.between(0, 1000) as f32 - 500.0).collect()
}

#[test]
fn convolutions_are_those_of_floats() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut scratch = Scratch::default();
    for round in 0..200 {
        let groups = [1, 1, 1, 2, 3][random.between(0, 4)];
        let mut pair = |low, high| [random.between(low, high), random.between(low, high)];
        let ([outputs, inputs], [top, left]) = (pair(1, 40), pair(0, 2));
        let (kernel, strides, dilations, image) = (pair(1, 3), pair(1, 2), pair(1, 2), pair(1, 30));
        let (outputs, inputs) =
            (outputs.div_ceil(groups) * groups, inputs.div_ceil(groups) * groups);
        let pads = [top, left, random.between(0, 2), random.between(0, 2)];
        let mut g = Geometry { outputs, inputs, groups, kernel, strides, dilations, pads };
        if round % 4 == 0 {
            let inputs = inputs * random.between(1, 5);
            g = Geometry { inputs, kernel: [1, 1], strides: [1, 1], pads: [0; 4], ..g };
        }
        let (inputs, kernel) = (g.inputs, g.kernel);
        let Some([height, width]) = g.output(image) else { continue };
        let batch = random.between(1, 2);
        let (input, grid) = on_grid(&mut random, batch * inputs * image[0] * image[1]);
        let weights = weights(&mut random, outputs, inputs / groups * kernel[0] * kernel[1]);
        let bias = whole_values(&mut random, outputs);
        let residual = whole_values(&mut random, batch * outputs * height * width);
        let epilogue = epilogue(&mut random, &bias, &residual);
        let whole = WholeConv::new(g, &weights, grid).expect("all are whole");
        let floats = Conv2d::new(g, &weights).expect("sizes fit");
        let images = Images { batch, image, input: &input, epilogue };
        for level in levels() {
            let what = format!("{level:?} {g:?} {image:?} {epilogue:?}");
            let mut wanted = vec![f32::NAN; residual.len()];
            let team = &Alone::default();
            floats.run(level, images, &mut wanted, &mut scratch, team).expect("sizes fit");
            for team in [&Alone::default() as &dyn Team, &Threads(2)] {
                let mut got = vec![f32::NAN; residual.len()];
                whole.run(level, images, &mut got, &mut scratch, team).expect("sizes fit");
                assert_eq!(got, wanted, "{what}");
            }
        }
    }
}

#[test]
fn products_are_those_of_floats() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    let mut scratch = Scratch::default();
    for round in 0..120 {
        let k = if round % 9 == 0 { random.between(380, 900) } else { random.between(1, 70) };
        let (rows, n, gap) = (random.between(1, 200), random.between(1, 130), random.between(0, 3));
        let (a, grid) = on_grid(&mut random, rows * (k + gap));
        let a = View { data: &a, row_step: k + gap, column_step: 1 };
        let weights = weights(&mut random, n, k);
        let (bias, residual) = (whole_values(&mut random, n), whole_values(&mut random, rows * n));
        let epilogue = epilogue(&mut random, &bias, &residual);
        let layout = Layout { sizes: [n, k, 1], steps: [k, 1, 0] };
        let whole = Whole::new(layout, &weights, grid).expect("all are whole");
        let floats = Packed::new(n, k, &weights, (k, 1)).expect("sizes fit");
        for level in levels() {
            let mut wanted = vec![f32::NAN; rows * n];
            linear(level, rows, a, &floats, &mut wanted, &epilogue, &Alone::default())
                .expect("sizes fit");
            for team in [&Alone::default() as &dyn Team, &Threads(2)] {
                let mut got = vec![f32::NAN; rows * n];
                whole
                    .linear(level, rows, a, &mut got, &epilogue, &mut scratch, team)
                    .expect("sizes fit");
                assert_eq!(got, wanted, "{level:?} {rows} {k} {n} {epilogue:?}");
            }
        }
    }
}

#[test]
fn scales_are_found_that_floats_do_not_hold() {
    let mut random = Random(7);
    for _ in 0..100 {
        let (k, scale) = (random.between(1, 300), random.values(1)[0].abs() / 100.0 + 1e-6);
        let whole: Vec<f32> = (0..k).map(|_| random.between(0, 255) as f32 - 128.0).collect();
        let weights: Vec<f32> = whole.iter().map(|whole| whole * scale * 1.7).collect();
        let input = Grid::Steps(Steps { scale: 1.0, least: 0.0, most: 255.0 });
        let layout = Layout { sizes: [1, k, 1], steps: [k, 1, 0] };
        let made = Whole::new(layout, &weights, input).expect("all are whole");
        let wanted: f32 = whole.iter().sum();
        let got = made.parts().sums[0] * made.parts().scales[0] / scale / 1.7;
        assert!((got - wanted).abs() <= 1e-5 * wanted.abs(), "{got}, wanted {wanted}");
    }
}

#[test]
fn what_is_not_whole_is_left_alone() {
    let mut random = Random(11);
    let input = Grid::Steps(Steps { scale: 1.0, least: -128.0, most: 127.0 });
    let layout = Layout { sizes: [1, 9, 1], steps: [9, 1, 0] };
    let new = |weights: &[f32], input| Whole::new(layout, weights, input);
    assert_eq!(new(&random.values(9), input), None);
    let mut whole = [3.0; 9];
    assert!(new(&whole, input).is_some());
    assert_eq!(new(&whole[..8], input), None, "too few");
    for odd in [f32::NAN, f32::INFINITY, 1e-30] {
        whole[4] = odd;
        assert_eq!(new(&whole, input), None, "{odd}");
    }
    whole[4] = 0.0;
    for (least, most) in [(1.0, 200.0), (-200.0, -1.0), (-128.0, 128.0)] {
        let input = Grid::Steps(Steps { scale: 1.0, least, most });
        assert_eq!(new(&whole, input), None, "{least} to {most}");
    }
    let long = Layout { sizes: [1, MOST_K + 1, 1], steps: [MOST_K + 1, 1, 0] };
    assert_eq!(Whole::new(long, &vec![1.0; MOST_K + 1], input), None, "sums that do not fit");
}
