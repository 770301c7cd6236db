//! A sandbox's side of the host: its limits, and what its imports answer.

use std::sync::Arc;
use std::time::{Duration, Instant};

use wasmtime::component::{HasSelf, Linker, ResourceTable};
use wasmtime::{ResourceLimiter, Store, UpdateDeadline};
use wasmtime_wasi::{
    HostMonotonicClock, HostWallClock, WasiCtx, WasiCtxBuilder, WasiCtxView, WasiView,
};

use super::Limits;
use super::bindings::{types, wasi::logging::logging, wisp::model::bundle};
use super::engine::{Live, TICK};
use super::output::{Output, Stream};
use crate::cpu;
use crate::nn::{self, Graphs, Run};

/// What a guest can read of its bundle while it prepares.
pub trait BundleView: Send + Sync {
    /// The bytes of an asset that the manifest lists.
    ///
    /// # Errors
    /// A text for the guest: there is none, or it cannot be read.
    fn read_asset(&self, name: &str) -> Result<Vec<u8>, String>;

    /// A value of the manifest's settings.
    fn setting(&self, name: &str) -> Option<String>;
}

/// SpiderMonkey's table has 7,702.
const MAX_TABLE_ELEMENTS: usize = 20_000;

/// The state of one store.
pub(super) struct Host {
    limits: Limits,
    /// Of all linear memories together, bytes.
    memory_bytes: usize,
    /// Of all tables together.
    table_elements: usize,
    growth_denied: bool,
    table: ResourceTable,
    nn: nn::Context,
    /// Present while the guest prepares, and only then.
    bundle: Option<Arc<dyn BundleView>>,
    output: Output,
    /// Made at the first WASI call: most guests make none.
    wasi: Option<Box<WasiCtx>>,
    live: Live,
}

/// What a [`Host`] is made of.
pub(super) struct HostParts<'a> {
    pub(super) limits: Limits,
    pub(super) model: Arc<str>,
    pub(super) graphs: &'a Arc<Graphs>,
    pub(super) run: &'a Arc<Run>,
    pub(super) bundle: Option<Arc<dyn BundleView>>,
    pub(super) live: Live,
}

/// Makes a store whose guest is interrupted at each tick, and where others want its core, and ended when
/// its run is over.
pub(super) fn store(engine: &wasmtime::Engine, parts: HostParts<'_>) -> Store<Host> {
    let HostParts { limits, model, graphs, run, bundle, live } = parts;
    let mut table = ResourceTable::new();
    table.set_max_capacity(limits.handles);
    let host = Host {
        limits,
        memory_bytes: 0,
        table_elements: 0,
        growth_denied: false,
        table,
        nn: nn::Context::new(graphs, run, limits.tensor_bytes),
        bundle,
        output: Output::new(model, limits.output_bytes),
        wasi: None,
        live,
    };
    let mut store = Store::new(engine, host);
    store.limiter(|host| host);
    store.set_hostcall_fuel(limits.hostcall_bytes);
    store.set_max_component_handles(limits.handles);
    store.set_epoch_deadline(1);
    let run = run.clone();
    store.epoch_deadline_callback(move |_| {
        // One that has just begun goes on, as most end before the next tick: if it yielded it would
        // wait for those that compute for long. So does one that has its graph's answer. And to yield to
        // nobody costs everybody: the runtime wakes another thread for it, on another core.
        let goes_on = || run.guest_polled_for() < TICK / 2 || !cpu::is_wanted();
        run.give_way();
        Ok(match () {
            () if run.is_over() => UpdateDeadline::Interrupt,
            () if goes_on() => UpdateDeadline::Continue(1),
            () => UpdateDeadline::Yield(1),
        })
    });
    store
}

/// The one linker: the contract's imports, and WASI 0.2 with everything denied, so that
/// components of other languages' toolchains run.
pub(super) fn linker(engine: &wasmtime::Engine) -> wasmtime::Result<Linker<Host>> {
    let mut linker = Linker::new(engine);
    wasmtime_wasi::p2::add_to_linker_async(&mut linker)?;
    nn::add_to_linker(&mut linker, |host: &mut Host| nn::View {
        context: &mut host.nn,
        table: &mut host.table,
    })?;
    bundle::add_to_linker::<_, HasSelf<_>>(&mut linker, |host| host)?;
    logging::add_to_linker::<_, HasSelf<_>>(&mut linker, |host| host)?;
    Ok(linker)
}

