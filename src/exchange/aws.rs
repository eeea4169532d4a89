//! AWS `AssumeRoleWithWebIdentity`: a JWT-SVID of the caller becomes a session of a role.
//!
//! The call is unsigned (the token is the proof) and needs no AWS credential, configuration file or environment
//! variable: nothing but [`Settings`] and the order decides where it goes. No redirect is followed, no proxy is used
//! (`HTTPS_PROXY` and its kin are ignored), TLS trusts the machine's roots, answers are read up to [`MAX_ANSWER`].
//!
//! # The law of life at AWS
//! STS ends no session sooner than 900 s after it began, and nobody can revoke one. So:
//! - The order's `dead_by` is turned into `DurationSeconds = dead_by − now − limit`, rounded down: whenever STS answers
//!   within the order's limit, retries included, its own expiry is not after `dead_by`.
//! - Where that is less than 900 s, `DurationSeconds` is 900 and every `Allow` of the session policy is cut by
//!   `DateLessThan aws:CurrentTime dead_by`, which holds however late STS answers.
//!
//! Both are times of the provider's clock. An answer whose expiry shows that the clocks differ by more than 30 s is
//! refused; below that the credential may live by as much longer or shorter, and `usable_until` is what the provider
//! says.

mod answer;
mod credential;
mod examine;
mod fault;
mod session;
pub(crate) mod settings;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::error::Error as _;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_sts::config::interceptors::BeforeDeserializationInterceptorContextMut;
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_sdk_sts::config::{
    BehaviorVersion, ConfigBag, Intercept, Region, RuntimeComponents, SharedHttpClient, StalledStreamProtectionConfig,
};
use aws_sdk_sts::error::{BoxError, SdkError};
use aws_sdk_sts::operation::assume_role_with_web_identity::{
    AssumeRoleWithWebIdentityError, AssumeRoleWithWebIdentityOutput,
};
use aws_smithy_http_client::tls::{Provider as TlsProvider, TlsContext, TrustStore, rustls_provider::CryptoMode};
use aws_smithy_types::body::SdkBody;
use http_body_util::{LengthLimitError, Limited};
use tracing::instrument::WithSubscriber;
use tracing::subscriber::NoSubscriber;

use self::answer::{Asked, accept};
pub use self::credential::AwsCredential;
use self::fault::Fault;
pub use self::session::AssumedRole;
use super::attempts::{self, Attempt};
use super::{Context, Exchange, ExchangeError, MintOrder, Minted, Provider, SvidWanted};
use crate::check::Check;
use crate::clock::{Timestamp, within};
use crate::http_client::{Origin, OriginError};
use crate::identity::SpiffeId;
use crate::identity::workload_api::JwtSvid;
use crate::provider::ProviderGrant;
use crate::provider::aws::arn::{Role, is_region};
use crate::provider::aws::{AwsGrant, session_policy};
use crate::retry::{Gate, Rate};

/// The shortest session that STS gives.
pub const MIN_SESSION: Duration = Duration::from_secs(900);
/// The longest session that STS gives.
pub const MAX_SESSION: Duration = Duration::from_secs(43_200);
/// The longest answer that is read, in bytes. Real ones have less than 4 KiB.
pub const MAX_ANSWER: usize = 64 * 1024;
/// A credential that lives shorter would be dead before it is used.
const MIN_LIFE: Duration = Duration::from_secs(5);
/// The longest `WebIdentityToken` that STS takes, in bytes.
const MAX_TOKEN: usize = 20_000;
/// How long one try may take; STS asks our issuer for its keys meanwhile.
const TRY_LIMIT: Duration = Duration::from_secs(8);
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// Regions come from policy files, which are few; more than this many clients is a mistake somewhere.
const MAX_UPSTREAMS: usize = 64;

/// Where and how STS is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// The one STS to ask, instead of the regional endpoint of AWS. Plain `http` only on loopback.
    pub sts_endpoint: Option<String>,
    /// The region for grants that name none.
    pub region: String,
    /// The audience of the JWT-SVID for grants that name none.
    pub audience: String,
    /// How often each STS may be called.
    pub rate: Rate,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            sts_endpoint: None,
            region: "us-east-1".to_owned(),
            audience: "sts.amazonaws.com".to_owned(),
            rate: Rate::default(),
        }
    }
}

/// Settings that cannot work, each with its fix.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// Not `https://HOST[:PORT]` or `http://HOST[:PORT]`.
    #[error("aws.sts_endpoint must be https://HOST[:PORT] without user, path or query")]
    Endpoint,
    /// The JWT-SVID would cross the network in the clear.
    #[error("aws.sts_endpoint may be plain http on loopback only: use https://")]
    PlainHttp,
    /// Not a region's name.
    #[error("aws.region must be a region's name such as us-east-1")]
    Region,
    /// No audience.
    #[error("aws.audience must not be empty")]
    Audience,
    /// The TLS library refused to start.
    #[error("TLS cannot be set up: {0}")]
    Tls(String),
}

