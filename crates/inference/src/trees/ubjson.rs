//! UBJSON (draft 12) as XGBoost writes it, read straight into the structures of its JSON.

use std::fmt::Display;

use serde::de::{self, DeserializeOwned, DeserializeSeed, IntoDeserializer, MapAccess, SeqAccess, Visitor};

/// Containers within each other.
const MAX_DEPTH: usize = 64;

#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Error(String);

impl de::Error for Error {
    fn custom<T: Display>(message: T) -> Self {
        Self(message.to_string())
    }
}

type Result<T> = std::result::Result<T, Error>;

/// Reads a value that fills all bytes.
pub(super) fn from_slice<T: DeserializeOwned>(bytes: &[u8]) -> Result<T> {
    let mut reader = Reader { bytes, at: 0, depth: 0 };
    let marker = reader.marker()?;
    let value = T::deserialize(Value { reader: &mut reader, marker })?;
    if reader.at == bytes.len() { Ok(value) } else { reader.fail("bytes after the end of the model") }
}

struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
    depth: usize,
}

/// One value whose type is known.
struct Value<'r, 'a> {
    reader: &'r mut Reader<'a>,
    marker: u8,
}

/// The rest of an array or object.
struct Rest<'r, 'a> {
    reader: &'r mut Reader<'a>,
    /// The type of all values, where the container gives one.
    all: Option<u8>,
    /// Values that are left, where the container says how many it has.
    left: Option<usize>,
    end: u8,
}

impl<'a> Reader<'a> {
    fn fail<T>(&self, problem: impl Display) -> Result<T> {
        Err(Error(format!("{problem} at byte {}", self.at)))
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8]> {
        match self.bytes.get(self.at..).and_then(|rest| rest.get(..count)) {
            Some(taken) => {
                self.at += count;
                Ok(taken)
            }
            None => self.fail("the file is cut off"),
        }
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let mut array = [0; N];
        array.copy_from_slice(self.take(N)?);
        Ok(array)
    }

    fn byte(&mut self) -> Result<u8> {
        Ok(self.take(1)?[0])
    }

    /// The type of the next value.
    fn marker(&mut self) -> Result<u8> {
        loop {
            let marker = self.byte()?;
            if marker != b'N' {
                return Ok(marker);
            }
        }
    }

    fn whole(&mut self, marker: u8) -> Result<Option<i64>> {
        Ok(Some(match marker {
            b'i' => i64::from(i8::from_be_bytes(self.array()?)),
            b'U' => i64::from(self.byte()?),
            b'I' => i64::from(i16::from_be_bytes(self.array()?)),
            b'l' => i64::from(i32::from_be_bytes(self.array()?)),
            b'L' => i64::from_be_bytes(self.array()?),
            _ => return Ok(None),
        }))
    }

    fn length(&mut self, marker: u8) -> Result<usize> {
        match self.whole(marker)?.map(usize::try_from) {
            Some(Ok(length)) => Ok(length),
            _ => self.fail("expected a length"),
        }
    }

    fn text(&mut self, marker: u8) -> Result<&'a str> {
        let length = self.length(marker)?;
        let bytes = self.take(length)?;
        std::str::from_utf8(bytes).or_else(|_| self.fail("a text is not UTF-8"))
    }

    /// What follows `[` or `{`.
    fn open(&mut self, end: u8) -> Result<Rest<'_, 'a>> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return self.fail(format_args!("more than {MAX_DEPTH} containers within each other"));
        }
        let (mut all, mut left) = (None, None);
        if self.bytes.get(self.at) == Some(&b'$') {
            self.at += 1;
            let marker = self.byte()?;
            // Values without bytes would be as many as the container says, out of nothing.
            if !b"iUIlLdDSC[{H".contains(&marker) {
                return self.fail(format_args!("a container of type {:?}", char::from(marker)));
            }
            all = Some(marker);
        }
        if self.bytes.get(self.at) == Some(&b'#') {
            self.at += 1;
            let marker = self.byte()?;
            left = Some(self.length(marker)?);
        }
        if all.is_some() && left.is_none() {
            return self.fail("a container with a type and no length");
        }
        Ok(Rest { reader: self, all, left, end })
    }
}

