//! The Workload API, the SVIDs that it gives, and what they say about the clock.

use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use tokio::net::TcpStream;

use crate::check::Check;
use crate::cli::own_svid::{LIMIT, fix};
use crate::clock::{Clock, SharedClock, Timestamp, within};
use crate::config::Config;
use crate::exchange::{Exchange, SvidFacts, SvidWanted};
use crate::identity::workload_api::client::Client;
use crate::identity::workload_api::endpoint::Endpoint;
use crate::identity::workload_api::socket::{ConnectError, connect};

const SOCKET: &str = "Workload API";
const X509: &str = "X.509-SVIDs";
const BROKER_JWT: &str = "JWT-SVID, broker";
const CLOCK: &str = "clock, SPIFFE";

/// Clocks that differ by less are not worth a warning.
const SKEW: Duration = Duration::from_secs(5);

/// The JWT-SVIDs are asked for the broker's audience and for those of `exchanges`.
pub(super) async fn examine(config: &Config, exchanges: &[Arc<dyn Exchange>], clock: &SharedClock) -> Vec<Check> {
    let endpoint = match config.identity.workload_api.parse::<Endpoint>() {
        Ok(endpoint) => endpoint,
        Err(error) => return vec![Check::fail(SOCKET, error.to_string(), "set SPIFFE_ENDPOINT_SOCKET")],
    };
    let agent = config.identity.workload_api_uid;
    if let Err(check) = socket(&endpoint, agent, &**clock).await {
        return vec![check];
    }
    let mut checks = vec![Check::ok(SOCKET, format!("{} accepts connections", config.identity.workload_api))];
    let client = Client::new(endpoint, agent, clock.clone());
    checks.push(x509(&client, clock.now()).await);
    let audience = &config.identity.audience;
    let broker = SvidWanted { check: BROKER_JWT, audience, flaw: |_| None };
    let (check, facts) = jwt(&client, broker, clock.now()).await;
    checks.push(check);
    for wanted in exchanges.iter().filter_map(|exchange| exchange.svid_wanted()) {
        checks.push(jwt(&client, wanted, clock.now()).await.0);
    }
    // The agent signs, or caches, a token before we read it: one from the future means that clocks differ.
    checks.extend(facts.and_then(|facts| facts.iat).map(|iat| compare(iat, clock.now())));
    checks
}

/// Whether the socket is there, this user may connect, and it is the agent who serves it.
async fn socket(endpoint: &Endpoint, agent: Option<u32>, clock: &dyn Clock) -> Result<(), Check> {
    let connected = match endpoint {
        Endpoint::Unix(path) => {
            is_socket(path)?;
            within(clock, LIMIT, connect(path, agent)).await.map(|done| done.map(drop))
        }
        Endpoint::Tcp(address) => {
            let connecting = within(clock, LIMIT, TcpStream::connect(address)).await;
            connecting.map(|done| done.map(drop).map_err(ConnectError::Io))
        }
    };
    match connected {
        Some(Ok(())) => Ok(()),
        Some(Err(error @ ConnectError::Stranger(_))) => {
            let text = "check who listens there, and who can write to its directory";
            Err(Check::fail(SOCKET, error.to_string(), text))
        }
        Some(Err(ConnectError::Io(error))) if error.kind() == io::ErrorKind::PermissionDenied => {
            Err(Check::fail(SOCKET, error.to_string(), "let this user write to the socket and enter its directories"))
        }
        Some(Err(ConnectError::Io(error))) => Err(Check::fail(SOCKET, error.to_string(), "start the SPIFFE agent")),
        None => Err(Check::fail(SOCKET, "does not accept connections", "restart the SPIFFE agent")),
    }
}

fn is_socket(path: &Path) -> Result<(), Check> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.file_type().is_socket() => Ok(()),
        Ok(_) => Err(Check::fail(SOCKET, format!("{} is no socket", path.display()), "set SPIFFE_ENDPOINT_SOCKET")),
        Err(error) => {
            let text = format!("{}: {error}", path.display());
            Err(Check::fail(SOCKET, text, "start the SPIFFE agent, mount its socket, or set SPIFFE_ENDPOINT_SOCKET"))
        }
    }
}

async fn x509(client: &Client, now: Timestamp) -> Check {
    let svids = match client.fetch_x509_svids(LIMIT).await {
        Ok(svids) => svids,
        Err(error) => return Check::fail(X509, error.to_string(), fix(&error)),
    };
    let listed = svids.iter().map(|each| format!("{} until {}", each.svid.spiffe_id, each.svid.expires_at));
    let listed = listed.collect::<Vec<_>>().join(", ");
    if svids.is_empty() {
        Check::fail(X509, "none with a valid SPIFFE ID", "register an entry for this process at the SPIFFE server")
    } else if svids.iter().any(|each| each.svid.expires_at <= now) {
        Check::fail(X509, format!("expired: {listed}"), "compare the clocks; is the agent cut off from its server?")
    } else {
        Check::ok(X509, listed)
    }
}

async fn jwt(client: &Client, wanted: SvidWanted<'_>, now: Timestamp) -> (Check, Option<SvidFacts>) {
    let name = wanted.check;
    let svid = match client.fetch_jwt_svid(None, wanted.audience, LIMIT).await {
        Ok(svid) => svid,
        Err(error) => return (Check::fail(name, error.to_string(), fix(&error)), None),
    };
    // exposed: its header and claims are what is checked; nothing of the signature is kept
    let facts = read(svid.token.expose());
    let check = match &facts {
        Some(facts) => judge(facts, wanted, svid.expires_at.since(now)),
        None => Check::fail(name, "cannot be read", "check the SPIFFE agent and its version"),
    };
    (check, facts)
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
}

