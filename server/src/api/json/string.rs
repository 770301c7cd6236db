//! Strings of JSON text, as far as they go behind their first quote.

use std::borrow::Cow;

/// What is wrong, and how far the text was read up to it.
pub(super) type Wrong = (&'static str, usize);

/// Reads up to the closing quote, which is part of the length that is returned. Borrows what
/// has no escapes.
pub(super) fn read(text: &[u8]) -> Result<(Cow<'_, str>, usize), Wrong> {
    let mut at = 0;
    let mut unescaped = String::new();
    loop {
        let plain = plain(&text[at..]).map_err(|(what, length)| (what, at + length))?;
        at += plain.len();
        match text.get(at) {
            None => return Err(("EOF while parsing a string", at)),
            Some(b'"') if unescaped.is_empty() => return Ok((Cow::Borrowed(plain), at + 1)),
            Some(b'"') => {
                unescaped.push_str(plain);
                return Ok((Cow::Owned(unescaped), at + 1));
            }
            Some(b'\\') => {
                unescaped.push_str(plain);
                let escape = escape(&text[at + 1..]);
                let (character, length) =
                    escape.map_err(|(what, length)| (what, at + 1 + length))?;
                unescaped.push(character);
                at += 1 + length;
            }
            Some(_) => {
                let what = "control character (\\u0000-\\u001F) found while parsing a string";
                return Err((what, at + 1));
            }
        }
    }
}

/// What stands for itself.
fn plain(text: &[u8]) -> Result<&str, Wrong> {
    // Eight at once, as strings may be whole images.
    let eights = text.as_chunks().0.iter().take_while(|bytes| are_plain(bytes)).count();
    let rest = text[8 * eights..].iter();
    let rest = rest.take_while(|&&byte| !matches!(byte, 0..0x20 | b'"' | b'\\')).count();
    str::from_utf8(&text[..8 * eights + rest])
        .map_err(|error| ("invalid unicode code point", error.valid_up_to() + 1))
}

/// Whether none of them ends a string, begins an escape, or may not stand in one.
fn are_plain(bytes: &[u8; 8]) -> bool {
    let is_plain = |byte: &u8| (*byte >= 0x20) & (*byte != b'"') & (*byte != b'\\');
    bytes.iter().fold(true, |plain, byte| plain & is_plain(byte))
}

/// The character that an escape stands for, and its length behind the backslash.
fn escape(text: &[u8]) -> Result<(char, usize), Wrong> {
    let character = match text.first() {
        None => return Err(("EOF while parsing a string", 0)),
        Some(byte @ (b'"' | b'\\' | b'/')) => char::from(*byte),
        Some(b'b') => '\u{8}',
        Some(b'f') => '\u{c}',
        Some(b'n') => '\n',
        Some(b'r') => '\r',
        Some(b't') => '\t',
        Some(b'u') => return code_point(&text[1..]).map(|(found, length)| (found, 1 + length)),
        Some(_) => return Err(("invalid escape", 1)),
    };
    Ok((character, 1))
}

/// The character of one or two `\u` escapes, of which the first `\u` is read.
fn code_point(text: &[u8]) -> Result<(char, usize), Wrong> {
    let high = code_unit(text)?;
    if let Some(character) = char::from_u32(high) {
        return Ok((character, 4));
    }
    let low = text[4..].strip_prefix(b"\\u").and_then(|text| code_unit(text).ok());
    let pair = low
        .filter(|low| (0xd800..0xdc00).contains(&high) && (0xdc00..0xe000).contains(low))
        .and_then(|low| char::from_u32(0x1_0000 + ((high - 0xd800) << 10 | (low - 0xdc00))));
    pair.map(|character| (character, 10)).ok_or(("lone surrogate in hex escape", 4))
}

fn code_unit(text: &[u8]) -> Result<u32, Wrong> {
    let digits = text.first_chunk::<4>().ok_or(("EOF while parsing a string", text.len()))?;
    let unit = digits
        .iter()
        .try_fold(0, |unit, digit| char::from(*digit).to_digit(16).map(|digit| unit << 4 | digit));
    unit.ok_or(("invalid escape", 5))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strings_are_read_as_serde_json_does() {
        for json in [
            r#""""#,
            r#""plain, and longer than eight bytes""#,
            r#""\"\\\/\b\f\n\r\t""#,
            r#""\u0041\u00e4\u20AC\ud83d\ude00 ä€😀 at the end: \u0000""#,
            r#""ends in the middle"#,
            r#""ends in an escape\"#,
            r#""ends in an escape\u00"#,
            r#""\x""#,
            r#""\u12g4""#,
            r#""\u+123""#,
            r#""\ud83d""#,
            r#""\ud83dx""#,
            r#""\ud83d\n""#,
            r#""\ud83d\u0041""#,
            r#""\ud83d\ud83d""#,
            r#""\ude00""#,
            "\"tab\tin it\"",
            "\"12345678\u{1f}\"",
        ] {
            let found = read(&json.as_bytes()[1..]).ok();
            let expected = serde_json::from_str::<String>(json).ok();
            let expected = expected.map(|text| (text.into(), json.len() - 1));
            assert_eq!(found, expected, "{json}");
        }
        assert_eq!(read(b"12345678\xff\""), Err(("invalid unicode code point", 9)));
    }
}
