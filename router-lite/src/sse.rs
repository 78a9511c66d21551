//! The little the router needs to know about server-sent events: where an event ends, and whether a stream begins
//! with an error instead of an answer. The bytes themselves pass through as they come.

use serde::Deserialize;

/// Follows a stream and knows whether it stands between two events, the only place where one may be added.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Boundary {
    /// The last four bytes, newest last.
    tail: [u8; 4],
    seen: bool,
}

impl Boundary {
    /// Takes in the next bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.seen |= !bytes.is_empty();
        let fresh = &bytes[bytes.len().saturating_sub(4)..];
        self.tail.rotate_left(fresh.len());
        let keep = self.tail.len() - fresh.len();
        self.tail[keep..].copy_from_slice(fresh);
    }

    /// Whether the last event is complete.
    #[must_use]
    pub fn between_events(&self) -> bool {
        !self.seen
            || self.tail.ends_with(b"\n\n")
            || self.tail.ends_with(b"\r\r")
            || self.tail == *b"\r\n\r\n"
    }
}

#[derive(Deserialize)]
struct Event {
    error: Option<ErrorBody>,
}

#[derive(Deserialize)]
struct ErrorBody {
    code: Option<serde_json::Value>,
}

/// Whether a stream's first bytes are an event that reports a server-side error. vLLM answers 200 before it starts
/// to work, so a failed hand-off shows only here; nothing has reached the client yet and the request can go
/// elsewhere. Errors that blame the client (codes below 500) are an answer like any other.
#[must_use]
pub fn starts_with_server_error(first: &[u8]) -> bool {
    let line = first.split(|b| matches!(b, b'\n' | b'\r')).next().unwrap_or_default();
    let Some(data) = line.strip_prefix(b"data:") else {
        return false;
    };
    if !data.trim_ascii_start().starts_with(b"{\"error\"") {
        return false;
    }
    let code = serde_json::from_slice::<Event>(data).ok().and_then(|event| event.error).and_then(|e| e.code);
    match code {
        Some(serde_json::Value::Number(n)) => n.as_u64().is_some_and(|n| n >= 500),
        Some(serde_json::Value::String(s)) => s.parse::<u64>().is_ok_and(|n| n >= 500),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_end_of_an_event_over_any_cut() {
        for text in ["data: 1\n\n", "data: 1\r\n\r\n", "data: 1\r\r"] {
            for cut in 0..text.len() {
                let mut boundary = Boundary::default();
                assert!(boundary.between_events());
                boundary.feed(&text.as_bytes()[..cut]);
                assert_eq!(boundary.between_events(), cut == 0, "{text:?} cut at {cut}");
                boundary.feed(&text.as_bytes()[cut..]);
                assert!(boundary.between_events(), "{text:?} cut at {cut}");
            }
        }
    }

    #[test]
    fn recognises_a_stream_that_starts_with_a_server_error() {
        assert!(starts_with_server_error(
            b"data: {\"error\":{\"message\":\"kv load failed\",\"code\":500}}\n\n"
        ));
        assert!(starts_with_server_error(b"data: {\"error\": {\"code\":\"503\"}}\r\n\r\ndata: [DONE]\n\n"));
        for fine in [
            &b"data: {\"error\":{\"code\":400}}\n\n"[..],
            b"data: {\"choices\":[{\"text\":\"{\\\"error\\\":{\\\"code\\\":500}}\"}]}\n\n",
            b"data: {\"error\":{\"code\":5",
            b": comment\n\n",
            b"",
        ] {
            assert!(!starts_with_server_error(fine));
        }
    }
}