/// AWS STS, or something that speaks its protocol (Ceph RGW, the embedded cloud).
#[derive(Debug)]
pub struct AwsSts {
    settings: Settings,
    context: Context,
    http_client: SharedHttpClient,
    upstreams: Mutex<BTreeMap<String, Arc<Upstream>>>,
}

/// One STS: its client (with its connections) and the gate that shapes our calls.
#[derive(Debug)]
struct Upstream {
    client: aws_sdk_sts::Client,
    gate: Gate,
}

/// One order, checked and turned into STS's terms: the same for every try.
#[derive(Debug)]
struct Request<'a> {
    role_arn: &'a str,
    role: Role<'a>,
    session_name: &'a str,
    caller: &'a SpiffeId,
    audience: &'a str,
    region: &'a str,
    life: Life,
    policy: Option<String>,
}

/// How the law of life is kept for one order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Life {
    /// `DurationSeconds`, whole seconds.
    duration: Duration,
    /// From when on the session policy allows nothing, where STS cannot end the session soon enough.
    cut: Option<Timestamp>,
}

impl Life {
    /// For a credential that must be dead by `dead_by` and is asked for within `limit` from `now`; `None` when so
    /// little is left that it could not be used.
    fn plan(dead_by: Timestamp, now: Timestamp, limit: Duration) -> Option<Self> {
        let life = dead_by.since(now);
        if life < MIN_LIFE {
            return None;
        }
        let safe = Duration::from_secs(life.saturating_sub(limit).as_secs()).min(MAX_SESSION);
        Some(if safe >= MIN_SESSION {
            Self { duration: safe, cut: None }
        } else {
            Self { duration: MIN_SESSION, cut: Some(dead_by.floor_to_second()) }
        })
    }
}

impl AwsSts {
    /// Makes the stage; nothing is called yet.
    ///
    /// # Errors
    /// Refuses settings that cannot work or would send the token in the clear.
    pub fn new(settings: Settings, context: Context) -> Result<Self, SettingsError> {
        let tls = settings.sts_endpoint.as_deref().map_or(Ok(true), check_endpoint)?;
        if !is_region(&settings.region) {
            return Err(SettingsError::Region);
        }
        if settings.audience.is_empty() {
            return Err(SettingsError::Audience);
        }
        // Without TLS (plain http on loopback) the machine's roots are not even read, so that it works in a container that has none.
        let http_client = http_client(TrustStore::empty().with_native_roots(tls))?;
        Ok(Self { settings, context, http_client, upstreams: Mutex::default() })
    }

