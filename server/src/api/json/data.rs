//! A tensor's `data` in JSON, in one pass over lists and their elements. No field of a request
//! is known here.

use std::borrow::Cow;

use super::cursor::{Cursor, MAX_DEPTH, excerpt};
use super::number;
use crate::tensor::{Datatype, element_count, push_bytes_element};

/// What a shape alone is trusted with, bytes: an image, not what a thousand lies would add up to.
const FIRST_ROOM: usize = 1 << 20;

/// What is wrong with it.
pub(super) enum Fault {
    /// It is no JSON.
    Syntax(String),
    /// It is no data of that type.
    Element(String),
}

/// Reads nested or flat lists, row-major, or a lone element.
///
/// # Errors
/// What was expected, what came, and where.
pub(super) fn read_data(
    cursor: &mut Cursor<'_>,
    datatype: Datatype,
    shape: &[u64],
) -> Result<Vec<u8>, Fault> {
    // As much as the shape asks for, but never more than the text can hold: an element takes a
    // digit and a comma at least. The text may hold other inputs, too, which ask for theirs.
    let elements = element_count(shape).unwrap_or(0).min(cursor.rest().len() as u64 / 2 + 1);
    let room = elements as usize * datatype.size().unwrap_or(8);
    let mut data = Vec::with_capacity(room.min(FIRST_ROOM));
    let start = cursor.clone();
    let run = number::run_of(datatype);
    let mut depth = 0;
    'value: loop {
        // Behind a comma outside of a list comes the next field.
        if let (Some(run), 1.., Some(b'-' | b'0'..=b'9')) = (run, depth, cursor.peek()) {
            cursor.advance(|text, at| run(text, at, &mut data));
        }
        if cursor.takes(b'[') {
            if depth == MAX_DEPTH {
                return Err(Fault::Syntax(cursor.too_deep()));
            }
            if !cursor.takes(b']') {
                depth += 1;
                continue;
            }
        } else {
            read_element(cursor, datatype, &mut data).map_err(|fault| match fault {
                Fault::Element(reason) => {
                    let reason = cursor.since(&start).error(reason);
                    Fault::Element(format!("`data`: {reason}"))
                }
                syntax => syntax,
            })?;
        }
        while depth > 0 {
            if cursor.continues(b']').map_err(Fault::Syntax)? {
                continue 'value;
            }
            depth -= 1;
        }
        break;
    }
    if data.capacity() / 2 > data.len() {
        data.shrink_to_fit();
    }
    Ok(data)
}

fn read_element(
    cursor: &mut Cursor<'_>,
    datatype: Datatype,
    data: &mut Vec<u8>,
) -> Result<(), Fault> {
    let unlike = |came: &str| Fault::Element(format!("expected {datatype}, got {came}"));
    match cursor.peek() {
        Some(b'"') => {
            let text = cursor.string().map_err(Fault::Syntax)?;
            match datatype {
                Datatype::Bytes => {
                    push_bytes_element(data, text.as_bytes()).map_err(Fault::Element)
                }
                _ => Err(unlike("a string")),
            }
        }
        Some(b'{') => Err(unlike("an object")),
        Some(b'N' | b'I' | b'-') if let Some(word) = cursor.takes_no_number() => Err(
            Fault::Element(format!("JSON has no {word}: send the tensor as binary tensor data")),
        ),
        Some(b'-' | b'0'..=b'9') => {
            let number = cursor.number().map_err(Fault::Syntax)?;
            match number::push(datatype, number, data) {
                true => Ok(()),
                false => Err(unlike(&shown(number))),
            }
        }
        _ if cursor.takes_word("null") => Err(Fault::Element(format!(
            "invalid type: null, expected {datatype} or a list of them"
        ))),
        _ => {
            let truth = cursor.takes_word("true");
            if !truth && !cursor.takes_word("false") {
                return Err(Fault::Syntax(cursor.no_value()));
            }
            match datatype {
                Datatype::Bool => data.push(u8::from(truth)),
                _ => return Err(unlike(if truth { "true" } else { "false" })),
            }
            Ok(())
        }
    }
}

/// A number as an error repeats it.
fn shown(number: &str) -> Cow<'_, str> {
    match number.parse::<f64>() {
        Ok(value) if value.is_finite() && number.contains(['.', 'e', 'E']) => {
            Cow::Owned(format!("{value:?}"))
        }
        _ => excerpt(number),
    }
}
