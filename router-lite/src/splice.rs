//! Reads and edits the top level of a JSON object without touching a byte it was not asked to touch.
//!
//! A proxy that parses a body and writes it again changes it: key order, number spelling, duplicate keys,
//! escapes and unknown fields are all at the mercy of its JSON library. Here the body stays the bytes it was.
//! [`Object::parse`] checks that they are one JSON object and notes where its keys and values lie;
//! [`Object::splice`] copies them with some values replaced, removed or added. Nested values are never opened.
//!
//! Keys are compared after decoding (`"str\u0065am"` is `stream`). Among duplicate keys the last one counts, as
//! in Python's `json`, and an edit applies to all of them, so that a reader with another rule agrees.

use std::ops::Range;

/// Top-level keys accepted in one body. Real requests have a few dozen; the limit bounds what a hostile one costs.
pub const KEYS_MAX: usize = 1024;

/// Why bytes are not a JSON object.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum JsonError {
    /// The bytes are not UTF-8.
    #[error("the body is not valid UTF-8 at byte {offset}")]
    NotUtf8 {
        /// First bad byte.
        offset: usize,
    },
    /// The bytes are not JSON.
    #[error("the body is not valid JSON at byte {offset} (line {line}, column {column}): {reason}")]
    Syntax {
        /// Byte where the parser gave up.
        offset: usize,
        /// The same place as a line, from 1.
        line: usize,
        /// The same place as a byte column, from 1.
        column: usize,
        /// What the parser expected.
        reason: String,
    },
    /// The bytes are JSON, but no object.
    #[error("the body must be a JSON object, but it starts with {found:?}")]
    NotObject {
        /// First character of the value found.
        found: char,
    },
    /// More top-level keys than [`KEYS_MAX`].
    #[error("the body has more than {KEYS_MAX} top-level keys")]
    TooManyKeys,
}

/// One edit of a top-level key. Values are raw JSON and are written as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Edit<'e> {
    /// Replaces the value of the key, or adds the pair behind the last one.
    Set(&'e str, &'e [u8]),
    /// Replaces the value of the key if the key is there.
    Replace(&'e str, &'e [u8]),
    /// Removes the key, with the comma that belongs to it.
    Remove(&'e str),
}

impl<'e> Edit<'e> {
    fn name(&self) -> &'e str {
        match *self {
            Self::Set(name, _) | Self::Replace(name, _) | Self::Remove(name) => name,
        }
    }
}

#[derive(Clone, Debug)]
struct Entry {
    /// With its quotes.
    key: Range<usize>,
    value: Range<usize>,
}

/// A JSON object, as the bytes it was read from and the places of its top-level keys and values.
#[derive(Clone, Debug)]
pub struct Object<'a> {
    text: &'a str,
    /// Just behind the opening brace.
    open: usize,
    entries: Vec<Entry>,
}

