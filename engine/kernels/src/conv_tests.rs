use super::*;
use crate::Winograd;
use crate::team::Alone;
use crate::testing::{Random, Threads, assert_close, epilogue, finish, levels};

fn reference(
    g: &Geometry,
    batch: usize,
    image: [usize; 2],
    input: &[f32],
    weights: &[f32],
    epilogue: &Epilogue<'_>,
) -> Vec<f64> {
    let [height, width] = g.output(image).expect("sizes fit");
    let (inputs, outputs) = (g.inputs / g.groups, g.outputs / g.groups);
    let mut out = Vec::new();
    for (n, o, y, x) in (0..batch * g.outputs * height * width).map(|i| {
        (
            i / width / height / g.outputs,
            i / width / height % g.outputs,
            i / width % height,
            i % width,
        )
    }) {
        let mut sum = 0.0;
        for (c, ky, kx) in (0..inputs * g.kernel[0] * g.kernel[1]).map(|i| {
            (i / g.kernel[1] / g.kernel[0], i / g.kernel[1] % g.kernel[0], i % g.kernel[1])
        }) {
            let iy = (y * g.strides[0] + ky * g.dilations[0]).wrapping_sub(g.pads[0]);
            let ix = (x * g.strides[1] + kx * g.dilations[1]).wrapping_sub(g.pads[1]);
            if iy < image[0] && ix < image[1] {
                let channel = n * g.inputs + o / outputs * inputs + c;
                let value = input[(channel * image[0] + iy) * image[1] + ix];
                let weight = weights[((o * inputs + c) * g.kernel[0] + ky) * g.kernel[1] + kx];
                sum += f64::from(value) * f64::from(weight);
            }
        }
        out.push(finish(epilogue, sum, o, out.len()));
    }
    out
}

fn check(random: &mut Random, g: Geometry, image: [usize; 2], batch: usize, scratch: &mut Scratch) {
    let Some([height, width]) = g.output(image) else { return };
    let k = g.inputs / g.groups * g.kernel[0] * g.kernel[1];
    let input = random.values(batch * g.inputs * image[0] * image[1]);
    let weights = random.values(g.outputs * k);
    let (bias, residual) =
        (random.values(g.outputs), random.values(batch * g.outputs * height * width));
    let epilogue = epilogue(random, &bias, &residual);
    let wanted = reference(&g, batch, image, &input, &weights, &epilogue);
    let conv = Conv2d::new(g, &weights).expect("sizes fit");
    let images = Images { batch, image, input: &input, epilogue };
    for level in levels() {
        let mut run = |team: &dyn Team, winograd: Option<&Winograd>| {
            let mut out = vec![f32::NAN; residual.len()];
            let ran = match winograd {
                None => conv.run(level, images, &mut out, scratch, team),
                Some(it) => it.run(level, images, &mut out, scratch, team),
            };
            ran.expect("sizes fit");
            out
        };
        let what = format!("{level:?} {g:?} {image:?} {:?}", epilogue.activation);
        let out = run(&Alone::default(), None);
        assert_close(&out, &wanted, k, &what);
        assert_eq!(run(&Threads(2), None), out, "{what}: by threads");
        let Ok(winograd) = Winograd::new(g, &weights) else { continue };
        let out = run(&Alone::default(), Some(&winograd));
        // Two binary digits are lost.
        assert_close(&out, &wanted, 16 * k, &what);
        assert_eq!(run(&Threads(2), Some(&winograd)), out, "{what}: by threads");
    }
}

#[test]
fn convolutions_agree_with_the_definition() {
    let mut random = Random(0x1234_5678_9abc_def1);
    let mut scratch = Scratch::default();
    for _ in 0..200 {
        let groups = [1, 1, 1, 2, 3][random.between(0, 4)];
        let kernel = [random.between(1, 4), random.between(1, 5)];
        let g = Geometry {
            outputs: groups * random.between(1, 60),
            inputs: groups * random.between(1, 20),
            groups,
            kernel,
            strides: [random.between(1, 3), random.between(1, 3)],
            dilations: [random.between(1, 2), random.between(1, 2)],
            pads: std::array::from_fn(|_| random.between(0, 3)),
        };
        let image = [random.between(1, 20), random.between(1, 20)];
        let batch = random.between(1, 2);
        check(&mut random, g, image, batch, &mut scratch);
    }
}

