//! A version's answers to requests that came before, where its manifest asks for it. Found by
//! the whole request, not by a digest of it: nobody gets another's answer by a collision.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::tensor::{Parameter, Tensor};

/// What is kept of an answer.
#[derive(Debug)]
pub struct Answer {
    pub outputs: Vec<Tensor>,
    pub parameters: Vec<(String, Parameter)>,
}

/// Everything that an answer may depend on, in one piece.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RequestKey(Arc<[u8]>);

/// Answers by request; those that were not asked for for longest go first.
#[derive(Debug)]
pub struct ResponseCache {
    most_bytes: usize,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    bytes: usize,
    uses: u64,
    answers: HashMap<RequestKey, Kept>,
    by_use: BTreeMap<u64, RequestKey>,
}

#[derive(Debug)]
struct Kept {
    answer: Arc<Answer>,
    bytes: usize,
    used: u64,
}

/// Of an entry beside its key and its answer.
const ENTRY_BYTES: usize = 256;

impl RequestKey {
    pub fn of(inputs: &[Tensor], outputs: &[String], parameters: &[(String, Parameter)]) -> Self {
        let data: usize = inputs.iter().map(|input| input.data.len() + 128).sum();
        let mut key = Vec::with_capacity(data + 64 * (outputs.len() + parameters.len()) + 64);
        // With its length, so that no part can run into another.
        let mut push = |part: &[u8]| {
            key.extend_from_slice(&(part.len() as u64).to_le_bytes());
            key.extend_from_slice(part);
        };
        push(&inputs.len().to_le_bytes());
        for Tensor { name, datatype, shape, data } in inputs {
            push(name.as_bytes());
            push(datatype.name().as_bytes());
            let sizes: Vec<u8> = shape.iter().flat_map(|size| size.to_le_bytes()).collect();
            push(&sizes);
            push(data);
        }
        push(&outputs.len().to_le_bytes());
        outputs.iter().for_each(|output| push(output.as_bytes()));
        for (name, value) in parameters {
            push(name.as_bytes());
            push(format!("{value:?}").as_bytes());
        }
        Self(key.into())
    }
}

impl ResponseCache {
    pub fn new(most_bytes: usize) -> Self {
        Self { most_bytes, state: Mutex::default() }
    }

    /// The most it takes, bytes.
    pub fn most_bytes(&self) -> usize {
        self.most_bytes
    }

    pub fn get(&self, key: &RequestKey) -> Option<Arc<Answer>> {
        let mut state = self.lock();
        let state = &mut *state;
        let kept = state.answers.get_mut(key)?;
        state.uses += 1;
        if let Some(key) = state.by_use.remove(&kept.used) {
            state.by_use.insert(state.uses, key);
        }
        kept.used = state.uses;
        Some(kept.answer.clone())
    }

    /// Keeps an answer, unless it alone is more than all may be.
    pub fn put(&self, key: RequestKey, answer: Answer) {
        let outputs = answer.outputs.iter();
        let outputs: usize = outputs.map(|output| output.data.len() + output.name.len()).sum();
        let parameters = answer.parameters.iter();
        let parameters: usize = parameters.map(|(name, value)| name.len() + value.bytes()).sum();
        let parts = 1 + answer.outputs.len() + answer.parameters.len();
        let bytes = key.0.len() + outputs + parameters + ENTRY_BYTES * parts;
        if bytes > self.most_bytes {
            return;
        }
        let mut state = self.lock();
        if state.answers.contains_key(&key) {
            return;
        }
        while state.bytes + bytes > self.most_bytes
            && let Some((_, oldest)) = state.by_use.pop_first()
        {
            state.bytes -= state.answers.remove(&oldest).map_or(0, |kept| kept.bytes);
        }
        state.uses += 1;
        let used = state.uses;
        state.bytes += bytes;
        state.by_use.insert(used, key.clone());
        state.answers.insert(key, Kept { answer: Arc::new(answer), bytes, used });
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tensor::Datatype;

    fn key(name: &str, data: &[u8]) -> RequestKey {
        let input = Tensor {
            name: name.to_owned(),
            datatype: Datatype::Uint8,
            shape: vec![data.len() as u64],
            data: data.to_vec(),
        };
        RequestKey::of(&[input], &[], &[])
    }

    fn answer() -> Answer {
        Answer { outputs: Vec::new(), parameters: Vec::new() }
    }

    #[test]
    fn requests_that_differ_in_anything_have_keys_that_differ() {
        let text = |value: &str| [("key".to_owned(), Parameter::Text(value.to_owned()))];
        let keys = [
            key("a", b"bc"),
            key("ab", b"c"),
            key("a", b"bd"),
            RequestKey::of(&[], &["a".to_owned()], &[]),
            RequestKey::of(&[], &[], &text("1")),
            RequestKey::of(&[], &[], &[("key".to_owned(), Parameter::Integer(1))]),
            RequestKey::of(&[], &[], &[]),
        ];
        for (index, key) in keys.iter().enumerate() {
            assert!(!keys[..index].contains(key), "{index}");
        }
    }

    #[test]
    fn what_was_not_asked_for_for_longest_goes_first() {
        let one = key("a", b"1").0.len() + ENTRY_BYTES;
        let cache = ResponseCache::new(2 * one);
        let keys = [b"1", b"2", b"3"].map(|data| key("a", data));
        cache.put(keys[0].clone(), answer());
        cache.put(keys[1].clone(), answer());
        assert!(cache.get(&keys[0]).is_some());
        cache.put(keys[2].clone(), answer());
        let kept = keys.iter().map(|key| cache.get(key).is_some());
        assert_eq!(kept.collect::<Vec<_>>(), [true, false, true]);
        cache.put(key("a", &vec![0; 2 * one]), answer());
        assert!(cache.get(&keys[0]).is_some());
        assert!(cache.lock().bytes <= cache.most_bytes());
    }
}
