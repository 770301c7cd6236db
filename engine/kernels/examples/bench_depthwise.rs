//! Times the depthwise layers of a few nets, in turn with ONNX Runtime if a Python that has `onnxruntime` and `onnx`
//! is named: `cargo run --release --example bench_depthwise -- [python] [rounds] [milliseconds]`.
//!
//! Columns: microseconds, GB/s of input and output together, GFLOP/s; then ONNX Runtime's microseconds for a
//! one-node model, which converts the layout twice, and for the convolution's own part of that, as inside a net; ratios
//! of ours to theirs are of the medians over rounds of the least time in each round.

use kernels::depthwise::Depthwise;
use kernels::window::Window;
use kernels::{Activation, Epilogue};
use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

struct Layer {
    net: &'static str,
    /// How often the net has this layer.
    times: usize,
    channels: usize,
    h: usize,
    w: usize,
    kernel: usize,
    strides: [usize; 2],
    pads: [usize; 4],
}

fn layers() -> Vec<Layer> {
    let mut all = Vec::new();
    // TensorFlow's SAME: at stride 2 the odd pad goes behind.
    for (times, channels, side, kernel, stride) in [
        (1, 32, 112, 3usize, 1),
        (1, 96, 112, 3, 2),
        (1, 144, 56, 3, 1),
        (1, 144, 56, 5, 2),
        (1, 240, 28, 5, 1),
        (1, 240, 28, 3, 2),
        (2, 480, 14, 3, 1),
        (1, 480, 14, 5, 1),
        (2, 672, 14, 5, 1),
        (1, 672, 14, 5, 2),
        (3, 1152, 7, 5, 1),
        (1, 1152, 7, 3, 1),
    ] {
        let (low, high) = ((kernel - stride) / 2, (kernel - stride).div_ceil(2));
        let pads = [low, low, high, high];
        all.push(Layer {
            net: "lite0",
            times,
            channels,
            h: side,
            w: side,
            kernel,
            strides: [stride; 2],
            pads,
        });
    }
    for (times, channels, h, w, stride) in [
        (1, 32, 240, 320, 1),
        (1, 96, 240, 320, 2),
        (1, 144, 120, 160, 1),
        (1, 144, 120, 160, 2),
        (2, 192, 60, 80, 1),
        (1, 192, 60, 80, 2),
        (4, 384, 30, 40, 1),
        (2, 576, 30, 40, 1),
        (1, 576, 30, 40, 2),
        (3, 960, 15, 20, 1),
    ] {
        all.push(Layer {
            net: "centerface",
            times,
            channels,
            h,
            w,
            kernel: 3,
            strides: [stride; 2],
            pads: [1; 4],
        });
    }
    for (channels, h, w, kernel, strides) in [
        (32, 24, 160, 3, [1, 1]),
        (64, 24, 160, 3, [1, 1]),
        (64, 24, 160, 3, [2, 1]),
        (128, 12, 160, 3, [1, 1]),
        (128, 12, 160, 3, [1, 2]),
        (240, 12, 80, 5, [1, 1]),
        (240, 12, 80, 5, [2, 1]),
        (480, 6, 80, 5, [2, 1]),
        (480, 3, 80, 5, [1, 1]),
        (32, 48, 320, 5, [1, 1]),
        (32, 48, 320, 5, [2, 2]),
    ] {
        all.push(Layer {
            net: "ppocr",
            times: 1,
            channels,
            h,
            w,
            kernel,
            strides,
            pads: [kernel / 2; 4],
        });
    }
    all
}

