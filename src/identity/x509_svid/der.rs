//! A reader of DER (X.690 §10) that takes nothing else: definite lengths in their shortest form, single-byte tags.

use super::X509SvidError;

/// The tags that certificates need.
pub(super) mod tag {
    pub(in super::super) const BOOLEAN: u8 = 0x01;
    pub(in super::super) const INTEGER: u8 = 0x02;
    pub(in super::super) const BIT_STRING: u8 = 0x03;
    pub(in super::super) const OCTET_STRING: u8 = 0x04;
    pub(in super::super) const OBJECT_IDENTIFIER: u8 = 0x06;
    pub(in super::super) const UTC_TIME: u8 = 0x17;
    pub(in super::super) const GENERALIZED_TIME: u8 = 0x18;
    pub(in super::super) const SEQUENCE: u8 = 0x30;
    pub(in super::super) const SET: u8 = 0x31;

    /// `[number]`, constructed.
    pub(in super::super) const fn constructed(number: u8) -> u8 {
        0xa0 | number
    }

    /// `[number]`, primitive.
    pub(in super::super) const fn primitive(number: u8) -> u8 {
        0x80 | number
    }
}

/// What is read here is either DER or refused.
pub(super) type Result<T> = std::result::Result<T, X509SvidError>;

/// One value: its tag, its contents, and both with the length between them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    pub(super) whole: &'a [u8],
}

/// Reads the values that stand one after the other in some bytes.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// Reads `bytes` by `read`, which must leave nothing over.
    pub(super) fn all<T>(bytes: &'a [u8], read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        let mut reader = Self::new(bytes);
        let value = read(&mut reader)?;
        if reader.is_at_end() { Ok(value) } else { Err(X509SvidError::Malformed("bytes are left over")) }
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.rest.is_empty()
    }

    /// The next value, whatever its tag.
    pub(super) fn any(&mut self) -> Result<Element<'a>> {
        let start = self.rest;
        let tag = self.byte()?;
        if tag & 0x1f == 0x1f {
            return Err(X509SvidError::Malformed("a tag of more than one byte"));
        }
        let length = self.length()?;
        let (content, rest) = self.rest.split_at_checked(length).ok_or(CUT_SHORT)?;
        self.rest = rest;
        let (whole, _) = start.split_at_checked(start.len().saturating_sub(rest.len())).ok_or(CUT_SHORT)?;
        Ok(Element { tag, content, whole })
    }

    /// The next value, which must have this tag.
    pub(super) fn element(&mut self, tag: u8) -> Result<Element<'a>> {
        let element = self.any()?;
        if element.tag == tag { Ok(element) } else { Err(X509SvidError::Malformed("a value of another type")) }
    }

    /// The contents of the next value, which must have this tag.
    pub(super) fn content(&mut self, tag: u8) -> Result<&'a [u8]> {
        self.element(tag).map(|element| element.content)
    }

    /// The contents of the next value if it has this tag; else nothing is read.
    pub(super) fn optional(&mut self, tag: u8) -> Result<Option<&'a [u8]>> {
        if self.rest.first() == Some(&tag) { self.content(tag).map(Some) } else { Ok(None) }
    }

    /// A BOOLEAN that may be left out and then is false. A FALSE that is written out is taken: many issuers do it.
    pub(super) fn flag(&mut self) -> Result<bool> {
        match self.optional(tag::BOOLEAN)? {
            None | Some([0x00]) => Ok(false),
            Some([0xff]) => Ok(true),
            Some(_) => Err(X509SvidError::Malformed("a BOOLEAN that is neither 00 nor ff")),
        }
    }

    /// The contents of an INTEGER in its shortest form.
    pub(super) fn integer(&mut self) -> Result<&'a [u8]> {
        match self.content(tag::INTEGER)? {
            [] | [0x00, 0x00..=0x7f, ..] | [0xff, 0x80..=0xff, ..] => {
                Err(X509SvidError::Malformed("an INTEGER that is not in its shortest form"))
            }
            integer => Ok(integer),
        }
    }

    /// A BIT STRING: how many bits of its last byte do not count, and its bytes.
    pub(super) fn bits(&mut self) -> Result<(u8, &'a [u8])> {
        let (unused, bytes) = self.content(tag::BIT_STRING)?.split_first().ok_or(CUT_SHORT)?;
        // the bits that do not count are zero (X.690 §11.2.1)
        let padded = match bytes.last() {
            None => *unused == 0,
            Some(last) => *unused < 8 && last & !(0xff_u8 << unused) == 0,
        };
        if padded { Ok((*unused, bytes)) } else { Err(X509SvidError::Malformed("a BIT STRING with wrong padding")) }
    }

    /// The contents of an OBJECT IDENTIFIER.
    pub(super) fn oid(&mut self) -> Result<&'a [u8]> {
        let oid = self.content(tag::OBJECT_IDENTIFIER)?;
        let whole = oid.last().is_some_and(|last| last & 0x80 == 0);
        if whole { Ok(oid) } else { Err(X509SvidError::Malformed("an OBJECT IDENTIFIER that ends too soon")) }
    }

    fn byte(&mut self) -> Result<u8> {
        let (byte, rest) = self.rest.split_first().ok_or(CUT_SHORT)?;
        self.rest = rest;
        Ok(*byte)
    }

    /// Up to three bytes of length: more than any certificate that is read here.
    fn length(&mut self) -> Result<usize> {
        let first = self.byte()?;
        if first < 0x80 {
            return Ok(first.into());
        }
        let bytes = first & 0x7f;
        if !(1..=3).contains(&bytes) {
            return Err(X509SvidError::Malformed("an indefinite or too long length"));
        }
        let mut length = 0_usize;
        for _ in 0..bytes {
            length = length << 8 | usize::from(self.byte()?);
        }
        // the shortest form: no long form where the short one would do, no leading zero
        let least = if bytes == 1 { 0x80 } else { 1_usize << (8 * (bytes - 1)) };
        if length < least {
            Err(X509SvidError::Malformed("a length that is not in its shortest form"))
        } else {
            Ok(length)
        }
    }
}

const CUT_SHORT: X509SvidError = X509SvidError::Malformed("it ends too soon");
