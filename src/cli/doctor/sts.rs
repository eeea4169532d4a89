//! Whether STS can be reached, and whether its clock is ours.

use std::error::Error as _;
use std::time::Duration;

use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::{BehaviorVersion, Region};
use aws_sdk_sts::error::SdkError;
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};
use aws_smithy_types::DateTime;
use aws_smithy_types::date_time::Format;

use super::Check;
use crate::clock::{Clock, Timestamp, within};
use crate::exchange::aws::Settings as AwsSettings;

const REACH: &str = "STS";
const CLOCK: &str = "clock, STS";
const LIMIT: Duration = Duration::from_secs(10);

/// Asks STS something that it must refuse: an exchange of no token at all. Any HTTP answer shows that it is there.
pub(super) async fn examine(settings: &AwsSettings, clock: &dyn Clock) -> Vec<Check> {
    let place = settings.sts_endpoint.clone().unwrap_or_else(|| format!("AWS STS in {}", settings.region));
    let Ok(client) = client(settings) else {
        return vec![Check::fail(REACH, "TLS cannot be set up", "install the CA certificates of the machine")];
    };
    let ask = client
        .assume_role_with_web_identity()
        .role_arn("arn:aws:iam::000000000000:role/sidemint-doctor")
        .role_session_name("sidemint-doctor")
        .web_identity_token("none")
        .send();
    let Some(answer) = within(clock, LIMIT, ask).await else {
        return vec![Check::fail(
            REACH,
            format!("{place} does not answer in 10 s"),
            "check the network and aws.sts_endpoint",
        )];
    };
    let error = match answer {
        Err(error) => error,
        // Whoever gives credentials for no token is no STS to trust.
        Ok(_) => {
            return vec![Check::fail(REACH, format!("{place} accepts what is no token"), "check aws.sts_endpoint")];
        }
    };
    match &error {
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => {
            let date = error.raw_response().and_then(|raw| raw.headers().get("date")).and_then(read_date);
            let skew = date.map(|theirs| compare(theirs, clock.now()));
            std::iter::once(Check::ok(REACH, format!("{place} answers"))).chain(skew).collect()
        }
        _ => {
            let mut text = error.to_string();
            let mut cause = error.source();
            while let Some(error) = cause {
                text = format!("{text}: {error}");
                cause = error.source();
            }
            vec![Check::fail(REACH, format!("{place}: {text}"), "check the network and aws.sts_endpoint")]
        }
    }
}

/// A client without credentials, retries or a proxy, as the exchange itself uses one.
fn client(settings: &AwsSettings) -> Result<aws_sdk_sts::Client, Box<dyn std::error::Error + Send + Sync>> {
    let plain = settings.sts_endpoint.as_deref().is_some_and(|endpoint| endpoint.starts_with("http://"));
    let context = TlsContext::builder().with_trust_store(TrustStore::empty().with_native_roots(!plain)).build()?;
    let http = aws_smithy_http_client::Builder::new()
        .tls_provider(Provider::Rustls(CryptoMode::AwsLc))
        .tls_context(context)
        .build_https();
    let mut config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(settings.region.clone()))
        .http_client(http)
        .retry_config(RetryConfig::disabled());
    config.set_endpoint_url(settings.sts_endpoint.clone());
    Ok(aws_sdk_sts::Client::from_conf(config.build()))
}

/// Reads an HTTP date (RFC 9110 §5.6.7).
fn read_date(text: &str) -> Option<Timestamp> {
    let date = DateTime::from_str(text, Format::HttpDate).ok()?;
    u64::try_from(date.secs()).ok().map(Timestamp::from_secs)
}

/// A skew of half a minute already shifts the end of a cut credential; five minutes break tokens.
fn compare(theirs: Timestamp, ours: Timestamp) -> Check {
    let skew = theirs.since(ours).max(ours.since(theirs)).as_secs();
    let mend = "set this machine's clock by NTP";
    match skew {
        0..30 => Check::ok(CLOCK, format!("differs by {skew} s")),
        30..300 => Check::warn(CLOCK, format!("differs by {skew} s"), mend),
        _ => Check::fail(CLOCK, format!("differs by {skew} s"), mend),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    #[test]
    fn reads_the_date_of_an_answer() {
        assert_eq!(read_date("Mon, 23 Nov 2026 16:48:33 GMT"), Some(Timestamp::from_secs(1_795_452_513)));
        assert_eq!(read_date("yesterday"), None);
    }

    #[test]
    fn a_skewed_clock_is_a_warning_and_then_a_failure_whoever_is_ahead() {
        let now = Timestamp::from_secs(1_000_000);
        let level = |seconds| {
            let there = now + Duration::from_secs(seconds);
            assert_eq!(compare(there, now), compare(now, there));
            compare(there, now).level
        };
        assert_eq!((level(29), level(30), level(299), level(300)), (Level::Ok, Level::Warn, Level::Warn, Level::Fail));
    }
}
