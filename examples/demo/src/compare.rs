//! What it means that two answers are identical.

use crate::client::Answer;

/// Compares the answer that came through the router with the one of the undivided engine.
///
/// # Errors
/// The first difference, in words. An answer without tokens is never identical to anything: it proves nothing.
pub(crate) fn compare(divided: &Answer, undivided: &Answer) -> Result<(), String> {
    if divided.prompt_tokens.is_empty() || divided.tokens.is_empty() {
        return Err("the answer has no token ids".to_owned());
    }
    same_tokens("prompt", &divided.prompt_tokens, &undivided.prompt_tokens)?;
    same_tokens("answer", &divided.tokens, &undivided.tokens)?;
    if divided.text != undivided.text {
        return Err("the tokens are the same, the text is not".to_owned());
    }
    if divided.finish_reason != undivided.finish_reason {
        let reasons = (&divided.finish_reason, &undivided.finish_reason);
        return Err(format!("it ended with {:?}, undivided with {:?}", reasons.0, reasons.1));
    }
    Ok(())
}

fn same_tokens(what: &str, divided: &[u32], undivided: &[u32]) -> Result<(), String> {
    if divided == undivided {
        return Ok(());
    }
    let longest = divided.len().max(undivided.len());
    let position = (0..longest).find(|&at| divided.get(at) != undivided.get(at)).unwrap_or(longest);
    let token = |tokens: &[u32]| tokens.get(position).map_or_else(|| "none".to_owned(), u32::to_string);
    Err(format!("token {position} of the {what} is {}, undivided {}", token(divided), token(undivided)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer() -> Answer {
        Answer {
            text: "the river".to_owned(),
            prompt_tokens: vec![1, 2, 3],
            tokens: vec![7, 8, 9],
            finish_reason: Some("length".to_owned()),
            first_token: None,
        }
    }

    #[test]
    fn only_the_same_answer_is_identical() {
        assert_eq!(compare(&answer(), &answer()), Ok(()));
        type Change = (&'static str, fn(&mut Answer));
        let changes: [Change; 9] = [
            ("token 1 of the answer is 8, undivided 0", |answer| answer.tokens[1] = 0),
            ("token 2 of the answer is 9, undivided none", |answer| answer.tokens.truncate(2)),
            ("token 3 of the answer is none, undivided 9", |answer| answer.tokens.push(9)),
            ("token 0 of the answer is 7, undivided none", |answer| answer.tokens.clear()),
            ("token 0 of the prompt is 1, undivided 5", |answer| answer.prompt_tokens[0] = 5),
            ("token 0 of the prompt is 1, undivided none", |answer| answer.prompt_tokens.clear()),
            ("the text is not", |answer| answer.text.push('s')),
            ("it ended with", |answer| answer.finish_reason = Some("stop".to_owned())),
            ("it ended with", |answer| answer.finish_reason = None),
        ];
        for (message, change) in changes {
            let mut other = answer();
            change(&mut other);
            let difference = compare(&answer(), &other).unwrap_err();
            assert!(difference.contains(message), "{difference:?} should contain {message:?}");
        }
    }

    #[test]
    fn nothing_is_not_identical_to_nothing() {
        for empty in
            [Answer { tokens: Vec::new(), ..answer() }, Answer { prompt_tokens: Vec::new(), ..answer() }]
        {
            assert!(compare(&empty, &empty).is_err());
        }
    }
}
