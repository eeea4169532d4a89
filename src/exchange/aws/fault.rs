//! What an answer of STS that is no credential means: one table, from HTTP status and error code to what to do.

use crate::clock::Timestamp;
use crate::retry::retry_after;

pub(super) use crate::exchange::fault::{Fault, Remedy};

/// The longest error code that is accepted and shown.
const MAX_CODE: usize = 64;

impl Fault {
    /// A fault of the way to STS: worth another try.
    pub(super) fn passing(detail: impl Into<String>) -> Self {
        Self { may_have_minted: true, ..Self::new(Remedy::Retry, detail) }
    }

    /// The same before anything was sent.
    pub(super) fn not_sent(detail: impl Into<String>) -> Self {
        Self::new(Remedy::Retry, detail)
    }

    /// An answer that cannot be STS's, or that says nothing.
    pub(super) fn distrust(detail: impl Into<String>) -> Self {
        Self { may_have_minted: true, ..Self::new(Remedy::Distrust, detail) }
    }

    /// An HTTP answer of STS that is an error: `body` is searched for its code and forgotten. `after` is its `Retry-After`.
    pub(super) fn of_sts(status: u16, body: &[u8], after: Option<&str>, now: Timestamp) -> Self {
        let code = error_code(body);
        let detail = match code {
            Some(code) => format!("{code} (HTTP {status})"),
            None => format!("HTTP {status} without an error code"),
        };
        let remedy = remedy(status, code);
        // Who answers for a server that failed does not know what it did; any other error is STS's own answer that it refused.
        let failed = status == 408 || status >= 500;
        let may_have_minted = remedy == Remedy::Distrust || failed && remedy != Remedy::Throttled;
        let retry_after = after.and_then(|value| retry_after(value, now));
        Self { retry_after, status: Some(status), may_have_minted, ..Self::new(remedy, detail) }
    }
}

/// The table (STS API reference, "Common Errors" and `AssumeRoleWithWebIdentity`; throttling words from botocore's
/// `_retry.json`; `InvalidArgument` is Ceph RGW's word for `ValidationError`).
fn remedy(status: u16, code: Option<&str>) -> Remedy {
    if status < 400 {
        // A redirect: the token goes to the configured endpoint or nowhere.
        return Remedy::Distrust;
    }
    match code {
        _ if status == 429 => Remedy::Throttled,
        Some(
            "Throttling"
            | "ThrottlingException"
            | "ThrottledException"
            | "RequestThrottled"
            | "RequestThrottledException"
            | "RequestLimitExceeded"
            | "TooManyRequestsException"
            | "BandwidthLimitExceeded"
            | "SlowDown",
        ) => Remedy::Throttled,
        _ if status == 408 || status >= 500 => Remedy::Retry,
        Some(
            "IDPCommunicationError"
            | "RequestTimeout"
            | "RequestTimeoutException"
            | "InternalError"
            | "InternalFailure"
            | "ServiceUnavailable",
        ) => Remedy::Retry,
        Some("ExpiredTokenException" | "ExpiredToken" | "InvalidIdentityToken") => Remedy::FreshSvid,
        Some(
            "PackedPolicyTooLarge"
            | "MalformedPolicyDocument"
            | "ValidationError"
            | "InvalidArgument"
            | "InvalidParameterValue",
        ) => Remedy::Fix,
        // IDPRejectedClaim, AccessDenied, RegionDisabledException and whatever else there is: fail closed.
        _ => Remedy::Refuse,
    }
}

/// The error code in an XML answer: the text of the first `<Code>` element, whether it stands in AWS's
/// `<ErrorResponse><Error>` or in Ceph RGW's bare `<Error>`. Only what looks like a code is one: a capital letter, then
/// letters and dots, no digit, as all of theirs. So no key or token that a hostile answer echoes can pass for one.
fn error_code(body: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(body).ok()?;
    let (_, after) = text.split_once("<Code>")?;
    let (code, _) = after.split_once("</Code>")?;
    let code = code.trim();
    let looks_right = code.starts_with(|c: char| c.is_ascii_uppercase())
        && code.bytes().all(|b| b.is_ascii_alphabetic() || b == b'.')
        && code.len() <= MAX_CODE;
    looks_right.then_some(code)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_795_452_513);

    #[test]
    fn reads_the_code_from_both_forms_of_error_and_nothing_else() {
        let aws = br#"<ErrorResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><Error><Type>Sender</Type>
            <Code>ExpiredTokenException</Code><Message>eyJhbGciOi.secret</Message></Error></ErrorResponse>"#;
        assert_eq!(error_code(aws), Some("ExpiredTokenException"));
        assert_eq!(error_code(b"<Error><Code>AccessDenied</Code></Error>"), Some("AccessDenied"));
        for body in [
            "",
            "<Code>",
            "<Code></Code>",
            "<Code>eyJhbGciOi</Code>",
            "<Code>A B</Code>",
            "<Code>A\n[31m</Code>",
            "<Code>Ab1Cd2</Code>",
        ] {
            assert_eq!(error_code(body.as_bytes()), None, "{body}");
        }
        assert_eq!(error_code(&[b"<Code>".as_slice(), &[b'A'; 65], b"</Code>"].concat()), None);
        assert_eq!(error_code(b"\xff<Code>AccessDenied</Code>"), None);
    }

    proptest! {
        #[test]
        fn a_fault_contains_only_a_code_and_a_status(status in 100_u16..600, body in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
            for body in [body, format!("<Error><Code>{text}</Code></Error>").into_bytes()] {
                let fault = Fault::of_sts(status, &body, Some(&text), NOW);
                prop_assert!(fault.detail.len() < 100);
                prop_assert!(fault.detail.chars().all(|c| c.is_ascii_alphanumeric() || " .()".contains(c)));
                if !(400..600).contains(&status) {
                    prop_assert_eq!(fault.remedy, Remedy::Distrust);
                }
            }
        }
    }
}
