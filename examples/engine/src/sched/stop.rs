//! Stop strings in a stream: text that may be the beginning of a stop string is held back until it is certain.

/// The stop strings of one request and the text that is still held back.
#[derive(Debug, Default)]
pub(crate) struct StopStrings {
    stops: Vec<String>,
    held: String,
}

impl StopStrings {
    /// Watches for `stops`; empty strings are ignored.
    pub(crate) fn new(stops: Vec<String>) -> Self {
        Self { stops: stops.into_iter().filter(|stop| !stop.is_empty()).collect(), held: String::new() }
    }

    /// Takes the next piece of text. Returns the text that may be shown and the stop string that ended it, if any:
    /// the stop string itself and everything behind it are never shown.
    pub(crate) fn push(&mut self, text: &str) -> (String, Option<&str>) {
        self.held.push_str(text);
        let hit = self.stops.iter().filter_map(|stop| Some((self.held.find(stop.as_str())?, stop))).min();
        if let Some((position, stop)) = hit {
            self.held.truncate(position);
            return (std::mem::take(&mut self.held), Some(stop));
        }
        let keep = self.stops.iter().map(|stop| overlap(&self.held, stop)).max().unwrap_or(0);
        let rest = self.held.split_off(self.held.len() - keep);
        (std::mem::replace(&mut self.held, rest), None)
    }

    /// The held-back text, when no more will come.
    pub(crate) fn flush(&mut self) -> String {
        std::mem::take(&mut self.held)
    }
}

/// The length of the longest end of `text` that is a beginning of `stop`.
fn overlap(text: &str, stop: &str) -> usize {
    (1..=stop.len().min(text.len()))
        .rev()
        .find(|&length| stop.is_char_boundary(length) && text.ends_with(&stop[..length]))
        .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(stops: &[&str], pieces: &[&str]) -> (String, Option<String>) {
        let mut stop = StopStrings::new(stops.iter().map(|&s| s.to_owned()).collect());
        let mut shown = String::new();
        for piece in pieces {
            let (text, hit) = stop.push(piece);
            shown.push_str(&text);
            if let Some(hit) = hit {
                return (shown, Some(hit.to_owned()));
            }
        }
        shown.push_str(&stop.flush());
        (shown, None)
    }

    #[test]
    fn a_stop_string_is_found_wherever_the_pieces_are_cut() {
        let text = "one END two";
        for cut in 0..=text.len() {
            for second in cut..=text.len() {
                let pieces = [&text[..cut], &text[cut..second], &text[second..]];
                assert_eq!(run(&["END"], &pieces), ("one ".into(), Some("END".into())), "{pieces:?}");
            }
        }
    }

    #[test]
    fn a_beginning_that_does_not_go_on_is_shown_after_all() {
        assert_eq!(run(&["END"], &["EN", "EN", "x", "EN"]), ("ENENxEN".into(), None));
        let mut stop = StopStrings::new(vec!["END".into()]);
        assert_eq!(stop.push("abEN"), ("ab".into(), None));
        assert_eq!(stop.push("Dx"), (String::new(), Some("END")));
    }

    #[test]
    fn the_earliest_of_several_stop_strings_wins() {
        assert_eq!(run(&["three", "two"], &["one two three"]), ("one ".into(), Some("two".into())));
        assert_eq!(run(&["aab"], &["aa", "ab"]), ("a".into(), Some("aab".into())));
    }

    #[test]
    fn text_of_several_bytes_a_character_is_never_cut_within_one() {
        assert_eq!(run(&["ß→"], &["xß", "→y"]), ("x".into(), Some("ß→".into())));
        assert_eq!(run(&["ß→"], &["xß", "ü"]), ("xßü".into(), None));
        assert_eq!(run(&[""], &["x"]), ("x".into(), None));
    }
}
