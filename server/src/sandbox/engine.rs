//! The wasmtime engine, its one linker, and the clock that interrupts guests.

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread;
use std::time::Duration;

use wasmtime::component::Linker;
use wasmtime::{Config, OptLevel};

use super::host::{self, Host};
use super::pool::{self, PoolOptions, PoolReport};
use crate::cpu;
use crate::nn::Run;

/// How often guests are interrupted at least: long ones yield their thread, late ones end.
pub(super) const TICK: Duration = Duration::from_millis(5);

/// Ticks without a live sandbox after which the clock stops, so that an idle node does not wake.
const IDLE_TICKS: u32 = 200;

/// Everything that all guests share. Made once a process.
pub struct Engine {
    pub(super) wasm: wasmtime::Engine,
    pub(super) linker: Linker<Host>,
    pub(super) clock: Arc<Clock>,
    report: PoolReport,
}

impl Engine {
    /// Sets wasmtime up, with a pool as the machine allows.
    ///
    /// # Errors
    /// wasmtime refuses this machine altogether.
    pub fn new(options: PoolOptions) -> wasmtime::Result<Arc<Self>> {
        let (wasm, report) = pool::engine(&config(OptLevel::Speed), options)?;
        let linker = host::linker(&wasm)?;
        let clock = Clock::start(vec![wasm.clone()])?;
        Ok(Arc::new(Self { wasm, linker, clock, report }))
    }

    /// What the pool turned out to be.
    pub fn pool(&self) -> PoolReport {
        self.report
    }

    /// Has `call` run at each tick while sandboxes live; the first caller's stays.
    pub fn on_tick(&self, call: impl Fn() + Send + Sync + 'static) {
        // A second caller would be a mistake of ours, and harmless.
        let _ = self.clock.on_tick.set(Box::new(call));
    }

    /// Interrupts the guests that run, as a tick does: each sees whether it should give way.
    pub fn interrupt(&self) {
        self.wasm.increment_epoch();
    }

    /// Sandboxes alive now.
    pub fn live_sandboxes(&self) -> usize {
        self.clock.live.load(Ordering::Relaxed)
    }

    /// Of their linear memories, bytes.
    pub fn sandbox_bytes(&self) -> u64 {
        self.clock.bytes.load(Ordering::Relaxed)
    }

    /// Whether resetting slots by a scan is (still) safe. Swap that is turned on while the
    /// server runs makes it unsafe.
    pub fn is_isolation_intact(&self) -> bool {
        !self.report.pagemap_scan || !pool::has_swap()
    }

    /// What compiled code depends on besides the component: wasmtime's version, settings and
    /// this CPU.
    pub fn compatibility_hash(&self) -> u64 {
        use std::hash::{DefaultHasher, Hash, Hasher};
        let mut hasher = DefaultHasher::new();
        self.wasm.precompile_compatibility_hash().hash(&mut hasher);
        hasher.finish()
    }
}

/// The settings all engines share: what guests may use of Wasm is what Rust, C, JavaScript and
/// Python guests are built of; the rest is off.
pub(super) fn config(opt_level: OptLevel) -> Config {
    let mut config = Config::new();
    config
        .cranelift_opt_level(opt_level)
        .epoch_interruption(true)
        .wasm_component_model(true)
        .wasm_backtrace_max_frames(std::num::NonZeroUsize::new(16))
        .max_wasm_stack(512 << 10)
        .async_stack_size(2 << 20)
        .wasm_memory64(false)
        .wasm_multi_memory(false)
        .wasm_tail_call(false)
        .wasm_relaxed_simd(false)
        .wasm_gc(false)
        .wasm_stack_switching(false)
        .concurrency_support(false);
    config
}

/// Counts live sandboxes, and advances the epoch of its engines while there are any.
pub(super) struct Clock {
    live: AtomicUsize,
    bytes: AtomicU64,
    /// Of the CPU time that its thread has used, a live sandbox's part, ns.
    share_ns: AtomicU64,
    asleep: AtomicBool,
    on_tick: OnceLock<Box<dyn Fn() + Send + Sync>>,
    thread: OnceLock<thread::Thread>,
}

impl Clock {
    pub(super) fn start(engines: Vec<wasmtime::Engine>) -> std::io::Result<Arc<Self>> {
        let clock = Arc::new(Self {
            live: AtomicUsize::new(0),
            bytes: AtomicU64::new(0),
            share_ns: AtomicU64::new(0),
            asleep: AtomicBool::new(false),
            on_tick: OnceLock::new(),
            thread: OnceLock::new(),
        });
        let weak = Arc::downgrade(&clock);
        let handle = thread::Builder::new().name("wisp-clock".into()).spawn(move || {
            let mut idle = 0;
            while let Some(clock) = weak.upgrade() {
                idle = if clock.live.load(Ordering::SeqCst) == 0 { idle + 1 } else { 0 };
                if idle > IDLE_TICKS {
                    clock.asleep.store(true, Ordering::SeqCst);
                    // A sandbox that came before it could see `asleep` must not be missed.
                    if clock.live.load(Ordering::SeqCst) == 0 {
                        drop(clock);
                        thread::park();
                    }
                    if let Some(clock) = weak.upgrade() {
                        clock.asleep.store(false, Ordering::SeqCst);
                    }
                    idle = 0;
                    continue;
                }
                if let Some(call) = clock.on_tick.get() {
                    call();
                }
                let live = clock.live.load(Ordering::Relaxed).max(1) as u64;
                clock.share_ns.fetch_add(cpu::take().0 / live, Ordering::Relaxed);
                drop(clock);
                thread::sleep(TICK);
                engines.iter().for_each(wasmtime::Engine::increment_epoch);
            }
        })?;
        clock.thread.set(handle.thread().clone()).expect("set here only");
        Ok(clock)
    }

    /// Counts a run's sandbox in until the guard goes.
    pub(super) fn enter(self: &Arc<Self>, run: &Arc<Run>) -> Live {
        self.live.fetch_add(1, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) {
            self.wake();
        }
        let since_ns = self.share_ns.load(Ordering::Relaxed);
        Live { clock: self.clone(), bytes: 0, run: run.clone(), since_ns }
    }

    fn wake(&self) {
        if let Some(thread) = self.thread.get() {
            thread.unpark();
        }
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        self.wake();
    }
}

/// A sandbox that lives, and what its memories have grown to.
pub(super) struct Live {
    clock: Arc<Clock>,
    bytes: u64,
    run: Arc<Run>,
    /// Where the clock's share stood.
    since_ns: u64,
}

impl Live {
    pub(super) fn grow(&mut self, bytes: usize) {
        self.bytes += bytes as u64;
        self.clock.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        let share_ns = self.clock.share_ns.load(Ordering::Relaxed);
        self.run.served(share_ns.saturating_sub(self.since_ns));
        self.clock.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
        self.clock.live.fetch_sub(1, Ordering::SeqCst);
    }
}
