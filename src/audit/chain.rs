//! The chain: each line carries its number and the SHA-256 of the line before it, and now and then a line is signed.
//!
//! A line is `{"seq":N,"prev":"HEX",…}`, exactly so: the hash is over the bytes of the line without its newline, and the
//! signature of a checkpoint over its bytes up to `,"signature":`. Nothing is ever written out again to be checked.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::digest::{SHA256, digest};
use data_encoding::HEXLOWER;
use serde::{Deserialize, Serialize};

use super::key::{PublicKey, SIGNATURE_BYTES, SigningKey};
use crate::clock::Timestamp;

/// The longest line, in bytes: more than the largest request can cause, even with every character escaped.
pub const MAX_LINE: usize = 1024 * 1024;
/// What the signed bytes begin with, so that this signature means nothing anywhere else.
const CONTEXT: &[u8] = b"sidemint audit checkpoint v1\n";
const SIGNATURE: &[u8] = b",\"signature\":\"";

/// The SHA-256 of one line.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct LineHash([u8; 32]);

impl LineHash {
    /// What the first line of a chain names as the line before it.
    pub const NONE: Self = Self([0; 32]);

    /// The hash of `line`, given without its newline.
    pub fn of(line: &[u8]) -> Self {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, line).as_ref());
        Self(hash)
    }
}

impl fmt::Display for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&HEXLOWER.encode(&self.0))
    }
}

