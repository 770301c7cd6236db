//! Which engine runs a graph: measured, once, before it is served.

use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};

use crate::EngineKind;
use crate::compare::agreement;
use crate::graph::{Graph, LoadError};
use crate::tensor::{Contract, Datatype, Value, push_bytes_element};

/// A challenger must need less than this share of the reference's CPU time.
const CLEARLY_LESS: f64 = 0.9;

/// How often each engine is measured, and for how long each time and in all.
const ROUNDS: usize = 8;
const ROUND: Duration = Duration::from_millis(5);
const MEASURING: Duration = Duration::from_secs(5);

const MAX_GENERATED_ELEMENTS: usize = 1 << 24;

/// What one run of a graph is given.
pub type Inputs = Vec<Value<'static>>;

/// The engine that serves a graph, and why.
#[derive(Debug, Clone)]
pub struct Choice {
    pub engine: EngineKind,
    /// For people, one line.
    pub reason: String,
    pub candidates: Vec<Candidate>,
}

#[derive(Debug, Clone)]
pub struct Candidate {
    pub engine: EngineKind,
    pub verdict: Verdict,
}

/// What came of an engine.
#[derive(Debug, Clone, PartialEq)]
pub enum Verdict {
    Measured {
        /// Of one run of all inputs, on average; 0 where there was nothing to compare it with.
        cpu_us: u64,
        load_us: u64,
        /// From the reference, of any floating-point value, relative to the larger of it and 1.
        difference: f64,
    },
    /// It cannot load the graph.
    Refused(String),
    /// It loads the graph, and breaks on an input.
    Failed(String),
    /// It answers otherwise than the reference.
    Disagrees(String),
}

/// An engine that ran all inputs.
struct Contender {
    index: usize,
    graph: Graph,
    load_us: u64,
    outputs: Vec<Inputs>,
    runs: u64,
    spent_us: u64,
    /// Why it broke while it was measured.
    failure: Option<String>,
}

/// Runs `inputs` on each of `engines` that loads the graph, and takes the fastest by CPU time of
/// those that agree within `tolerance` with the first that runs them. Where most of three agree
/// against the first, they are right, unless the first `is_tested`. Where none agrees with another,
/// the first is taken, and the reason says so. Numbers that other engines may not hold must agree
/// too, where the first takes them.
///
/// # Errors
/// No engine loads the graph.
pub fn choose(
    onnx: &[u8],
    engines: &[EngineKind],
    inputs: &[Inputs],
    tolerance: f64,
    is_tested: bool,
) -> Result<Choice, LoadError> {
    let mut verdicts: Vec<Option<Verdict>> = vec![None; engines.len()];
    let mut contenders = Vec::new();
    let mut loaded = None;
    for (index, &engine) in engines.iter().enumerate() {
        let before = cpu_us();
        match Graph::load(onnx, engine) {
            Err(error) => verdicts[index] = Some(Verdict::Refused(error.to_string())),
            Ok(graph) => {
                let load_us = cpu_us() - before;
                loaded.get_or_insert(index);
                match run_all(&graph, inputs) {
                    Err(failure) => verdicts[index] = Some(Verdict::Failed(failure)),
                    Ok(outputs) => {
                        let (runs, spent_us, failure) = (0, 0, None);
                        let contender =
                            Contender { index, graph, load_us, outputs, runs, spent_us, failure };
                        contenders.push(contender);
                    }
                }
            }
        }
    }
    let Some(loaded) = loaded else {
        return Err(LoadError(describe(engines, &verdicts)));
    };
    let judge = if is_tested && !contenders.is_empty() {
        Some(0)
    } else {
        let outputs: Vec<&[Inputs]> = contenders.iter().map(|it| &*it.outputs).collect();
        reference(&outputs, tolerance)
    };
    let Some(reference) = judge else {
        let reason = format!("no input was run; {}", describe(engines, &verdicts));
        return Ok(finish(engines, verdicts, loaded, reason));
    };
    let expected = contenders[reference].outputs.clone();
    let mut others = contenders.iter().enumerate().filter(|(at, _)| *at != reference);
    let differs =
        |contender: &Contender| compare_all(&expected, &contender.outputs, tolerance).is_err();
    let is_alone =
        !is_tested && contenders.len() > 1 && others.all(|(_, contender)| differs(contender));
    let large = extreme(contenders[reference].graph.contract());
    let large = large.map(|inputs| [inputs]);
    let large = large.and_then(|large| {
        let outputs = run_all(&contenders[reference].graph, &large).ok()?;
        Some((large, outputs))
    });
    let agrees = |contender: &Contender| {
        let difference = compare_all(&expected, &contender.outputs, tolerance)?;
        if let Some((inputs, expected)) = &large {
            let outputs = run_all(&contender.graph, inputs)
                .map_err(|reason| format!("large numbers: {reason}"))?;
            compare_all(expected, &outputs, tolerance)
                .map_err(|reason| format!("large numbers: {reason}"))?;
        }
        Ok(difference)
    };
    let mut differences = vec![0.0; engines.len()];
    contenders.retain(|contender| match agrees(contender) {
        Ok(difference) => {
            differences[contender.index] = difference;
            true
        }
        Err(reason) => {
            verdicts[contender.index] = Some(Verdict::Disagrees(reason));
            false
        }
    });
    if contenders.len() > 1 {
        measure(&mut contenders, inputs);
    }
    contenders.retain(|contender| match &contender.failure {
        None => true,
        Some(failure) => {
            verdicts[contender.index] = Some(Verdict::Failed(failure.clone()));
            false
        }
    });
    if contenders.is_empty() {
        let reason = describe(engines, &verdicts);
        return Ok(finish(engines, verdicts, loaded, reason));
    }
    // Given in the caller's order: the first keeps its place unless another is clearly faster.
    let mut best = 0;
    for (at, contender) in contenders.iter().enumerate() {
        if (contender.cpu_us() as f64) < CLEARLY_LESS * contenders[best].cpu_us() as f64 {
            best = at;
        }
    }
    let chosen = contenders[best].index;
    for contender in &contenders {
        verdicts[contender.index] = Some(Verdict::Measured {
            cpu_us: contender.cpu_us(),
            load_us: contender.load_us,
            difference: differences[contender.index],
        });
    }
    let mut reason = describe(engines, &verdicts);
    if is_alone {
        let engine = engines[chosen];
        reason += &format!(
            "; no two agree, so {engine} is taken for being first: a golden test would decide"
        );
    }
    Ok(finish(engines, verdicts, chosen, reason))
}

