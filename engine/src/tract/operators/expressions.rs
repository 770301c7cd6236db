//! Expressions, whose longest match counts, as RE2's. A search takes time in proportion to the text that
//! it looks at, and stops where the run is over.

use regex_automata::hybrid::CacheError;
use regex_automata::hybrid::dfa::{Cache, DFA};
use regex_automata::nfa::thompson;
use regex_automata::util::syntax;
use regex_automata::{Anchored, Input, MatchKind};
use tract_onnx::tract_hir::internal::*;

use super::dialect::as_here;
use crate::tract::bodies::ask;

/// The longest expression, bytes.
const MAX_EXPRESSION: usize = 1 << 12;

/// What an expression's states may take in all, bytes, for each way through a text.
pub(super) const MAX_SIZE: usize = 1 << 20;

/// What is remembered of sets of states during a search, bytes, for each way through a text.
const MAX_STATES: usize = 1 << 21;

/// Bytes of text from one question whether the run is over to the next. Each may take as long as there
/// are states.
const ASKS_EACH: usize = 1 << 10;

#[derive(Debug)]
pub(super) struct Expression {
    /// From a match's start to its ends.
    forward: DFA,
    /// From the text's end back to all starts.
    backward: DFA,
}

impl Expression {
    /// # Errors
    /// RE2 does not take it, or its states take more than a limit.
    pub(super) fn new(text: &str, limit: usize) -> TractResult<Self> {
        ensure!(text.len() <= MAX_EXPRESSION, "an expression of {} bytes", text.len());
        let named = || format!("the expression {}", shown(text));
        let translated = as_here(text).with_context(named)?;
        let dfa = |is_reversed: bool| {
            let states = thompson::Config::new().reverse(is_reversed).nfa_size_limit(Some(limit));
            // All matches are gone through, so the last one found is the longest.
            let config = DFA::config().match_kind(MatchKind::All).cache_capacity(MAX_STATES);
            let mut builder = DFA::builder();
            builder
                .configure(config)
                .thompson(states)
                .syntax(syntax::Config::new().nest_limit(100));
            builder.build(&translated).map_err(|error| {
                // The expression itself stands before what is wrong with it.
                let cause = TractError::new(error).root_cause().to_string();
                format_err!("{}", cause.lines().last().unwrap_or_default())
            })
        };
        Ok(Self {
            forward: dfa(false).with_context(named)?,
            backward: dfa(true).with_context(named)?,
        })
    }

    /// What its states take, bytes.
    pub(super) fn size(&self) -> usize {
        let size = |dfa: &DFA| dfa.get_nfa().memory_usage();
        size(&self.forward).max(size(&self.backward))
    }

    pub(super) fn search(&self) -> Search<'_> {
        Search {
            expression: self,
            forward: self.forward.create_cache(),
            backward: self.backward.create_cache(),
            steps: 0,
        }
    }
}

/// The start of an expression, to know it by.
fn shown(text: &str) -> String {
    let mut shown: String = text.chars().take(80).collect();
    if shown.len() < text.len() {
        shown.push('…');
    }
    format!("{shown:?}")
}

/// What goes through one text after the other for an expression.
pub(super) struct Search<'a> {
    expression: &'a Expression,
    forward: Cache,
    backward: Cache,
    steps: usize,
}

/// The places in a text at which a match starts, its end among them.
pub(super) struct Starts(Vec<bool>);

impl Starts {
    fn at_or_after(&self, place: usize) -> Option<usize> {
        Some(place + self.0.get(place..)?.iter().position(|&is_start| is_start)?)
    }
}

impl Search<'_> {
    /// # Errors
    /// The run is over.
    fn step(&mut self) -> TractResult<()> {
        self.steps += 1;
        if self.steps.is_multiple_of(ASKS_EACH) { ask() } else { Ok(()) }
    }

    /// # Errors
    /// The run is over.
    pub(super) fn starts(&mut self, text: &str) -> TractResult<Starts> {
        let dfa = &self.expression.backward;
        let mut starts = vec![false; text.len() + 1];
        let mut state = dfa.start_state_reverse(&mut self.backward, &Input::new(text))?;
        for (at, &byte) in text.as_bytes().iter().enumerate().rev() {
            self.step()?;
            state = dfa.next_state(&mut self.backward, state, byte).map_err(gave_up)?;
            // A match of nothing may lie within a character.
            starts[at + 1] = state.is_match() && text.is_char_boundary(at + 1);
            if state.is_dead() {
                return Ok(Starts(starts));
            }
        }
        let state = dfa.next_eoi_state(&mut self.backward, state).map_err(gave_up)?;
        starts[0] = state.is_match();
        Ok(Starts(starts))
    }

    /// The end of the longest match that starts at a place.
    ///
    /// # Errors
    /// The run is over.
    pub(super) fn end(&mut self, text: &str, start: usize) -> TractResult<Option<usize>> {
        let dfa = &self.expression.forward;
        let input = Input::new(text).range(start..).anchored(Anchored::Yes);
        let mut state = dfa.start_state_forward(&mut self.forward, &input)?;
        let mut end = None;
        for (at, &byte) in text.as_bytes().iter().enumerate().skip(start) {
            self.step()?;
            state = dfa.next_state(&mut self.forward, state, byte).map_err(gave_up)?;
            if state.is_match() {
                end = Some(at);
            }
            if state.is_dead() {
                return Ok(end);
            }
        }
        let state = dfa.next_eoi_state(&mut self.forward, state).map_err(gave_up)?;
        Ok(if state.is_match() { Some(text.len()) } else { end })
    }

    /// The first match at or after a place, and of those the longest.
    ///
    /// # Errors
    /// The run is over.
    pub(super) fn find(
        &mut self,
        text: &str,
        starts: &Starts,
        from: usize,
    ) -> TractResult<Option<(usize, usize)>> {
        let Some(start) = starts.at_or_after(from) else { return Ok(None) };
        Ok(self.end(text, start)?.map(|end| (start, end)))
    }
}

