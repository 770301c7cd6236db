//! From a text to token ids, as uncased BERT models were trained: BERT's normaliser, words
//! and punctuation apart, each word cut into the longest pieces that the vocabulary has.
//! What PyPI's `tokenizers` makes of a `BertNormalizer` with `lowercase`, a
//! `BertPreTokenizer` and a `WordPiece` model, id for id: hence the categories of its crate,
//! which are those of an older Unicode.

use std::collections::HashMap;

use unicode_categories::UnicodeCategories;
use unicode_normalization::UnicodeNormalization;

/// A word of more characters is unknown as a whole.
const LONGEST_WORD: usize = 100;

/// Found in a text as they stand, before anything is normalised.
const SPECIAL: [&str; 5] = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"];

/// A vocabulary, ready to be asked.
///
/// Its keys are slices of one text that is never freed: thirty thousand strings of their own
/// would make the snapshot larger that every sandbox starts from.
pub struct WordPiece {
    /// What a word may begin with.
    starts: HashMap<&'static str, u32>,
    /// What it may go on with: `##ing` as `ing`.
    continuations: HashMap<&'static str, u32>,
    /// Of any piece, bytes: nothing longer need be looked up.
    longest_piece: usize,
    /// Of [`SPECIAL`], those the vocabulary has.
    special: Vec<(&'static str, u32)>,
    size: u32,
    unknown: u32,
    /// What every text begins with.
    pub begin: u32,
    /// What every text ends with.
    pub end: u32,
}

impl WordPiece {
    /// Reads a vocab.txt: a token a line, its id is the line's number.
    ///
    /// # Errors
    /// A token that every text needs is not there.
    pub fn new(vocabulary: String) -> Result<Self, String> {
        let (mut starts, mut continuations) = (HashMap::new(), HashMap::new());
        let (mut longest_piece, mut size) = (0, 0);
        for (id, token) in (0..).zip(vocabulary.leak().lines()) {
            let (pieces, piece) = match token.strip_prefix("##") {
                Some(piece) => (&mut continuations, piece),
                None => (&mut starts, token),
            };
            pieces.insert(piece, id);
            longest_piece = longest_piece.max(piece.len());
            size = id + 1;
        }
        let special: Vec<_> =
            SPECIAL.iter().filter_map(|&token| Some((token, *starts.get(token)?))).collect();
        let id = |token| {
            let found = starts.get(token).copied();
            found.ok_or_else(|| format!("the vocabulary has no {token}"))
        };
        let (unknown, begin, end) = (id("[UNK]")?, id("[CLS]")?, id("[SEP]")?);
        Ok(Self { starts, continuations, longest_piece, special, size, unknown, begin, end })
    }

    /// How many tokens there are: ids are below it.
    pub fn size(&self) -> u32 {
        self.size
    }

    /// The first `limit` ids of a text; what comes after them is not even read.
    pub fn ids(&self, text: &str, limit: usize) -> Vec<u32> {
        let mut ids = Vec::new();
        let mut rest = text;
        while ids.len() < limit {
            let Some((at, token, id)) = self.first_special(rest) else {
                self.push_text(rest, limit, &mut ids);
                break;
            };
            self.push_text(&rest[..at], limit, &mut ids);
            ids.push(id);
            rest = &rest[at + token.len()..];
        }
        ids.truncate(limit);
        ids
    }

    fn first_special(&self, text: &str) -> Option<(usize, &'static str, u32)> {
        text.match_indices('[').find_map(|(at, _)| {
            let found = self.special.iter().find(|(token, _)| text[at..].starts_with(token));
            found.map(|&(token, id)| (at, token, id))
        })
    }

    /// Appends the ids of a text without special tokens, stopping at the first word that
    /// passes the limit.
    fn push_text(&self, text: &str, limit: usize, ids: &mut Vec<u32>) {
        let mut word = Word::default();
        for character in normalized(text) {
            if ids.len() >= limit {
                return;
            }
            if character.is_whitespace() {
                self.push_word(&mut word, ids);
            } else if is_punctuation(character) {
                self.push_word(&mut word, ids);
                word.push(character);
                self.push_word(&mut word, ids);
            } else {
                word.push(character);
            }
        }
        self.push_word(&mut word, ids);
    }

    /// Appends the ids of a word and empties it.
    fn push_word(&self, word: &mut Word, ids: &mut Vec<u32>) {
        if word.characters == 0 {
            return;
        }
        let known = ids.len();
        let mut rest = match word.characters > LONGEST_WORD {
            true => None,
            false => Some(word.text.as_str()),
        };
        let mut pieces = &self.starts;
        while let Some(tail) = rest.filter(|tail| !tail.is_empty()) {
            rest = self.longest_prefix(pieces, tail).map(|(length, id)| {
                ids.push(id);
                &tail[length..]
            });
            pieces = &self.continuations;
        }
        // One part that is in no piece makes the whole word unknown.
        if rest.is_none() {
            ids.truncate(known);
            ids.push(self.unknown);
        }
        word.clear();
    }

    fn longest_prefix(&self, pieces: &HashMap<&str, u32>, text: &str) -> Option<(usize, u32)> {
        let longest = text.floor_char_boundary(self.longest_piece);
        let ends =
            text[..longest].char_indices().rev().map(|(start, last)| start + last.len_utf8());
        ends.filter_map(|end| Some((end, *pieces.get(&text[..end])?))).next()
    }
}

/// A word as it is gathered; of one that is too long the rest is only counted.
#[derive(Default)]
struct Word {
    text: String,
    characters: usize,
}

impl Word {
    fn push(&mut self, character: char) {
        self.characters += 1;
        if self.characters <= LONGEST_WORD {
            self.text.push(character);
        }
    }