impl Contender {
    fn cpu_us(&self) -> u64 {
        // Zero is for what was not measured.
        self.spent_us.checked_div(self.runs).map_or(0, |spent| spent.max(1))
    }
}

fn finish(
    engines: &[EngineKind],
    verdicts: Vec<Option<Verdict>>,
    chosen: usize,
    reason: String,
) -> Choice {
    let candidates = engines
        .iter()
        .zip(verdicts)
        .filter_map(|(&engine, verdict)| Some(Candidate { engine, verdict: verdict? }));
    Choice { engine: engines[chosen], reason, candidates: candidates.collect() }
}

fn describe(engines: &[EngineKind], verdicts: &[Option<Verdict>]) -> String {
    let parts = engines.iter().zip(verdicts).filter_map(|(engine, verdict)| {
        Some(match verdict.as_ref()? {
            Verdict::Measured { cpu_us, difference, .. } if *difference > 0.0 => {
                format!("{engine} {:.3} ms, off by {difference:.1e}", *cpu_us as f64 / 1000.0)
            }
            Verdict::Measured { cpu_us: 0, .. } => format!("{engine} runs it"),
            Verdict::Measured { cpu_us, .. } => {
                format!("{engine} {:.3} ms", *cpu_us as f64 / 1000.0)
            }
            Verdict::Refused(reason) => format!("{engine} refuses it: {reason}"),
            Verdict::Failed(reason) => format!("{engine} fails: {reason}"),
            Verdict::Disagrees(reason) => format!("{engine} disagrees: {reason}"),
        })
    });
    parts.collect::<Vec<_>>().join("; ")
}

fn run_all(graph: &Graph, inputs: &[Inputs]) -> Result<Vec<Inputs>, String> {
    let run = |inputs: &Inputs| graph.run(&mut inputs.clone(), &|| false);
    inputs.iter().map(|inputs| run(inputs).map_err(|failure| failure.to_string())).collect()
}

/// Which contender's answers are right: the first's, unless the two others agree against it.
fn reference(outputs: &[&[Inputs]], tolerance: f64) -> Option<usize> {
    let agree = |a: usize, b: usize| compare_all(outputs[a], outputs[b], tolerance).is_ok();
    match outputs {
        [] => None,
        [_, _, _] if !agree(0, 1) && !agree(0, 2) && agree(1, 2) => Some(1),
        _ => Some(0),
    }
}

fn compare_all(expected: &[Inputs], got: &[Inputs], tolerance: f64) -> Result<f64, String> {
    let mut largest = 0f64;
    for (expected, got) in expected.iter().flatten().zip(got.iter().flatten()) {
        largest = largest.max(agreement(expected, got, tolerance)?);
    }
    Ok(largest)
}

