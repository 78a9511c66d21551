//! The growing answer of one request: tokens to text, and when it is finished.

use crate::sched::StopStrings;
use engine_model::Detokenizer;
use std::collections::HashSet;

/// What ends an answer besides stop strings.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(crate) struct Limits {
    pub(crate) max_tokens: usize,
    /// Until so many tokens are generated, nothing but `max_tokens` ends the answer.
    pub(crate) min_tokens: usize,
    /// The model's own end tokens; empty if they are to be ignored.
    pub(crate) end_tokens: HashSet<u32>,
    /// Further end tokens of the request.
    pub(crate) stop_tokens: HashSet<u32>,
}

/// Why an answer is finished.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(crate) enum Finish {
    /// At an end token of the model.
    End,
    /// At an end token of the request.
    StopToken(u32),
    /// At a stop string.
    StopString(String),
    /// At `max_tokens`.
    Length,
}

/// The state of an answer.
#[derive(Debug)]
pub(crate) struct Answer {
    limits: Limits,
    stops: StopStrings,
    text: Option<Detokenizer>,
    generated: usize,
}

impl Answer {
    /// An empty answer.
    pub(crate) fn new(limits: Limits, stops: Vec<String>, text: Detokenizer) -> Self {
        Self { limits, stops: StopStrings::new(stops), text: Some(text), generated: 0 }
    }

    /// Number of tokens so far; also the index of the next one.
    pub(crate) fn generated(&self) -> usize {
        self.generated
    }

    /// Makes impossible what must not be sampled yet.
    pub(crate) fn mask(&self, logits: &mut [f32]) {
        if self.generated >= self.limits.min_tokens {
            return;
        }
        for &token in self.limits.end_tokens.iter().chain(&self.limits.stop_tokens) {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = f32::NEG_INFINITY;
            }
        }
    }

    /// Takes the next token. Returns the text that may be shown now, and why the answer is finished, if it is. End
    /// tokens have no text.
    pub(crate) fn push(&mut self, token: u32) -> (String, Option<Finish>) {
        self.generated += 1;
        let mut finish = match () {
            () if self.limits.end_tokens.contains(&token) => Some(Finish::End),
            () if self.limits.stop_tokens.contains(&token) => Some(Finish::StopToken(token)),
            () => None,
        };
        let mut shown = String::new();
        if finish.is_none() {
            let piece = self.text.as_mut().map_or_else(String::new, |text| text.push(token));
            finish = self.show(&piece, &mut shown);
        }
        if finish.is_none() && self.generated >= self.limits.max_tokens {
            finish = Some(Finish::Length);
        }
        if finish.is_some() && !matches!(finish, Some(Finish::StopString(_))) {
            let rest = self.text.take().map_or_else(String::new, Detokenizer::finish);
            if let Some(stop) = self.show(&rest, &mut shown) {
                return (shown, Some(stop));
            }
            shown.push_str(&self.stops.flush());
        }
        (shown, finish)
    }

    fn show(&mut self, piece: &str, shown: &mut String) -> Option<Finish> {
        if self.generated < self.limits.min_tokens {
            shown.push_str(piece);
            return None;
        }
        let (text, stop) = self.stops.push(piece);
        shown.push_str(&text);
        stop.map(|stop| Finish::StopString(stop.to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use engine_model::{ModelSpec, Tokenizer, make_model};

    fn tokenizer() -> Tokenizer {
        let dir = tempfile::tempdir().unwrap();
        make_model(dir.path(), &ModelSpec::default()).unwrap();
        Tokenizer::load(dir.path()).unwrap()
    }

    fn run(limits: Limits, stops: &[&str], text: &str) -> (String, Option<Finish>, usize) {
        let tokenizer = tokenizer();
        let tokens = tokenizer.encode(text, false).unwrap();
        let stops = stops.iter().map(|&stop| stop.to_owned()).collect();
        let mut answer = Answer::new(limits, stops, tokenizer.decode_stream());
        let mut shown = String::new();
        for token in tokens {
            let (piece, finish) = answer.push(token);
            shown.push_str(&piece);
            if finish.is_some() {
                return (shown, finish, answer.generated());
            }
        }
        (shown, None, answer.generated())
    }

    #[test]
    fn an_answer_ends_at_a_stop_string_at_a_token_or_at_its_length() {
        let limits = Limits { max_tokens: 100, ..Limits::default() };
        let (shown, finish, _) = run(limits.clone(), &["lo wo"], "hello world");
        assert_eq!((shown.as_str(), finish), ("hel", Some(Finish::StopString("lo wo".into()))));

        let end = tokenizer().encode(" world", false).unwrap()[0];
        let limits = Limits { stop_tokens: HashSet::from([end]), ..limits };
        let (shown, finish, _) = run(limits, &["hellow"], "hello world");
        assert_eq!((shown.as_str(), finish), ("hello", Some(Finish::StopToken(end))));

        let limits = Limits { max_tokens: 1, ..Limits::default() };
        let (_, finish, generated) = run(limits, &[], "hello world");
        assert_eq!((finish, generated), (Some(Finish::Length), 1));
    }

    #[test]
    fn nothing_ends_an_answer_before_its_minimum() {
        let count = tokenizer().encode("stop it", false).unwrap().len();
        let limits = Limits { max_tokens: 100, min_tokens: count + 1, ..Limits::default() };
        let (shown, finish, _) = run(limits.clone(), &["stop"], "stop it");
        assert!(finish.is_none() && "stop it".starts_with(&shown), "{shown}");
        let limits = Limits { end_tokens: HashSet::from([1]), ..limits };
        let answer = Answer::new(limits, Vec::new(), tokenizer().decode_stream());
        let mut logits = [0.0; 3];
        answer.mask(&mut logits);
        assert_eq!(logits, [0.0, f32::NEG_INFINITY, 0.0]);
    }
}
