//! Prints the time and rate of every layer of some nets: `bench [layers.txt] [rounds]`.
//!
//! A line of the file is `conv NAME batch inputs height width outputs kh kw sy sx py px groups act` or
//! `linear NAME rows k n act` or `product NAME batch m k n`.

use kernels::*;
use std::time::Instant;

struct Job {
    name: String,
    mflop: f64,
    best: f64,
    run: Box<dyn FnMut()>,
}

fn values(n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i * 7919) % 1000) as f32 / 1000.0 - 0.5).collect()
}

fn job(line: &str, level: Level) -> Option<Job> {
    let mut words = line.split_whitespace();
    let (kind, name) = (words.next()?, words.next()?.to_string());
    let rest: Vec<&str> = words.collect();
    let n: Vec<usize> = rest.iter().filter_map(|w| w.parse().ok()).collect();
    let activation = match rest.last().copied() {
        Some("relu") => Activation::Relu,
        Some("relu6") => Activation::Clip { min: 0.0, max: 6.0 },
        Some("hswish") => Activation::HardSwish,
        _ => Activation::None,
    };
    match kind {
        "conv" => {
            let g = Geometry {
                inputs: n[1],
                outputs: n[4],
                groups: n[11],
                kernel: [n[5], n[6]],
                strides: [n[7], n[8]],
                dilations: [1, 1],
                pads: [n[9], n[10], n[9], n[10]],
            };
            let [h, w] = g.output([n[2], n[3]])?;
            let k = n[1] / n[11] * n[5] * n[6];
            let conv = Conv2d::new(g, &values(n[4] * k)).ok()?;
            let (input, bias) = (values(n[0] * n[1] * n[2] * n[3]), values(n[4]));
            let mut out = vec![0.0; n[0] * n[4] * h * w];
            let mut scratch = Scratch::default();
            let mflop = (2 * n[0] * n[4] * k * h * w) as f64 / 1e6;
            let run = Box::new(move || {
                let e = Epilogue { bias: Some(&bias), activation, ..Epilogue::default() };
                conv.run(level, n[0], [n[2], n[3]], &input, &mut out, &e, &mut scratch)
                    .expect("sizes fit");
            });
            Some(Job { name, mflop, best: f64::MAX, run })
        }
        "linear" => {
            let (rows, k, cols) = (n[0], n[1], n[2]);
            let w = Packed::new(cols, k, &values(k * cols), (1, cols)).ok()?;
            let (input, bias) = (values(rows * k), values(cols));
            let mut out = vec![0.0; rows * cols];
            let run = Box::new(move || {
                let e = Epilogue { bias: Some(&bias), activation, ..Epilogue::default() };
                linear(level, rows, View::rows(&input, k), &w, &mut out, &e).expect("sizes fit");
            });
            Some(Job { name, mflop: (2 * rows * k * cols) as f64 / 1e6, best: f64::MAX, run })
        }
        "product" => {
            let (batch, m, k, cols) = (n[0], n[1], n[2], n[3]);
            let (a, b) = (values(batch * m * k), values(batch * k * cols));
            let mut out = vec![0.0; batch * m * cols];
            let mut scratch = Scratch::default();
            let run = Box::new(move || {
                for i in 0..batch {
                    let (a, b) =
                        (View::rows(&a[i * m * k..], k), View::rows(&b[i * k * cols..], cols));
                    let c = &mut out[i * m * cols..][..m * cols];
                    product(level, (m, k, cols), a, b, c, &Epilogue::default(), &mut scratch)
                        .expect("sizes fit");
                }
            });
            Some(Job { name, mflop: (2 * batch * m * k * cols) as f64 / 1e6, best: f64::MAX, run })
        }
        _ => None,
    }
}

fn main() {
    let path = std::env::args().nth(1).expect("a file of layers");
    let rounds: usize = std::env::args().nth(2).and_then(|r| r.parse().ok()).unwrap_or(20);
    let level = match std::env::var("LEVEL").as_deref() {
        Ok("avx2") => Level::Avx2,
        Ok("scalar") => Level::Scalar,
        _ => Level::best(),
    };
    let text = std::fs::read_to_string(path).expect("a readable file");
    let mut jobs: Vec<Job> = text.lines().filter_map(|line| job(line, level)).collect();
    for _ in 0..rounds {
        for job in &mut jobs {
            (job.run)();
            let start = Instant::now();
            (job.run)();
            job.best = job.best.min(start.elapsed().as_secs_f64());
        }
    }
    for job in &jobs {
        println!("{} {:.1} us {:.1} GFLOP/s", job.name, job.best * 1e6, job.mflop / 1e3 / job.best);
    }
}
