//! One certificate (RFC 5280 §4.1, §4.2), read strictly: what is not understood exactly is refused.

use rustls::pki_types::alg_id;

use super::X509SvidError;
use super::der::{Reader, Result, tag};

/// The most extensions that one certificate may have.
const MAX_EXTENSIONS: usize = 64;
/// The most names in one subject alternative name, and the most subtrees in name constraints.
const MAX_NAMES: usize = 256;

/// The object identifiers of `id-ce` (2.5.29) extensions.
mod oid {
    pub(super) const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
    pub(super) const SUBJECT_ALT_NAME: &[u8] = &[0x55, 0x1d, 0x11];
    pub(super) const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
    pub(super) const NAME_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x1e];
    pub(super) const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
    /// `id-kp-serverAuth` and `id-kp-clientAuth` (1.3.6.1.5.5.7.3.1 and .2).
    pub(super) const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
    pub(super) const CLIENT_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02];
}

/// A certificate, borrowed from its DER.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    /// The whole certificate.
    pub(super) der: &'a [u8],
    /// The signed part.
    pub(super) tbs: &'a [u8],
    /// The contents of the `AlgorithmIdentifier` of the signature.
    pub(super) signature_algorithm: &'a [u8],
    pub(super) signature: &'a [u8],
    pub(super) issuer: &'a [u8],
    pub(super) subject: &'a [u8],
    /// Seconds since 1970, inclusive.
    pub(super) not_before: i64,
    /// Seconds since 1970, inclusive.
    pub(super) not_after: i64,
    pub(super) key: PublicKey<'a>,
    pub(super) extensions: Extensions<'a>,
}

/// A public key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct PublicKey<'a> {
    /// The contents of its `AlgorithmIdentifier`.
    pub(super) algorithm: &'a [u8],
    pub(super) bits: &'a [u8],
}

