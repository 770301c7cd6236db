//! Requests over HTTP/1.1 at rates that Python cannot reach, from one thread, which never sleeps: over
//! loopback a server's own thread wakes a client that does, for some 10 µs an answer, which over a
//! network is not its work.
//!
//! ```text
//! flood ADDRESS REQUEST_FILE CONNECTIONS SECONDS [RATE]
//! ```
//!
//! REQUEST_FILE is a request as it goes over the wire. With a RATE, so many are sent a second, at
//! random moments (a Poisson process), whatever comes back; without one, each connection sends its
//! next once it has an answer. Prints a line for each: when it was sent, how late that was, and
//! how long its answer took, all in µs, and the answer's status, 0 where the connection ended
//! without one. The last line says how many were not sent, as no connection was free until the end.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::error::Error;
use std::io::Write;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::{LocalSet, yield_now};
use tokio::time::timeout;

/// For the last answers.
const DRAIN: Duration = Duration::from_secs(30);

type Outcome<T> = Result<T, Box<dyn Error>>;

fn main() -> Outcome<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, request, connections, seconds, rate @ ..] = &arguments[..] else {
        return Err("usage: flood ADDRESS REQUEST_FILE CONNECTIONS SECONDS [RATE]".into());
    };
    let rate = rate.first().map(|rate| rate.parse()).transpose()?;
    let flood = Rc::new(Flood {
        address: address.clone(),
        request: std::fs::read(request)?,
        seconds: Duration::from_secs_f64(seconds.parse()?),
        idle: RefCell::default(),
        flying: Cell::new(0),
        sent: RefCell::default(),
    });
    let runtime =
        tokio::runtime::Builder::new_current_thread().event_interval(2).enable_all().build()?;
    let local = LocalSet::new();
    let unsent = local.block_on(&runtime, flood.clone().run(connections.parse()?, rate))?;
    let mut out = std::io::BufWriter::new(std::io::stdout().lock());
    for Sent { at, late, took, status } in flood.sent.borrow().iter() {
        let [at, late, took] = [at, late, took].map(Duration::as_micros);
        writeln!(out, "{at} {late} {took} {status}")?;
    }
    writeln!(out, "unsent {unsent}")?;
    Ok(out.flush()?)
}

struct Flood {
    address: String,
    request: Vec<u8>,
    seconds: Duration,
    /// In turn: a server ends those that idle.
    idle: RefCell<VecDeque<TcpStream>>,
    flying: Cell<usize>,
    sent: RefCell<Vec<Sent>>,
}

struct Sent {
    at: Duration,
    late: Duration,
    took: Duration,
    status: u16,
}

impl Flood {
    async fn run(self: Rc<Self>, connections: usize, rate: Option<f64>) -> Outcome<usize> {
        for _ in 0..connections {
            let connection = self.connect().await?;
            self.idle.borrow_mut().push_back(connection);
        }
        let began = Instant::now();
        let unsent = match rate {
            Some(rate) => self.clone().send_at(rate, began).await,
            None => {
                let connections = std::mem::take(&mut *self.idle.borrow_mut());
                for connection in connections {
                    self.send(connection, began, Duration::ZERO, true);
                }
                0
            }
        };
        let end = began + self.seconds + DRAIN;
        while self.flying.get() > 0 && Instant::now() < end {
            yield_now().await;
        }
        Ok(unsent)
    }

    async fn connect(&self) -> std::io::Result<TcpStream> {
        let connection = TcpStream::connect(&self.address).await?;
        connection.set_nodelay(true)?;
        Ok(connection)
    }

    /// Sends at random moments until the end, and returns how many could not be.
    async fn send_at(self: Rc<Self>, rate: f64, began: Instant) -> usize {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        let mut next = random.pause(rate);
        while next < self.seconds {
            let now = began.elapsed();
            if now >= self.seconds {
                break;
            }
            let connection = if next <= now { self.idle.borrow_mut().pop_front() } else { None };
            match connection {
                Some(connection) => {
                    self.send(connection, began, now - next, false);
                    next += random.pause(rate);
                    continue;
                }
                // Nothing is due, or no connection is free.
                None => yield_now().await,
            }
        }
        let mut unsent = 0;
        while next < self.seconds {
            unsent += 1;
            next += random.pause(rate);
        }
        unsent
    }

    fn send(
        self: &Rc<Self>,
        mut connection: TcpStream,
        began: Instant,
        late: Duration,
        again: bool,
    ) {
        let flood = self.clone();
        self.flying.set(self.flying.get() + 1);
        tokio::task::spawn_local(async move {
            let mut buffer = Vec::new();
            loop {
                let at = began.elapsed();
                // A server may end a connection that idled: that is no answer.
                let answered = timeout(DRAIN, flood.ask(&mut connection, &mut buffer)).await;
                let status = answered.ok().and_then(Result::ok).unwrap_or(0);
                let took = began.elapsed() - at;
                flood.sent.borrow_mut().push(Sent { at, late, took, status });
                if status == 0 {
                    match flood.connect().await {
                        Ok(new) => connection = new,
                        Err(_) => break,
                    }
                }
                if !again || began.elapsed() >= flood.seconds {
                    flood.idle.borrow_mut().push_back(connection);
                    break;
                }
            }
            flood.flying.set(flood.flying.get() - 1);
        });
    }

    /// The status of the answer, all of which was read.
    async fn ask(&self, connection: &mut TcpStream, buffer: &mut Vec<u8>) -> Outcome<u16> {
        buffer.clear();
        connection.write_all(&self.request).await?;
        loop {
            if connection.read_buf(buffer).await? == 0 {
                return Err("the connection ended".into());
            }
            let Some(head) = buffer.windows(4).position(|end| end == b"\r\n\r\n") else { continue };
            let text = std::str::from_utf8(&buffer[..head])?.to_ascii_lowercase();
            let length = text.lines().find_map(|line| line.strip_prefix("content-length:"));
            let length: usize = length.ok_or("an answer without a length")?.trim().parse()?;
            if buffer.len() >= head + 4 + length {
                return Ok(text.get(9..12).ok_or("an answer without a status")?.parse()?);
            }
        }
    }
}

/// A small generator (xorshift), so that a flood repeats.
struct Random(u64);

impl Random {
    /// Of a Poisson process, until the next.
    fn pause(&mut self, rate: f64) -> Duration {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        let uniform = (self.0 >> 11) as f64 / (1u64 << 53) as f64;
        Duration::from_secs_f64(-(1.0 - uniform).ln() / rate)
    }
}
