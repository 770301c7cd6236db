use super::*;
use crate::team::Alone;
use crate::testing::{Random, Threads, assert_close, epilogue, finish, levels};

fn reference(
    (m, k, n): (usize, usize, usize),
    a: View<'_>,
    b: View<'_>,
    epilogue: &Epilogue<'_>,
) -> Vec<f64> {
    let mut c = vec![0.0; m * n];
    for i in 0..m {
        for j in 0..n {
            let at = |x: usize| {
                let left = a.data[i * a.row_step + x * a.column_step];
                f64::from(left) * f64::from(b.data[x * b.row_step + j * b.column_step])
            };
            let sum: f64 = (0..k).map(at).sum();
            c[i * n + j] = finish(epilogue, sum, j, i * n + j);
        }
    }
    c
}

fn sizes(random: &mut Random, round: usize) -> (usize, usize, usize) {
    let k = if round.is_multiple_of(9) { random.between(380, 900) } else { random.between(0, 70) };
    (random.between(1, 40), k, random.between(1, 130))
}

#[test]
fn linear_agrees_with_the_definition() {
    let mut random = Random(0x9e37_79b9_7f4a_7c15);
    for round in 0..120 {
        let (m, k, n) = sizes(&mut random, round);
        let (a_gap, by_columns) = (random.between(0, 3), random.between(0, 1) == 1);
        let a = random.values(m * (k + a_gap));
        let a = View { data: &a, row_step: k + a_gap, column_step: 1 };
        let b = random.values(k * n);
        let view = if by_columns { View::transposed(&b, k) } else { View::rows(&b, n) };
        let w = Packed::new(n, k, &b, (view.column_step, view.row_step)).expect("sizes fit");
        let (bias, residual) = (random.values(n), random.values(m * n));
        let epilogue = epilogue(&mut random, &bias, &residual);
        let wanted = reference((m, k, n), a, view, &epilogue);
        for level in levels() {
            let mut c = vec![f32::NAN; m * n];
            linear(level, m, a, &w, &mut c, &epilogue, &Alone::default()).expect("sizes fit");
            assert_close(&c, &wanted, k, &format!("{level:?} {m}x{k}x{n} {epilogue:?}"));
            let mut shared = vec![f32::NAN; m * n];
            linear(level, m, a, &w, &mut shared, &epilogue, &Threads(2)).expect("sizes fit");
            assert_eq!(shared, c, "{level:?} {m}x{k}x{n}: by threads");
        }
    }
}

#[test]
fn products_of_any_views_agree_with_the_definition() {
    let mut random = Random(0x2545_f491_4f6c_dd1d);
    let alone = Alone::default();
    for round in 0..160 {
        let (m, k, n) = sizes(&mut random, round);
        let (a, b) = (random.values(m * k), random.values(k * n));
        let turned = |random: &mut Random| random.between(0, 1) == 1;
        let left = if turned(&mut random) { View::transposed(&a, m) } else { View::rows(&a, k) };
        let right = if turned(&mut random) { View::transposed(&b, k) } else { View::rows(&b, n) };
        let (bias, residual) = (random.values(n), random.values(m * n));
        let epilogue = epilogue(&mut random, &bias, &residual);
        let wanted = reference((m, k, n), left, right, &epilogue);
        for level in levels() {
            let mut c = vec![f32::NAN; m * n];
            let sizes = (m, k, n);
            product(level, sizes, left, right, &mut c, &epilogue, &alone).expect("sizes fit");
            assert_close(&c, &wanted, k, &format!("{level:?} {m}x{k}x{n} {epilogue:?}"));
            let (mut shared, team) = (vec![f32::NAN; m * n], Threads(2));
            product(level, sizes, left, right, &mut shared, &epilogue, &team).expect("sizes fit");
            assert_eq!(shared, c, "{level:?} {m}x{k}x{n}: by threads");
        }
    }
}

#[test]
fn products_with_rows_far_apart_agree_with_the_definition() {
    assert_eq!(rows_in_cache(3136), 512 * 16);
    assert_eq!((rows_in_cache(4096), rows_in_cache(1 << 20)), (8 * 16, 16));
    assert_eq!((rows_in_cache(0), rows_in_cache(49)), (16, 2048 * 16));
    let mut random = Random(0x1234_5678_9abc_def1);
    let alone = Alone::default();
    for (k, step) in [(100, 4096), (130, 4096), (200, 1000), (20, 1 << 16)] {
        let (m, n) = (random.between(17, 60), random.between(40, 70));
        let (a, b) = (random.values(m * k), random.values(k * step));
        let left = View::rows(&a, k);
        let right = View { data: &b, row_step: step, column_step: 1 };
        let (bias, residual) = (random.values(n), random.values(m * n));
        let epilogue = epilogue(&mut random, &bias, &residual);
        let wanted = reference((m, k, n), left, right, &epilogue);
        for level in levels() {
            let mut c = vec![f32::NAN; m * n];
            let sizes = (m, k, n);
            product(level, sizes, left, right, &mut c, &epilogue, &alone).expect("sizes fit");
            assert_close(&c, &wanted, k, &format!("{level:?} {m}x{k}x{n} {epilogue:?}"));
        }
    }
}

#[test]
fn sizes_that_do_not_fit_are_errors() {
    let (a, mut c) = (vec![0.0; 6], vec![0.0; 6]);
    let none = Epilogue::default();
    let alone = Alone::default();
    let view = View::rows(&a, 3);
    let level = Level::best();
    assert_eq!(Packed::new(3, 3, &a, (3, 1)), Err(ShapeError("matrix to pack")));
    let short = product(level, (3, 3, 2), view, view, &mut c, &none, &alone);
    assert_eq!(short, Err(ShapeError("left operand")));
    let wrong = product(level, (2, 3, 2), view, view, &mut c, &none, &alone);
    assert_eq!(wrong, Err(ShapeError("right operand")));
    let huge = View { data: &a, row_step: usize::MAX, column_step: 1 };
    assert_eq!(
        product(level, (3, 1, 2), huge, view, &mut c, &none, &alone),
        Err(ShapeError("left operand"))
    );
    let bias = Epilogue { bias: Some(&a[..1]), ..none };
    assert_eq!(
        product(level, (2, 2, 3), view, view, &mut c, &bias, &alone),
        Err(ShapeError("bias"))
    );
}
