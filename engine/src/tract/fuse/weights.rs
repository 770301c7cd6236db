//! Packed weights, one copy for all the plans of a graph: a plan for another shape has most
//! weights in common with the last, and they are most of what a graph weighs.

use std::any::Any;
use std::collections::HashMap;
use std::fmt::Debug;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use crate::memory::Bound;
use rapidhash::v3::{RapidSecrets, rapidhash_v3_seeded};

/// What the plans of one graph have packed, as long as one of them lives. `None` where there is
/// one plan only.
#[derive(Debug)]
pub(in crate::tract) struct PackedWeights(Option<Mutex<Known>>);

type Known = HashMap<Key, Weak<dyn Any + Send + Sync>>;

/// How they are packed, and 128 bits of what they are.
type Key = (String, [u64; 2]);

impl PackedWeights {
    pub(in crate::tract) fn shared() -> Self {
        Self(Some(Mutex::default()))
    }

    pub(in crate::tract) fn of_one_plan() -> Self {
        Self(None)
    }

    /// What `pack` makes of `weights`, or what it made of the same before. `how` is all that it
    /// depends on beside them.
    pub(super) fn get<T: Any + Send + Sync>(
        &self,
        how: &dyn Debug,
        weights: &[f32],
        pack: impl FnOnce() -> Option<T>,
    ) -> Option<Arc<T>> {
        let Some(shared) = &self.0 else { return pack().map(Arc::new) };
        let lock = || shared.lock().unwrap_or_else(PoisonError::into_inner);
        let how = format!("{} {how:?}", std::any::type_name::<T>());
        let key = (how, [1, 2].map(|seed| digest(weights, seed)));
        let known = lock().get(&key).and_then(Weak::upgrade);
        if let Some(packed) = known.and_then(|known| known.downcast().ok()) {
            return Some(packed);
        }
        // Packed outside the lock: two plans made at a time may do it twice.
        let packed = {
            // Another plan's maker may have them before this plan is made.
            let _shared = Bound::enter_shared();
            Arc::new(pack()?)
        };
        let kept: Arc<dyn Any + Send + Sync> = packed.clone();
        let mut known = lock();
        // What was packed for plans that are gone is not known for ever.
        known.retain(|_, packed| packed.strong_count() > 0);
        known.insert(key, Arc::downgrade(&kept));
        drop(known);
        Some(packed)
    }
}

fn digest(weights: &[f32], seed: u64) -> u64 {
    // SAFETY: any four bytes of a float may be read as bytes.
    let bytes =
        unsafe { std::slice::from_raw_parts(weights.as_ptr().cast::<u8>(), size_of_val(weights)) };
    rapidhash_v3_seeded(bytes, &RapidSecrets::seed(seed))
}
