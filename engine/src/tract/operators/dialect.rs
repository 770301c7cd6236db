//! Expressions of RE2's dialect in `regex-syntax`'s. All that RE2 takes for a character is escaped, and
//! what it refuses is refused, here or by `regex-syntax`.

use std::mem;

use tract_onnx::tract_hir::internal::*;

/// # Errors
/// RE2 does not take it, or it is known to mean something else here.
pub(super) fn as_here(expression: &str) -> TractResult<String> {
    let mut reader = Reader { rest: expression, ..Reader::default() };
    while let Some(first) = reader.next() {
        reader.part(first)?;
    }
    Ok(reader.written)
}

/// Classes of ASCII's digits, letters and spaces, by the letter after a backslash.
const OF_ASCII: [(&str, &str); 6] = [
    ("d", "[0-9]"),
    ("D", "[^0-9]"),
    ("w", "[0-9A-Za-z_]"),
    ("W", "[^0-9A-Za-z_]"),
    ("s", "[\\t\\n\\x0C\\r ]"),
    ("S", "[^\\t\\n\\x0C\\r ]"),
];

const OF_POSIX: &[&str] = &[
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct",
    "space", "upper", "word", "xdigit",
];

/// Those of Unicode's general categories that are not `C`.
const CATEGORIES: &[&str] = &[
    "Cc", "Cf", "Co", "L", "Ll", "Lm", "Lo", "Lt", "Lu", "M", "Mc", "Me", "Mn", "N", "Nd", "Nl",
    "No", "P", "Pc", "Pd", "Pe", "Pf", "Pi", "Po", "Ps", "S", "Sc", "Sk", "Sm", "So", "Z", "Zl",
    "Zp", "Zs",
];

/// What is wrong with a class that the expression ends in.
const OPEN: &str = "brackets that do not end";

/// How often a part may be repeated, by all repetitions around it.
const MAX_REPEATS: u32 = 1000;