    fn clear(&mut self) {
        self.text.clear();
        self.characters = 0;
    }
}

/// BERT's normaliser: controls dropped, ideographs apart, accents stripped, lower case. It also
/// makes every kind of space the plain one; as all kinds part words, they are left as they are.
fn normalized(text: &str) -> impl Iterator<Item = char> {
    text.chars()
        .filter(|&character| !is_dropped(character))
        .flat_map(|character| {
            let space = is_ideograph(character).then_some(' ');
            [space, Some(character), space].into_iter().flatten()
        })
        .nfd()
        .filter(|character| !character.is_mark_nonspacing())
        .flat_map(char::to_lowercase)
}

fn is_dropped(character: char) -> bool {
    match character {
        '\t' | '\n' | '\r' => false,
        '\0' | '\u{fffd}' => true,
        _ => character.is_other(),
    }
}

/// The blocks that BERT's authors took, in which a character is a word.
fn is_ideograph(character: char) -> bool {
    matches!(
        character,
        '\u{4e00}'..='\u{9fff}'
            | '\u{3400}'..='\u{4dbf}'
            | '\u{20000}'..='\u{2a6df}'
            | '\u{2a700}'..='\u{2b73f}'
            | '\u{2b740}'..='\u{2b81f}'
            | '\u{2b920}'..='\u{2ceaf}'
            | '\u{f900}'..='\u{faff}'
            | '\u{2f800}'..='\u{2fa1f}'
    )
}

fn is_punctuation(character: char) -> bool {
    character.is_ascii_punctuation() || character.is_punctuation()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn minilm() -> WordPiece {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../models/minilm/vocab.txt");
        let vocabulary = fs::read_to_string(path).unwrap_or_else(|error| {
            panic!("{path}: {error}; run `make test`, which fetches it");
        });
        WordPiece::new(vocabulary).unwrap()
    }

    /// What `tokenizers` 0.23.3 makes of a text with the model's own tokenizer.json.
    const CASES: &[(&str, &str, &[u32])] = &[
        ("nothing", "", &[]),
        ("spaces alone", " \t\r\n\u{3000}", &[]),
        ("words and marks", "Hello, world!", &[7592, 1010, 2088, 999]),
        ("pieces", "unaffable embeddings", &[14477, 20961, 3468, 7861, 8270, 4667, 2015]),
        ("apostrophes", "don't", &[2123, 1005, 1056]),
        ("quotes and dashes", "“a”—b…", &[1523, 1037, 1524, 1517, 1038, 1529]),
        ("symbols are letters", "a±b €5", &[1037, 29657, 2497, 1574, 2629]),
        ("accents", "Café naïve ÀÉÎÕÜ", &[7668, 15743, 29347, 3695, 2226]),
        ("accents that combine", "cafe\u{301}", &[7668]),
        ("strokes are no accents", "ø Straße đ", &[1100, 2358, 27807, 1102]),
        ("a dotted capital", "İstanbul", &[9960]),
        ("a final sigma is like any", "ΑΣ", &[1155, 29733]),
        ("ideographs are words", "我爱NLP吗？", &[1855, 100, 17953, 2361, 100, 1994]),
        ("kana are letters", "ガギ", &[1700, 30227]),
        (
            "syllables are taken apart",
            "한국어",
            &[1469, 30006, 30021, 29991, 30014, 30020, 29999, 30008],
        ),
        ("emoji", "a 👍🏽 b", &[1037, 100, 1038]),
        ("joiners and directions are dropped", "a\u{200d}b\u{202e}c\u{feff}", &[5925]),
        ("controls are dropped", "a\0b\u{7}c\u{85}d\u{fffd}", &[5925, 2094]),
        ("unassigned characters are not", "a\u{378}b", &[100]),
        ("a space that does not break does", "a\u{a0}b", &[1037, 1038]),
        ("what looks like a piece", "##ing", &[1001, 1001, 13749]),
        ("special tokens", "the [MASK] is[SEP]", &[1996, 103, 2003, 102]),
        ("but not in other letters", "[mask] [ MASK]", &[1031, 7308, 1033, 1031, 7308, 1033]),
    ];

    #[test]
    fn ids_are_the_reference_s() {
        let tokenizer = minilm();
        for (name, text, ids) in CASES {
            assert_eq!(tokenizer.ids(text, usize::MAX), *ids, "{name}: {text:?}");
        }
    }

    #[test]
    fn a_word_of_more_than_100_characters_is_unknown() {
        let tokenizer = minilm();
        let word = |length| tokenizer.ids(&"é".repeat(length), usize::MAX);
        assert_eq!((word(100).len(), word(100)[..2].to_vec()), (50, vec![25212, 4402]));
        assert_eq!(word(101), [100]);
        assert_eq!(word(100_000), [100]);
    }

    #[test]
    fn a_limit_cuts_the_ids_wherever_it_falls() {
        let tokenizer = minilm();
        for (name, text, ids) in CASES {
            for limit in 0..=ids.len() {
                assert_eq!(tokenizer.ids(text, limit), ids[..limit], "{name}: {limit}");
            }
        }
    }

    #[test]
    fn a_vocabulary_without_its_frame_is_refused() {
        let refused = WordPiece::new("[UNK]\n[CLS]\nword\n".to_owned()).err();
        assert_eq!(refused.as_deref(), Some("the vocabulary has no [SEP]"));
    }
}