impl<'a> Object<'a> {
    /// Checks that `bytes` are one JSON object and finds its top-level pairs.
    ///
    /// # Errors
    /// [`JsonError`], with the place of the first offence.
    pub fn parse(bytes: &'a [u8]) -> Result<Self, JsonError> {
        let text = std::str::from_utf8(bytes).map_err(|e| JsonError::NotUtf8 { offset: e.valid_up_to() })?;
        serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|e| syntax(text, &e))?;
        let mut scan = Scan { bytes, at: 0 };
        scan.whitespace();
        if scan.peek() != Some(b'{') {
            return Err(JsonError::NotObject { found: text[scan.at..].chars().next().unwrap_or(' ') });
        }
        scan.at += 1;
        let open = scan.at;
        let mut entries = Vec::new();
        while let Some(entry) = scan.entry() {
            if entries.len() == KEYS_MAX {
                return Err(JsonError::TooManyKeys);
            }
            entries.push(entry);
        }
        Ok(Self { text, open, entries })
    }

    /// Raw JSON of the last value under `name`.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&'a str> {
        let entry = self.entries.iter().rev().find(|e| self.is_key(e, name))?;
        Some(&self.text[entry.value.clone()])
    }

    /// The bytes with `edits` applied; everything else is copied as it stands.
    #[must_use]
    pub fn splice(&self, edits: &[Edit<'_>]) -> Vec<u8> {
        let bytes = self.text.as_bytes();
        let grown: usize = edits.iter().map(|e| e.name().len() + value_of(e).len() + 4).sum();
        let mut out = Vec::with_capacity(bytes.len() + grown);
        let mut found = vec![false; edits.len()];
        let first = self.entries.first().map_or(self.open, |e| e.key.start);
        out.extend_from_slice(&bytes[..first]);
        let mut kept_any = false;
        let mut gap_from = first;
        for entry in &self.entries {
            let gap = gap_from..entry.key.start;
            gap_from = entry.value.end;
            let edit = edits.iter().position(|e| self.is_key(entry, e.name()));
            if let Some(index) = edit {
                found[index] = true;
                if matches!(edits[index], Edit::Remove(_)) {
                    continue;
                }
            }
            if kept_any {
                out.extend_from_slice(&bytes[gap]);
            }
            kept_any = true;
            out.extend_from_slice(&bytes[entry.key.start..entry.value.start]);
            match edit {
                Some(index) => out.extend_from_slice(value_of(&edits[index])),
                None => out.extend_from_slice(&bytes[entry.value.clone()]),
            }
        }
        for (edit, _) in edits.iter().zip(found).filter(|(_, found)| !found) {
            if let Edit::Set(name, value) = edit {
                append_pair(&mut out, kept_any, name, value);
                kept_any = true;
            }
        }
        out.extend_from_slice(&bytes[gap_from..]);
        out
    }

    fn is_key(&self, entry: &Entry, name: &str) -> bool {
        let quoted = &self.text[entry.key.clone()];
        let plain = quoted.get(1..quoted.len() - 1).unwrap_or_default();
        if plain.contains('\\') {
            // A key that does not decode (a lone surrogate) cannot be one of ours.
            serde_json::from_str::<String>(quoted).is_ok_and(|decoded| decoded == name)
        } else {
            plain == name
        }
    }
}

fn value_of<'e>(edit: &Edit<'e>) -> &'e [u8] {
    match *edit {
        Edit::Set(_, value) | Edit::Replace(_, value) => value,
        Edit::Remove(_) => &[],
    }
}

fn append_pair(out: &mut Vec<u8>, comma: bool, name: &str, value: &[u8]) {
    if comma {
        out.push(b',');
    }
    // serde_json's string is the escaped, quoted form.
    out.extend_from_slice(serde_json::Value::from(name).to_string().as_bytes());
    out.push(b':');
    out.extend_from_slice(value);
}

fn syntax(text: &str, error: &serde_json::Error) -> JsonError {
    let (line, column) = (error.line(), error.column());
    let line_start: usize = text.split_inclusive('\n').take(line.saturating_sub(1)).map(str::len).sum();
    let offset = (line_start + column.saturating_sub(1)).min(text.len());
    let full = error.to_string();
    let reason = full.rsplit_once(" at line ").map_or(full.as_str(), |(reason, _)| reason).to_owned();
    JsonError::Syntax { offset, line, column, reason }
}