impl Rest<'_, '_> {
    /// Tells whether there is another value, and takes the end where there is none.
    fn more(&mut self) -> Result<bool> {
        let more = match &mut self.left {
            Some(0) => false,
            Some(left) => {
                *left -= 1;
                true
            }
            None => self.reader.bytes.get(self.reader.at) != Some(&self.end),
        };
        if !more {
            if self.left.is_none() {
                self.reader.at += 1;
            }
            self.reader.depth -= 1;
        }
        Ok(more)
    }

    fn value<'de, S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        let marker = match self.all {
            Some(marker) => marker,
            None => self.reader.marker()?,
        };
        seed.deserialize(Value { reader: self.reader, marker })
    }
}

impl<'de> SeqAccess<'de> for Rest<'_, '_> {
    type Error = Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        if self.more()? { self.value(seed).map(Some) } else { Ok(None) }
    }

    fn size_hint(&self) -> Option<usize> {
        // No more than there are bytes: a length may say anything.
        self.left.map(|left| left.min(self.reader.bytes.len() - self.reader.at))
    }
}

impl<'de> MapAccess<'de> for Rest<'_, '_> {
    type Error = Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<Option<S::Value>> {
        if !self.more()? {
            return Ok(None);
        }
        let marker = self.reader.marker()?;
        let key = self.reader.text(marker)?;
        seed.deserialize(key.into_deserializer()).map(Some)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(&mut self, seed: S) -> Result<S::Value> {
        self.value(seed)
    }
}

impl<'de> de::Deserializer<'de> for Value<'_, '_> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let Self { reader, marker } = self;
        match marker {
            b'Z' => visitor.visit_unit(),
            b'T' => visitor.visit_bool(true),
            b'F' => visitor.visit_bool(false),
            b'd' => visitor.visit_f32(f32::from_be_bytes(reader.array()?)),
            b'D' => visitor.visit_f64(f64::from_be_bytes(reader.array()?)),
            b'C' => visitor.visit_char(char::from(reader.byte()?)),
            b'S' | b'H' => {
                let marker = reader.marker()?;
                visitor.visit_str(reader.text(marker)?)
            }
            b'[' => visitor.visit_seq(reader.open(b']')?),
            b'{' => visitor.visit_map(reader.open(b'}')?),
            _ => match reader.whole(marker)? {
                Some(number) => visitor.visit_i64(number),
                None => reader.fail(format_args!("type {:?}", char::from(marker))),
            },
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        if self.marker == b'Z' { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    serde::forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_that_lie_do_not_allocate() {
        for bytes in [
            &b"[$d#L\x7f\xff\xff\xff\xff\xff\xff\xff"[..],
            b"[$Z#L\x7f\xff\xff\xff\xff\xff\xff\xff",
            b"[#L\x7f\xff\xff\xff\xff\xff\xff\xffd",
            b"[$[#L\x7f\xff\xff\xff\xff\xff\xff\xff",
            b"[#L\xff\xff\xff\xff\xff\xff\xff\xff",
            b"[",
            b"",
        ] {
            assert!(from_slice::<Vec<f32>>(bytes).is_err(), "{bytes:?}");
        }
        let deep = [b'['; 100_000];
        assert!(from_slice::<serde_json::Value>(&deep).unwrap_err().to_string().contains("containers within"));
    }

    #[test]
    fn every_number_is_read() {
        let read: serde_json::Value = from_slice(b"[i\xffU\xffI\xff\xfel\xff\xff\xff\xfdL\0\0\0\0\0\0\0\x01d?\x80\0\0D\xbf\xf0\0\0\0\0\0\0TFZSi\x01a[$U#i\x02\x07\x08{i\x01kSi\x01v}]").unwrap();
        assert_eq!(read.to_string(), r#"[-1,255,-2,-3,1,1.0,-1.0,true,false,null,"a",[7,8],{"k":"v"}]"#);
    }
}
