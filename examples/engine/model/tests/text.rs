//! Text in and out: the tokenizer of a made model, incremental decoding, chat templates.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs, reason = "a test")]

mod common;

use std::fs;
use std::sync::LazyLock;

use common::{made, small_spec};
use engine_model::{Message, ModelError, Tokenizer};
use proptest::prelude::*;
use serde_json::json;

fn tokenizer() -> &'static Tokenizer {
    static TOKENIZER: LazyLock<Tokenizer> =
        LazyLock::new(|| Tokenizer::load(made(&small_spec()).path()).unwrap());
    &TOKENIZER
}

fn say(role: &str, content: &str) -> Message {
    Message { role: role.to_owned(), content: content.to_owned() }
}

#[test]
fn words_of_the_text_are_one_token_each() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("The engineer listens to the river.", false).unwrap();
    assert_eq!(ids.len(), 7);
    assert_eq!(tokenizer.decode(&ids).unwrap(), "The engineer listens to the river.");
    assert_eq!(tokenizer.vocab_size(), 937);
}

#[test]
fn the_beginning_is_marked_where_asked_for_and_left_out_of_text() {
    let tokenizer = tokenizer();
    let ids = tokenizer.encode("water", true).unwrap();
    assert_eq!(Some(ids[0]), tokenizer.token_id("<|bos|>"));
    assert_eq!(ids[1..], tokenizer.encode("water", false).unwrap());
    assert_eq!(tokenizer.decode(&ids).unwrap(), "water");
    assert_eq!(tokenizer.encode("<|bos|>water", false).unwrap(), ids);
    assert!(tokenizer.encode("", false).unwrap().is_empty());
}

proptest! {
    #[test]
    fn any_text_survives_and_streams_in_whole_characters(text in "(\\PC|[a-z ]|[äß€漢👩‍🚀]){0,60}") {
        let tokenizer = tokenizer();
        let ids = tokenizer.encode(&text, false).unwrap();
        prop_assert_eq!(&tokenizer.decode(&ids).unwrap(), &text);
        let mut stream = tokenizer.decode_stream();
        let pieces: Vec<String> = ids.iter().map(|&id| stream.push(id)).collect();
        let whole = |piece: &String| text.contains('\u{fffd}') || !piece.contains('\u{fffd}');
        prop_assert!(pieces.iter().all(whole), "{:?}", pieces);
        prop_assert_eq!(pieces.concat() + &stream.finish(), text);
    }

    #[test]
    fn any_ids_stream_to_what_they_decode_to(ids in prop::collection::vec(0u32..1000, 0..200)) {
        let tokenizer = tokenizer();
        let mut stream = tokenizer.decode_stream();
        let mut text: String = ids.iter().map(|&id| stream.push(id)).collect();
        text += &stream.finish();
        prop_assert_eq!(text, tokenizer.decode(&ids).unwrap());
    }
}

#[test]
fn half_a_character_waits_for_its_other_half() {
    let tokenizer = tokenizer();
    let mut stream = tokenizer.decode_stream();
    let bytes = "é€".bytes().map(|byte| stream.push(u32::from(byte))).collect::<Vec<_>>();
    assert_eq!(bytes, ["", "é", "", "", "€"]);
    assert_eq!(stream.push(0xe2), "");
    assert_eq!(stream.finish(), "\u{fffd}");
}

#[test]
fn chat_is_rendered_by_the_template() {
    let tokenizer = tokenizer();
    let turns = [say("system", "Be kind."), say("user", " What is a town? "), say("assistant", "A place.")];
    let text = tokenizer.apply_chat(&turns, false).unwrap();
    assert_eq!(
        text,
        "<|bos|><|system|>\nBe kind.<|end|>\n<|user|>\nWhat is a town?<|end|>\n<|assistant|>\nA place.<|end|>\n"
    );
    assert_eq!(tokenizer.apply_chat(&turns, true).unwrap(), text + "<|assistant|>\n");
    let error = tokenizer.apply_chat(&[say("robot", "hello")], true).unwrap_err();
    assert!(
        matches!(&error, ModelError::Template { reason } if reason.contains("unknown role robot")),
        "{error}"
    );
    assert!(error.is_request_error());
}

#[test]
fn templates_are_found_in_every_place_in_use() {
    let dir = made(&small_spec());
    let set = |template: serde_json::Value| {
        let config = json!({"chat_template": template, "bos_token": {"content": "<s>"}});
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
    };
    let rendered = || {
        let tokenizer = Tokenizer::load(dir.path()).unwrap();
        tokenizer.apply_chat(&[say("user", "Hi")], true)
    };
    set(json!("{{ bos_token }}{{ messages[0].content.upper() }}"));
    assert_eq!(rendered().unwrap(), "<s>HI", "a string, with a method of Python's strings");
    set(
        json!([{"name": "tool_use", "template": "no"}, {"name": "default", "template": "{{ messages | length }}"}]),
    );
    assert_eq!(rendered().unwrap(), "1", "a list");
    fs::write(dir.path().join("chat_template.jinja"), "{% if tools is none %}\nfile\n{% endif %}\n").unwrap();
    assert_eq!(rendered().unwrap(), "file\n", "a file of its own goes first, and block lines vanish");
    fs::remove_file(dir.path().join("chat_template.jinja")).unwrap();
    fs::remove_file(dir.path().join("tokenizer_config.json")).unwrap();
    let error = rendered().unwrap_err();
    assert!(matches!(error, ModelError::NoChatTemplate { .. }) && error.is_request_error());
}

#[test]
fn a_template_that_never_ends_runs_out_of_fuel() {
    let dir = made(&small_spec());
    let endless =
        "{% for a in range(9999) %}{% for b in range(9999) %}{% set c = a * b %}{% endfor %}{% endfor %}";
    fs::write(dir.path().join("chat_template.jinja"), endless).unwrap();
    let error = Tokenizer::load(dir.path()).unwrap().apply_chat(&[say("user", "Hi")], true).unwrap_err();
    assert!(matches!(error, ModelError::Template { .. }), "{error}");
}
