//! The protobuf wire format: varints, fixed words and length-prefixed bytes, all little-endian.

use thiserror::Error;

/// Bytes that are no protobuf message, or not one of the expected type.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WireError {
    #[error("unexpected end of the message")]
    Truncated,
    #[error("a varint is longer than ten bytes")]
    Varint,
    #[error("wire type {0} is not supported")]
    WireType(u8),
    #[error("field number 0 is not allowed")]
    Number,
    #[error("the wire type does not fit the field")]
    Type,
    #[error("a string is not valid UTF-8")]
    Utf8,
    #[error("a number is out of range")]
    Range,
}

/// One value as it is on the wire.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Raw<'a> {
    Varint(u64),
    Fixed64(u64),
    Fixed32(u32),
    Bytes(&'a [u8]),
}

impl<'a> Raw<'a> {
    pub(super) fn bytes(self) -> Result<&'a [u8], WireError> {
        match self {
            Raw::Bytes(bytes) => Ok(bytes),
            _ => Err(WireError::Type),
        }
    }

    pub(super) fn text(self) -> Result<&'a str, WireError> {
        std::str::from_utf8(self.bytes()?)
            .ok()
            .ok_or(WireError::Utf8)
    }

    /// A varint as two's complement; an empty value (of a map entry) is 0.
    pub(super) fn integer(self) -> Result<i64, WireError> {
        match self {
            Raw::Varint(number) => Ok(number.cast_signed()),
            Raw::Bytes([]) => Ok(0),
            _ => Err(WireError::Type),
        }
    }

    pub(super) fn double(self) -> Result<f64, WireError> {
        match self {
            Raw::Fixed64(bits) => Ok(f64::from_bits(bits)),
            _ => Err(WireError::Type),
        }
    }
}

/// The fields of a message, in wire order; ends after the first error.
pub(super) struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    pub(super) fn new(message: &'a [u8]) -> Self {
        Self { rest: message }
    }

    fn varint(&mut self) -> Result<u64, WireError> {
        let mut value = 0;
        for shift in (0..70).step_by(7) {
            let (byte, rest) = self.rest.split_first().ok_or(WireError::Truncated)?;
            self.rest = rest;
            // The tenth byte holds one bit; what is beyond is cut off, as elsewhere.
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Varint)
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], WireError> {
        let (head, rest) = self
            .rest
            .split_at_checked(count)
            .ok_or(WireError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn field(&mut self) -> Result<(u32, Raw<'a>), WireError> {
        let key = self.varint()?;
        let number = u32::try_from(key >> 3).ok().ok_or(WireError::Number)?;
        if number == 0 {
            return Err(WireError::Number);
        }
        let raw = match key & 7 {
            0 => Raw::Varint(self.varint()?),
            1 => {
                let word = self.take(8)?.try_into().ok().ok_or(WireError::Truncated)?;
                Raw::Fixed64(u64::from_le_bytes(word))
            }
            2 => {
                let length = usize::try_from(self.varint()?)
                    .ok()
                    .ok_or(WireError::Truncated)?;
                Raw::Bytes(self.take(length)?)
            }
            5 => {
                let word = self.take(4)?.try_into().ok().ok_or(WireError::Truncated)?;
                Raw::Fixed32(u32::from_le_bytes(word))
            }
            other => return Err(WireError::WireType(other.to_le_bytes()[0])),
        };
        Ok((number, raw))
    }
}

impl<'a> Iterator for Fields<'a> {
    type Item = Result<(u32, Raw<'a>), WireError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.rest.is_empty() {
            return None;
        }
        let field = self.field();
        if field.is_err() {
            self.rest = &[];
        }
        Some(field)
    }
}

/// Varints without keys, as a packed list has them.
pub(super) fn packed(bytes: &[u8]) -> Result<Vec<i64>, WireError> {
    let mut reader = Fields::new(bytes);
    let mut numbers = Vec::new();
    while !reader.rest.is_empty() {
        numbers.push(reader.varint()?.cast_signed());
    }
    Ok(numbers)
}

/// The bytes of field `wanted` of a message, empty if it is not there.
pub(super) fn first_bytes(raw: Raw<'_>, wanted: u32) -> Result<&[u8], WireError> {
    let mut found = &[][..];
    for field in Fields::new(raw.bytes()?) {
        let (number, raw) = field?;
        if number == wanted {
            found = raw.bytes()?;
        }
    }
    Ok(found)
}

/// As [`first_bytes`], as text.
pub(super) fn first_text(raw: Raw<'_>, wanted: u32) -> Result<&str, WireError> {
    std::str::from_utf8(first_bytes(raw, wanted)?)
        .ok()
        .ok_or(WireError::Utf8)
}