/// The extensions that mean something here.
#[derive(Debug, Default)]
pub(super) struct Extensions<'a> {
    pub(super) basic_constraints: Option<BasicConstraints>,
    pub(super) key_usage: Option<KeyUsage>,
    pub(super) extended_key_usage: Option<ExtendedKeyUsage>,
    pub(super) names: Vec<Name<'a>>,
    pub(super) name_constraints: Option<NameConstraints<'a>>,
    /// Whether there is a critical one that means nothing here.
    pub(super) unknown_critical: bool,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct BasicConstraints {
    pub(super) ca: bool,
    pub(super) path_length: Option<usize>,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct KeyUsage {
    pub(super) critical: bool,
    bits: u8,
}

impl KeyUsage {
    pub(super) fn digital_signature(self) -> bool {
        self.bits & 0x80 != 0
    }

    pub(super) fn key_cert_sign(self) -> bool {
        self.bits & 0x04 != 0
    }

    pub(super) fn crl_sign(self) -> bool {
        self.bits & 0x02 != 0
    }
}

#[derive(Debug, Clone, Copy, Default)]
pub(super) struct ExtendedKeyUsage {
    pub(super) server_auth: bool,
    pub(super) client_auth: bool,
}

/// A `GeneralName` (RFC 5280 §4.2.1.6), by its form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Name<'a> {
    Uri(&'a str),
    Dns(&'a str),
    Email,
    Ip,
    Directory,
    /// `otherName`, `x400Address`, `ediPartyName`, `registeredID`: only their tag.
    Other(u8),
}

/// Name constraints (RFC 5280 §4.2.1.10).
#[derive(Debug, Default)]
pub(super) struct NameConstraints<'a> {
    pub(super) permitted: Vec<Name<'a>>,
    pub(super) excluded: Vec<Name<'a>>,
}

impl<'a> Certificate<'a> {
    /// Reads one certificate and nothing after it.
    pub(super) fn parse(der: &'a [u8]) -> Result<Self> {
        Reader::all(der, |reader| {
            let whole = reader.content(tag::SEQUENCE)?;
            Reader::all(whole, |reader| {
                let tbs = reader.element(tag::SEQUENCE)?;
                let signature_algorithm = reader.content(tag::SEQUENCE)?;
                let signature = whole_bytes(reader)?;
                Reader::all(tbs.content, |fields| Self::fields(fields, der, tbs.whole, signature_algorithm, signature))
            })
        })
    }

    fn fields(
        reader: &mut Reader<'a>,
        der: &'a [u8],
        tbs: &'a [u8],
        signature_algorithm: &'a [u8],
        signature: &'a [u8],
    ) -> Result<Self> {
        // version 3 alone: the earlier ones have no extensions, hence no SPIFFE ID and no cA
        match reader.optional(tag::constructed(0))? {
            Some([0x02, 0x01, 0x02]) => {}
            _ => return Err(X509SvidError::Version),
        }
        reader.integer()?; // the serial number
        if reader.content(tag::SEQUENCE)? != signature_algorithm {
            return Err(X509SvidError::Malformed("the two signature algorithms differ"));
        }
        let issuer = name(reader)?;
        let (not_before, not_after) = Reader::all(reader.content(tag::SEQUENCE)?, |r| Ok((time(r)?, time(r)?)))?;
        let subject = name(reader)?;
        let key = Reader::all(reader.content(tag::SEQUENCE)?, |r| {
            Ok(PublicKey { algorithm: r.content(tag::SEQUENCE)?, bits: whole_bytes(r)? })
        })?;
        // unique identifiers ([1], [2]) are not read: RFC 5280 §4.1.2.8 forbids them, and what follows must be [3]
        let extensions = match reader.optional(tag::constructed(3))? {
            Some(explicit) => Reader::all(explicit, |r| Extensions::parse(r.content(tag::SEQUENCE)?))?,
            None => Extensions::default(),
        };
        Ok(Self { der, tbs, signature_algorithm, signature, issuer, subject, not_before, not_after, key, extensions })
    }

    /// Whether `cA` is true.
    pub(super) fn is_ca(&self) -> bool {
        self.extensions.basic_constraints.is_some_and(|constraints| constraints.ca)
    }
}

impl<'a> PublicKey<'a> {
    /// Refuses keys of other kinds than P-256, P-384, Ed25519 and RSA of 2,048 to 8,192 bits.
    pub(super) fn check(self) -> Result<()> {
        let is = |id: rustls::pki_types::AlgorithmIdentifier| self.algorithm == id.as_ref();
        if is(alg_id::RSA_ENCRYPTION) {
            let modulus = Reader::all(self.bits, |reader| {
                Reader::all(reader.content(tag::SEQUENCE)?, |reader| {
                    let modulus = reader.integer()?;
                    reader.integer()?;
                    Ok(modulus)
                })
            })?;
            let digits = modulus.strip_prefix(&[0]).unwrap_or(modulus);
            let leading = digits.first().map_or(0, |first| first.leading_zeros() as usize);
            let bits = (digits.len() * 8).saturating_sub(leading);
            return if (2048..=8192).contains(&bits) { Ok(()) } else { Err(X509SvidError::WeakKey) };
        }
        if is(alg_id::ECDSA_P256) || is(alg_id::ECDSA_P384) || is(alg_id::ED25519) {
            Ok(())
        } else {
            Err(X509SvidError::Algorithm)
        }
    }
}

impl<'a> Extensions<'a> {
    fn parse(list: &'a [u8]) -> Result<Self> {
        let mut found = Self::default();
        let mut seen: Vec<&[u8]> = Vec::new();
        let mut reader = Reader::new(list);
        while !reader.is_at_end() {
            let (id, critical, value) = Reader::all(reader.content(tag::SEQUENCE)?, |r| {
                Ok((r.oid()?, r.flag()?, r.content(tag::OCTET_STRING)?))
            })?;
            // RFC 5280 §4.2: not more than one instance of a particular extension
            if seen.contains(&id) {
                return Err(X509SvidError::DuplicateExtension);
            }
            seen.push(id);
            if seen.len() > MAX_EXTENSIONS {
                return Err(X509SvidError::Malformed("too many extensions"));
            }
            found.add(id, critical, value)?;
        }
        if seen.is_empty() { Err(X509SvidError::Malformed("an empty list of extensions")) } else { Ok(found) }
    }

    fn add(&mut self, id: &[u8], critical: bool, value: &'a [u8]) -> Result<()> {
        match id {
            oid::KEY_USAGE => self.key_usage = Some(key_usage(critical, value)?),
            oid::SUBJECT_ALT_NAME => {
                self.names = subject_alt_name(value).map_err(|_| X509SvidError::SubjectAltName)?;
            }
            oid::BASIC_CONSTRAINTS => self.basic_constraints = Some(basic_constraints(value)?),
            oid::NAME_CONSTRAINTS => self.name_constraints = Some(name_constraints(value)?),
            oid::EXTENDED_KEY_USAGE => self.extended_key_usage = Some(extended_key_usage(value)?),
            _ => self.unknown_critical |= critical,
        }
        Ok(())
    }
}

/// A BIT STRING of whole bytes.
fn whole_bytes<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8]> {
    match reader.bits()? {
        (0, bytes) => Ok(bytes),
        _ => Err(X509SvidError::Malformed("a BIT STRING that is not of whole bytes")),
    }
}