#[derive(Deserialize)]
struct Claims {
    iss: Option<String>,
    iat: Option<f64>,
}

/// Reads the facts from a compact JWS, without any verification.
fn read(token: &str) -> Option<SvidFacts> {
    let mut parts = token.split('.');
    let mut part = || URL_SAFE_NO_PAD.decode(parts.next()?).ok();
    let header: Header = serde_json::from_slice(&part()?).ok()?;
    let claims: Claims = serde_json::from_slice(&part()?).ok()?;
    let iat = claims.iat.and_then(|iat| Duration::try_from_secs_f64(iat).ok());
    let iat = iat.map(|since| Timestamp::from_secs(since.as_secs()));
    Some(SvidFacts { alg: header.alg, kid: header.kid, iss: claims.iss, iat })
}

fn judge(facts: &SvidFacts, wanted: SvidWanted<'_>, left: Duration) -> Check {
    let left = humantime::format_duration(Duration::from_secs(left.as_secs()));
    let detail = format!("{}, kid {}, {left} left", facts.alg, facts.kid.as_deref().unwrap_or("none"));
    if facts.kid.is_none() {
        return Check::fail(wanted.check, detail, "the SPIFFE server must name the key (kid); see its version");
    }
    match (wanted.flaw)(facts) {
        Some(flaw) => Check::warn(wanted.check, detail + flaw.what, flaw.fix),
        None => Check::ok(wanted.check, detail),
    }
}

fn compare(iat: Timestamp, now: Timestamp) -> Check {
    let ahead = iat.since(now);
    if ahead > SKEW {
        let text = format!("tokens are issued {} s in this machine's future", ahead.as_secs());
        return Check::fail(CLOCK, text, "set the clocks by NTP, here and at the SPIFFE server");
    }
    Check::ok(CLOCK, "agrees with the SPIFFE server's")
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::providers::NoWorkloadApi;
    use super::*;
    use crate::check::Level;
    use crate::clock::SystemClock;
    use crate::exchange::Context;
    use crate::exchange::aws::{AwsSts, Settings};
    use crate::retry::SystemJitter;

    fn token(header: &str, claims: &str) -> String {
        format!("{}.{}.sig", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims))
    }

    /// What is said of a token for STS, or for the broker.
    fn judged(header: &str, claims: &str, for_sts: bool) -> Level {
        let facts = read(&token(header, claims)).unwrap();
        let settings = Settings { sts_endpoint: Some("http://127.0.0.1:1".to_owned()), ..Settings::default() };
        let (workload_api, clock) = (Arc::new(NoWorkloadApi), Arc::new(SystemClock));
        let sts = AwsSts::new(settings, Context { workload_api, clock, jitter: Arc::new(SystemJitter) }).unwrap();
        let broker = SvidWanted { check: "t", audience: "t", flaw: |_| None };
        let wanted = if for_sts { sts.svid_wanted().unwrap() } else { broker };
        judge(&facts, wanted, Duration::from_secs(60)).level
    }

    #[test]
    fn a_token_that_sts_would_refuse_is_a_warning_for_sts_only() {
        let (good, ps) = (r#"{"alg":"ES256","kid":"k"}"#, r#"{"alg":"PS256","kid":"k"}"#);
        assert_eq!(judged(good, r#"{"iss":"https://i","iat":1}"#, true), Level::Ok);
        assert_eq!(judged(ps, r#"{"iss":"https://i"}"#, true), Level::Warn);
        assert_eq!(judged(ps, r#"{"iss":"https://i"}"#, false), Level::Ok);
        assert_eq!(judged(good, "{}", true), Level::Warn);
        assert_eq!(judged(good, "{}", false), Level::Ok);
        assert_eq!(judged(r#"{"alg":"ES256"}"#, "{}", false), Level::Fail);
    }

    #[test]
    fn reports_clock_skew_for_a_token_from_the_future() {
        let now = Timestamp::from_secs(1_000_000);
        assert_eq!(compare(now + Duration::from_secs(60), now).level, Level::Fail);
        assert_eq!(compare(now + SKEW, now).level, Level::Ok);
        assert_eq!(compare(now - Duration::from_secs(250), now).level, Level::Ok);
    }

    #[tokio::test]
    async fn distinguishes_a_missing_socket_from_a_file_in_its_place() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("agent.sock");
        let look = async || socket(&Endpoint::Unix(path.clone()), None, &SystemClock).await;
        assert!(look().await.unwrap_err().detail.contains("No such file"));
        std::fs::write(&path, "").unwrap();
        assert!(look().await.unwrap_err().detail.contains("is no socket"));
        std::fs::remove_file(&path).unwrap();
        let listener = tokio::net::UnixListener::bind(&path).unwrap();
        assert_eq!(look().await, Ok(()));
        drop(listener);
        assert!(look().await.unwrap_err().detail.contains("refused"));
    }

    proptest! {
        #[test]
        fn any_token_is_read_or_refused_without_panic(text: String, header in "\\PC*", claims in "\\PC*", iat: f64) {
            let _ = read(&text);
            let _ = read(&token(&header, &claims));
            let _ = read(&token(r#"{"alg":"ES256"}"#, &format!(r#"{{"iat":{iat}}}"#)));
        }
    }
}
