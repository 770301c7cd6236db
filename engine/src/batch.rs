//! Several callers' inputs in one run: what may be stacked, and whether that pays.

use std::time::{Duration, Instant};

use half::bf16;

use crate::choose::{Inputs, cpu_us};
use crate::compare::agreement;
use crate::graph::{Graph, Watch};
use crate::tensor::{Datatype, TensorSpec, Value};

/// A row in a batch must take less than this share of what it takes alone,
const CLEARLY_LESS: f64 = 0.9;

/// once this was added: what waiting for another sandbox and waking up costs, µs.
const HANDING_OVER_US: f64 = 20.0;

/// How often each size is measured, and for how long each time.
const ROUNDS: usize = 5;
const ROUND: Duration = Duration::from_millis(5);

/// All sizes together take little longer than this.
const MEASURING: Duration = Duration::from_secs(5);

/// Rows of a large batch come again.
const DIFFERENT_ROWS: usize = 8;

/// What examining a graph said of batches.
#[derive(Debug, Clone, PartialEq)]
pub struct Batches {
    /// The sizes that pay, the smallest first; all above 1.
    pub sizes: Vec<usize>,
    /// For people, one line.
    pub reason: String,
}

impl Batches {
    fn none(reason: String) -> Self {
        Self { sizes: Vec::new(), reason }
    }
}

/// How many rows these inputs are, where they may be stacked with others: every input's and
/// output's first size is free, and the inputs' are the same. What does not fit the graph may
/// not: alone it gets its own error.
pub fn rows(graph: &Graph, inputs: &[Value<'_>]) -> Option<usize> {
    let contract = graph.contract();
    let is_free =
        |spec: &TensorSpec| spec.shape.first() == Some(&-1) && spec.datatype != Datatype::Bytes;
    if !contract.inputs.iter().chain(&contract.outputs).all(is_free) {
        return None;
    }
    let fits = |(spec, value): (&TensorSpec, &Value<'_>)| {
        let mut sizes = spec.shape.iter().zip(&value.shape);
        value.datatype == spec.datatype
            && value.shape.len() == spec.shape.len()
            && sizes.all(|(&want, &got)| want < 0 || want as usize == got)
            && value.check_length().is_ok()
    };
    if inputs.len() != contract.inputs.len() || !contract.inputs.iter().zip(inputs).all(fits) {
        return None;
    }
    let rows = *inputs.first()?.shape.first()?;
    (rows > 0 && inputs.iter().all(|value| value.shape[0] == rows)).then_some(rows)
}

/// Puts the rows of several callers' inputs under each other. Each caller's have the same
/// datatypes and, but for the first, sizes.
pub fn stack(callers: &[&[Value<'_>]]) -> Inputs {
    let Some(first) = callers.first() else { return Vec::new() };
    let stacked = first.iter().enumerate().map(|(index, value)| {
        let mut shape = value.shape.clone();
        shape[0] = callers.iter().map(|inputs| inputs[index].shape[0]).sum();
        let mut data =
            Vec::with_capacity(callers.iter().map(|inputs| inputs[index].data.len()).sum());
        callers.iter().for_each(|inputs| data.extend_from_slice(&inputs[index].data));
        Value { datatype: value.datatype, shape, data: data.into() }
    });
    stacked.collect()
}

/// Gives each caller its rows of the outputs; `None` where an output has not one for each row.
pub fn split(outputs: &[Value<'_>], rows: &[usize]) -> Option<Vec<Inputs>> {
    let total: usize = rows.iter().sum();
    if total == 0 || outputs.iter().any(|output| output.shape.first() != Some(&total)) {
        return None;
    }
    let mut before = 0;
    let callers = rows.iter().map(|&rows| {
        let part = |output: &Value<'_>| {
            let row = output.data.len() / total;
            let mut shape = output.shape.clone();
            shape[0] = rows;
            let data = output.data[before * row..(before + rows) * row].to_vec();
            Value { datatype: output.datatype, shape, data: data.into() }
        };
        let part = outputs.iter().map(part).collect();
        before += rows;
        part
    });
    Some(callers.collect())
}

/// A graph, and what a run of it may take beside its inputs, bytes.
#[derive(Clone, Copy)]
struct Held<'a>(&'a Graph, usize);

impl Held<'_> {
    fn run(self, inputs: &Inputs) -> Result<Inputs, String> {
        self.0.run(&mut inputs.clone(), &self).map_err(|failure| failure.to_string())
    }
}

impl Watch for Held<'_> {
    fn is_over(&self) -> bool {
        false
    }

    fn memory(&self) -> usize {
        self.1
    }
}