impl Host {
    /// Whether a memory, a table or the tensors were refused more room.
    pub(super) fn growth_denied(&self) -> bool {
        self.growth_denied || self.nn.is_full()
    }

    fn bundle(&self) -> Result<&Arc<dyn BundleView>, String> {
        self.bundle.as_ref().ok_or_else(|| "the bundle can be read in `prepare` only".to_owned())
    }
}

impl ResourceLimiter for Host {
    fn memory_growing(
        &mut self,
        current: usize,
        desired: usize,
        _: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let grown = desired.saturating_sub(current);
        let total = self.memory_bytes.saturating_add(grown);
        let allowed = total <= self.limits.memory_bytes;
        if allowed {
            self.memory_bytes = total;
            self.live.grow(grown);
            self.nn.run().holds_memory(total);
        }
        self.growth_denied |= !allowed;
        Ok(allowed)
    }

    fn memory_grow_failed(&mut self, _: wasmtime::Error) -> wasmtime::Result<()> {
        self.growth_denied = true;
        Ok(())
    }

    fn table_growing(
        &mut self,
        current: usize,
        desired: usize,
        maximum: Option<usize>,
    ) -> wasmtime::Result<bool> {
        let total = self.table_elements.saturating_add(desired.saturating_sub(current));
        let allowed = total <= MAX_TABLE_ELEMENTS && desired <= maximum.unwrap_or(usize::MAX);
        if allowed {
            self.table_elements = total;
        }
        self.growth_denied |= !allowed;
        Ok(allowed)
    }
}

impl WasiView for Host {
    fn ctx(&mut self) -> WasiCtxView<'_> {
        let ctx = self.wasi.get_or_insert_with(|| {
            let mut builder = WasiCtxBuilder::new();
            builder
                .stdout(Stream(self.output.clone(), "stdout"))
                .stderr(Stream(self.output.clone(), "stderr"))
                .monotonic_clock(CoarseClock(Instant::now()))
                .wall_clock(CoarseClock(Instant::now()))
                .allow_tcp(false)
                .allow_udp(false);
            Box::new(builder.build())
        });
        WasiCtxView { ctx, table: &mut self.table }
    }
}

impl bundle::Host for Host {
    fn read_asset(&mut self, name: String) -> Result<Vec<u8>, String> {
        self.bundle()?.read_asset(&name)
    }

    fn setting(&mut self, name: String) -> Result<Option<String>, String> {
        Ok(self.bundle()?.setting(&name))
    }

    fn describe_graph(&mut self, name: String) -> Result<types::Contract, String> {
        self.bundle()?;
        let graph = self.nn.graphs().get(&name);
        let graph = graph.ok_or_else(|| format!("the bundle has no graph `{name}`"))?;
        Ok(graph.contract().clone().into())
    }
}

impl types::Host for Host {}

impl logging::Host for Host {
    fn log(&mut self, level: logging::Level, context: String, message: String) {
        let level = match level {
            logging::Level::Trace => "trace",
            logging::Level::Debug => "debug",
            logging::Level::Info => "info",
            logging::Level::Warn => "warn",
            logging::Level::Error => "error",
            logging::Level::Critical => "critical",
        };
        self.output.log(level, context.as_bytes(), message.as_bytes());
    }
}

/// Time in whole milliseconds: enough for a guest, too little to time its neighbours.
struct CoarseClock(Instant);

const CLOCK_STEP: Duration = Duration::from_millis(1);

impl HostMonotonicClock for CoarseClock {
    fn resolution(&self) -> u64 {
        CLOCK_STEP.as_nanos() as u64
    }

    fn now(&self) -> u64 {
        self.0.elapsed().as_millis() as u64 * CLOCK_STEP.as_nanos() as u64
    }
}

impl HostWallClock for CoarseClock {
    fn resolution(&self) -> Duration {
        CLOCK_STEP
    }

    fn now(&self) -> Duration {
        let since_epoch = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
        Duration::from_millis(since_epoch.unwrap_or_default().as_millis() as u64)
    }
}