#[derive(Default)]
struct Reader<'a> {
    rest: &'a str,
    written: String,
    /// For each group that is open, how often something before it in the group around is repeated at most.
    around: Vec<u32>,
    /// The same of the innermost group so far, and of its last part.
    most: u32,
    last: u32,
    /// The last part is a repetition, which cannot be repeated.
    is_repeated: bool,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.rest = &self.rest[next.len_utf8()..];
        Some(next)
    }

    fn take(&mut self, start: &str) -> bool {
        let rest = self.rest.strip_prefix(start);
        self.rest = rest.unwrap_or(self.rest);
        rest.is_some()
    }

    /// What stands before an end, if that comes.
    fn take_until(&mut self, end: &str) -> TractResult<&'a str> {
        let (inner, rest) =
            self.rest.split_once(end).with_context(|| format!("there is no {end:?}"))?;
        self.rest = rest;
        Ok(inner)
    }

    fn part(&mut self, first: char) -> TractResult<()> {
        let was_repeated = mem::take(&mut self.is_repeated);
        match first {
            '*' | '+' | '?' => {
                self.written.push(first);
                self.end_repetition(was_repeated)
            }
            '{' => match self.counts() {
                Some(counts) => self.repetition(counts, was_repeated),
                None => {
                    self.literal(first);
                    Ok(())
                }
            },
            '(' => self.group(),
            ')' => {
                let around = self.around.pop().context("a group ends that does not start")?;
                self.last = self.most;
                self.most = around.max(self.last);
                self.written.push(')');
                Ok(())
            }
            '[' => self.class(),
            '\\' => self.escape(),
            '|' | '.' | '^' | '$' => {
                self.last = 1;
                self.written.push(first);
                Ok(())
            }
            _ => {
                self.literal(first);
                Ok(())
            }
        }
    }

    fn literal(&mut self, character: char) {
        self.last = 1;
        // Escaped, these two are edges of words.
        if character.is_ascii_punctuation() && !matches!(character, '<' | '>') {
            self.written.push('\\');
        }
        self.written.push(character);
    }

    /// What a brace that was read opens: `None` where that is no repetition, but the brace a character.
    fn counts(&mut self) -> Option<(u32, Option<u32>)> {
        let (inner, rest) = self.rest.split_once('}')?;
        let counts = match inner.split_once(',') {
            None => (count(inner)?, Some(count(inner)?)),
            Some((least, "")) => (count(least)?, None),
            Some((least, most)) => (count(least)?, Some(count(most)?)),
        };
        self.rest = rest;
        Some(counts)
    }

    fn repetition(
        &mut self,
        (least, most): (u32, Option<u32>),
        was_repeated: bool,
    ) -> TractResult<()> {
        let times = most.unwrap_or(least);
        ensure!(least <= times && times <= MAX_REPEATS, "{times} repeats, {least} at least");
        self.last = self.last.max(1) * times.max(1);
        ensure!(times < 2 || self.last <= MAX_REPEATS, "{} repeats in all", self.last);
        self.most = self.most.max(self.last);
        let most = most.map(|most| most.to_string()).unwrap_or_default();
        self.written.push_str(&format!("{{{least},{most}}}"));
        self.end_repetition(was_repeated)
    }

    fn end_repetition(&mut self, was_repeated: bool) -> TractResult<()> {
        ensure!(!was_repeated, "a repetition of a repetition");
        // Which match is tried first does not matter: the longest counts.
        self.take("?");
        self.is_repeated = true;
        Ok(())
    }

    fn group(&mut self) -> TractResult<()> {
        if self.take("?P<") || self.take("?<") {
            let name = self.take_until(">")?;
            let is_name =
                !name.is_empty() && name.chars().all(|it| it == '_' || it.is_alphanumeric());
            ensure!(is_name, "a group of the name {name:?}");
        } else if self.take("?") {
            return self.flags();
        }
        self.open("(?:");
        Ok(())
    }

    fn open(&mut self, start: &str) {
        self.written.push_str(start);
        self.around.push(self.most);
        self.most = 1;
    }

    fn flags(&mut self) -> TractResult<()> {
        let (mut on, mut off, mut is_off) = (String::new(), String::new(), false);
        let end = loop {
            match self.next().context("flags that do not end")? {
                flag @ ('i' | 'm' | 's' | 'U') => {
                    // The last word on a flag counts.
                    on.retain(|other| other != flag);
                    off.retain(|other| other != flag);
                    let flags = if is_off { &mut off } else { &mut on };
                    flags.push(flag);
                }
                '-' if !is_off => is_off = true,
                end @ (':' | ')') => break end,
                other => bail!("an unknown flag {other:?}"),
            }
        };
        ensure!(is_off != off.is_empty(), "no flag is turned off");
        let minus = if is_off { "-" } else { "" };
        match end {
            ':' => self.open(&format!("(?{on}{minus}{off}:")),
            _ if on.is_empty() && off.is_empty() => {}
            _ => self.written.push_str(&format!("(?{on}{minus}{off})")),
        }
        Ok(())
    }

    /// A class in brackets, of which the first was read.
    fn class(&mut self) -> TractResult<()> {
        self.written.push('[');
        if self.take("^") {
            self.written.push('^');
        }
        let mut is_first = true;
        while is_first || !self.take("]") {
            is_first = false;
            self.member()?;
        }
        self.written.push(']');
        self.last = 1;
        Ok(())
    }

    /// A class, a range or a character in brackets.
    fn member(&mut self) -> TractResult<()> {
        let named = self.rest.strip_prefix("[:").and_then(|inner| inner.split_once(":]"));
        if let Some((name, rest)) = named {
            let plain = name.strip_prefix('^').unwrap_or(name);
            ensure!(OF_POSIX.contains(&plain), "an unknown class {name:?}");
            self.written.push_str(&format!("[:{name}:]"));
            self.rest = rest;
            return Ok(());
        }
        let low = match self.next().context(OPEN)? {
            '\\' if self.named_class()? => return Ok(()),
            '\\' => self.escaped()?,
            other => other,
        };
        self.literal(low);
        let is_range = self.rest.len() > 1 && !self.rest.starts_with("-]") && self.take("-");
        if is_range {
            let high = match self.next().context(OPEN)? {
                '\\' => self.escaped()?,
                other => other,
            };
            ensure!(low <= high, "a range from {low:?} to {high:?}");
            self.written.push('-');
            self.literal(high);
        }
        Ok(())
    }

    /// What a backslash that was read stands before, out of brackets.
    fn escape(&mut self) -> TractResult<()> {
        let edges =
            [("b", "(?-u:\\b)"), ("B", "(?-u:\\B)"), ("A", "\\A"), ("z", "\\z")].into_iter();
        for (theirs, ours) in edges {
            if self.take(theirs) {
                self.last = 1;
                self.written.push_str(ours);
                return Ok(());
            }
        }
        if self.take("Q") {
            let (quoted, rest) = self.rest.split_once("\\E").unwrap_or((self.rest, ""));
            self.rest = rest;
            quoted.chars().for_each(|character| self.literal(character));
            return Ok(());
        }
        if self.named_class()? {
            self.last = 1;
            return Ok(());
        }
        let character = self.escaped()?;
        self.literal(character);
        Ok(())
    }

    /// Whether a class comes after a backslash.
    fn named_class(&mut self) -> TractResult<bool> {
        for (theirs, ours) in OF_ASCII {
            if self.take(theirs) {
                self.written.push_str(ours);
                return Ok(true);
            }
        }
        let is_negated = self.take("P");
        let is_class = is_negated || self.take("p");
        if is_class {
            self.class_of_unicode(is_negated)?;
        }
        Ok(is_class)
    }

    fn class_of_unicode(&mut self, is_negated: bool) -> TractResult<()> {
        let name = if self.take("{") {
            self.take_until("}")?
        } else {
            let end = self.rest.chars().next().map_or(0, char::len_utf8);
            let (name, rest) = self.rest.split_at(end);
            self.rest = rest;
            name
        };
        let plain = name.strip_prefix('^').unwrap_or(name);
        let is_negated = is_negated != (plain.len() < name.len());
        let class = match plain {
            "Any" => "\\p{Any}".to_owned(),
            // What is not assigned does not belong to it.
            "C" => "\\p{Cc}\\p{Cf}\\p{Co}".to_owned(),
            _ if CATEGORIES.contains(&plain) => format!("\\p{{{plain}}}"),
            _ => {
                let is_name = plain.bytes().all(|byte| byte.is_ascii_alphabetic() || byte == b'_')
                    && plain.starts_with(|first: char| first.is_ascii_uppercase());
                ensure!(is_name, "an unknown class {name:?}");
                format!("\\p{{Script={plain}}}")
            }
        };
        let not = if is_negated { "^" } else { "" };
        self.written.push_str(&format!("[{not}{class}]"));
        Ok(())
    }

    /// The character that a backslash was read for.
    fn escaped(&mut self) -> TractResult<char> {
        Ok(match self.next().context("a backslash at the end")? {
            'a' => '\x07',
            'f' => '\x0C',
            'n' => '\n',
            'r' => '\r',
            't' => '\t',
            'v' => '\x0B',
            'x' => self.hexadecimal()?,
            first @ '0'..='7' => self.octal(first)?,
            other if other.is_ascii() && !other.is_ascii_alphanumeric() => other,
            other => bail!("an unknown escape of {other:?}"),
        })
    }

    fn hexadecimal(&mut self) -> TractResult<char> {
        let digits = if self.take("{") {
            self.take_until("}")?
        } else {
            let digits = self.rest.get(..2).context("an escape of fewer than two digits")?;
            self.rest = &self.rest[2..];
            digits
        };
        let is_number = digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let code = u32::from_str_radix(digits, 16).ok().filter(|_| is_number);
        code.and_then(char::from_u32).with_context(|| format!("no character {digits:?}"))
    }

    fn octal(&mut self, first: char) -> TractResult<char> {
        let more = self.rest.bytes().take(2).take_while(|byte| matches!(byte, b'0'..=b'7')).count();
        ensure!(first == '0' || more > 0, "a reference to a group");
        let (digits, rest) = self.rest.split_at(more);
        self.rest = rest;
        let code = digits
            .chars()
            .fold(first.to_digit(8), |code, digit| Some(8 * code? + digit.to_digit(8)?));
        code.and_then(char::from_u32).with_context(|| format!("no character {first}{digits}"))
    }
}

/// A number as repetitions have them.
fn count(digits: &str) -> Option<u32> {
    let is_number = digits.bytes().all(|byte| byte.is_ascii_digit());
    let is_plain = digits.len() == 1 || !digits.starts_with('0');
    // One of more digits is none to RE2, and each of nine is too large.
    let is_short = (1..10).contains(&digits.len());
    if is_number && is_plain && is_short { digits.parse().ok() } else { None }
}
