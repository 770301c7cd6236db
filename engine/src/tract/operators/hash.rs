//! MurmurHash3, of ONNX Runtime's own: a number of 32 bits for each element, which features are hashed to.

use tract_onnx::model::{OnnxOpRegister, ParsingContext};
use tract_onnx::pb::NodeProto;
use tract_onnx::tract_hir::internal::*;

use super::kernel::{Built, Form, Kernel, built, expect_datum, one};

pub(super) fn register(operators: &mut OnnxOpRegister) {
    operators.insert("MurmurHash3", murmur_hash);
}

#[derive(Debug)]
struct MurmurHash {
    seed: u32,
    is_positive: bool,
}

fn murmur_hash(_context: &ParsingContext, node: &NodeProto) -> Built {
    // ONNX Runtime takes the low bits of a seed.
    let seed = node.get_attr_opt::<i64>("seed")?.unwrap_or(0) as u32;
    let is_positive = node.get_attr_opt::<i64>("positive")?.unwrap_or(1) != 0;
    built(node, MurmurHash { seed, is_positive })
}

const KEYS: [DatumType; 7] = [
    DatumType::I32,
    DatumType::U32,
    DatumType::I64,
    DatumType::U64,
    DatumType::F32,
    DatumType::F64,
    DatumType::String,
];

impl Kernel for MurmurHash {
    fn name(&self) -> &'static str {
        "MurmurHash3"
    }

    fn outputs(&self, inputs: &[Form]) -> TractResult<TVec<Form>> {
        let keys = one(inputs)?;
        expect_datum(keys, &KEYS)?;
        let datum = if self.is_positive { DatumType::U32 } else { DatumType::I32 };
        Ok(tvec![Form::new(datum, keys.shape.iter().cloned())])
    }

    fn run(&self, inputs: &[TValue]) -> TractResult<TVec<Tensor>> {
        let keys = one(inputs)?;
        let plain = keys.try_as_plain_ram()?;
        let hashes: Vec<u32> = match keys.datum_type() {
            DatumType::String => {
                let texts = plain.as_slice::<String>()?.iter();
                texts.map(|text| hashed(text.as_bytes(), self.seed)).collect()
            }
            other => {
                let elements = plain.as_bytes().chunks_exact(other.size_of());
                elements.map(|bytes| hashed(bytes, self.seed)).collect()
            }
        };
        Ok(tvec![match self.is_positive {
            true => Tensor::from_shape(keys.shape(), &hashes)?,
            false => {
                let signed: Vec<i32> = hashes.into_iter().map(u32::cast_signed).collect();
                Tensor::from_shape(keys.shape(), &signed)?
            }
        }])
    }
}

/// MurmurHash3_x86_32, as Austin Appleby gave it to all.
fn hashed(key: &[u8], seed: u32) -> u32 {
    let mixed =
        |block: u32| block.wrapping_mul(0xcc9e_2d51).rotate_left(15).wrapping_mul(0x1b87_3593);
    let (blocks, tail) = key.as_chunks::<4>();
    let mut hash = seed;
    for block in blocks {
        hash ^= mixed(u32::from_le_bytes(*block));
        hash = hash.rotate_left(13).wrapping_mul(5).wrapping_add(0xe654_6b64);
    }
    // Nothing stays nothing.
    let rest = tail.iter().rev().fold(0, |rest, &byte| rest << 8 | u32::from(byte));
    hash ^= mixed(rest);
    hash ^= key.len() as u32;
    hash = (hash ^ hash >> 16).wrapping_mul(0x85eb_ca6b);
    hash = (hash ^ hash >> 13).wrapping_mul(0xc2b2_ae35);
    hash ^ hash >> 16
}