    /// Checks all of the order that can be checked before anything is asked for.
    fn request<'a>(&'a self, order: &'a MintOrder, grant: &'a AwsGrant) -> Result<Request<'a>, ExchangeError> {
        let inexpressible = |detail: String| ExchangeError::Inexpressible { detail };
        let role = Role::parse(&grant.role_arn).ok_or_else(|| inexpressible("role_arn is not a role's ARN".into()))?;
        if !is_session_name(&order.session_name) {
            return Err(inexpressible("the session name is not 2 to 64 of A-Za-z0-9_=,.@-".into()));
        }
        let region = grant.region.as_deref().unwrap_or(&self.settings.region);
        if !is_region(region) {
            return Err(inexpressible("the grant's region is not a region's name".into()));
        }
        let audience = grant.audience.as_deref().unwrap_or(&self.settings.audience);
        if audience.is_empty() {
            return Err(inexpressible("the grant's audience is empty".into()));
        }
        let now = self.context.clock.now();
        let life = Life::plan(order.dead_by, now, order.limit)
            .ok_or_else(|| inexpressible(format!("less than {} s of life are left", MIN_LIFE.as_secs())))?;
        let policy = session_policy::compile(grant.session_policy.as_ref(), life.cut)
            .map_err(|error| inexpressible(error.to_string()))?;
        Ok(Request {
            role_arn: &grant.role_arn,
            role,
            session_name: &order.session_name,
            caller: &order.caller,
            audience,
            region,
            life,
            policy,
        })
    }

    fn judge(
        &self,
        answer: AssumeRoleWithWebIdentityOutput,
        request: &Request<'_>,
        sent: Timestamp,
    ) -> Result<Minted, Fault> {
        let asked = Asked {
            role: request.role,
            session_name: request.session_name,
            caller: request.caller,
            audience: request.audience,
            duration: request.life.duration,
            cut: request.life.cut,
            sent,
        };
        accept(answer, &asked, self.context.clock.now()).map_err(Fault::distrust)
    }

    /// One call of STS within `limit` and [`TRY_LIMIT`].
    async fn try_once(
        &self,
        client: &aws_sdk_sts::Client,
        request: &Request<'_>,
        svid: &JwtSvid,
        limit: Duration,
    ) -> Result<AssumeRoleWithWebIdentityOutput, Fault> {
        // ProviderId is for two social logins only: STS refuses it with an OpenID Connect token.
        let call = client
            .assume_role_with_web_identity()
            .role_arn(request.role_arn)
            .role_session_name(request.session_name)
            // exposed: the token is what is exchanged; the SDK wants its own copy
            .web_identity_token(svid.token.expose())
            .duration_seconds(i32::try_from(request.life.duration.as_secs()).unwrap_or(i32::MAX))
            .set_policy(request.policy.clone());
        // At TRACE the SDK logs the message of an error, which may echo the token: what it logs goes nowhere.
        let send = call.send().with_subscriber(NoSubscriber::default());
        match within(&*self.context.clock, limit.min(TRY_LIMIT), send).await {
            Some(Ok(answer)) => Ok(answer),
            Some(Err(error)) => Err(fault(&error, self.context.clock.now())),
            None => Err(Fault::passing("STS did not answer in time")),
        }
    }

    fn upstream(&self, region: &str) -> Arc<Upstream> {
        // A configured endpoint is one STS whatever the region.
        let key = if self.settings.sts_endpoint.is_some() { "" } else { region };
        // The map is whole between any two lines here: a panic elsewhere cannot have torn it.
        let mut upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(upstream) = upstreams.get(key) {
            return Arc::clone(upstream);
        }
        if upstreams.len() >= MAX_UPSTREAMS {
            upstreams.pop_first();
        }
        let upstream = Arc::new(Upstream {
            client: client(region, self.settings.sts_endpoint.as_deref(), self.http_client.clone()),
            gate: Gate::new(self.settings.rate),
        });
        upstreams.insert(key.to_owned(), Arc::clone(&upstream));
        upstream
    }
}

/// One order at one STS.
struct Order<'a> {
    sts: &'a AwsSts,
    client: &'a aws_sdk_sts::Client,
    request: &'a Request<'a>,
}

impl Attempt for Order<'_> {
    const UPSTREAM: &'static str = "STS";
    const TRIES: u32 = 4;

    fn caller(&self) -> &SpiffeId {
        self.request.caller
    }

    fn audience(&self) -> &str {
        self.request.audience
    }

    fn check_svid(&self, svid: &JwtSvid) -> Result<(), String> {
        // exposed: only its length is looked at
        match (4..=MAX_TOKEN).contains(&svid.token.expose().len()) {
            true => Ok(()),
            false => Err("the JWT-SVID is longer than the 20,000 bytes that STS takes".to_owned()),
        }
    }

    async fn attempt(&self, svid: &JwtSvid, deadline: Duration) -> Result<Minted, Fault> {
        let Self { sts, client, request } = self;
        let sent = sts.context.clock.now();
        let answer = sts.try_once(client, request, svid, sts.context.remaining(deadline)).await?;
        sts.judge(answer, request, sent)
    }
}

#[async_trait]
impl Exchange for AwsSts {
    fn provider(&self) -> Provider {
        Provider::Aws
    }

    fn is_configured(&self) -> bool {
        let Settings { sts_endpoint, region, audience, rate: _ } = Settings::default();
        (&sts_endpoint, &region, &audience)
            != (&self.settings.sts_endpoint, &self.settings.region, &self.settings.audience)
    }

    fn svid_wanted(&self) -> Option<SvidWanted<'_>> {
        Some(SvidWanted { check: "JWT-SVID, STS", audience: &self.settings.audience, flaw: examine::svid_flaw })
    }

    async fn examine(&self) -> Vec<Check> {
        self.look().await
    }

    fn circuit_open(&self) -> bool {
        let upstreams = self.upstreams.lock().unwrap_or_else(PoisonError::into_inner);
        upstreams.values().any(|upstream| upstream.gate.circuit_open())
    }

    async fn mint(&self, order: &MintOrder) -> Result<Minted, ExchangeError> {
        let ProviderGrant::Aws(grant) = &order.grant.provider else {
            return Err(ExchangeError::Inexpressible { detail: "the grant is not for AWS".to_owned() });
        };
        let request = self.request(order, grant)?;
        let upstream = self.upstream(request.region);
        let one = Order { sts: self, client: &upstream.client, request: &request };
        let minted = attempts::mint(&self.context, &upstream.gate, &one, order.limit);
        let minted = within(&*self.context.clock, order.limit, minted).await;
        minted.unwrap_or_else(|| Err(Fault::passing("no credential within the time that was given").into()))
    }
}

