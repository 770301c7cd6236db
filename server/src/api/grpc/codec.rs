//! Protobuf, but for messages that are small to send and large to hold: an input of two bytes
//! becomes one of three hundred, before anything could count it.

use bytes::Buf;
use prost::Message;
use tonic::Status;
use tonic::codec::{BufferSettings, Codec, DecodeBuf, Decoder};
use tonic_prost::ProstCodec;

use crate::error::Error;

/// Inputs, outputs and parameters of one message.
const MOST_PARTS: usize = 10_000;

/// Of `ModelInferRequest`: those that have parameters of their own.
const INPUTS: u64 = 5;
const OUTPUTS: u64 = 6;

/// What the generated services read and write by.
pub(in super::super) struct CheckedCodec<T, U>(ProstCodec<T, U>);

impl<T, U> Default for CheckedCodec<T, U> {
    fn default() -> Self {
        Self(ProstCodec::default())
    }
}

impl<T, U> Codec for CheckedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = Checked<<ProstCodec<T, U> as Codec>::Decoder>;

    fn encoder(&mut self) -> Self::Encoder {
        self.0.encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        Checked(self.0.decoder())
    }
}

/// Counts before it decodes.
pub(in super::super) struct Checked<D>(D);

impl<D: Decoder<Error = Status>> Decoder for Checked<D> {
    type Item = D::Item;
    type Error = Status;

    fn decode(&mut self, buffer: &mut DecodeBuf<'_>) -> Result<Option<Self::Item>, Status> {
        // A message lies in one piece.
        let Some(parts) = parts(buffer.chunk(), true) else {
            return Err(Status::from(Error::InvalidInput(
                "the message has a group, which the protocol's messages have not".to_owned(),
            )));
        };
        if parts > MOST_PARTS {
            return Err(Status::from(Error::InvalidInput(format!(
                "the message has more than {MOST_PARTS} inputs, outputs and parameters"
            ))));
        }
        self.0.decode(buffer)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

/// The fields of a message that may be messages themselves, and theirs; up to what is damaged,
/// which the decoder will say. `None`: there is a group, an old form of message without a length,
/// which the decoder reads over.
fn parts(mut message: &[u8], is_outermost: bool) -> Option<usize> {
    let mut parts = 0;
    while let Some(field) = next_field(&mut message) {
        let (number, content) = match field {
            Field::Sized(number, content) => (number, content),
            Field::Number => continue,
            Field::Group => return None,
        };
        parts += 1;
        if is_outermost && matches!(number, INPUTS | OUTPUTS) {
            parts += self::parts(content, false)?;
        }
        if parts > MOST_PARTS {
            break;
        }
    }
    Some(parts)
}

enum Field<'a> {
    Number,
    /// Its number and content.
    Sized(u64, &'a [u8]),
    Group,
}

fn next_field<'a>(message: &mut &'a [u8]) -> Option<Field<'a>> {
    let key = next_varint(message)?;
    match key & 7 {
        0 => next_varint(message).map(|_| Field::Number),
        1 => take(message, 8).map(|_| Field::Number),
        5 => take(message, 4).map(|_| Field::Number),
        2 => {
            let length = next_varint(message)?;
            Some(Field::Sized(key >> 3, take(message, length)?))
        }
        3 | 4 => Some(Field::Group),
        _ => None,
    }
}

fn take<'a>(message: &mut &'a [u8], length: u64) -> Option<&'a [u8]> {
    let (content, rest) = message.split_at_checked(usize::try_from(length).ok()?)?;
    *message = rest;
    Some(content)
}

fn next_varint(message: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, rest) = message.split_first()?;
        *message = rest;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_counted_and_no_more() {
        let input =
            |parameters: usize| [b"\x0a\x01x".to_vec(), b"\x22\x00".repeat(parameters)].concat();
        let mut message = b"\x0a\x01m".to_vec();
        for parameters in [0, 3] {
            let input = input(parameters);
            message.extend([0x2a, input.len() as u8]);
            message.extend(input);
        }
        // A name, two inputs with a name each, three parameters; then a number and a raw input.
        message.extend(b"\x18\xff\x01\x3a\x04\x2a\x00\x2a\x00");
        assert_eq!(parts(&message, true), Some(1 + 2 + 2 + 3 + 1));
        assert!(parts(&b"\x2a\x00".repeat(20_000), true) > Some(MOST_PARTS));
        assert!(
            parts(&[&b"\x2a\xc0\xb8\x02"[..], &b"\x22\x00".repeat(20_000)].concat(), true)
                > Some(MOST_PARTS)
        );
        let group = [&b"\xa3\x06\xa4\x06"[..], &b"\x2a\x00".repeat(20_000)].concat();
        assert_eq!(parts(&group, true), None);
        assert_eq!(parts(b"\x2a\x02\xa3\x06", true), None);
        for damaged in
            [&b"\x2a"[..], b"\x2a\x05", b"\x2e", b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff"]
        {
            assert_eq!(parts(damaged, true), Some(0));
        }
    }
}
