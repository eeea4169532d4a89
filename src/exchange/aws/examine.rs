//! What `doctor` looks at: whether STS can be reached, whether its clock is ours, and whether it takes our JWT-SVIDs.

use std::error::Error as _;

use aws_sdk_sts::error::SdkError;

use super::{AwsSts, TRY_LIMIT};
use crate::check::Check;
use crate::clock::{Timestamp, within};
use crate::exchange::{SvidFacts, SvidFlaw};
use crate::retry::http_date;

const REACH: &str = "STS";
const CLOCK: &str = "clock, STS";

impl AwsSts {
    /// Asks STS something that it must refuse: an exchange of no token at all. Any HTTP answer shows that it is there.
    pub(super) async fn look(&self) -> Vec<Check> {
        let settings = &self.settings;
        let location = settings.sts_endpoint.clone().unwrap_or_else(|| format!("AWS STS in {}", settings.region));
        let fix = "check the network and aws.sts_endpoint";
        let upstream = self.upstream(&settings.region);
        let ask = upstream
            .client
            .assume_role_with_web_identity()
            .role_arn("arn:aws:iam::000000000000:role/sidemint-doctor")
            .role_session_name("sidemint-doctor")
            .web_identity_token("none")
            .send();
        let late = || vec![Check::fail(REACH, format!("{location} does not answer in {} s", TRY_LIMIT.as_secs()), fix)];
        let error = match within(&*self.context.clock, TRY_LIMIT, ask).await {
            None | Some(Err(SdkError::TimeoutError(_))) => return late(),
            // Whoever gives credentials for no token is no STS to trust.
            Some(Ok(_)) => {
                return vec![Check::fail(
                    REACH,
                    format!("{location} accepts what is no token"),
                    "check aws.sts_endpoint",
                )];
            }
            Some(Err(error)) => error,
        };
        match &error {
            SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
                let date = error.raw_response().and_then(|raw| raw.headers().get("date")).and_then(http_date);
                let skew = date.map(|theirs| compare(theirs, self.context.clock.now()));
                std::iter::once(Check::ok(REACH, format!("{location} answers"))).chain(skew).collect()
            }
            _ => {
                let causes = std::iter::successors(error.source(), |cause| (*cause).source());
                let text = causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"));
                vec![Check::fail(REACH, format!("{location}: {text}"), fix)]
            }
        }
    }
}

/// What STS refuses: it takes RS256/384/512 and ES256/384/512 alone, and finds the keys by the issuer.
pub(super) fn svid_flaw(facts: &SvidFacts) -> Option<SvidFlaw> {
    if facts.alg.starts_with("PS") {
        let fix = "STS refuses PS algorithms: set the SPIFFE server's JWT key type to RSA or EC";
        return Some(SvidFlaw { what: "", fix });
    }
    let fix = "AWS needs iss: set the SPIFFE server's jwt_issuer";
    facts.iss.is_none().then_some(SvidFlaw { what: ", no issuer", fix })
}

/// A skew of half a minute already shifts the end of a cut credential; five minutes break tokens.
fn compare(theirs: Timestamp, ours: Timestamp) -> Check {
    let skew = theirs.since(ours).max(ours.since(theirs)).as_secs();
    let fix = "set this machine's clock by NTP";
    match skew {
        0..30 => Check::ok(CLOCK, format!("differs by {skew} s")),
        30..300 => Check::warn(CLOCK, format!("differs by {skew} s"), fix),
        _ => Check::fail(CLOCK, format!("differs by {skew} s"), fix),
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::check::Level;

    #[test]
    fn reads_the_date_of_an_answer() {
        assert_eq!(http_date("Mon, 23 Nov 2026 16:48:33 GMT"), Some(Timestamp::from_secs(1_795_452_513)));
        assert_eq!(http_date("yesterday"), None);
    }

    #[test]
    fn clock_skew_in_either_direction_is_a_warning_and_then_a_failure() {
        let now = Timestamp::from_secs(1_000_000);
        let level = |seconds| {
            let there = now + Duration::from_secs(seconds);
            assert_eq!(compare(there, now), compare(now, there));
            compare(there, now).level
        };
        assert_eq!((level(29), level(30), level(299), level(300)), (Level::Ok, Level::Warn, Level::Warn, Level::Fail));
    }
}
