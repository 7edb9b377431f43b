//! The `grpc-timeout` header: at most eight digits and a unit.

use std::time::Duration;

use http::{HeaderMap, HeaderValue};

pub(crate) const HEADER: &str = "grpc-timeout";

/// Reads the header; `Err` holds what is wrong with it.
pub(crate) fn parse(headers: &HeaderMap) -> Result<Option<Duration>, String> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    let malformed = || format!("is not at most 8 digits and one of H, M, S, m, u, n: {value:?}");
    let text = value.to_str().map_err(|_| malformed())?;
    let (digits, unit) = text.split_at_checked(text.len().saturating_sub(1)).ok_or_else(malformed)?;
    if digits.is_empty() || digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(malformed());
    }
    let amount: u64 = digits.parse().map_err(|_| malformed())?;
    Ok(Some(match unit {
        "H" => Duration::from_secs(amount * 3600),
        "M" => Duration::from_secs(amount * 60),
        "S" => Duration::from_secs(amount),
        "m" => Duration::from_millis(amount),
        "u" => Duration::from_micros(amount),
        "n" => Duration::from_nanos(amount),
        _ => return Err(malformed()),
    }))
}

/// Writes a duration in the finest unit that its eight digits can hold.
pub(crate) fn format(left: Duration) -> HeaderValue {
    const MOST: u128 = 99_999_999;
    let text = [(left.as_micros(), 'u'), (left.as_millis(), 'm'), (u128::from(left.as_secs()), 'S')]
        .into_iter()
        .find(|(amount, _)| *amount <= MOST)
        .map_or_else(|| format!("{MOST}S"), |(amount, unit)| format!("{amount}{unit}"));
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static("99999999S"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &'static str) -> Result<Option<Duration>, String> {
        parse(&HeaderMap::from_iter([(http::HeaderName::from_static(HEADER), HeaderValue::from_static(text))]))
    }

    #[test]
    fn every_unit_is_read() {
        for (text, expected) in [
            ("2H", Duration::from_secs(7200)),
            ("3M", Duration::from_secs(180)),
            ("4S", Duration::from_secs(4)),
            ("5m", Duration::from_millis(5)),
            ("6u", Duration::from_micros(6)),
            ("99999999n", Duration::from_nanos(99_999_999)),
        ] {
            assert_eq!(parsed(text), Ok(Some(expected)), "{text}");
        }
    }

    #[test]
    fn what_the_protocol_forbids_is_refused() {
        for text in ["", "S", "5", "123456789m", "-1S", "1.5S", "5 S", "5s"] {
            assert!(parsed(text).is_err(), "{text}");
        }
    }

    #[test]
    fn what_is_written_is_read_back() {
        for left in [Duration::ZERO, Duration::from_micros(1500), Duration::from_secs(90), Duration::from_secs(200_000)]
        {
            let headers = HeaderMap::from_iter([(http::HeaderName::from_static(HEADER), format(left))]);
            assert_eq!(parse(&headers), Ok(Some(left)));
        }
    }
}