fn gave_up(error: CacheError) -> TractError {
    TractError::new(error).context("a search that gave up")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Expressions, texts that ONNX Runtime's RegexFullMatch (1.32) says they match, and others.
    const TAKEN: &[(&str, &[&str], &[&str])] = &[
        ("[a-z--m]+", &["abc-5"], &["!"]),
        ("[+--]+", &["+", ",", "-"], &["."]),
        ("[!--]", &["!", "-", "+"], &["/"]),
        ("[--a]", &["-", "a", "5"], &["b"]),
        ("[\\w--]+", &["a-"], &["+"]),
        ("[\\d-x]+", &["5-x"], &["y"]),
        ("[a-c-e]+", &["a-e"], &["d"]),
        ("[]-a]", &["]", "^"], &["b"]),
        ("[^]-a]", &["b"], &["^"]),
        ("[[-a]", &["[", "^"], &["b"]),
        ("[a&&b]+", &["ab&"], &["c"]),
        ("[a~~b]+", &["~ab"], &["c"]),
        ("[[a]+", &["[a"], &["b"]),
        ("[a[bc]]", &["a]", "[]"], &["b"]),
        ("[[a-z]--[aeiou]]", &["b--a]"], &["b"]),
        ("[[:alpha:]-z]+", &["a-z"], &["0"]),
        ("[[:^alpha:]]", &["1"], &["a"]),
        ("[[:alpha]]", &["a]"], &["a"]),
        ("[[:]]", &[":]"], &[":"]),
        ("[a[:digit:]b]+", &["a1b"], &["c"]),
        ("[\\101-\\103]+", &["ABC"], &["D"]),
        ("[\\pL\\d]+", &["é1"], &["-"]),
        ("[^\\S]", &[" "], &["a"]),
        ("[^a]", &["\n", "b"], &["a"]),
        ("(?i)[^k]", &["a"], &["k", "K"]),
        ("(?i)\\P{Lu}", &["1"], &["a", "A"]),
        ("\\<b\\>", &["<b>"], &["b"]),
        ("{", &["{"], &[""]),
        ("a{", &["a{"], &["a"]),
        ("a{1,", &["a{1,"], &["a"]),
        ("a{,5}", &["a{,5}"], &["aaa"]),
        ("a{01}", &["a{01}"], &["a"]),
        ("{,2}", &["{,2}"], &[""]),
        ("a}]", &["a}]"], &["a"]),
        ("a{2,}", &["aa", "aaaa"], &["a"]),
        ("a{0}", &[""], &["a"]),
        ("\\Qa.b\\E", &["a.b"], &["aab"]),
        ("\\Qab\\E+", &["abb"], &["abab"]),
        ("\\Qa\\b", &["a\\b"], &["a"]),
        ("\\101\\0", &["A\0"], &["1"]),
        ("\\1011", &["A1"], &["A"]),
        ("\\777", &["ǿ"], &["?"]),
        ("\\x41\\x{1F600}", &["A😀"], &["A"]),
        ("\\_\\%\\~", &["_%~"], &["_"]),
        ("\\w+", &["abc_1"], &["é"]),
        ("\\s", &["\t"], &["\u{b}", "\u{a0}"]),
        ("\\d", &["3"], &["٣"]),
        ("\\p{Greek}+", &["αβ"], &["a"]),
        ("\\p{^L}", &["1"], &["a"]),
        ("\\P{^L}", &["a"], &["1"]),
        ("\\pC", &["\u{1}"], &["\u{378}"]),
        ("\\p{Any}", &["a"], &[""]),
        ("a\\b", &["a"], &["a "]),
        ("é\\Bé", &["éé"], &["é"]),
        ("a$", &["a"], &["a\n"]),
        ("(?m)a$\nb", &["a\nb"], &["ab"]),
        (".", &["é"], &["\n"]),
        ("(?s).", &["\n"], &[""]),
        ("(?U)a+", &["aa"], &[""]),
        ("(?i-i)a", &["a"], &["A"]),
        ("(?ii)a", &["A"], &["b"]),
        ("(?)a", &["a"], &["b"]),
        ("(?i:a)b", &["Ab"], &["AB"]),
        ("(?P<n>a)(?<m>b)", &["ab"], &["a"]),
        ("a*?", &["aa"], &["b"]),
        ("a{2}?", &["aa"], &["a"]),
        ("(|a)*", &["aa"], &["b"]),
        ("a||b", &["", "b"], &["c"]),
        ("#a b", &["#a b"], &["ab"]),
    ];

    /// What it refuses.
    const REFUSED: &[&str] = &[
        "a**",
        "a++",
        "a{2}{3}",
        "a*{2}",
        "a{2}??",
        "*",
        "(*)",
        "|*",
        "{2}",
        "a{1001}",
        "a{2,1}",
        "(a{11}){100}",
        "(a{500,}){3}",
        "((a{0}){1000}){2}",
        "((a{1000}){1000}){100}",
        "(?x)a",
        "(?u)a",
        "(?R)a",
        "(?-)a",
        "(?i-)a",
        "(?i-s-m)a",
        "(?=a)",
        "(?<=a)",
        "(?>a)",
        "(?P<>a)",
        "(a",
        "a)",
        "[a",
        "[]",
        "[b-a]",
        "[a-[]",
        "[a-\\d]",
        "[[:foo:]]",
        "[[::]]",
        "[\\Q]",
        "\\u0041",
        "\\1",
        "\\8",
        "\\e",
        "\\E",
        "\\Z",
        "\\é",
        "\\x4",
        "\\x{}",
        "\\x{110000}",
        "\\p{Letter}",
        "\\p{Alphabetic}",
        "\\p{greek}",
        "\\p{sc=Greek}",
        "\\p{Cn}",
        "\\p{}",
        "\\p",
        "\\",
    ];

    fn is_match(expression: &str, text: &str) -> bool {
        let made = Expression::new(expression, MAX_SIZE);
        let made = made.unwrap_or_else(|error| panic!("{expression}: {error:#}"));
        made.search().end(text, 0).unwrap() == Some(text.len())
    }

    #[test]
    fn expressions_mean_what_they_mean_to_onnx_runtime() {
        for &(expression, matches, others) in TAKEN {
            for &text in matches {
                assert!(is_match(expression, text), "{expression:?} on {text:?}");
            }
            for &text in others {
                assert!(!is_match(expression, text), "{expression:?} on {text:?}");
            }
        }
        assert!(is_match("(a{10}){100}", &"a".repeat(1000)));
    }

    #[test]
    fn what_onnx_runtime_refuses_is_refused() {
        for expression in REFUSED {
            assert!(Expression::new(expression, MAX_SIZE).is_err(), "{expression:?}");
        }
    }

    #[test]
    fn an_expression_is_small_or_named_in_short() {
        let error = Expression::new(&format!("\\pL{{1000}}{}", "a".repeat(1000)), MAX_SIZE);
        let error = format!("{:#}", error.unwrap_err());
        assert!(error.contains("the expression \"\\\\pL{1000}aaa"), "{error}");
        assert!(error.contains("exceeded limit of 1048576") && error.len() < 300, "{error}");
        let error = format!("{:#}", Expression::new("a(*)", MAX_SIZE).unwrap_err());
        assert!(error.contains("repetition operator missing expression"), "{error}");
    }

    fn all(expression: &str, text: &str) -> Vec<(usize, usize)> {
        let expression = Expression::new(expression, MAX_SIZE).unwrap();
        let mut search = expression.search();
        let starts = search.starts(text).unwrap();
        let (mut found, mut from) = (Vec::new(), 0);
        while let Some((start, end)) = search.find(text, &starts, from).unwrap() {
            found.push((start, end));
            from = end.max(start + 1);
        }
        found
    }

    #[test]
    fn the_first_match_is_found_and_its_longest_end() {
        assert_eq!(all("b|abcd|ab", "xabcx abcd"), [(1, 3), (6, 10)]);
        assert_eq!(all("^a", "aab"), [(0, 1)]);
        assert_eq!(all("b$", "bab"), [(2, 3)]);
        assert_eq!(all("\\bb", "b ab b"), [(0, 1), (5, 6)]);
        assert_eq!(all("x*", "axx"), [(0, 0), (1, 3), (3, 3)]);
        // Within a character there is none, not even of nothing.
        assert_eq!(all("\\B", "é"), [(0, 0), (2, 2)]);
        assert_eq!(all("c", "ab"), []);
    }

    #[test]
    fn what_never_ends_in_a_match_is_looked_for_once() {
        let text = "a".repeat(1 << 16);
        let expression = Expression::new("[a-z]+[0-9]", MAX_SIZE).unwrap();
        let mut search = expression.search();
        let starts = search.starts(&text).unwrap();
        assert_eq!(search.find(&text, &starts, 0).unwrap(), None);
        assert!(search.steps <= text.len(), "{} steps", search.steps);
    }
}
