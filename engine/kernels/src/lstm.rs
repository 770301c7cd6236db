//! LSTM: the inputs' share of many steps is one product, to which each step adds its state's.

use crate::elementwise::{Function, apply_at};
use crate::packed::ensure;
use crate::quantized::{Scale, scale_of};
use crate::{Epilogue, Level, Packed, ShapeError, Team, View, linear};

/// Steps whose inputs are multiplied at a time, at most.
const STEPS: usize = 64;

/// Gates' values that several steps have together, at most.
const MOST_SHARES: usize = 1 << 24;

/// One direction of an LSTM of ONNX's gates (input, output, forget, cell), logistic and tanh.
#[derive(Clone, Debug, PartialEq)]
pub struct Lstm {
    w: Packed,
    r: Packed,
    bias: Vec<f32>,
    rounds_states: bool,
}

impl Lstm {
    /// From weights of inputs, `[4 * hidden, size]`, of states, `[4 * hidden, hidden]`, and what is added for both,
    /// `[4 * hidden]` each, one after the other, if anything is.
    ///
    /// # Errors
    /// If a slice does not have the size that the others ask for.
    pub fn new(
        [size, hidden]: [usize; 2],
        w: &[f32],
        r: &[f32],
        bias: Option<&[f32]>,
    ) -> Result<Lstm, ShapeError> {
        let gates = 4 * hidden;
        ensure(w.len() == gates * size && r.len() == gates * hidden, "weights of the gates")?;
        let bias = match bias {
            None => vec![0.0; gates],
            Some(bias) => {
                ensure(bias.len() == 2 * gates, "bias of the gates")?;
                let (of_inputs, of_states) = bias.split_at(gates);
                of_inputs.iter().zip(of_states).map(|(a, b)| a + b).collect()
            }
        };
        let w = Packed::new(gates, size, w, (size, 1))?;
        let r = Packed::new(gates, hidden, r, (hidden, 1))?;
        Ok(Lstm { w, r, bias, rounds_states: false })
    }

    /// Rounds the states of each step, all rows together, to what one byte can say before it multiplies
    /// them, as ONNX Runtime's DynamicQuantizeLSTM does.
    pub fn rounding_states(self) -> Lstm {
        Lstm { rounds_states: true, ..self }
    }

    /// Values of an input.
    pub fn size(&self) -> usize {
        self.w.k()
    }

    /// Values of a state.
    pub fn hidden(&self) -> usize {
        self.r.k()
    }

    /// Goes through `x`, `[steps, batch, size]`, from the end where it `is_reversed`. `h` and `c`, `[batch, hidden]`, are
    /// what it begins with and what it ends with. `each` is given a step's place in `x` and its `h`; where it says no,
    /// the rest is left out.
    ///
    /// # Errors
    /// If a slice does not have the size that the others ask for.
    pub fn run(
        &self,
        level: Level,
        ([steps, batch], x, is_reversed): ([usize; 2], &[f32], bool),
        (h, c): (&mut [f32], &mut [f32]),
        each: &mut dyn FnMut(usize, &[f32]) -> bool,
        team: &dyn Team,
    ) -> Result<(), ShapeError> {
        let (size, hidden) = (self.w.k(), self.r.k());
        let gates = 4 * hidden;
        ensure(x.len() == steps * batch * size, "inputs of the gates")?;
        ensure(h.len() == batch * hidden && c.len() == h.len(), "state")?;
        let at_a_time = steps_at_a_time(batch * gates);
        let mut shares = vec![0.0; at_a_time.min(steps) * batch * gates];
        let mut sums = vec![0.0; batch * gates];
        let mut rounded = vec![0.0; if self.rounds_states { h.len() } else { 0 }];
        for chunk in 0..steps.div_ceil(at_a_time) {
            let before = chunk * at_a_time;
            let count = at_a_time.min(steps - before);
            let from = if is_reversed { steps - before - count } else { before };
            let rows = count * batch;
            let inputs = View::rows(&x[from * batch * size..][..rows * size], size);
            let bias = Epilogue { bias: Some(&self.bias), ..Epilogue::default() };
            let shares = &mut shares[..rows * gates];
            linear(level, rows, inputs, &self.w, shares, &bias, team)?;
            for at in 0..count {
                let at = if is_reversed { count - 1 - at } else { at };
                let residual = Some(&shares[at * batch * gates..][..batch * gates]);
                let added = Epilogue { residual, ..Epilogue::default() };
                let states = match self.rounds_states {
                    true => {
                        round(h, &mut rounded);
                        View::rows(&rounded, hidden)
                    }
                    false => View::rows(h, hidden),
                };
                linear(level, batch, states, &self.r, &mut sums, &added, team)?;
                for row in 0..batch {
                    let places = row * hidden..(row + 1) * hidden;
                    let sums = &mut sums[row * gates..][..gates];
                    step(level, sums, &mut h[places.clone()], &mut c[places]);
                }
                if !each(from + at, h) {
                    return Ok(());
                }
            }
        }
        Ok(())
    }
}

