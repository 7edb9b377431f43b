//! What a request would become in memory, found out before it is read: a span of two bytes becomes hundreds.

use prost::bytes::Buf;
use prost::encoding::{DecodeContext, WireType, decode_key, decode_varint, skip_field};

/// Most messages in one request: spans, attributes, values, events and links. About 100 MiB once they are read.
const MAX_MESSAGES: usize = 500_000;
/// How deep they may nest, as `prost` has it.
const MAX_DEPTH: usize = 100;

/// A kind of message of OTLP's traces.
#[derive(Clone, Copy)]
enum Kind {
    Request,
    ResourceSpans,
    Resource,
    ScopeSpans,
    Scope,
    Span,
    Event,
    Link,
    KeyValue,
    AnyValue,
    Array,
    List,
    Other,
}

impl Kind {
    /// What the field with this number holds.
    fn of_field(self, number: u32) -> Option<Self> {
        Some(match (self, number) {
            (Self::Request, 1) => Self::ResourceSpans,
            (Self::ResourceSpans, 1) => Self::Resource,
            (Self::ResourceSpans, 2) => Self::ScopeSpans,
            (Self::ScopeSpans, 1) => Self::Scope,
            (Self::ScopeSpans, 2) => Self::Span,
            (Self::Span, 11) => Self::Event,
            (Self::Span, 13) => Self::Link,
            (Self::Resource, 1) | (Self::Scope | Self::Event, 3) | (Self::Link, 4) | (Self::Span, 9) => Self::KeyValue,
            (Self::List, 1) => Self::KeyValue,
            (Self::KeyValue, 2) | (Self::Array, 1) => Self::AnyValue,
            (Self::AnyValue, 5) => Self::Array,
            (Self::AnyValue, 6) => Self::List,
            (Self::Resource, 3) | (Self::Span, 15) => Self::Other,
            _ => return None,
        })
    }
}

/// Refuses a request in protobuf that holds more messages than may be read, or is none.
pub fn protobuf(request: &[u8]) -> Result<(), String> {
    let mut left = MAX_MESSAGES;
    count(request, Kind::Request, MAX_DEPTH, &mut left)
}

fn count(mut bytes: &[u8], kind: Kind, depth: usize, left: &mut usize) -> Result<(), String> {
    let broken = |error: prost::DecodeError| error.to_string();
    while bytes.has_remaining() {
        let (number, wire) = decode_key(&mut bytes).map_err(broken)?;
        if wire != WireType::LengthDelimited {
            skip_field(wire, number, &mut bytes, DecodeContext::default()).map_err(broken)?;
            continue;
        }
        let length = usize::try_from(decode_varint(&mut bytes).map_err(broken)?).unwrap_or(usize::MAX);
        let (inner, rest) = bytes.split_at_checked(length).ok_or("a field is longer than its message")?;
        if let Some(child) = kind.of_field(number) {
            *left = left.checked_sub(1).ok_or_else(too_many)?;
            let depth = depth.checked_sub(1).ok_or("it nests too deep")?;
            count(inner, child, depth, left)?;
        }
        bytes = rest;
    }
    Ok(())
}

/// Refuses a request in JSON that holds more objects and lists than may be read.
pub fn json(request: &[u8]) -> Result<(), String> {
    // Those in texts are counted too: they may become values later.
    let opened = request.iter().filter(|byte| matches!(byte, b'{' | b'[')).count();
    if opened <= MAX_MESSAGES { Ok(()) } else { Err(too_many()) }
}

fn too_many() -> String {
    format!("it holds more than {MAX_MESSAGES} spans, attributes and values; send fewer at once")
}

#[cfg(test)]
mod tests {
    use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
    use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, KeyValue, any_value::Value};
    use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans, Span};
    use prost::Message;

    use super::*;

    fn request(spans: Vec<Span>) -> Vec<u8> {
        let scope_spans = vec![ScopeSpans { spans, ..Default::default() }];
        let resource_spans = vec![ResourceSpans { scope_spans, ..Default::default() }];
        ExportTraceServiceRequest { resource_spans }.encode_to_vec()
    }

    #[test]
    fn what_would_become_too_much_is_refused_before_it_is_read() {
        assert_eq!(protobuf(&request(vec![Span::default(); 10_000])), Ok(()));
        assert!(protobuf(&request(vec![Span::default(); MAX_MESSAGES])).is_err());
        let values = vec![AnyValue { value: None }; MAX_MESSAGES];
        let value = Some(AnyValue { value: Some(Value::ArrayValue(ArrayValue { values })) });
        let attributes = vec![KeyValue { key: "k".into(), value, ..Default::default() }];
        assert!(protobuf(&request(vec![Span { attributes, ..Default::default() }])).is_err());
        assert!(protobuf(b"\x0a\x05abc").is_err(), "cut");
        assert!(json(&vec![b'['; MAX_MESSAGES + 1]).is_err());
        assert!(json(b"{\"resourceSpans\": []}").is_ok());
    }

    #[test]
    fn depth_has_an_end() {
        let mut value = AnyValue { value: None };
        for _ in 0..200 {
            value = AnyValue { value: Some(Value::ArrayValue(ArrayValue { values: vec![value] })) };
        }
        let attributes = vec![KeyValue { key: "k".into(), value: Some(value), ..Default::default() }];
        assert!(protobuf(&request(vec![Span { attributes, ..Default::default() }])).is_err());
    }
}
