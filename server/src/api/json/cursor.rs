//! A walk through JSON text: whitespace, lists, objects, strings, numbers' text, and what is
//! skipped. It keeps to RFC 8259, never recurses, and knows no field and no tensor.

use std::borrow::Cow;

use super::{number, string};

/// How deep lists and objects may lie in what is skipped or in a tensor's data.
pub(super) const MAX_DEPTH: usize = 127;

/// What Python and others write where JSON has no number.
const NO_NUMBERS: [&str; 3] = ["NaN", "Infinity", "-Infinity"];

/// A place in JSON text. Errors say what is wrong, and the line and column where.
#[derive(Clone)]
pub(super) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(text: &'a [u8]) -> Self {
        Self { text, at: 0 }
    }

    /// What is left from here on.
    pub(super) fn rest(&self) -> &'a [u8] {
        &self.text[self.at..]
    }

    /// The same place, as if the text began at `start`.
    pub(super) fn since(&self, start: &Self) -> Self {
        Self { text: &self.text[start.at..], at: self.at.saturating_sub(start.at) }
    }

    /// Lets `run` go on from here in the text; it returns where it stopped.
    pub(super) fn advance(&mut self, run: impl FnOnce(&[u8], usize) -> usize) {
        self.at = run(self.text, self.at).min(self.text.len());
    }

    /// The next byte that is no whitespace.
    pub(super) fn peek(&mut self) -> Option<u8> {
        while let Some(byte) = self.text.get(self.at) {
            if !matches!(byte, b' ' | b'\n' | b'\r' | b'\t') {
                return Some(*byte);
            }
            self.at += 1;
        }
        None
    }

    /// Takes `byte` if it comes next.
    pub(super) fn takes(&mut self, byte: u8) -> bool {
        let comes = self.peek() == Some(byte);
        self.at += usize::from(comes);
        comes
    }

    /// Takes a word such as `null` if it comes next.
    pub(super) fn takes_word(&mut self, word: &str) -> bool {
        self.peek();
        let comes = self.rest().starts_with(word.as_bytes());
        self.at += if comes { word.len() } else { 0 };
        comes
    }

    /// Takes `NaN` or an infinity, none of which JSON has.
    pub(super) fn takes_no_number(&mut self) -> Option<&'static str> {
        NO_NUMBERS.into_iter().find(|word| self.takes_word(word))
    }

    /// `what`, and where what was last read ends.
    pub(super) fn error(&self, what: impl std::fmt::Display) -> String {
        self.error_at(what, self.at)
    }

    /// `what`, and where the next byte is.
    fn error_here(&self, what: &str) -> String {
        self.error_at(what, self.at + 1)
    }

    fn error_at(&self, what: impl std::fmt::Display, end: usize) -> String {
        let read = &self.text[..end.min(self.text.len())];
        let line = 1 + read.iter().filter(|&&byte| byte == b'\n').count();
        let column = read.iter().rev().take_while(|&&byte| byte != b'\n').count();
        format!("{what} at line {line} column {column}")
    }

    /// What is wrong where a value should come.
    pub(super) fn no_value(&mut self) -> String {
        match self.peek() {
            None => self.error_here("EOF while parsing a value"),
            Some(_) => self.error_here("expected value"),
        }
    }

    pub(super) fn too_deep(&self) -> String {
        self.error_here("recursion limit exceeded")
    }

    /// Reads a list, each of its values by `value`.
    pub(super) fn list(
        &mut self,
        mut value: impl FnMut(&mut Self) -> Result<(), String>,
    ) -> Result<(), String> {
        if !self.takes(b'[') {
            return Err(self.unexpected("a sequence"));
        }
        if self.takes(b']') {
            return Ok(());
        }
        loop {
            value(self)?;
            if !self.continues(b']')? {
                return Ok(());
            }
        }
    }

    /// Reads an object, the value of each key by `value`; `expected` is what it should be.
    pub(super) fn object(
        &mut self,
        expected: &str,
        mut value: impl FnMut(&mut Self, &str) -> Result<(), String>,
    ) -> Result<(), String> {
        if !self.takes(b'{') {
            return Err(self.unexpected(expected));
        }
        if self.takes(b'}') {
            return Ok(());
        }
        loop {
            let key = self.key()?;
            value(self, &key)?;
            if !self.continues(b'}')? {
                return Ok(());
            }
        }
    }

    fn key(&mut self) -> Result<Cow<'a, str>, String> {
        match self.peek() {
            Some(b'"') => {}
            None => return Err(self.error_here("EOF while parsing an object")),
            Some(_) => return Err(self.error_here("key must be a string")),
        }
        let key = self.string()?;
        match self.takes(b':') {
            true => Ok(key),
            false if self.rest().is_empty() => Err(self.error_here("EOF while parsing an object")),
            false => Err(self.error_here("expected `:`")),
        }
    }

    /// Takes what stands behind a value: true for a comma with another value behind, false for
    /// `close`.
    pub(super) fn continues(&mut self, close: u8) -> Result<bool, String> {
        let (ends, expected) = match close {
            b']' => ("EOF while parsing a list", "expected `,` or `]`"),
            _ => ("EOF while parsing an object", "expected `,` or `}`"),
        };
        match self.peek() {
            None => return Err(self.error_here(ends)),
            Some(b',') => self.at += 1,
            Some(byte) if byte == close => {
                self.at += 1;
                return Ok(false);
            }
            Some(_) => return Err(self.error_here(expected)),
        }
        match self.peek() == Some(close) {
            true => Err(self.error_here("trailing comma")),
            false => Ok(true),
        }
    }

    /// Nothing may follow the outermost value.
    pub(super) fn end(&mut self) -> Result<(), String> {
        match self.peek() {
            None => Ok(()),
            Some(_) => Err(self.error_here("trailing characters")),
        }
    }

    /// A string where nothing else may stand.
    pub(super) fn text(&mut self) -> Result<Cow<'a, str>, String> {
        match self.peek() {
            Some(b'"') => self.string(),
            _ => Err(self.unexpected("a string")),
        }
    }

    /// What is wrong with the next value, of another type than `expected`.
    pub(super) fn unexpected(&mut self, expected: &str) -> String {
        match self.describe() {
            Ok(came) => self.error(format_args!("invalid type: {came}, expected {expected}")),
            Err(error) => error,
        }
    }

    /// Takes the next value, or a list's or object's first byte, and says what it is.
    fn describe(&mut self) -> Result<String, String> {
        Ok(match self.peek() {
            Some(b'"') => format!("string {:?}", excerpt(&self.string()?)),
            Some(b'[') => {
                self.at += 1;
                "sequence".to_owned()
            }
            Some(b'{') => {
                self.at += 1;
                "map".to_owned()
            }
            Some(b'-' | b'0'..=b'9') => {
                let number = self.number()?;
                let is_integer = !number.contains(['.', 'e', 'E']);
                let kind = if is_integer { "integer" } else { "floating point" };
                format!("{kind} `{}`", excerpt(number))
            }
            _ if self.takes_word("null") => "null".to_owned(),
            _ if self.takes_word("true") => "boolean `true`".to_owned(),
            _ if self.takes_word("false") => "boolean `false`".to_owned(),
            _ => return Err(self.no_value()),
        })
    }

    /// The text of the number that comes next.
    pub(super) fn number(&mut self) -> Result<&'a str, String> {
        self.peek();
        let start = self.at;
        self.at += usize::from(self.rest().first() == Some(&b'-'));
        let whole = self.digits();
        if whole == 0 {
            return Err(self.no_number());
        }
        if whole > 1 && self.text[self.at - whole] == b'0' {
            return Err(self.error("invalid number"));
        }
        if self.rest().first() == Some(&b'.') {
            self.at += 1;
            if self.digits() == 0 {
                return Err(self.no_number());
            }
        }
        if let Some(b'e' | b'E') = self.rest().first() {
            self.at += 1;
            self.at += usize::from(matches!(self.rest().first(), Some(b'+' | b'-')));
            if self.digits() == 0 {
                return Err(self.no_number());
            }
        }
        Ok(str::from_utf8(&self.text[start..self.at]).expect("a number is ASCII"))
    }

    fn digits(&mut self) -> usize {
        let digits = self.rest().iter().take_while(|byte| byte.is_ascii_digit()).count();
        self.at += digits;
        digits
    }

    fn no_number(&self) -> String {
        match self.rest().is_empty() {
            true => self.error_here("EOF while parsing a value"),
            false => self.error_here("invalid number"),
        }
    }

    /// The string that comes next, borrowed where it has no escapes.
    pub(super) fn string(&mut self) -> Result<Cow<'a, str>, String> {
        let start = self.at + 1;
        let (string, length) = string::read(&self.text[start..])
            .map_err(|(what, length)| self.error_at(what, start + length))?;
        self.at = start + length;
        Ok(string)
    }

    /// Skips the value that comes next; one in a tensor's data may hold NaN and infinities, so
    /// that who reads it later can name them.
    pub(super) fn skip(&mut self, is_data: bool) -> Result<(), String> {
        // What closes the lists and objects that are open.
        let mut open = Vec::new();
        loop {
            if let (Some(b'-' | b'0'..=b'9'), Some(b']')) = (self.peek(), open.last()) {
                self.advance(number::pass);
            }
            match self.peek() {
                Some(first @ (b'[' | b'{')) if open.len() < MAX_DEPTH => {
                    self.at += 1;
                    let close = if first == b'[' { b']' } else { b'}' };
                    if !self.takes(close) {
                        open.push(close);
                        if close == b'}' {
                            self.key()?;
                        }
                        continue;
                    }
                }
                Some(b'[' | b'{') => return Err(self.too_deep()),
                Some(b'N' | b'I' | b'-') if is_data && self.takes_no_number().is_some() => {}
                Some(b'"') => drop(self.string()?),
                Some(b'-' | b'0'..=b'9') => _ = self.number()?,
                _ => drop(self.describe()?),
            }
            loop {
                let Some(&close) = open.last() else { return Ok(()) };
                if self.continues(close)? {
                    if close == b'}' {
                        self.key()?;
                    }
                    break;
                }
                open.pop();
            }
        }
    }
}

