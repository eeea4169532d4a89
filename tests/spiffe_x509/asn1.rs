//! Just enough DER to write certificates that no library would: every part can be left out, doubled or spoilt.

/// A value of `tag`.
pub(crate) fn tlv(tag: u8, content: impl AsRef<[u8]>) -> Vec<u8> {
    let content = content.as_ref();
    let mut der = vec![tag];
    match content.len() {
        length @ ..0x80 => der.push(length as u8),
        length @ ..0x100 => der.extend([0x81, length as u8]),
        length @ ..0x1_0000 => der.extend([0x82, (length >> 8) as u8, length as u8]),
        length => der.extend([0x83, (length >> 16) as u8, (length >> 8) as u8, length as u8]),
    }
    der.extend(content);
    der
}

/// A SEQUENCE of these values.
pub(crate) fn seq(parts: &[Vec<u8>]) -> Vec<u8> {
    tlv(0x30, parts.concat())
}

/// An OBJECT IDENTIFIER, from its dotted form.
pub(crate) fn oid(dotted: &str) -> Vec<u8> {
    let arcs: Vec<u32> = dotted.split('.').map(|arc| arc.parse().unwrap()).collect();
    let mut content = vec![(arcs[0] * 40 + arcs[1]) as u8];
    for arc in &arcs[2..] {
        let groups = (1..5).rev().filter(|n| arc >> (7 * n) != 0);
        content.extend(groups.map(|n| 0x80 | (arc >> (7 * n)) as u8 & 0x7f));
        content.push(*arc as u8 & 0x7f);
    }
    tlv(0x06, content)
}

/// `NULL`.
pub(crate) fn null() -> Vec<u8> {
    vec![0x05, 0x00]
}

/// A name with an organisation and, unless it is empty, a common name.
pub(crate) fn name(organisation: &str, common: &str) -> Vec<u8> {
    let attribute = |id: &str, text: &str| tlv(0x31, seq(&[oid(id), tlv(0x0c, text)]));
    let mut parts = vec![attribute("2.5.4.10", organisation)];
    if !common.is_empty() {
        parts.push(attribute("2.5.4.3", common));
    }
    seq(&parts)
}

/// A time: UTCTime until 2049, GeneralizedTime from 2050 (RFC 5280 §4.1.2.5). `text` is `YYYYMMDDHHMMSS`.
pub(crate) fn time(text: &str) -> Vec<u8> {
    if ("1950".."2050").contains(&&text[..4]) {
        tlv(0x17, format!("{}Z", &text[2..]))
    } else {
        tlv(0x18, format!("{text}Z"))
    }
}

/// An extension.
pub(crate) fn extension(id: &str, critical: bool, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut parts = vec![oid(id)];
    if critical {
        parts.push(vec![0x01, 0x01, 0xff]);
    }
    parts.push(tlv(0x04, value));
    seq(&parts)
}

pub(crate) const KEY_USAGE: &str = "2.5.29.15";
pub(crate) const SAN: &str = "2.5.29.17";
pub(crate) const BASIC: &str = "2.5.29.19";
pub(crate) const NAMES: &str = "2.5.29.30";
pub(crate) const EXTENDED: &str = "2.5.29.37";
pub(crate) const SERVER: &str = "1.3.6.1.5.5.7.3.1";
pub(crate) const CLIENT: &str = "1.3.6.1.5.5.7.3.2";

/// Key usage with these bits (0 is digitalSignature).
pub(crate) fn key_usage(bits: &[u8]) -> Vec<u8> {
    let mut bytes = [0_u8; 2];
    bits.iter().for_each(|bit| bytes[usize::from(bit / 8)] |= 0x80 >> (bit % 8));
    let bytes = if bytes[1] == 0 { &bytes[..1] } else { &bytes[..] };
    let unused = bytes.last().unwrap().trailing_zeros().min(8) as u8;
    if bytes == [0] { tlv(0x03, [0]) } else { tlv(0x03, [&[unused], bytes].concat()) }
}

/// Extended key usage.
pub(crate) fn extended(purposes: &[&str]) -> Vec<u8> {
    seq(&purposes.iter().map(|purpose| oid(purpose)).collect::<Vec<_>>())
}

/// Basic constraints.
pub(crate) fn basic(ca: bool, path_length: Option<u8>) -> Vec<u8> {
    let mut parts = Vec::new();
    if ca {
        parts.push(vec![0x01, 0x01, 0xff]);
    }
    parts.extend(path_length.map(|length| tlv(0x02, [length])));
    seq(&parts)
}

pub(crate) fn uri(text: impl AsRef<[u8]>) -> Vec<u8> {
    tlv(0x86, text)
}

pub(crate) fn dns(text: &str) -> Vec<u8> {
    tlv(0x82, text)
}

/// Name constraints.
pub(crate) fn constraints(permitted: &[Vec<u8>], excluded: &[Vec<u8>]) -> Vec<u8> {
    let subtrees = |tag, list: &[Vec<u8>]| {
        let list: Vec<_> = list.iter().map(|base| seq(std::slice::from_ref(base))).collect();
        if list.is_empty() { Vec::new() } else { tlv(tag, list.concat()) }
    };
    seq(&[subtrees(0xa0, permitted), subtrees(0xa1, excluded)])
}