/// In alternation, so that whatever else the machine does falls on all of them; for a while each
/// time, as the clock may tick in milliseconds where the process has a limit on its CPU time.
fn measure(contenders: &mut [Contender], inputs: &[Inputs]) {
    let began = Instant::now();
    for round in 0..ROUNDS {
        if round > 0 && began.elapsed() >= MEASURING {
            break;
        }
        for contender in contenders.iter_mut().filter(|contender| contender.failure.is_none()) {
            let (since, before) = (Instant::now(), cpu_us());
            while contender.failure.is_none() {
                contender.failure = run_all(&contender.graph, inputs).err();
                contender.runs += 1;
                if since.elapsed() >= ROUND {
                    break;
                }
            }
            contender.spent_us += cpu_us() - before;
        }
    }
}

/// Of the whole process: an engine may compute on threads of its own.
pub(crate) fn cpu_us() -> u64 {
    let time = clock_gettime(ClockId::ProcessCPUTime);
    time.tv_sec as u64 * 1_000_000 + time.tv_nsec as u64 / 1_000
}

/// Inputs that a graph may take, for one that has no test: sizes that are free are one, floats
/// lie in -1 to 1, whole numbers are 0 or 1, strings are short. `None` for huge ones.
pub fn generated(contract: &Contract) -> Option<Inputs> {
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        (random >> 40) as f64 / (1u64 << 23) as f64 - 1.0
    };
    let value = |spec: &crate::tensor::TensorSpec| {
        let shape: Vec<usize> =
            spec.shape.iter().map(|&size| usize::try_from(size).unwrap_or(1)).collect();
        let elements = shape.iter().try_fold(1usize, |count, &size| count.checked_mul(size))?;
        let mut data = Vec::new();
        for _ in 0..Some(elements).filter(|&elements| elements <= MAX_GENERATED_ELEMENTS)? {
            push(&mut data, spec.datatype, next());
        }
        Some(Value { datatype: spec.datatype, shape, data: data.into() })
    };
    contract.inputs.iter().map(value).collect()
}

/// Inputs of numbers that a graph may take and that an engine may not hold: whole ones past 32
/// bits, and doubles past the largest float. `None` where the graph takes no such numbers, but
/// for lists, which may be sizes: those would ask for all memory there is.
fn extreme(contract: &Contract) -> Option<Inputs> {
    const WHOLE: i64 = 3_000_000_019;
    const DOUBLE: f64 = 1.25e60;
    let is_wide = |datatype, rank| {
        rank > 1
            && matches!(
                datatype,
                Datatype::Int64 | Datatype::Uint64 | Datatype::Uint32 | Datatype::Fp64
            )
    };
    if !contract.inputs.iter().any(|spec| is_wide(spec.datatype, spec.shape.len())) {
        return None;
    }
    let mut inputs = generated(contract)?;
    for value in inputs.iter_mut().filter(|value| is_wide(value.datatype, value.shape.len())) {
        let element: &[u8] = match value.datatype {
            Datatype::Fp64 => &DOUBLE.to_le_bytes(),
            Datatype::Uint32 => &(WHOLE as u32).to_le_bytes(),
            _ => &WHOLE.to_le_bytes(),
        };
        value.data = element.repeat(value.data.len() / element.len()).into();
    }
    Some(inputs)
}

/// Appends one element: `number`, or whether it is positive.
fn push(data: &mut Vec<u8>, datatype: Datatype, number: f64) {
    let bit = u8::from(number > 0.0);
    match datatype {
        Datatype::Fp64 => data.extend(number.to_le_bytes()),
        Datatype::Fp32 => data.extend((number as f32).to_le_bytes()),
        Datatype::Fp16 => data.extend(half::f16::from_f64(number).to_le_bytes()),
        Datatype::Bf16 => data.extend(half::bf16::from_f64(number).to_le_bytes()),
        Datatype::Bytes => {
            let pushed = push_bytes_element(data, &[b'a' + bit]);
            pushed.expect("one byte is shorter than 4 GiB");
        }
        other => {
            data.push(bit);
            data.resize(data.len() + other.size().unwrap_or(1) - 1, 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_that_agree_are_right_against_the_first() {
        let answers = |number: f32| {
            let data = number.to_le_bytes().to_vec().into();
            vec![vec![Value { datatype: Datatype::Fp32, shape: vec![1], data }]]
        };
        let right = |numbers: &[f32]| {
            let all: Vec<_> = numbers.iter().map(|&number| answers(number)).collect();
            reference(&all.iter().map(Vec::as_slice).collect::<Vec<_>>(), 1e-3)
        };
        assert_eq!(right(&[]), None);
        assert_eq!(right(&[1.0]), Some(0));
        assert_eq!(right(&[1.0, 2.0]), Some(0));
        assert_eq!(right(&[1.0, 2.0, 2.0]), Some(1));
        assert_eq!(right(&[1.0, 1.0, 2.0]), Some(0));
        assert_eq!(right(&[1.0, 2.0, 1.0]), Some(0));
        assert_eq!(right(&[1.0, 2.0, 3.0]), Some(0));
    }
}
