//! The memory that sandboxes are made of: wasmtime's pool of instance slots, as large as this
//! machine's address space allows, and whether slots may be reset by scanning for dirty pages.

use std::fs;

use wasmtime::{Config, Enabled, Engine, InstanceAllocationStrategy, PoolingAllocationConfig};

/// What the pool is asked to hold.
#[derive(Debug, Clone, Copy)]
pub struct PoolOptions {
    /// Sandboxes that may live at a time.
    pub slots: u32,
    /// The largest linear memory any guest may have, bytes.
    pub max_memory_bytes: usize,
    /// Whether slots may be reset by a scan for written pages, where that is safe.
    pub page_scan: bool,
}

/// What the pool turned out to be, for the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PoolReport {
    /// False where the address space is too small: each memory is then mapped anew.
    pub pooled: bool,
    /// Whether slots are reset by `PAGEMAP_SCAN`.
    pub pagemap_scan: bool,
}

/// Kept resident in each slot where dirty pages can be found by a scan: as much as an image
/// guest touches, so that the next one faults nothing in (a fault is 2.5 µs, 4 KiB of memset
/// 0.1 µs).
const KEEP_RESIDENT: usize = 8 << 20;

/// Without the scan all of it would be cleared each time: only what is cheaper than the faults.
const KEEP_RESIDENT_UNSCANNED: usize = 128 << 10;

/// Makes an engine with the best pool to be had here: with 4 GiB of address space a memory, so
/// that no access needs a bounds check; else with just what memories may grow to (boards with
/// 39-bit addresses); else without a pool.
pub(super) fn engine(
    config: &Config,
    options: PoolOptions,
) -> wasmtime::Result<(Engine, PoolReport)> {
    let pagemap_scan =
        options.page_scan && PoolingAllocationConfig::is_pagemap_scan_available() && !has_swap();
    let report = PoolReport { pooled: true, pagemap_scan };

    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(options.slots)
        .total_core_instances(options.slots.saturating_mul(8))
        .total_memories(options.slots.saturating_mul(2))
        .total_tables(options.slots.saturating_mul(8))
        .total_stacks(options.slots)
        .max_core_instances_per_component(64)
        .max_memories_per_component(8)
        .max_tables_per_component(64)
        .max_memory_size(options.max_memory_bytes)
        .table_elements(10_000)
        .max_unused_warm_slots(options.slots.div_ceil(4))
        .linear_memory_keep_resident(if pagemap_scan {
            KEEP_RESIDENT
        } else {
            KEEP_RESIDENT_UNSCANNED
        })
        .table_keep_resident(if pagemap_scan { 1 << 20 } else { 8 << 10 })
        .pagemap_scan(if pagemap_scan { Enabled::Yes } else { Enabled::No });

    let mut config = config.clone();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool.clone()));
    let roomy = match Engine::new(&config) {
        Ok(engine) => return Ok((engine, report)),
        Err(error) => error,
    };
    config.memory_reservation(options.max_memory_bytes as u64).memory_guard_size(64 << 10);
    if let Ok(engine) = Engine::new(&config) {
        tracing::warn!(%roomy, "small address space: memories get {} MiB each and bounds checks", options.max_memory_bytes >> 20);
        return Ok((engine, report));
    }
    tracing::warn!(%roomy, "small address space: sandboxes are made without a pool, which costs each some 10 µs");
    config.allocation_strategy(InstanceAllocationStrategy::OnDemand).memory_reservation(0);
    Ok((Engine::new(&config)?, PoolReport { pooled: false, pagemap_scan: false }))
}

/// Whether any swap is on; unknown counts as yes. wasmtime 48's scan does not see pages that
/// were written and then swapped out: it would leave them for the next request to read. Locking
/// memory would not do: under a finite RLIMIT_MEMLOCK it makes every later mapping fail, and
/// what was swapped out before stays there.
pub(super) fn has_swap() -> bool {
    // The first line is a heading.
    fs::read_to_string("/proc/swaps").map_or(true, |swaps| swaps.lines().count() > 1)
}
