//! Percent coding, XML text, hexadecimal.

use std::fmt::Write as _;

/// Percent-encodes all but RFC 3986's unreserved characters, as SigV4 wants it; `/` stays where `keep_slash` says so.
pub fn percent_encode(bytes: &[u8], keep_slash: bool) -> String {
    let mut text = String::with_capacity(bytes.len());
    for &byte in bytes {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => text.push(char::from(byte)),
            b'/' if keep_slash => text.push('/'),
            // Writing to a String cannot fail.
            _ => _ = write!(text, "%{byte:02X}"),
        }
    }
    text
}

/// Percent-decodes; `+` is a space where `form` says so. `None` for a broken escape.
pub fn percent_decode(text: &str, form: bool) -> Option<Vec<u8>> {
    let mut bytes = text.bytes();
    let mut decoded = Vec::with_capacity(text.len());
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let high = char::from(bytes.next()?).to_digit(16)?;
                let low = char::from(bytes.next()?).to_digit(16)?;
                u8::try_from(high * 16 + low).ok()?
            }
            b'+' if form => b' ',
            other => other,
        });
    }
    Some(decoded)
}

/// Reads `a=b&c=d`, percent-decoded. `None` for broken escapes, text that is not UTF-8, or a name that comes twice.
pub fn parse_pairs(text: &str, form: bool) -> Option<Vec<(String, String)>> {
    let mut pairs: Vec<(String, String)> = Vec::new();
    for part in text.split('&').filter(|part| !part.is_empty()) {
        let (name, value) = part.split_once('=').unwrap_or((part, ""));
        let name = String::from_utf8(percent_decode(name, form)?).ok()?;
        let value = String::from_utf8(percent_decode(value, form)?).ok()?;
        if pairs.iter().any(|(known, _)| *known == name) {
            return None;
        }
        pairs.push((name, value));
    }
    Some(pairs)
}

/// Text as it stands between XML tags; characters that XML 1.0 cannot hold become `?`.
pub fn xml(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\t' | '\n' | '\r' => escaped.push(character),
            control if control < ' ' || matches!(control, '\u{fffe}' | '\u{ffff}') => escaped.push('?'),
            plain => escaped.push(plain),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn percent_coding_gives_back_what_it_took(bytes: Vec<u8>, keep_slash: bool) {
            prop_assert_eq!(percent_decode(&percent_encode(&bytes, keep_slash), false), Some(bytes));
        }

        #[test]
        fn decoding_never_panics(text: String, form: bool) {
            _ = percent_decode(&text, form);
            _ = parse_pairs(&text, form);
            _ = xml(&text);
        }
    }

    #[test]
    fn rejects_broken_escapes_and_names_that_come_twice() {
        assert_eq!(percent_decode("%4", false), None);
        assert_eq!(percent_decode("%+1", false), None);
        assert_eq!(parse_pairs("a=1&a=2", true), None);
        assert_eq!(parse_pairs("a=1+2&b", true).unwrap(), [("a".into(), "1 2".into()), ("b".into(), String::new())]);
    }

    #[test]
    fn xml_text_cannot_break_out_of_its_element() {
        assert_eq!(xml("</Code>&\"\u{1}"), "&lt;/Code&gt;&amp;&quot;?");
    }
}
