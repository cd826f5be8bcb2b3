//! What the parser answers where the text is not PTX that it knows.

use thiserror::Error;

/// Longest stretch of offending text that an error repeats.
const SHOWN_CHARS: usize = 80;

/// The place where the text stops being PTX, and what would have been PTX there.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("PTX line {line}, column {column}: expected {expected}, found {found}")]
pub struct ParseError {
    /// Line in the PTX text, from 1.
    pub line: u32,
    /// Character in that line, from 1.
    pub column: u32,
    /// The offending text in backquotes, or `the end of the text`.
    pub found: String,
    /// What could have stood there.
    pub expected: String,
}

impl ParseError {
    /// An error about `text[start..end]`; an empty stretch at the end of the text is the end of the text. `start` may lie
    /// anywhere in `text`, and both ends are moved to character boundaries.
    pub(super) fn new(text: &str, start: usize, end: usize, expected: impl Into<String>) -> ParseError {
        let bytes = text.as_bytes();
        let at_end = start >= text.len();
        // The end is reported behind the last thing that is not white space, so that the line exists.
        let mut at = if at_end { text.trim_end().len() } else { start };
        while !text.is_char_boundary(at) {
            at -= 1;
        }
        let before = &bytes[..at];
        let line = before.iter().filter(|&&byte| byte == b'\n').count() + 1;
        let line_start = before.iter().rposition(|&byte| byte == b'\n').map_or(0, |newline| newline + 1);
        let column = text[line_start..at].chars().count() + 1;
        let found = if at_end {
            "the end of the text".to_owned()
        } else {
            let mut end = end.clamp(at, text.len());
            while !text.is_char_boundary(end) {
                end += 1;
            }
            let mut shown: String = text[at..end].chars().take(SHOWN_CHARS).collect();
            if shown.len() < end - at {
                shown.push_str("...");
            }
            format!("`{shown}`")
        };
        let narrow = |number: usize| u32::try_from(number).unwrap_or(u32::MAX);
        ParseError { line: narrow(line), column: narrow(column), found, expected: expected.into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_characters_and_lines() {
        let text = "a\n\u{e9}\u{e9} bad\n";
        let error = ParseError::new(text, 7, 10, "good");
        assert_eq!((error.line, error.column), (2, 4));
        assert_eq!(error.to_string(), "PTX line 2, column 4: expected good, found `bad`");
    }

    #[test]
    fn the_end_is_on_a_line_that_exists() {
        let error = ParseError::new("a\nbc \n\n", 7, 7, "`}`");
        assert_eq!((error.line, error.column), (2, 3));
        assert_eq!(error.found, "the end of the text");
        let error = ParseError::new("", 0, 0, "`.version`");
        assert_eq!((error.line, error.column), (1, 1));
    }

    #[test]
    fn long_text_is_cut() {
        let text = "x".repeat(1000);
        let error = ParseError::new(&text, 0, 1000, "less");
        assert_eq!(error.found.len(), SHOWN_CHARS + 5);
    }
}