/// A `Name` (RFC 5280 §4.1.2.4), checked for its structure and kept whole: names are compared byte by byte.
fn name<'a>(reader: &mut Reader<'a>) -> Result<&'a [u8]> {
    let name = reader.element(tag::SEQUENCE)?;
    let mut sets = Reader::new(name.content);
    while !sets.is_at_end() {
        let mut set = Reader::new(sets.content(tag::SET)?);
        loop {
            Reader::all(set.content(tag::SEQUENCE)?, |attribute| {
                attribute.oid()?;
                attribute.any()
            })?;
            if set.is_at_end() {
                break;
            }
        }
    }
    Ok(name.whole)
}

fn key_usage(critical: bool, value: &[u8]) -> Result<KeyUsage> {
    let (_, bytes) = Reader::all(value, Reader::bits)?;
    match bytes {
        // nine bits are defined; at least one must be set (RFC 5280 §4.2.1.3)
        [bits] | [bits, 0x80] if bytes.iter().any(|byte| *byte != 0) => Ok(KeyUsage { critical, bits: *bits }),
        _ => Err(X509SvidError::Malformed("a key usage that says nothing, or too much")),
    }
}

fn extended_key_usage(value: &[u8]) -> Result<ExtendedKeyUsage> {
    let mut purposes = Reader::new(Reader::all(value, |reader| reader.content(tag::SEQUENCE))?);
    let mut found = ExtendedKeyUsage::default();
    loop {
        match purposes.oid()? {
            oid::SERVER_AUTH => found.server_auth = true,
            oid::CLIENT_AUTH => found.client_auth = true,
            _ => {}
        }
        if purposes.is_at_end() {
            return Ok(found);
        }
    }
}

fn basic_constraints(value: &[u8]) -> Result<BasicConstraints> {
    Reader::all(value, |reader| {
        Reader::all(reader.content(tag::SEQUENCE)?, |reader| {
            let ca = reader.flag()?;
            let path_length = if reader.is_at_end() { None } else { Some(small(reader.integer()?)?) };
            match (ca, path_length) {
                (false, Some(_)) => Err(X509SvidError::Malformed("a path length of what is no CA")),
                _ => Ok(BasicConstraints { ca, path_length }),
            }
        })
    })
}

/// A path length: beyond one byte it is as good as none, and no CA writes one.
fn small(integer: &[u8]) -> Result<usize> {
    match integer {
        [value @ 0..=0x7f] | [0, value] => Ok((*value).into()),
        _ => Err(X509SvidError::Malformed("a path length that is negative or huge")),
    }
}

fn subject_alt_name(value: &[u8]) -> Result<Vec<Name<'_>>> {
    let mut list = Reader::new(Reader::all(value, |reader| reader.content(tag::SEQUENCE))?);
    let mut names = Vec::new();
    loop {
        names.push(general_name(&mut list, &[4, 16])?);
        if list.is_at_end() {
            return Ok(names);
        }
        if names.len() >= MAX_NAMES {
            return Err(X509SvidError::Malformed("too many names"));
        }
    }
}

/// One `GeneralName`; an IP address must have one of these lengths.
fn general_name<'a>(reader: &mut Reader<'a>, ip_lengths: &[usize]) -> Result<Name<'a>> {
    const OTHER: u8 = tag::constructed(0);
    const EMAIL: u8 = tag::primitive(1);
    const DNS: u8 = tag::primitive(2);
    const X400: u8 = tag::constructed(3);
    const DIRECTORY: u8 = tag::constructed(4);
    const EDI: u8 = tag::constructed(5);
    const URI: u8 = tag::primitive(6);
    const IP: u8 = tag::primitive(7);
    const REGISTERED_ID: u8 = tag::primitive(8);
    let element = reader.any()?;
    Ok(match element.tag {
        URI => Name::Uri(ia5(element.content)?),
        DNS => Name::Dns(ia5(element.content)?),
        EMAIL => ia5(element.content).map(|_| Name::Email)?,
        IP if ip_lengths.contains(&element.content.len()) => Name::Ip,
        DIRECTORY => Reader::all(element.content, name).map(|_| Name::Directory)?,
        OTHER => {
            Reader::all(element.content, |other| {
                other.oid()?;
                Reader::all(other.content(tag::constructed(0))?, Reader::any)
            })?;
            Name::Other(OTHER)
        }
        REGISTERED_ID if element.content.last().is_some_and(|last| last & 0x80 == 0) => Name::Other(REGISTERED_ID),
        X400 | EDI => Name::Other(element.tag),
        _ => return Err(X509SvidError::Malformed("a name of no known form")),
    })
}