/// For so many gates' values in each.
fn steps_at_a_time(gates: usize) -> usize {
    (MOST_SHARES / gates.max(1)).clamp(1, STEPS)
}

/// Rounds by the rule of ONNX's DynamicQuantizeLinear.
fn round(values: &[f32], rounded: &mut [f32]) {
    let low = values.iter().fold(0f32, |low, &value| low.min(value));
    let high = values.iter().fold(0f32, |high, &value| high.max(value));
    let Scale { scale, zero } = scale_of(low, high);
    for (rounded, &value) in rounded.iter_mut().zip(values) {
        let number = ((value / scale).round_ties_even() + zero).clamp(0.0, 255.0);
        *rounded = (number - zero) * scale;
    }
}

/// From the gates' sums to the next state of one row.
fn step(level: Level, sums: &mut [f32], h: &mut [f32], c: &mut [f32]) {
    let (gates, cell) = sums.split_at_mut(3 * h.len());
    apply_at(level, Function::Sigmoid, gates);
    apply_at(level, Function::Tanh, cell);
    let (input, rest) = gates.split_at(h.len());
    let (output, forget) = rest.split_at(h.len());
    for at in 0..h.len() {
        c[at] = forget[at] * c[at] + input[at] * cell[at];
    }
    h.copy_from_slice(c);
    apply_at(level, Function::Tanh, h);
    for at in 0..h.len() {
        h[at] *= output[at];
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Alone;
    use crate::testing::{Random, levels};

    /// The definition, one value after the other.
    fn naive(
        [steps, batch, size, hidden]: [usize; 4],
        [x, w, r, bias]: [&[f32]; 4],
        (h, c): (&mut [f32], &mut [f32]),
        is_reversed: bool,
    ) -> Vec<f32> {
        let mut y = vec![0.0; steps * batch * hidden];
        let logistic = |x: f64| 1.0 / (1.0 + (-x).exp());
        for step in 0..steps {
            let step = if is_reversed { steps - 1 - step } else { step };
            let before = h.to_vec();
            for (row, unit) in (0..batch).flat_map(|row| (0..hidden).map(move |unit| (row, unit))) {
                let [i, o, f, g] = [0, 1, 2, 3].map(|gate| {
                    let at = gate * hidden + unit;
                    let dot = |a: &[f32], b: &[f32]| -> f64 {
                        a.iter().zip(b).map(|(a, b)| f64::from(a * b)).sum()
                    };
                    let x = &x[(step * batch + row) * size..][..size];
                    dot(x, &w[at * size..][..size])
                        + dot(&before[row * hidden..][..hidden], &r[at * hidden..][..hidden])
                        + f64::from(bias[at] + bias[4 * hidden + at])
                });
                let at = row * hidden + unit;
                let cell = logistic(f) * f64::from(c[at]) + logistic(i) * g.tanh();
                c[at] = cell as f32;
                h[at] = (logistic(o) * cell.tanh()) as f32;
                y[(step * batch + row) * hidden + unit] = h[at];
            }
        }
        y
    }

    #[test]
    fn agrees_with_the_definition_at_all_levels() {
        let mut random = Random(11);
        for round in 0..60 {
            let [steps, batch] = [random.between(1, 140), random.between(1, 3)];
            let [size, hidden] = [random.between(1, 20), random.between(1, 40)];
            let [x, w, r, bias] =
                [steps * batch * size, 4 * hidden * size, 4 * hidden * hidden, 8 * hidden]
                    .map(|count| random.values(count));
            let is_reversed = round % 2 == 1;
            let state = [random.values(batch * hidden), random.values(batch * hidden)];
            let [mut h, mut c] = state.clone();
            let all = [&*x, &w, &r, &bias];
            let wanted = naive([steps, batch, size, hidden], all, (&mut h, &mut c), is_reversed);
            let lstm = Lstm::new([size, hidden], &w, &r, Some(&bias)).unwrap();
            for level in levels() {
                let [mut last, mut cell] = state.clone();
                let mut y = vec![f32::NAN; wanted.len()];
                let mut each = |at: usize, h: &[f32]| {
                    y[at * h.len()..][..h.len()].copy_from_slice(h);
                    true
                };
                let sequence = ([steps, batch], &*x, is_reversed);
                let state = (&mut *last, &mut *cell);
                lstm.run(level, sequence, state, &mut each, &Alone::default()).unwrap();
                for (wanted, came) in [(&wanted, &y), (&h, &last), (&c, &cell)] {
                    let mut pairs = wanted.iter().zip(came);
                    assert!(pairs.all(|(a, b)| (a - b).abs() < 1e-4), "{level:?}, round {round}");
                }
            }
        }
    }

    #[test]
    fn steps_are_fewer_at_a_time_where_each_has_many_gates() {
        let counts = [0, 1, MOST_SHARES / STEPS, MOST_SHARES / 3, MOST_SHARES, usize::MAX];
        assert_eq!(counts.map(steps_at_a_time), [STEPS, STEPS, STEPS, 3, 1, 1]);
    }

    #[test]
    fn states_are_rounded_to_what_a_byte_says() {
        let rounded = |values: &[f32]| {
            let mut rounded = vec![f32::NAN; values.len()];
            round(values, &mut rounded);
            rounded
        };
        assert_eq!(rounded(&[0.0, 0.0]), [0.0, 0.0]);
        assert_eq!(rounded(&[255.0, 0.5, 1.5, 100.3]), [255.0, 0.0, 2.0, 100.0]);
        // Zero is always said, and what is halfway goes to the even number.
        assert_eq!(rounded(&[-100.0, 155.0, 2.5]), [-100.0, 155.0, 2.0]);
        assert_eq!(rounded(&[-510.0, -12.3]), [-510.0, -12.0]);
        assert!(rounded(&[f32::NAN, 1.0])[0].is_nan());
    }

    #[test]
    fn a_step_takes_rounded_states() {
        let (r, state) = ([1.0; 4], 0.7f32);
        let lstm = Lstm::new([1, 1], &[0.0; 4], &r, None).expect("a layer");
        let run = |lstm: &Lstm, h: [f32; 2]| {
            let (mut h, mut c) = (h, [0.0; 2]);
            let sequence = ([1, 2], &[0.0; 2][..], false);
            let states = (&mut h[..], &mut c[..]);
            lstm.run(Level::best(), sequence, states, &mut |_, _| true, &Alone::default()).unwrap();
            h
        };
        // Beside 255, the other row's state is none or one.
        let [_, plain] = run(&lstm, [255.0, 1.0]);
        let [_, rounded] = run(&lstm.rounding_states(), [255.0, state]);
        assert!((plain - rounded).abs() < 1e-6);
    }

    #[test]
    fn a_step_can_be_the_last() {
        let lstm = Lstm::new([1, 2], &[0.5; 8], &[0.25; 16], None).unwrap();
        let (mut h, mut c, mut steps) = ([0.0; 2], [0.0; 2], 0);
        let mut each = |at: usize, _: &[f32]| {
            steps += 1;
            at < 2
        };
        let sequence = ([100, 1], &[1.0; 100][..], false);
        let state = (&mut h[..], &mut c[..]);
        lstm.run(Level::best(), sequence, state, &mut each, &Alone::default()).unwrap();
        assert_eq!(steps, 3);
        let few = Lstm::new([2, 2], &[0.5; 8], &[0.25; 16], None);
        assert_eq!(few, Err(ShapeError("weights of the gates")));
    }
}