#[test]
fn pointwise_and_long_rows_agree_with_the_definition() {
    let mut random = Random(0xfeed_beef_dead_1111);
    let mut scratch = Scratch::default();
    for round in 0..60 {
        let kernel = if round % 3 == 0 { [1, 3] } else { [1, 1] };
        let g = Geometry {
            outputs: random.between(1, 100),
            inputs: if round % 10 == 1 { 500 } else { random.between(1, 40) },
            groups: 1,
            kernel,
            strides: [1, if round % 5 == 0 { 2 } else { 1 }],
            dilations: [1, 1],
            pads: [0, kernel[1] / 2, 0, kernel[1] / 2],
        };
        let image = [[1, random.between(1, 400)], [7, 7], [14, 14], [20, random.between(13, 20)]]
            [random.between(0, 3)];
        check(&mut random, g, image, 1, &mut scratch);
    }
}

#[test]
fn wide_rows_agree_with_the_definition() {
    let mut random = Random(0x0bad_cafe_0bad_cafe);
    let mut scratch = Scratch::default();
    for _ in 0..40 {
        let strides = [random.between(1, 2), random.between(1, 2)];
        let g = Geometry {
            outputs: random.between(1, 40),
            inputs: random.between(1, 6),
            groups: 1,
            kernel: [random.between(1, 4), random.between(1, 7)],
            strides,
            dilations: [1, random.between(1, 2)],
            pads: std::array::from_fn(|_| random.between(0, 3)),
        };
        let image = [random.between(4, 7), random.between(48, 75) * strides[1]];
        check(&mut random, g, image, 1, &mut scratch);
    }
}

#[test]
fn winograd_agrees_with_the_definition() {
    let mut random = Random(0x0dd0_5eed_0dd0_5eed);
    let mut scratch = Scratch::default();
    for round in 0..40 {
        let channels = if round % 8 == 0 { 150 } else { 40 };
        let g = Geometry {
            outputs: random.between(1, channels),
            inputs: random.between(1, channels),
            groups: 1,
            kernel: [3, 3],
            strides: [1, 1],
            dilations: [1, 1],
            pads: std::array::from_fn(|_| random.between(0, 2)),
        };
        let image =
            [random.between(3, 30), random.between(3, if round % 5 == 0 { 150 } else { 30 })];
        let batch = random.between(1, 2);
        check(&mut random, g, image, batch, &mut scratch);
    }
    assert!(Winograd::new(Geometry { strides: [1, 2], ..WIDE }, &[0.0; 9 * 256]).is_err());
    assert!(Winograd::new(WIDE, &[0.0; 9 * 256 - 1]).is_err());
    assert!(Winograd::pays(&WIDE, [28, 28]) && !Winograd::pays(&WIDE, [5, 100]));
    assert!(!Winograd::pays(&Geometry { groups: 2, ..WIDE }, [28, 28]));
    let deep = |channels| Geometry { inputs: channels, outputs: channels, ..WIDE };
    assert!(Winograd::pays(&deep(64), [7, 7]) && !Winograd::pays(&deep(64), [4, 4]));
    assert!(Winograd::pays(&deep(256), [14, 14]) && !Winograd::pays(&deep(256), [7, 7]));
}

const WIDE: Geometry = Geometry {
    outputs: 16,
    inputs: 16,
    groups: 1,
    kernel: [3, 3],
    strides: [1, 1],
    dilations: [1, 1],
    pads: [1; 4],
};

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let g = Geometry {
        outputs: 2,
        inputs: 2,
        groups: 1,
        kernel: [3, 3],
        strides: [1, 1],
        dilations: [1, 1],
        pads: [0; 4],
    };
    assert_eq!(g.output([2, 9]), None);
    assert!(Conv2d::new(g, &[0.0; 35]).is_err());
    assert!(Conv2d::new(Geometry { groups: 0, ..g }, &[0.0; 36]).is_err());
    assert!(Conv2d::new(Geometry { strides: [0, 1], ..g }, &[0.0; 36]).is_err());
    let conv = Conv2d::new(g, &[0.0; 36]).expect("sizes fit");
    let (input, mut out) = ([0.0; 32], [0.0; 8]);
    let mut scratch = Scratch::default();
    let mut run = |image, input: &[f32]| {
        let images = Images { batch: 1, image, input, epilogue: Epilogue::default() };
        conv.run(Level::best(), images, &mut out, &mut scratch, &Alone::default())
    };
    assert_eq!(run([4, 4], &input), Ok(()));
    assert_eq!(run([4, 4], &input[1..]), Err(ShapeError("input")));
    assert_eq!(run([2, 4], &input), Err(ShapeError("image is smaller than the kernel")));
    assert_eq!(run([0, 0], &input), Err(ShapeError("image is smaller than the kernel")));
}
