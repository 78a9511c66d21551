//! Breaks text into lines while it comes, piece by piece.

/// Holds back a word until it is complete, so that no line has to be broken within one.
#[derive(Debug)]
pub(crate) struct Wrap {
    width: usize,
    indent: usize,
    column: usize,
    word: String,
}

impl Wrap {
    /// Lines of at most `width` characters. The first one continues at `indent`, the others begin there.
    pub(crate) fn new(width: usize, indent: usize) -> Self {
        Self { width, indent, column: indent, word: String::new() }
    }

    /// What can be printed after `text` has come.
    pub(crate) fn push(&mut self, text: &str) -> String {
        let mut out = String::new();
        for character in text.chars() {
            if character.is_whitespace() {
                self.flush(&mut out);
                if character == '\n' {
                    self.break_line(&mut out);
                }
                self.word.push(' ');
            } else {
                // What a model says must not move the cursor or change the terminal.
                self.word.push(if character.is_control() { '·' } else { character });
                if self.word.chars().count() >= self.width.saturating_sub(self.indent).max(1) {
                    self.flush(&mut out);
                }
            }
        }
        out
    }

    /// The rest.
    pub(crate) fn finish(&mut self) -> String {
        let mut out = String::new();
        self.flush(&mut out);
        out
    }

    /// Prints the word, whose first character is the space before it, if there is one.
    fn flush(&mut self, out: &mut String) {
        let len = self.word.chars().count();
        if self.column + len > self.width && self.column > self.indent && !self.word.trim().is_empty() {
            self.break_line(out);
        }
        let word = if self.column == self.indent { self.word.trim_start() } else { &self.word };
        self.column += word.chars().count();
        out.push_str(word);
        self.word.clear();
    }

    fn break_line(&mut self, out: &mut String) {
        if self.column > self.indent {
            out.push('\n');
            out.push_str(&" ".repeat(self.indent));
            self.column = self.indent;
        }
    }
}

/// `text` in at most `width` characters: its beginning, `…`, and its end.
pub(crate) fn shorten(text: &str, width: usize) -> String {
    let characters: Vec<char> = text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    if characters.len() <= width {
        return characters.into_iter().collect();
    }
    let rest = width.saturating_sub(3);
    let (head, tail) = (rest - rest / 2, rest / 2);
    let head: String = characters[..head].iter().collect();
    let tail: String = characters[characters.len() - tail..].iter().collect();
    format!("{} … {}", head.trim_end(), tail.trim_start())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wrapped(pieces: &[&str], width: usize) -> String {
        let mut wrap = Wrap::new(width, 2);
        let mut out: String = pieces.iter().map(|piece| wrap.push(piece)).collect();
        out.push_str(&wrap.finish());
        out
    }

    #[test]
    fn words_are_kept_whole_however_they_come() {
        let whole = wrapped(&["the river turned the wheel"], 12);
        assert_eq!(whole, "the river\n  turned the\n  wheel");
        assert_eq!(wrapped(&["the riv", "er tur", "ned t", "he wheel"], 12), whole);
        assert!(whole.lines().all(|line| line.chars().count() <= 12));
    }

    #[test]
    fn long_words_new_lines_and_control_characters_do_no_harm() {
        assert_eq!(wrapped(&["abcdefghijkl"], 7), "abcde\n  fghij\n  kl");
        assert_eq!(wrapped(&["a\n\n\nb"], 12), "a\n  b");
        assert_eq!(wrapped(&["\u{1b}[2Ja"], 12), "·[2Ja");
        assert_eq!(wrapped(&[" a", ""], 0), "a");
    }

    #[test]
    fn what_is_too_long_loses_its_middle() {
        assert_eq!(shorten("short", 5), "short");
        assert_eq!(shorten("0123456789", 7), "01 … 89");
        assert_eq!(shorten("0123456789", 0), " … ");
    }
}