impl fmt::Debug for LineHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The end of a chain: the number and the hash of its last line. Written `SEQ:HASH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Head {
    /// The number of the last line; 0 while there is none.
    pub seq: u64,
    /// Its hash.
    pub hash: LineHash,
}

impl Head {
    /// The head of a chain without lines.
    pub const START: Self = Self { seq: 0, hash: LineHash::NONE };

    /// Appends `body`, a JSON object with at least one member, to `out` as the next line of the chain.
    pub(super) fn seal(&mut self, body: &[u8], out: &mut Vec<u8>) {
        let start = self.open(out);
        out.extend_from_slice(body.get(1..).unwrap_or_default());
        self.finish(start, out);
    }

    /// The same for a checkpoint, which is signed.
    pub(super) fn seal_checkpoint(&mut self, body: &[u8], key: &SigningKey, out: &mut Vec<u8>) {
        let start = self.open(out);
        out.extend_from_slice(body.get(1..body.len().saturating_sub(1)).unwrap_or_default());
        let signature = key.sign(&signed(out.get(start..).unwrap_or_default()));
        out.extend_from_slice(SIGNATURE);
        out.extend_from_slice(HEXLOWER.encode(&signature).as_bytes());
        out.extend_from_slice(b"\"}");
        self.finish(start, out);
    }

    fn open(&self, out: &mut Vec<u8>) -> usize {
        let start = out.len();
        out.extend_from_slice(
            format!("{{\"seq\":{},\"prev\":\"{}\",", self.seq.saturating_add(1), self.hash).as_bytes(),
        );
        start
    }

    fn finish(&mut self, start: usize, out: &mut Vec<u8>) {
        *self = Self { seq: self.seq.saturating_add(1), hash: LineHash::of(out.get(start..).unwrap_or_default()) };
        out.push(b'\n');
    }
}

impl fmt::Display for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.seq, self.hash)
    }
}

/// A text is not `SEQ:HASH`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("write SEQ:HASH, the number of a line and the 64 hexadecimal digits of its SHA-256")]
pub struct NotAHead;

impl FromStr for Head {
    type Err = NotAHead;

    fn from_str(text: &str) -> Result<Self, NotAHead> {
        let (seq, hash) = text.split_once(':').ok_or(NotAHead)?;
        let digits = !seq.is_empty() && seq.bytes().all(|byte| byte.is_ascii_digit());
        let seq = if digits { seq.parse().map_err(|_| NotAHead)? } else { return Err(NotAHead) };
        Ok(Self { seq, hash: LineHash(unhex(hash.as_bytes()).ok_or(NotAHead)?) })
    }
}

/// Why a checkpoint was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// It is the first line of a new file; `prev` names the last line of the file before.
    Created,
    /// The sidecar has started, and goes on with what was there.
    Started,
    /// So many lines or so much time since the last one.
    Interval,
    /// It is the last line of a file that is full or old.
    Rotated,
    /// The sidecar stops in order.
    Stopped,
}

/// The members of a checkpoint beside `seq`, `prev` and `signature`.
#[derive(Debug, Clone, Serialize)]
pub struct Checkpoint {
    /// When, UTC.
    pub time: Timestamp,
    /// Always `checkpoint`.
    pub event: &'static str,
    /// Why now.
    pub outcome: Cause,
    /// The number of the file, counted from 1; absent where the log is no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<u64>,
    /// How many lines the file has, with this one; absent where the log is no file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<u64>,
    /// The key that signs.
    pub key: PublicKey,
}

/// The number of `line` and the hash it has of the line before; `None` when it is no line of a chain.
pub(super) fn link(line: &[u8]) -> Option<(u64, LineHash)> {
    let rest = line.strip_prefix(b"{\"seq\":")?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let (number, rest) = rest.split_at_checked(digits)?;
    // One way to write each number: nothing may be changed in a line without changing what is read.
    if number.first() == Some(&b'0') {
        return None;
    }
    let seq = std::str::from_utf8(number).ok()?.parse().ok()?;
    let rest = rest.strip_prefix(b",\"prev\":\"")?;
    let (hash, rest) = rest.split_at_checked(64)?;
    rest.starts_with(b"\",").then_some((seq, LineHash(unhex(hash)?)))
}

/// Whether `line`, a checkpoint, is signed by `key`.
pub(super) fn is_signed_by(line: &[u8], key: &PublicKey) -> bool {
    let parts = || {
        let rest = line.strip_suffix(b"\"}")?;
        let (rest, signature) = rest.split_at_checked(rest.len().checked_sub(2 * SIGNATURE_BYTES)?)?;
        Some((rest.strip_suffix(SIGNATURE)?, unhex::<SIGNATURE_BYTES>(signature)?))
    };
    parts().is_some_and(|(bytes, signature)| key.verifies(&signed(bytes), &signature))
}

fn signed(line: &[u8]) -> Vec<u8> {
    [CONTEXT, line].concat()
}

/// Reads exactly `N` bytes of lower-case hexadecimal digits.
fn unhex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    HEXLOWER.decode(text).ok()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn each_line_names_its_number_and_the_hash_of_the_line_before() {
        let (mut head, mut out) = (Head::START, Vec::new());
        head.seal(br#"{"a":1}"#, &mut out);
        let first = out.len();
        head.seal(br#"{"b":2}"#, &mut out);
        assert_eq!(link(&out), Some((1, LineHash::NONE)));
        assert_eq!(link(&out[first..]), Some((2, LineHash::of(&out[..first - 1]))));
        assert!(out.ends_with(b",\"b\":2}\n"));
        assert_eq!(head.to_string().parse(), Ok(head));
    }

    #[test]
    fn accepts_one_form_of_a_number_only() {
        let zeros = "0".repeat(64);
        for (line, seq) in [
            (format!("{{\"seq\":7,\"prev\":\"{zeros}\",\"a\":1}}"), Some(7)),
            (format!("{{\"seq\":07,\"prev\":\"{zeros}\",\"a\":1}}"), None),
            (format!("{{\"seq\":0,\"prev\":\"{zeros}\",\"a\":1}}"), None),
            (format!("{{\"seq\":+7,\"prev\":\"{zeros}\",\"a\":1}}"), None),
            (format!("{{\"seq\": 7,\"prev\":\"{zeros}\",\"a\":1}}"), None),
            (format!("{{\"seq\":7,\"prev\":\"{}\",\"a\":1}}", "A".repeat(64)), None),
            (format!("{{\"seq\":99999999999999999999,\"prev\":\"{zeros}\",\"a\":1}}"), None),
        ] {
            assert_eq!(link(line.as_bytes()).map(|(seq, _)| seq), seq, "{line}");
        }
    }

    proptest! {
        #[test]
        fn parsing_arbitrary_bytes_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = link(&bytes);
            let _ = String::from_utf8_lossy(&bytes).parse::<Head>();
        }
    }
}
