//! A byte-level BPE vocabulary grown from a small text until every word of it is one token.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

/// Marks the beginning of a text.
pub(super) const BOS: &str = "<|bos|>";
/// Ends a text.
pub(super) const EOS: &str = "<|eos|>";
/// Ends a turn of a conversation.
pub(super) const END: &str = "<|end|>";
/// All special tokens, in the order of their ids.
pub(super) const SPECIAL: [&str; 6] = [BOS, EOS, END, "<|system|>", "<|user|>", "<|assistant|>"];

/// Most merges that are learnt; the built-in text needs fewer.
const MERGES_MAX: usize = 4096;

/// The vocabulary: ids are the 256 bytes, then the merges in the order in which they were learnt, then the special
/// tokens.
pub(super) struct Vocab {
    /// The bytes of each ordinary token.
    tokens: Vec<Vec<u8>>,
    merges: Vec<(usize, usize)>,
    /// The training text, one id per word.
    text: Vec<usize>,
}

impl Vocab {
    /// Learns from ASCII text without digits and apostrophes, where the word boundaries below are those of the
    /// usual byte-level pattern.
    pub(super) fn train(text: &str) -> Self {
        let pieces = split_words(text);
        let mut words: BTreeMap<&str, (usize, Vec<usize>)> = BTreeMap::new();
        for piece in &pieces {
            let symbols = || piece.bytes().map(usize::from).collect();
            words.entry(piece).or_insert_with(|| (0, symbols())).0 += 1;
        }
        let mut tokens: Vec<Vec<u8>> = (0..=u8::MAX).map(|byte| vec![byte]).collect();
        let mut merges = Vec::new();
        while merges.len() < MERGES_MAX
            && let Some(pair) = most_frequent_pair(words.values())
        {
            let merged = tokens.len();
            tokens.push([tokens[pair.0].as_slice(), &tokens[pair.1]].concat());
            merges.push(pair);
            for (_, symbols) in words.values_mut() {
                merge(symbols, pair, merged);
            }
        }
        let text = pieces.iter().flat_map(|piece| words[piece].1.iter().copied()).collect();
        Self { tokens, merges, text }
    }

    /// Number of ids, special tokens included.
    pub(super) const fn len(&self) -> usize {
        self.tokens.len() + SPECIAL.len()
    }

    /// Id of a special token.
    pub(super) fn special(&self, name: &str) -> usize {
        self.tokens.len() + SPECIAL.iter().position(|special| *special == name).unwrap_or(0)
    }

    /// Id of the single-byte token.
    pub(super) const fn byte(byte: u8) -> usize {
        byte as usize
    }

    /// The training text as ids.
    pub(super) fn text(&self) -> &[usize] {
        &self.text
    }

    /// Ids that occur in the training text: whole words and punctuation, not fragments or odd bytes.
    pub(super) fn words(&self) -> BTreeSet<usize> {
        self.text.iter().copied().collect()
    }

    /// The contents of `tokenizer.json`.
    pub(super) fn tokenizer_json(&self) -> Value {
        let names: Vec<String> =
            self.tokens.iter().map(|token| token.iter().map(|&byte| byte_char(byte)).collect()).collect();
        let vocab: Map<String, Value> =
            names.iter().enumerate().map(|(id, name)| (name.clone(), json!(id))).collect();
        let merges: Vec<Value> = self.merges.iter().map(|&(a, b)| json!([names[a], names[b]])).collect();
        let added: Vec<Value> = SPECIAL
            .iter()
            .map(|name| {
                json!({
                    "id": self.special(name), "content": name, "single_word": false, "lstrip": false,
                    "rstrip": false, "normalized": false, "special": true,
                })
            })
            .collect();
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        let bos = json!({"SpecialToken": {"id": BOS, "type_id": 0}});
        json!({
            "version": "1.0",
            "truncation": null,
            "padding": null,
            "added_tokens": added,
            "normalizer": null,
            "pre_tokenizer": byte_level,
            "post_processor": {
                "type": "TemplateProcessing",
                "single": [bos, {"Sequence": {"id": "A", "type_id": 0}}],
                "pair": [bos, {"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
                "special_tokens": {BOS: {"id": BOS, "ids": [self.special(BOS)], "tokens": [BOS]}},
            },
            "decoder": byte_level,
            "model": {
                "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
                "vocab": vocab, "merges": merges,
            },
        })
    }
}

/// Words with the space before them, runs of punctuation, and line ends.
fn split_words(text: &str) -> Vec<&str> {
    let kind = |c: char| (c.is_alphabetic(), c.is_whitespace());
    let mut pieces = Vec::new();
    let mut start = 0;
    let mut last = None;
    for (at, c) in text.char_indices() {
        let goes_on = last.is_some_and(|before| kind(before) == kind(c) || before == ' ');
        if at > start && !goes_on {
            pieces.push(&text[start..at]);
            start = at;
        }
        last = Some(c);
    }
    pieces.push(&text[start..]);
    pieces
}

/// The pair of neighbours that occurs most often; the first in order among equals.
fn most_frequent_pair<'a>(words: impl Iterator<Item = &'a (usize, Vec<usize>)>) -> Option<(usize, usize)> {
    let mut counts: BTreeMap<(usize, usize), usize> = BTreeMap::new();
    for (count, symbols) in words {
        for pair in symbols.windows(2) {
            *counts.entry((pair[0], pair[1])).or_default() += count;
        }
    }
    counts.into_iter().max_by(|a, b| a.1.cmp(&b.1).then(b.0.cmp(&a.0))).map(|(pair, _)| pair)
}

fn merge(symbols: &mut Vec<usize>, pair: (usize, usize), merged: usize) {
    let mut at = 0;
    while at + 1 < symbols.len() {
        if (symbols[at], symbols[at + 1]) == pair {
            symbols[at] = merged;
            symbols.remove(at + 1);
        }
        at += 1;
    }
}

/// The printable character that stands for a byte in byte-level vocabularies: itself where it is printable, else
/// the next free one from U+0100 on.
fn byte_char(byte: u8) -> char {
    let printable = |b: u8| matches!(b, 0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff);
    if printable(byte) {
        return char::from(byte);
    }
    let rank = (0..byte).filter(|&b| !printable(b)).count();
    u32::try_from(rank)
        .ok()
        .and_then(|rank| char::from_u32(0x100 + rank))
        .unwrap_or(char::REPLACEMENT_CHARACTER)
}