/// Walks bytes that are known to be valid JSON, so it needs to know only where things end. On anything else it
/// stops early; it never reads past the end.
struct Scan<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Scan<'_> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn whitespace(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    /// The next pair; `None` behind the last one.
    fn entry(&mut self) -> Option<Entry> {
        self.whitespace();
        if self.peek() == Some(b',') {
            self.at += 1;
            self.whitespace();
        }
        let key = self.string()?;
        self.whitespace();
        if self.peek() != Some(b':') {
            return None;
        }
        self.at += 1;
        self.whitespace();
        Some(Entry { key, value: self.value()? })
    }

    fn string(&mut self) -> Option<Range<usize>> {
        if self.peek() != Some(b'"') {
            return None;
        }
        let start = self.at;
        self.at += 1;
        loop {
            let rest = self.bytes.get(self.at..)?;
            let step = rest.iter().position(|b| matches!(b, b'"' | b'\\'))?;
            self.at += step;
            if self.peek() == Some(b'"') {
                self.at += 1;
                return Some(start..self.at);
            }
            self.at += 2;
        }
    }

    fn value(&mut self) -> Option<Range<usize>> {
        let start = self.at;
        match self.peek()? {
            b'"' => return self.string(),
            b'{' | b'[' => self.nested()?,
            _ => {
                let rest = &self.bytes[start..];
                let end = |b: &u8| matches!(b, b',' | b'}' | b']' | b' ' | b'\t' | b'\n' | b'\r');
                self.at += rest.iter().position(end)?;
            }
        }
        Some(start..self.at)
    }

    fn nested(&mut self) -> Option<()> {
        let mut depth = 0_usize;
        loop {
            match self.peek()? {
                b'"' => {
                    self.string()?;
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return Some(());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn splice(body: &str, edits: &[Edit<'_>]) -> String {
        String::from_utf8(Object::parse(body.as_bytes()).unwrap().splice(edits)).unwrap()
    }

    #[test]
    fn leaves_formatting_escapes_numbers_and_order_alone() {
        let body =
            " {\t\"b\" : 1.0e+2 ,\n \"\\u00e4\\ud800\": \"\\/x\\\"}\",\"a\":[1,{\"stream\":true}] } \n";
        assert_eq!(splice(body, &[]), body);
        assert_eq!(splice(body, &[Edit::Remove("stream"), Edit::Replace("c", b"1")]), body);
    }

    #[test]
    fn sets_replaces_and_removes() {
        let body = r#"{"a": 1, "stream" : true , "z":null}"#;
        assert_eq!(
            splice(body, &[Edit::Set("stream", b"false")]),
            r#"{"a": 1, "stream" : false , "z":null}"#
        );
        assert_eq!(splice(body, &[Edit::Remove("a")]), r#"{"stream" : true , "z":null}"#);
        assert_eq!(splice(body, &[Edit::Remove("z")]), r#"{"a": 1, "stream" : true}"#);
        assert_eq!(
            splice(body, &[Edit::Set("n", b"[2]")]),
            r#"{"a": 1, "stream" : true , "z":null,"n":[2]}"#
        );
    }

    #[test]
    fn removing_everything_leaves_an_empty_object_that_can_grow() {
        let body = r#"{ "a": 1, "b": 2 }"#;
        assert_eq!(splice(body, &[Edit::Remove("a"), Edit::Remove("b")]), "{  }");
        assert_eq!(
            splice(body, &[Edit::Remove("a"), Edit::Remove("b"), Edit::Set("c", b"3")]),
            r#"{ "c":3 }"#
        );
        assert_eq!(splice("{}", &[Edit::Set("c", b"3"), Edit::Set("d", b"4")]), r#"{"c":3,"d":4}"#);
    }

    #[test]
    fn edits_every_duplicate_and_reads_the_last() {
        let body = r#"{"stream":true,"x":0,"str\u0065am":1}"#;
        assert_eq!(Object::parse(body.as_bytes()).unwrap().get("stream"), Some("1"));
        assert_eq!(splice(body, &[Edit::Set("stream", b"2")]), r#"{"stream":2,"x":0,"str\u0065am":2}"#);
        assert_eq!(splice(body, &[Edit::Remove("stream")]), r#"{"x":0}"#);
    }

    #[test]
    fn names_the_place_of_the_error() {
        let error = Object::parse(b"{\n \"a\": 1,\n \"b\": tru }").unwrap_err();
        assert!(matches!(&error, JsonError::Syntax { offset: 20.., line: 3, .. }), "{error:?}");
        assert_eq!(Object::parse(b" [1]").unwrap_err(), JsonError::NotObject { found: '[' });
        assert_eq!(Object::parse(b"{\"a\": \"\xff\"}").unwrap_err(), JsonError::NotUtf8 { offset: 7 });
        for bad in ["", "{", "{\"a\"", "{\"a\":1,}", "{} x", "{'a':1}", "\u{feff}{}"] {
            assert!(Object::parse(bad.as_bytes()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn bounds_the_number_of_keys() {
        let pairs = |n: usize| format!("{{{}}}", vec!["\"k\":0"; n].join(","));
        assert!(Object::parse(pairs(KEYS_MAX).as_bytes()).is_ok());
        assert_eq!(Object::parse(pairs(KEYS_MAX + 1).as_bytes()).unwrap_err(), JsonError::TooManyKeys);
    }
}
