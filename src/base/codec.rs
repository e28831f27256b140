//! The byte codec of rows and of the vault's structures: little-endian integers, LEB128 varints, length-prefixed bytes.
//!
//! Writing cannot fail. Reading checks every length against what is there before it believes it, so input from a disk or
//! a remote can neither panic nor make us allocate more than it is long.

use bytes::Bytes;

/// Why bytes are not what they should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The bytes end too early.
    #[error("the data ends in the middle of {0}")]
    Truncated(&'static str),
    /// There are bytes after the end.
    #[error("there are {0} bytes after the end")]
    Trailing(usize),
    /// A value is outside what the format allows.
    #[error("{0} is not valid")]
    Invalid(&'static str),
    /// A length is above the limit of the format.
    #[error("{what} has length {length}, more than {limit}")]
    TooLong {
        /// What it is.
        what: &'static str,
        /// Its length as it claims.
        length: u64,
        /// The limit.
        limit: usize,
    },
    /// Written by a newer version.
    #[error("{what} has version {version}, which this program does not know")]
    Version {
        /// What it is.
        what: &'static str,
        /// Its version.
        version: u8,
    },
}

/// Appends values to a buffer.
#[derive(Debug, Default)]
pub struct Writer {
    buffer: Vec<u8>,
}

impl Writer {
    /// An empty buffer.
    pub fn new() -> Self {
        Self::default()
    }

    /// An empty buffer with room for this many bytes.
    pub fn with_capacity(capacity: usize) -> Self {
        Self { buffer: Vec::with_capacity(capacity) }
    }

    /// One byte.
    pub fn u8(&mut self, value: u8) {
        self.buffer.push(value);
    }

    /// Two bytes, little-endian.
    pub fn u16(&mut self, value: u16) {
        self.buffer.extend_from_slice(&value.to_le_bytes());
    }

    /// Four bytes, little-endian.
    pub fn u32(&mut self, value: u32) {
        self.buffer.extend_from_slice(&value.to_le_bytes());
    }

    /// Eight bytes, little-endian.
    pub fn u64(&mut self, value: u64) {
        self.buffer.extend_from_slice(&value.to_le_bytes());
    }

    /// Eight bytes, little-endian, two's complement.
    pub fn i64(&mut self, value: i64) {
        self.buffer.extend_from_slice(&value.to_le_bytes());
    }

    /// LEB128: seven bits a byte, low bits first, the top bit set on all but the last; one to ten bytes.
    pub fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.buffer.push(value as u8 | 0x80);
            value >>= 7;
        }
        self.buffer.push(value as u8);
    }

    /// A length or count as a varint.
    pub fn length(&mut self, length: usize) {
        self.varint(length as u64);
    }

    /// The bytes alone: for parts of fixed length.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// A varint length, then the bytes.
    pub fn bytes(&mut self, bytes: &[u8]) {
        self.length(bytes.len());
        self.raw(bytes);
    }

    /// How much was written.
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// Whether nothing was written.
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// What was written so far.
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer
    }

    /// What was written.
    pub fn into_vec(self) -> Vec<u8> {
        self.buffer
    }

    /// What was written.
    pub fn into_bytes(self) -> Bytes {
        self.buffer.into()
    }
}