fn best(time: Duration, mut run: impl FnMut()) -> f64 {
    run();
    let end = Instant::now() + time;
    let mut least = f64::MAX;
    loop {
        let start = Instant::now();
        run();
        least = least.min(start.elapsed().as_secs_f64());
        if Instant::now() > end {
            return least;
        }
    }
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let rounds: usize = arguments.get(1).map_or(Ok(5), |n| n.parse())?;
    let time_ms: u64 = arguments.get(2).map_or(Ok(20), |n| n.parse())?;
    let mut other = match arguments.first() {
        Some(python) => {
            let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/ort_depthwise.py");
            let child = Command::new(python)
                .arg(script)
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?;
            let (ask, answer) = (child.stdin.ok_or("no stdin")?, child.stdout.ok_or("no stdout")?);
            Some((ask, BufReader::new(answer).lines()))
        }
        None => None,
    };
    let mut totals: Vec<(&str, [f64; 3])> = Vec::new();
    println!(
        "net        layer                          µs   GB/s GFLOP/s |   alone µs ratio |  in net µs ratio"
    );
    for Layer { net, times, channels, h, w, kernel, strides, pads } in layers() {
        let window = Window { kernel: [kernel; 2], strides, dilations: [1, 1], pads };
        let weights =
            (0..channels * kernel * kernel).map(|i| (i % 17) as f32 / 17.0 - 0.5).collect();
        let op = Depthwise::new(channels, 1, window, weights)?;
        let shape = [1, channels, h, w];
        let x: Vec<f32> = (0..channels * h * w).map(|i| (i % 101) as f32 / 50.0 - 1.0).collect();
        let mut y = vec![0.0; op.output_shape(shape)?.iter().product()];
        let bias = vec![0.1; channels];
        let activation = Activation::Clip { min: 0.0, max: 6.0 };
        let epilogue = Epilogue { bias: Some(&bias), activation, ..Epilogue::default() };
        let mut scratch = Vec::new();
        let (mut ours, mut alone, mut in_net) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..rounds {
            ours.push(best(Duration::from_millis(time_ms), || {
                op.run(&x, shape, &epilogue, &mut y, &mut scratch).expect("shapes match");
            }));
            if let Some((ask, answer)) = &mut other {
                let [top, left, bottom, right] = pads;
                let [sy, sx] = strides;
                writeln!(
                    ask,
                    "{time_ms} {channels} {h} {w} {kernel} {sy} {sx} {top} {left} {bottom} {right}"
                )?;
                let line = answer.next().ok_or("the other side has ended")??;
                let mut words = line.split(' ').map(str::parse::<f64>);
                alone.push(words.next().ok_or("no answer")??);
                in_net.push(words.next().ok_or("half an answer")??);
            }
        }
        let seconds = median(ours);
        let flops = 2 * y.len() * kernel * kernel;
        print!(
            "{net:10} {channels:4}×{h}×{w} k{kernel} s{}{} ×{times:<2} {:9.1} {:6.1} {:6.1}",
            strides[0],
            strides[1],
            seconds * 1e6,
            (x.len() + y.len()) as f64 * 4.0 / seconds / 1e9,
            flops as f64 / seconds / 1e9,
        );
        let mut times_taken = [seconds, 0.0, 0.0];
        if other.is_some() {
            let (alone, in_net) = (median(alone), median(in_net));
            print!(
                " | {:9.1} {:.2} | {:9.1} {:.2}",
                alone * 1e6,
                seconds / alone,
                in_net * 1e6,
                seconds / in_net
            );
            times_taken = [seconds, alone, in_net];
        }
        println!();
        if totals.last().is_none_or(|(last, _)| *last != net) {
            totals.push((net, [0.0; 3]));
        }
        if let Some((_, sums)) = totals.last_mut() {
            for (sum, taken) in sums.iter_mut().zip(times_taken) {
                *sum += taken * times as f64;
            }
        }
    }
    for (net, [ours, alone, in_net]) in totals {
        println!(
            "{net:10} total {:.0} µs; one-node {:.0} µs, ratio {:.2}; in net {:.0} µs, ratio {:.2}",
            ours * 1e6,
            alone * 1e6,
            ours / alone,
            in_net * 1e6,
            ours / in_net
        );
    }
    Ok(())
}