/// A client that sends what it is told and nothing else: no credentials, no retries of its own, no stored settings.
fn client(region: &str, endpoint: Option<&str>, http_client: SharedHttpClient) -> aws_sdk_sts::Client {
    // These limits run on the real clock and back up those of `within`.
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(TRY_LIMIT)
        .operation_attempt_timeout(TRY_LIMIT)
        .operation_timeout(TRY_LIMIT)
        .build();
    let mut config = aws_sdk_sts::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new(region.to_owned()))
        .http_client(http_client)
        .retry_config(RetryConfig::disabled())
        .timeout_config(timeouts)
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        .interceptor(BoundedAnswer);
    config.set_endpoint_url(endpoint.map(str::to_owned));
    aws_sdk_sts::Client::from_conf(config.build())
}

/// rustls on AWS-LC, which trusts these roots.
fn http_client(roots: TrustStore) -> Result<SharedHttpClient, SettingsError> {
    let context = TlsContext::builder().with_trust_store(roots).build();
    let context = context.map_err(|error| SettingsError::Tls(error.to_string()))?;
    let provider = TlsProvider::Rustls(CryptoMode::AwsLc);
    Ok(aws_smithy_http_client::Builder::new().tls_provider(provider).tls_context(context).build_https())
}

/// Reads no more than [`MAX_ANSWER`] bytes of an answer.
#[derive(Debug)]
struct BoundedAnswer;

impl Intercept for BoundedAnswer {
    fn name(&self) -> &'static str {
        "BoundedAnswer"
    }

    fn modify_before_deserialization(
        &self,
        context: &mut BeforeDeserializationInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        let body = context.response_mut().body_mut();
        let unbounded = std::mem::replace(body, SdkBody::taken());
        *body = SdkBody::from_body_1_x(Limited::new(unbounded, MAX_ANSWER));
        Ok(())
    }
}

/// What a failed call means. Of the error only its kind, HTTP status, error code and `Retry-After` are looked at.
fn fault(error: &SdkError<AssumeRoleWithWebIdentityError>, now: Timestamp) -> Fault {
    match error {
        SdkError::ServiceError(answered) => {
            let raw = answered.raw();
            let status = raw.status().as_u16();
            if raw.status().is_success() {
                return Fault::distrust(format!("HTTP {status} with something that is not an answer of STS"));
            }
            let body = raw.body().bytes().unwrap_or_default();
            Fault::of_sts(status, body, raw.headers().get("retry-after"), now)
        }
        SdkError::ResponseError(_) if cause::<LengthLimitError>(error).is_some() => {
            Fault::distrust("an answer longer than 64 KiB")
        }
        SdkError::ResponseError(_) => Fault::passing("the connection to STS broke in the middle of its answer"),
        SdkError::TimeoutError(_) => Fault::passing("STS did not answer in time"),
        SdkError::DispatchFailure(_) if is_unconnected(error) => {
            Fault::not_sent("no connection to STS (network, DNS or TLS)")
        }
        SdkError::DispatchFailure(failure) if failure.is_timeout() => Fault::passing("STS did not answer in time"),
        SdkError::DispatchFailure(_) => Fault::passing("the connection to STS broke before its answer"),
        _ => Fault::distrust("the request to STS could not be made"),
    }
}

/// Whether the connection was never made, so that nothing was sent.
fn is_unconnected(error: &SdkError<AssumeRoleWithWebIdentityError>) -> bool {
    cause::<hyper_util::client::legacy::Error>(error).is_some_and(|error| error.is_connect())
}

/// The first cause of `error` that is an `E`.
fn cause<E: std::error::Error + 'static>(error: &SdkError<AssumeRoleWithWebIdentityError>) -> Option<&E> {
    std::iter::successors(error.source(), |cause| (*cause).source()).find_map(|cause| cause.downcast_ref())
}

/// Whether the endpoint is reached by TLS.
fn check_endpoint(url: &str) -> Result<bool, SettingsError> {
    match Origin::parse(url) {
        Ok(origin) => Ok(origin.is_secure()),
        Err(OriginError::Form) => Err(SettingsError::Endpoint),
        Err(OriginError::PlainHttp) => Err(SettingsError::PlainHttp),
    }
}

/// STS allows `+` too, Ceph RGW does not.
fn is_session_name(name: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'=' | b',' | b'.' | b'@' | b'-');
    (2..=64).contains(&name.len()) && name.bytes().all(allowed)
}
