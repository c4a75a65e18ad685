//! The values in messages: times, step ids and JSON.

use std::io;

use chrono::{DateTime, Utc};
use prost_types::Timestamp;
use serde::Serialize;
use serde_json::ser::{CompactFormatter, Formatter};
use serde_json::Value;

use crate::error::{Error, Result};

/// A time to send, with all its nanoseconds; the store truncates it to microseconds.
pub(crate) fn to_time(time: DateTime<Utc>) -> Timestamp {
    // chrono represents a leap second with a billion nanoseconds or more, which protobuf
    // does not allow.
    let nanos = time.timestamp_subsec_nanos();
    Timestamp {
        seconds: time.timestamp() + i64::from(nanos / 1_000_000_000),
        nanos: (nanos % 1_000_000_000) as i32,
    }
}

pub(crate) fn from_time(message: Option<Timestamp>) -> Result<Option<DateTime<Utc>>> {
    message
        .map(|message| {
            u32::try_from(message.nanos)
                .ok()
                .and_then(|nanos| DateTime::from_timestamp(message.seconds, nanos))
                .ok_or_else(|| Error::bad_response("an invalid time"))
        })
        .transpose()
}

pub(super) fn from_required_time(message: Option<Timestamp>) -> Result<DateTime<Utc>> {
    from_time(message)?.ok_or_else(|| Error::bad_response("no value for a required time"))
}

pub(crate) fn to_step_id(step_id: usize) -> Result<i64> {
    i64::try_from(step_id).map_err(|_| Error::invalid(format!("step id {step_id} is too large")))
}

pub(super) fn from_step_id(step_id: i64) -> Result<usize> {
    usize::try_from(step_id)
        .map_err(|_| Error::bad_response(&format!("the invalid step id {step_id}")))
}

/// A JSON value as text.
pub(super) fn to_json(value: &Value) -> String {
    let mut text = Vec::with_capacity(64);
    append_json(value, &mut text);
    String::from_utf8(text).expect("JSON is UTF-8")
}

/// Appends the same text.
pub(crate) fn append_json(value: &Value, text: &mut Vec<u8>) {
    value
        .serialize(&mut serde_json::Serializer::with_formatter(
            text, KeepFloats,
        ))
        .expect("keys are strings, and writing to memory does not fail");
}

pub(super) fn from_json(text: &str) -> Result<Value> {
    if text.is_empty() {
        return Err(Error::left_out("a document"));
    }
    serde_json::from_str(text)
        .map_err(|error| Error::bad_response(&format!("text that is not valid JSON: {error}")))
}

pub(super) fn from_optional_json(text: Option<String>) -> Result<Option<Value>> {
    text.as_deref().map(from_json).transpose()
}

/// Compact JSON whose floats remain floats in `jsonb`, which expands `1e16` to an integer,
/// so that it would be returned as one.
struct KeepFloats;

impl Formatter for KeepFloats {
    fn write_f64<W: ?Sized + io::Write>(&mut self, writer: &mut W, value: f64) -> io::Result<()> {
        if value.abs() < 1e15 {
            CompactFormatter.write_f64(writer, value)
        } else {
            write!(writer, "{value:.1}")
        }
    }
}

#[cfg(test)]
mod tests {
    use chrono::TimeZone;
    use serde_json::json;

    use super::*;

    #[test]
    fn times_are_exact_on_both_sides_of_1970() {
        for (seconds, nanos) in [
            (0, 0),
            (-1, 999_999_999),
            (-62_135_596_800, 0),
            (253_402_300_799, 999_999_999),
        ] {
            let time = Utc.timestamp_opt(seconds, nanos).unwrap();
            let message = to_time(time);
            assert_eq!(
                (message.seconds, message.nanos),
                (seconds, nanos as i32),
                "{time}"
            );
            assert_eq!(from_time(Some(message)).unwrap(), Some(time));
        }
    }

    #[test]
    fn a_leap_second_is_a_valid_timestamp() {
        let leap = DateTime::parse_from_rfc3339("2016-12-31T23:59:60.5Z")
            .unwrap()
            .to_utc();
        let message = to_time(leap);
        assert_eq!(
            from_time(Some(message)).unwrap().unwrap().to_rfc3339(),
            "2017-01-01T00:00:00.500+00:00"
        );
    }

    #[test]
    fn bad_times_are_errors() {
        for (seconds, nanos) in [(0, -1), (0, i32::MAX), (i64::MAX, 0)] {
            assert!(from_time(Some(Timestamp { seconds, nanos })).is_err());
        }
        assert!(from_required_time(None).is_err());
    }

    #[test]
    fn integers_keep_their_digits() {
        for text in [
            "18446744073709551615",
            "-9223372036854775808",
            "9007199254740993",
        ] {
            assert_eq!(to_json(&from_json(text).unwrap()), text);
        }
    }

    /// What PostgreSQL makes in `jsonb` of a number that has no fraction.
    fn through_jsonb(text: &str) -> String {
        let whole = |(digits, exponent): (&str, &str)| {
            let zeros = exponent.parse().ok()?;
            (!digits.contains('.')).then(|| format!("{digits}{}", "0".repeat(zeros)))
        };
        let expanded = text.split_once('e').and_then(whole);
        expanded.unwrap_or_else(|| text.to_string())
    }

    #[test]
    fn floats_stay_floats() {
        for number in [
            0.1,
            1e15,
            1e16,
            -1e16,
            1e21,
            1.5e300,
            f64::MAX,
            1e-7,
            5e-324,
        ] {
            let text = to_json(&json!(number));
            let back = from_json(&through_jsonb(&text)).unwrap();
            assert!(back.is_f64(), "{number} became {back} by {text}");
            assert_eq!(back.as_f64(), Some(number));
        }
    }

    #[test]
    fn text_is_escaped_as_json() {
        let value = json!({"\"k\\": "a\nb\u{1}ü😀"});
        assert_eq!(from_json(&to_json(&value)).unwrap(), value);
    }
}