/// As much of a text as an error should repeat.
pub(super) fn excerpt(text: &str) -> Cow<'_, str> {
    const LONGEST: usize = 60;
    match text.char_indices().nth(LONGEST) {
        None => Cow::Borrowed(text),
        Some((end, _)) => Cow::Owned(format!("{}…", &text[..end])),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_skipped_is_json() {
        let list = "[1,2,3,4.5,-6,01,7,8,9,10,11,12,13,14,15,16,17,18,19,20,21,22,23]";
        for json in [
            "0 -0 -12.5e+7 1E9 01 1. - +1 1e .5 NaN -Infinity tru nullx null true false",
            "[] [1,] [,1] [1;2] [1 [ ] {} {\"a\":1} {\"a\":1,} {\"a\";1} {a:1} {\"a\":} {\"a\" {1:1}",
            "{\"a\":[{\"b\":[1,-2.5,\"x\"]},{}]} [1} {\"a\":1] \"\\q\" \"x\" \"x",
            &format!("{list} {} {}", list.replace("01", "10"), list.replace("01", "[1]")),
        ] {
            for json in json.split(' ') {
                let mut cursor = Cursor::new(json.as_bytes());
                let skipped = cursor.skip(false).and_then(|()| cursor.end());
                let expected = serde_json::from_str::<serde_json::Value>(json);
                assert_eq!(skipped.is_ok(), expected.is_ok(), "{json}: {skipped:?}");
            }
        }
        assert!(Cursor::new(b"[NaN,-Infinity,[Infinity]]").skip(true).is_ok());
    }

    #[test]
    fn depth_ends_where_serde_json_s_does() {
        for depth in [1, MAX_DEPTH, MAX_DEPTH + 1, 1_000_000] {
            let json = "[".repeat(depth) + &"]".repeat(depth);
            let skipped = Cursor::new(json.as_bytes()).skip(false);
            assert_eq!(skipped.is_ok(), depth <= MAX_DEPTH);
        }
        let error = Cursor::new("{\"a\":".repeat(1000).as_bytes()).skip(false).unwrap_err();
        assert_eq!(error, "recursion limit exceeded at line 1 column 636");
    }

    #[test]
    fn errors_say_where() {
        let error = |json: &str| Cursor::new(json.as_bytes()).skip(false).unwrap_err();
        assert_eq!(error("[1,\n 2,\n  x]"), "expected value at line 3 column 3");
        assert_eq!(error("[1"), "EOF while parsing a list at line 1 column 2");
        assert_eq!(error("{\"a\" 1}"), "expected `:` at line 1 column 6");
        assert_eq!(error("{\"a\":1,}"), "trailing comma at line 1 column 8");
    }
}