/// An IA5String: ASCII.
fn ia5(bytes: &[u8]) -> Result<&str> {
    match std::str::from_utf8(bytes) {
        Ok(text) if text.is_ascii() => Ok(text),
        _ => Err(X509SvidError::Malformed("a name that is not ASCII")),
    }
}

fn name_constraints(value: &[u8]) -> Result<NameConstraints<'_>> {
    Reader::all(value, |reader| {
        Reader::all(reader.content(tag::SEQUENCE)?, |reader| {
            let permitted = reader.optional(tag::constructed(0))?.map(subtrees).transpose()?;
            let excluded = reader.optional(tag::constructed(1))?.map(subtrees).transpose()?;
            if permitted.is_none() && excluded.is_none() {
                return Err(X509SvidError::Malformed("name constraints that constrain nothing"));
            }
            let (permitted, excluded) = (permitted.unwrap_or_default(), excluded.unwrap_or_default());
            Ok(NameConstraints { permitted, excluded })
        })
    })
}

/// `GeneralSubtrees`: at least one, each only with its base (`minimum` is 0 and `maximum` absent, RFC 5280 §4.2.1.10).
fn subtrees(list: &[u8]) -> Result<Vec<Name<'_>>> {
    let mut reader = Reader::new(list);
    let mut names = Vec::new();
    loop {
        names.push(Reader::all(reader.content(tag::SEQUENCE)?, |subtree| general_name(subtree, &[8, 32]))?);
        if reader.is_at_end() {
            return Ok(names);
        }
        if names.len() >= MAX_NAMES {
            return Err(X509SvidError::Malformed("too many subtrees"));
        }
    }
}

/// A time in the two forms of RFC 5280 §4.1.2.5: seconds since 1970. No SVID needs an earlier one.
fn time(reader: &mut Reader<'_>) -> Result<i64> {
    const BAD: X509SvidError = X509SvidError::Malformed("an invalid time");
    let element = reader.any()?;
    let text = element.content.strip_suffix(b"Z").ok_or(BAD)?;
    if !text.iter().all(u8::is_ascii_digit) {
        return Err(BAD);
    }
    let mut pairs =
        text.chunks_exact(2).map(|pair| pair.iter().fold(0, |sum, digit| sum * 10 + i64::from(digit - b'0')));
    let mut next = || pairs.next().ok_or(BAD);
    let year = match (element.tag, text.len()) {
        (tag::UTC_TIME, 12) => match next()? {
            year @ 50.. => 1900 + year,
            year => 2000 + year,
        },
        (tag::GENERALIZED_TIME, 14) => next()? * 100 + next()?,
        _ => return Err(BAD),
    };
    let (month, day, hour, minute, second) = (next()?, next()?, next()?, next()?, next()?);
    let sane = (1..=12).contains(&month)
        && (1..=days_in(year, month)).contains(&day)
        && hour < 24
        && minute < 60
        && second < 60
        && year >= 1970;
    if !sane {
        return Err(BAD);
    }
    Ok(((days_before(year, month) + day - 1) * 24 + hour) * 3600 + minute * 60 + second)
}

const fn is_leap(year: i64) -> bool {
    year % 4 == 0 && (year % 100 != 0 || year % 400 == 0)
}

const fn days_in(year: i64, month: i64) -> i64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days from 1970-01-01 to the first of this month.
fn days_before(year: i64, month: i64) -> i64 {
    // leap days before 1 January of `year`, counted from year 0
    let leaps = |year: i64| (year + 3) / 4 - (year + 99) / 100 + (year + 399) / 400;
    let years = (year - 1970) * 365 + leaps(year) - leaps(1970);
    years + (1..month).map(|month| days_in(year, month)).sum::<i64>()
}
