//! The byte form of rows and commands: little, canonical, and the same on every machine.
//!
//! Integers are LEB128 varints, strings and byte strings carry their length, sequences their count. A value has
//! exactly one encoding, because digests and payload hashes are taken over it. Decoding never
//! panics and never allocates more than the input can justify.

/// Why bytes could not be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The input ended inside a value.
    #[error("the input ends inside a value")]
    Truncated,
    /// A varint has more than 64 bits or a needless trailing zero.
    #[error("an integer is not in its shortest form")]
    Integer,
    /// A string is not UTF-8.
    #[error("a string is not valid UTF-8")]
    Text,
    /// A tag stands for nothing that this build knows.
    #[error("unknown {what} {tag}")]
    Tag {
        /// What was being decoded.
        what: &'static str,
        /// The tag found.
        tag: u64,
    },
    /// Bytes are no protobuf message of this kind.
    #[error("the bytes are no {0}")]
    Message(&'static str),
    /// Bytes are left after the value.
    #[error("{0} bytes are left after the value")]
    Trailing(usize),
}

/// Appends values to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    bytes: Vec<u8>,
}

impl Writer {
    /// An empty writer.
    pub fn new() -> Self {
        Self::default()
    }

    /// A writer that appends to `bytes`.
    pub fn over(bytes: Vec<u8>) -> Self {
        Self { bytes }
    }

    /// What was written.
    pub fn into_bytes(self) -> Vec<u8> {
        self.bytes
    }

    /// What was written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes
    }

    /// Forgets what was written; keeps the memory.
    pub fn clear(&mut self) {
        self.bytes.clear();
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.bytes.push(value);
    }

    /// A varint.
    pub fn u64(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.bytes.push((value as u8) | 0x80);
            value >>= 7;
        }
        self.bytes.push(value as u8);
    }

    /// A varint.
    pub fn u32(&mut self, value: u32) {
        self.u64(u64::from(value));
    }

    /// 16 bytes, big endian, so that byte order is number order.
    pub fn u128(&mut self, value: u128) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// 8 bytes, big endian, so that byte order is number order: for keys.
    pub fn key_u64(&mut self, value: u64) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// 2 bytes, big endian: for keys.
    pub fn key_u16(&mut self, value: u16) {
        self.bytes.extend_from_slice(&value.to_be_bytes());
    }

    /// A truth value.
    pub fn bool(&mut self, value: bool) {
        self.bytes.push(u8::from(value));
    }

    /// A byte string with its length.
    pub fn bytes(&mut self, value: &[u8]) {
        self.u64(value.len() as u64);
        self.bytes.extend_from_slice(value);
    }

    /// A string with its length.
    pub fn str(&mut self, value: &str) {
        self.bytes(value.as_bytes());
    }

    /// Bytes as they are.
    pub fn raw(&mut self, value: &[u8]) {
        self.bytes.extend_from_slice(value);
    }

    /// A sequence: its count, then each element.
    pub fn seq<T>(&mut self, values: &[T], mut each: impl FnMut(&mut Self, &T)) {
        self.u64(values.len() as u64);
        for value in values {
            each(self, value);
        }
    }

    /// An optional value.
    pub fn option<T>(&mut self, value: Option<&T>, each: impl FnOnce(&mut Self, &T)) {
        self.bool(value.is_some());
        if let Some(value) = value {
            each(self, value);
        }
    }
}