/// Measures which of `sizes` pay: where as many different rows, run at once, give what each of
/// them gives alone, within `tolerance`, in clearly less CPU time. `inputs` are tried in order
/// until some can be stacked; rows are made of theirs. A run may take `memory` bytes beside them.
pub fn measure_batches(
    graph: &Graph,
    memory: usize,
    inputs: &[Inputs],
    sizes: &[usize],
    tolerance: f64,
) -> Batches {
    if let Some(operator) = graph.mixes_rows() {
        return Batches::none(format!("{operator} makes one scale for all rows"));
    }
    let found = inputs.iter().find_map(|inputs| Some((inputs, rows(graph, inputs)?)));
    let Some((inputs, count)) = found else {
        return Batches::none("its tensors' first sizes are not all free".to_owned());
    };
    let Some(row) = split(inputs, &vec![1; count]).and_then(|rows| rows.into_iter().next()) else {
        return Batches::none("its inputs are no rows".to_owned());
    };
    measure(Held(graph, memory), &row, sizes, tolerance).unwrap_or_else(Batches::none)
}

fn measure(
    graph: Held<'_>,
    row: &Inputs,
    sizes: &[usize],
    tolerance: f64,
) -> Result<Batches, String> {
    let began = Instant::now();
    let rows: Vec<Inputs> = (0..DIFFERENT_ROWS).map(|by| varied(row, by)).collect();
    let alone = rows.iter().map(|row| graph.run(row)).collect::<Result<Vec<_>, _>>()?;
    let mut alone_us = f64::MAX;
    let (mut paying, mut said) = (Vec::new(), Vec::new());
    for &size in sizes {
        if began.elapsed() >= MEASURING {
            said.push(format!("{size} and more at once take too long to measure"));
            break;
        }
        let numbers = || (0..size).map(|number| number % DIFFERENT_ROWS);
        let stacked = stack(&numbers().map(|number| rows[number].as_slice()).collect::<Vec<_>>());
        let together = match graph.run(&stacked) {
            Ok(together) => together,
            // Those that were found to pay are none the worse for it.
            Err(reason) => {
                said.push(format!("{size} at once fail: {reason}"));
                break;
            }
        };
        let parts = split(&together, &vec![1; size])
            .ok_or_else(|| format!("of {size} rows it does not give {size}"))?;
        let expected = numbers().flat_map(|number| &alone[number]);
        for (expected, got) in expected.zip(parts.iter().flatten()) {
            agreement(expected, got, tolerance)
                .map_err(|reason| format!("of {size} rows at once it gives others: {reason}"))?;
        }
        let (one_us, batch_us) = time(graph, &rows[0], &stacked)?;
        alone_us = alone_us.min(one_us);
        let share = batch_us / size as f64 / alone_us;
        said.push(format!("{size} at once take {share:.2} of the time each"));
        if batch_us / (size as f64) + HANDING_OVER_US < CLEARLY_LESS * alone_us {
            paying.push(size);
        }
    }
    Ok(Batches { sizes: paying, reason: said.join(", ") })
}

/// CPU time of each, µs, in alternation.
fn time(graph: Held<'_>, row: &Inputs, stacked: &Inputs) -> Result<(f64, f64), String> {
    let began = Instant::now();
    let (mut spent, mut runs) = ([0u64; 2], [0u64; 2]);
    for round in 0..ROUNDS {
        if round > 0 && began.elapsed() >= MEASURING {
            break;
        }
        for (which, inputs) in [row, stacked].into_iter().enumerate() {
            let (since, before) = (Instant::now(), cpu_us());
            loop {
                graph.run(inputs)?;
                runs[which] += 1;
                if since.elapsed() >= ROUND {
                    break;
                }
            }
            spent[which] += cpu_us() - before;
        }
    }
    let each = |which: usize| spent[which] as f64 / runs[which] as f64;
    Ok((each(0).max(1.0), each(1)))
}

/// The row's elements moved on by so many, and its numbers far larger or smaller: what is
/// computed over all rows then shows in the others. Whole numbers stay those that the graph takes.
fn varied(row: &Inputs, by: usize) -> Inputs {
    let factor = [1.0, -30.0, 0.01, 0.0][by % 4];
    let vary = |value: &Value<'_>| {
        let mut data = value.data.to_vec();
        let size = value.datatype.size().unwrap_or(1);
        let by = (by * size) % data.len().max(1);
        data.rotate_left(by);
        match value.datatype {
            Datatype::Fp32 => data.as_chunks_mut().0.iter_mut().for_each(|bytes| {
                *bytes = (f32::from_le_bytes(*bytes) * factor as f32).to_le_bytes();
            }),
            Datatype::Fp64 => data.as_chunks_mut().0.iter_mut().for_each(|bytes| {
                *bytes = (f64::from_le_bytes(*bytes) * factor).to_le_bytes();
            }),
            Datatype::Bf16 => data.as_chunks_mut().0.iter_mut().for_each(|bytes| {
                let number = bf16::from_le_bytes(*bytes).to_f32() * factor as f32;
                *bytes = bf16::from_f32(number).to_le_bytes();
            }),
            _ => {}
        }
        Value { datatype: value.datatype, shape: value.shape.clone(), data: data.into() }
    };
    row.iter().map(vary).collect()
}