/// Takes values off the front of a slice.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads this slice from its beginning.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// What was not read yet.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }

    /// How many bytes were not read yet.
    pub fn remaining(&self) -> usize {
        self.rest.len()
    }

    /// The next `length` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] where there are fewer.
    pub fn raw(&mut self, length: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let (head, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated(what))?;
        self.rest = rest;
        Ok(head)
    }

    /// The next `N` bytes.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] where there are fewer.
    pub fn array<const N: usize>(&mut self, what: &'static str) -> Result<[u8; N], DecodeError> {
        let (head, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated(what))?;
        self.rest = rest;
        Ok(*head)
    }

    /// One byte.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] at the end.
    pub fn u8(&mut self, what: &'static str) -> Result<u8, DecodeError> {
        self.array::<1>(what).map(|[byte]| byte)
    }

    /// Two bytes, little-endian.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] where there are fewer.
    pub fn u16(&mut self, what: &'static str) -> Result<u16, DecodeError> {
        self.array(what).map(u16::from_le_bytes)
    }

    /// Four bytes, little-endian.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] where there are fewer.
    pub fn u32(&mut self, what: &'static str) -> Result<u32, DecodeError> {
        self.array(what).map(u32::from_le_bytes)
    }

    /// Eight bytes, little-endian.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] where there are fewer.
    pub fn u64(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// Eight bytes, little-endian, two's complement.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] where there are fewer.
    pub fn i64(&mut self, what: &'static str) -> Result<i64, DecodeError> {
        self.array(what).map(i64::from_le_bytes)
    }

    /// A varint. Only the shortest form is accepted, so that every value has one encoding.
    ///
    /// # Errors
    /// [`DecodeError::Truncated`] and [`DecodeError::Invalid`].
    pub fn varint(&mut self, what: &'static str) -> Result<u64, DecodeError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.u8(what)?;
            if shift == 63 && byte > 1 || shift > 0 && byte == 0 {
                return Err(DecodeError::Invalid(what));
            }
            value |= u64::from(byte & 0x7F) << shift;
            if byte < 0x80 {
                return Ok(value);
            }
        }
        Err(DecodeError::Invalid(what))
    }

    /// A varint that counts what follows, at most `limit` and at most what the bytes left over could hold if each item
    /// took one byte.
    ///
    /// # Errors
    /// As [`Reader::varint`], and [`DecodeError::TooLong`].
    pub fn count(&mut self, limit: usize, what: &'static str) -> Result<usize, DecodeError> {
        let length = self.varint(what)?;
        match usize::try_from(length) {
            Ok(count) if count > limit => Err(DecodeError::TooLong { what, length, limit }),
            Ok(count) if count > self.rest.len() => Err(DecodeError::Truncated(what)),
            Ok(count) => Ok(count),
            Err(_) => Err(DecodeError::TooLong { what, length, limit }),
        }
    }

    /// A varint length of at most `limit`, then that many bytes.
    ///
    /// # Errors
    /// As [`Reader::count`].
    pub fn bytes(&mut self, limit: usize, what: &'static str) -> Result<&'a [u8], DecodeError> {
        let length = self.count(limit, what)?;
        self.raw(length, what)
    }

    /// A version byte, which must be one of 1 to `newest`.
    ///
    /// # Errors
    /// [`DecodeError::Version`] for a newer one, [`DecodeError::Invalid`] for 0.
    pub fn version(&mut self, newest: u8, what: &'static str) -> Result<u8, DecodeError> {
        match self.u8(what)? {
            0 => Err(DecodeError::Invalid(what)),
            version if version > newest => Err(DecodeError::Version { what, version }),
            version => Ok(version),
        }
    }

    /// Checks that everything was read.
    ///
    /// # Errors
    /// [`DecodeError::Trailing`] otherwise.
    pub fn finish(self) -> Result<(), DecodeError> {
        if self.rest.is_empty() { Ok(()) } else { Err(DecodeError::Trailing(self.rest.len())) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let mut writer = Writer::new();
        let varints = [0, 1, 127, 128, 300, u64::from(u32::MAX), u64::MAX];
        writer.u8(7);
        writer.u16(0x1234);
        writer.u32(0x1234_5678);
        writer.u64(u64::MAX - 1);
        writer.i64(-5);
        varints.iter().for_each(|&value| writer.varint(value));
        writer.bytes(b"abc");
        let bytes = writer.into_vec();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.u8("a"), Ok(7));
        assert_eq!(reader.u16("b"), Ok(0x1234));
        assert_eq!(reader.u32("c"), Ok(0x1234_5678));
        assert_eq!(reader.u64("d"), Ok(u64::MAX - 1));
        assert_eq!(reader.i64("e"), Ok(-5));
        for value in varints {
            assert_eq!(reader.varint("f"), Ok(value));
        }
        assert_eq!(reader.bytes(3, "g"), Ok(&b"abc"[..]));
        assert_eq!(reader.finish(), Ok(()));
    }

    #[test]
    fn lengths_are_not_believed() {
        assert_eq!(Reader::new(&[5, 1, 2]).bytes(9, "x"), Err(DecodeError::Truncated("x")));
        let long = Reader::new(&[5, 1, 2, 3, 4, 5]).bytes(4, "x");
        assert_eq!(long, Err(DecodeError::TooLong { what: "x", length: 5, limit: 4 }));
        assert_eq!(Reader::new(&[0x80]).varint("x"), Err(DecodeError::Truncated("x")));
        assert_eq!(Reader::new(&[0x80, 0]).varint("x"), Err(DecodeError::Invalid("x")));
        assert_eq!(Reader::new(&[0xFF; 11]).varint("x"), Err(DecodeError::Invalid("x")));
        assert_eq!(Reader::new(&[9]).version(2, "x"), Err(DecodeError::Version { what: "x", version: 9 }));
        assert_eq!(Reader::new(&[1]).finish(), Err(DecodeError::Trailing(1)));
    }
}