/// Takes values off a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What has not been read.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// Whether everything has been read.
    pub fn is_empty(&self) -> bool {
        self.rest.is_empty()
    }

    /// Fails unless everything has been read.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }

    /// The next `count` bytes as they are.
    pub fn raw(&mut self, count: usize) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(count).ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk::<N>().ok_or(DecodeError::Truncated)?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    pub fn u8(&mut self) -> Result<u8, DecodeError> {
        Ok(self.array::<1>()?[0])
    }

    /// A varint.
    pub fn u64(&mut self) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8()?;
            let bits = u64::from(byte & 0x7f);
            if shift == 63 && bits > 1 {
                return Err(DecodeError::Integer);
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                if byte == 0 && shift > 0 {
                    return Err(DecodeError::Integer);
                }
                return Ok(value);
            }
        }
        Err(DecodeError::Integer)
    }

    /// A varint of at most 32 bits.
    pub fn u32(&mut self) -> Result<u32, DecodeError> {
        u32::try_from(self.u64()?).map_err(|_| DecodeError::Integer)
    }

    /// A varint of at most 16 bits.
    pub fn u16(&mut self) -> Result<u16, DecodeError> {
        u16::try_from(self.u64()?).map_err(|_| DecodeError::Integer)
    }

    /// 16 bytes, big endian.
    pub fn u128(&mut self) -> Result<u128, DecodeError> {
        self.array().map(u128::from_be_bytes)
    }

    /// 8 bytes, big endian.
    pub fn key_u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    /// 2 bytes, big endian.
    pub fn key_u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    /// A truth value.
    pub fn bool(&mut self) -> Result<bool, DecodeError> {
        match self.u8()? {
            0 => Ok(false),
            1 => Ok(true),
            tag => Err(DecodeError::Tag { what: "truth value", tag: tag.into() }),
        }
    }

    /// A byte string.
    pub fn bytes(&mut self) -> Result<&'a [u8], DecodeError> {
        let length = usize::try_from(self.u64()?).map_err(|_| DecodeError::Truncated)?;
        self.raw(length)
    }

    /// A string.
    pub fn str(&mut self) -> Result<&'a str, DecodeError> {
        std::str::from_utf8(self.bytes()?).map_err(|_| DecodeError::Text)
    }

    /// A sequence.
    pub fn seq<T>(
        &mut self,
        mut each: impl FnMut(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Vec<T>, DecodeError> {
        let count = usize::try_from(self.u64()?).map_err(|_| DecodeError::Truncated)?;
        // Every element takes a byte at least: a count beyond the input is a lie, not a size.
        if count > self.rest.len() {
            return Err(DecodeError::Truncated);
        }
        (0..count).map(|_| each(self)).collect()
    }

    /// An optional value.
    pub fn option<T>(
        &mut self,
        each: impl FnOnce(&mut Self) -> Result<T, DecodeError>,
    ) -> Result<Option<T>, DecodeError> {
        if self.bool()? { each(self).map(Some) } else { Ok(None) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn what_is_written_is_read_back(numbers: Vec<u64>, text: String, flag: bool, big: u128) {
            let mut writer = Writer::new();
            writer.seq(&numbers, |w, n| w.u64(*n));
            writer.str(&text);
            writer.option(Some(&big), |w, n| w.u128(*n));
            writer.bool(flag);
            let bytes = writer.into_bytes();
            let mut reader = Reader::new(&bytes);
            prop_assert_eq!(reader.seq(Reader::u64).unwrap(), numbers);
            prop_assert_eq!(reader.str().unwrap(), text);
            prop_assert_eq!(reader.option(Reader::u128).unwrap(), Some(big));
            prop_assert_eq!(reader.bool().unwrap(), flag);
            reader.finish().unwrap();
            for cut in 0..bytes.len() {
                let mut reader = Reader::new(&bytes[..cut]);
                let all = reader.seq(Reader::u64).and_then(|_| reader.str().map(drop))
                    .and_then(|()| reader.option(Reader::u128).map(drop)).and_then(|()| reader.bool());
                prop_assert!(all.is_err(), "a cut at {} went unnoticed", cut);
            }
        }

        #[test]
        fn garbage_never_panics(bytes: Vec<u8>) {
            let mut reader = Reader::new(&bytes);
            while !reader.is_empty() {
                if reader.clone().u64().is_err() && reader.u8().is_err() { break; }
                let _ = reader.seq(|r| r.str().map(str::len));
                let _ = reader.u64();
            }
        }
    }

    #[test]
    fn a_longer_form_of_an_integer_is_refused() {
        assert_eq!(Reader::new(&[0x80, 0x00]).u64(), Err(DecodeError::Integer));
        assert_eq!(Reader::new(&[0xff; 10]).u64(), Err(DecodeError::Integer));
    }
}
