//! ONNX messages as ONNX's own code writes them. prost packs every list of numbers; by
//! onnx.proto a tensor's sizes and an attribute's numbers are not packed, and rten reads them
//! only so.

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};
use tract_onnx::pb::ModelProto;

/// A message's fields that are messages, and those of numbers to unpack.
struct Kind {
    messages: &'static [(u32, &'static Kind)],
    varints: u32,
    floats: u32,
}

static MODEL: Kind = Kind { messages: &[(7, &GRAPH)], varints: 0, floats: 0 };
static GRAPH: Kind = Kind { messages: &[(1, &NODE), (5, &TENSOR)], varints: 0, floats: 0 };
static NODE: Kind = Kind { messages: &[(5, &ATTRIBUTE)], varints: 0, floats: 0 };
static ATTRIBUTE: Kind = Kind {
    messages: &[(5, &TENSOR), (6, &GRAPH), (10, &TENSOR), (11, &GRAPH)],
    varints: 8,
    floats: 7,
};
static TENSOR: Kind = Kind { messages: &[], varints: 1, floats: 0 };

pub fn encode(model: &ModelProto) -> Vec<u8> {
    unpack(&model.encode_to_vec(), &MODEL)
}

fn unpack(mut bytes: &[u8], kind: &Kind) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    while !bytes.is_empty() {
        let whole = bytes;
        let (number, wire) = decode_key(&mut bytes).expect("prost wrote it");
        if wire != WireType::LengthDelimited {
            let size = match wire {
                WireType::SixtyFourBit => 8,
                WireType::ThirtyTwoBit => 4,
                _ => {
                    decode_varint(&mut bytes).expect("prost wrote it");
                    0
                }
            };
            bytes = &bytes[size..];
            out.extend(&whole[..whole.len() - bytes.len()]);
            continue;
        }
        let length = decode_varint(&mut bytes).expect("prost wrote it") as usize;
        let (content, rest) = bytes.split_at(length);
        bytes = rest;
        unpack_field(&mut out, number, content, kind);
    }
    out
}

fn unpack_field(out: &mut Vec<u8>, number: u32, mut content: &[u8], kind: &Kind) {
    if number == kind.varints {
        while !content.is_empty() {
            encode_key(number, WireType::Varint, out);
            encode_varint(decode_varint(&mut content).expect("prost wrote it"), out);
        }
        return;
    }
    if number == kind.floats {
        for float in content.chunks(4) {
            encode_key(number, WireType::ThirtyTwoBit, out);
            out.extend(float);
        }
        return;
    }
    let message = kind.messages.iter().find(|(known, _)| *known == number);
    let content = message.map_or(content.to_vec(), |(_, kind)| unpack(content, kind));
    encode_key(number, WireType::LengthDelimited, out);
    encode_varint(content.len() as u64, out);
    out.extend(content);
}
