//! The splicer and the readers of hostile bytes, against serde_json and against noise.

use proptest::prelude::*;
use router_lite::dance::{decode_body, params_of, prefill_body};
use router_lite::inspect::Wish;
use router_lite::splice::{Edit, Object};
use router_lite::sse::{Boundary, starts_with_server_error};
use serde_json::{Map, Value};

const NAMES: [&str; 6] = ["stream", "max_tokens", "min_tokens", "kv_transfer_params", "a", "\"\\ä\n"];

fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[\\PC\"\\\\{}\\[\\],:]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((prop::sample::select(&NAMES[..]), inner), 0..4)
                .prop_map(|pairs| Value::Object(pairs.into_iter().map(|(k, v)| (k.to_owned(), v)).collect())),
        ]
    })
}

/// Whitespace between tokens, as JSON allows it.
fn space() -> impl Strategy<Value = String> {
    "[ \t\r\n]{0,2}"
}

/// A key as JSON text, escaped the plain way or character by character.
fn spelled(name: &str, odd: bool) -> String {
    if !odd {
        return Value::from(name).to_string();
    }
    let units: String = name.encode_utf16().map(|unit| format!("\\u{unit:04x}")).collect();
    format!("\"{units}\"")
}

#[derive(Clone, Debug)]
struct Pair {
    name: &'static str,
    key: String,
    value: Value,
    gaps: [String; 4],
}

fn pair() -> impl Strategy<Value = Pair> {
    let gaps = [space(), space(), space(), space()];
    (prop::sample::select(&NAMES[..]), any::<bool>(), json(), gaps)
        .prop_map(|(name, odd, value, gaps)| Pair { name, key: spelled(name, odd), value, gaps })
}

fn text(pairs: &[Pair]) -> String {
    let pairs: Vec<String> = pairs
        .iter()
        .map(|p| format!("{}{}{}:{}{}{}", p.gaps[0], p.key, p.gaps[1], p.gaps[2], p.value, p.gaps[3]))
        .collect();
    format!(" {{{}}}\n", pairs.join(","))
}

fn last_wins(pairs: &[Pair]) -> Map<String, Value> {
    pairs.iter().map(|p| (p.name.to_owned(), p.value.clone())).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Splicing means what editing the parsed map means, and without edits nothing moves.
    #[test]
    fn agrees_with_a_parsed_map(
        pairs in prop::collection::vec(pair(), 0..7),
        kinds in prop::collection::vec(0..4u8, NAMES.len()),
        new in json(),
    ) {
        let body = text(&pairs);
        let object = Object::parse(body.as_bytes()).unwrap();
        prop_assert_eq!(object.splice(&[]), body.as_bytes());
        let mut expected = last_wins(&pairs);
        for name in NAMES {
            let got = object.get(name).map(|raw| serde_json::from_str::<Value>(raw).unwrap());
            prop_assert_eq!(got.as_ref(), expected.get(name));
        }
        let raw = new.to_string();
        let edits: Vec<Edit<'_>> = NAMES.iter().zip(&kinds).filter_map(|(&name, kind)| match kind {
            0 => Some(Edit::Set(name, raw.as_bytes())),
            1 => Some(Edit::Replace(name, raw.as_bytes())),
            2 => Some(Edit::Remove(name)),
            _ => None,
        }).collect();
        for (name, kind) in NAMES.iter().zip(&kinds) {
            match kind {
                0 => { expected.insert((*name).to_owned(), new.clone()); }
                1 => { if let Some(value) = expected.get_mut(*name) { *value = new.clone(); } }
                2 => { expected.remove(*name); }
                _ => {}
            }
        }
        let spliced = object.splice(&edits);
        prop_assert_eq!(serde_json::from_slice::<Value>(&spliced).unwrap(), Value::Object(expected));
        // A pair that no edit names is in the result with every byte it had.
        let result = String::from_utf8(spliced).unwrap();
        for pair in &pairs {
            let untouched = NAMES.iter().zip(&kinds).any(|(&name, &kind)| name == pair.name && kind == 3);
            let own = format!("{}{}:{}{}", pair.key, pair.gaps[1], pair.gaps[2], pair.value);
            prop_assert!(!untouched || result.contains(&own), "{own} is not in {result}");
        }
    }

    /// Setting keys and removing them again gives the same bytes.
    #[test]
    fn what_was_added_can_be_removed(pairs in prop::collection::vec(pair(), 0..5)) {
        let body = text(&pairs);
        let added = Object::parse(body.as_bytes()).unwrap().splice(&[Edit::Set("new", b"{\"x\": [1]}")]);
        let removed = Object::parse(&added).unwrap().splice(&[Edit::Remove("new")]);
        prop_assert_eq!(removed, body.as_bytes());
    }

    /// serde_json and the splicer agree on what an object is, and nothing panics on noise.
    #[test]
    fn noise_is_refused_without_panic(
        noise in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..64),
            "[{}\\[\\]\":,\\\\ nulltruefalse0-9eE.+-]{0,40}".prop_map(String::into_bytes),
            (prop::collection::vec(pair(), 0..4), any::<prop::sample::Index>(), any::<u8>()).prop_map(|(pairs, at, byte)| {
                let mut bytes = text(&pairs).into_bytes();
                let at = at.index(bytes.len());
                bytes[at] = byte;
                bytes
            }),
        ],
    ) {
        let is_object = std::str::from_utf8(&noise).is_ok()
            && serde_json::from_slice::<std::collections::BTreeMap<Box<str>, serde::de::IgnoredAny>>(&noise).is_ok();
        let parsed = Object::parse(&noise);
        // The splicer accepts keys that no String can hold (lone surrogates), so it may accept more.
        prop_assert!(!is_object || parsed.is_ok());
        if let Ok(object) = parsed {
            prop_assert_eq!(object.splice(&[]), &noise[..]);
            drop(Wish::of(&object, true));
            for leg in [prefill_body(&object), decode_body(&object, Some("{}")), decode_body(&object, None)] {
                prop_assert!(Object::parse(&leg).is_ok(), "{}", String::from_utf8_lossy(&leg));
            }
        }
        drop(params_of(&noise));
        let _ = starts_with_server_error(&noise);
    }

    /// Where a stream is cut into chunks does not matter to what is known of it.
    #[test]
    fn a_boundary_does_not_depend_on_chunks(
        bytes in "[a:\r\n]{0,24}",
        cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6),
    ) {
        let mut at: Vec<usize> = cuts.iter().map(|c| c.index(bytes.len() + 1)).collect();
        at.extend([0, bytes.len()]);
        at.sort_unstable();
        let mut chunked = Boundary::default();
        for ends in at.windows(2) {
            chunked.feed(&bytes.as_bytes()[ends[0]..ends[1]]);
        }
        let mut whole = Boundary::default();
        whole.feed(bytes.as_bytes());
        prop_assert_eq!(chunked, whole);
        let complete = ["\n\n", "\r\r", "\r\n\r\n"].iter().any(|end| bytes.ends_with(end));
        prop_assert_eq!(whole.between_events(), bytes.is_empty() || complete);
    }
}
