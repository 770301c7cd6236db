//! The parameters of requests, inputs and outputs in the protocol's JSON.

use super::cursor::Cursor;
use crate::tensor::Parameter;

/// Those with a meaning here: what is not of their type is not passed over.
const KNOWN: [&str; 6] = [
    "binary_data",
    "binary_data_output",
    "binary_data_size",
    "classification",
    "priority",
    "timeout",
];

/// Each is held as a name and a value, twenty times its text and more.
const MOST: usize = 1000;

/// Parameters are strings, numbers and booleans; anything else is skipped as it is read, so
/// that it takes no memory.
#[derive(Default)]
pub(super) struct Parameters(pub(super) Vec<(String, Parameter)>);

impl Parameters {
    pub(super) fn get(&self, name: &str) -> Option<&Parameter> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value)
    }

    pub(super) fn read(cursor: &mut Cursor<'_>) -> Result<Self, String> {
        let mut parameters = Self::default();
        if cursor.takes_word("null") {
            return Ok(parameters);
        }
        cursor.object("an object of parameters", |cursor, name| {
            // As good as left out.
            if cursor.takes_word("null") {
                return Ok(());
            }
            if parameters.0.len() == MOST {
                return Err(cursor.error(format_args!("more than {MOST} parameters")));
            }
            match read_parameter(cursor)? {
                Some(value) => parameters.0.push((name.to_owned(), value)),
                None if KNOWN.contains(&name) => {
                    let reason = "expected a string, a number or a boolean";
                    return Err(cursor.error(format_args!("parameter `{name}`: {reason}")));
                }
                None => {}
            }
            Ok(())
        })?;
        Ok(parameters)
    }
}

fn read_parameter(cursor: &mut Cursor<'_>) -> Result<Option<Parameter>, String> {
    Ok(match cursor.peek() {
        Some(b'"') => Some(Parameter::Text(cursor.string()?.into_owned())),
        Some(b'-' | b'0'..=b'9') => {
            let number = cursor.number()?;
            let integer = number.parse().ok().filter(|_| number != "-0").map(Parameter::Integer);
            // Those past 64 bits, too.
            let value = number.parse().ok().filter(|value: &f64| value.is_finite());
            let value = integer.or(value.map(Parameter::Number));
            Some(value.ok_or_else(|| cursor.error("number out of range"))?)
        }
        _ if cursor.takes_word("true") => Some(Parameter::Boolean(true)),
        _ if cursor.takes_word("false") => Some(Parameter::Boolean(false)),
        _ => {
            cursor.skip(false)?;
            None
        }
    })
}

/// The parameter of that name, which is true or false.
///
/// # Errors
/// It is something else.
pub(super) fn flag(parameters: &Parameters, name: &str) -> Result<Option<bool>, String> {
    match parameters.get(name) {
        None => Ok(None),
        Some(Parameter::Boolean(value)) => Ok(Some(*value)),
        Some(other) => Err(format!("parameter `{name}`: expected true or false, got {other}")),
    }
}
