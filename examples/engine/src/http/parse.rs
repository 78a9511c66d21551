//! Request bodies: from bytes to fields, and what is wrong with them in the client's words.

use super::error::ApiError;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

/// The body, as far as it came.
pub(super) type ReceivedBody = Result<Bytes, BytesRejection>;

/// A JSON object whose fields can be read one by one.
pub(super) trait RequestBody: DeserializeOwned {
    /// The fields that can have a wrong type, with what they must be.
    const FIELDS: &'static [(&'static str, &'static str)];
}

/// Reads a JSON body.
pub(super) fn parse<T: RequestBody>(body: ReceivedBody) -> Result<T, ApiError> {
    let body = body.map_err(|error| ApiError::unreadable(error.status(), error.body_text()))?;
    read(&body)
}

fn read<T: RequestBody>(body: &[u8]) -> Result<T, ApiError> {
    if body.trim_ascii_start().starts_with(b"{") {
        match serde_json::from_slice(body) {
            Ok(parsed) => return Ok(parsed),
            Err(error) if !error.is_data() => return Err(ApiError::malformed(&error)),
            Err(_) => {}
        }
    }
    // Something has a wrong type. A second reading, which only bad requests pay for, finds out what.
    let value = serde_json::from_slice(body).map_err(|error| ApiError::malformed(&error))?;
    let Value::Object(object) = value else {
        return Err(ApiError::form("the body must be a JSON object with the fields of the request"));
    };
    match misfit::<T>(&object) {
        Some((name, expected)) => Err(ApiError::invalid(name, format!("{name} must be {expected}"))),
        // Every field is right by itself: one of them came twice, and the last one counts.
        None => T::deserialize(Value::Object(object))
            .map_err(|_| ApiError::form("a field of the request has the wrong type")),
    }
}

/// Reads an object within a body, the field `outer`.
pub(super) fn parse_inner<T: RequestBody>(
    outer: &'static str,
    object: Map<String, Value>,
) -> Result<T, ApiError> {
    match misfit::<T>(&object) {
        Some((name, expected)) => Err(ApiError::invalid(outer, format!("{outer}.{name} must be {expected}"))),
        None => T::deserialize(Value::Object(object))
            .map_err(|_| ApiError::invalid(outer, format!("{outer} must be an object"))),
    }
}

/// The first field that cannot be read.
fn misfit<T: RequestBody>(object: &Map<String, Value>) -> Option<(&'static str, &'static str)> {
    let fits = |name: &str, value: &Value| {
        let alone = Map::from_iter([(name.to_owned(), value.clone())]);
        T::deserialize(Value::Object(alone)).is_ok()
    };
    let wrong = |name: &str| object.get(name).is_some_and(|value| !fits(name, value));
    T::FIELDS.iter().copied().find(|(name, _)| wrong(name))
}

#[cfg(test)]
mod tests {
    use super::super::body::GenerateBody;
    use super::*;

    fn error(body: &str) -> ApiError {
        read::<GenerateBody>(body.as_bytes()).unwrap_err()
    }

    #[test]
    fn every_field_is_named_with_what_it_must_be() {
        for (name, expected) in GenerateBody::FIELDS {
            let error = error(&format!("{{\"unknown\": 1, \"{name}\": [{{}}]}}"));
            assert_eq!(error.param, Some(*name));
            assert_eq!(error.message, format!("{name} must be {expected}"));
        }
    }

    #[test]
    fn a_body_that_is_no_object_says_so() {
        for body in ["[]", " 7", "null", "\"prompt\"", "[\"tiny\"]"] {
            assert!(error(body).message.contains("a JSON object"), "{body}");
        }
        for body in ["", "{", "[1", "{\"prompt\": }", "{\"max_tokens\": \"x\", "] {
            assert!(error(body).message.starts_with("malformed JSON"), "{body}");
        }
    }

    #[test]
    fn the_last_of_several_values_counts() {
        let body = read::<GenerateBody>(br#"{"min_tokens": 1, "min_tokens": 2}"#).unwrap();
        assert_eq!(body.min_tokens, Some(2));
    }
}
