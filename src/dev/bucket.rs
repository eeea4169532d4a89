//! A client of one S3 bucket: requests that the AWS SDK's own signer signs (`aws-sigv4`), without the S3 SDK, which takes
//! longer to build than everything else of the embedded world.

use std::net::SocketAddr;

use aws_sdk_sts::config::Credentials;
use aws_sigv4::http_request::{
    PayloadChecksumKind, PercentEncodingMode, SignableBody, SignableRequest, SigningSettings, UriPathNormalizationMode,
    sign,
};
use aws_sigv4::sign::v4;
use bytes::Bytes;
use http::Request;
use http_body_util::Full;

use super::cloud::text::percent_encode;
use super::probe::{self, Answer};
use crate::clock::Clock;

/// One bucket, and the credentials to use.
#[derive(Debug, Clone)]
pub struct Bucket {
    /// Where the store is, spoken to in the clear.
    pub store: SocketAddr,
    /// The region that is signed for.
    pub region: String,
    /// The bucket's name.
    pub name: String,
    /// Who signs.
    pub credentials: Credentials,
}

/// Why something was not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BucketError {
    /// The store refused; its error code.
    #[error("the store refused: {0}")]
    Refused(String),
    /// No request could be made, or no answer came.
    #[error("{0}")]
    NoAnswer(String),
}

impl Bucket {
    /// `GetObject`: the object's content.
    ///
    /// # Errors
    /// The store's error code, or why there was no answer within ten seconds.
    pub async fn get(&self, clock: &dyn Clock, key: &str) -> Result<Bytes, BucketError> {
        self.send(clock, "GET", key, &[], Bytes::new()).await.map(|answer| answer.body)
    }

    /// Any request on the object called `key`, or on the bucket where `key` is empty.
    ///
    /// # Errors
    /// The store's error code, or why there was no answer within ten seconds.
    pub async fn send(
        &self,
        clock: &dyn Clock,
        method: &str,
        key: &str,
        query: &[(&str, &str)],
        body: Bytes,
    ) -> Result<Answer, BucketError> {
        let path = format!("/{}/{}", self.name, percent_encode(key.as_bytes(), true));
        let pair = |(name, value): &(&str, &str)| format!("{name}={}", percent_encode(value.as_bytes(), false));
        let query = query.iter().map(pair).collect::<Vec<_>>().join("&");
        let target = if query.is_empty() { path } else { format!("{path}?{query}") };
        let request =
            self.signed(clock, method, &target, body).map_err(|error| BucketError::NoAnswer(error.to_string()))?;
        let answer = probe::exchange(clock, self.store, request).await;
        let answer = answer.map_err(|error| BucketError::NoAnswer(error.to_string()))?;
        if answer.status.is_success() { Ok(answer) } else { Err(BucketError::Refused(error_code(&answer))) }
    }

    /// As the SDK signs for S3: the path is encoded once and never normalised, and the body's digest is a header.
    fn signed(
        &self,
        clock: &dyn Clock,
        method: &str,
        target: &str,
        body: Bytes,
    ) -> Result<Request<Full<Bytes>>, Box<dyn std::error::Error + Send + Sync>> {
        let mut settings = SigningSettings::default();
        settings.percent_encoding_mode = PercentEncodingMode::Single;
        settings.uri_path_normalization_mode = UriPathNormalizationMode::Disabled;
        settings.payload_checksum_kind = PayloadChecksumKind::XAmzSha256;
        let identity = self.credentials.clone().into();
        let params = v4::SigningParams::builder()
            .identity(&identity)
            .region(&self.region)
            .name("s3")
            .time(clock.now().to_system())
            .settings(settings)
            .build()?
            .into();
        let url = format!("http://{}{target}", self.store);
        let signable = SignableRequest::new(method, url, std::iter::empty(), SignableBody::Bytes(&body))?;
        let (instructions, _) = sign(signable, &params)?.into_parts();
        let request = Request::builder().method(method).uri(target).header("host", self.store.to_string());
        let mut request = request.body(Full::new(body))?;
        instructions.apply_to_request_http1x(&mut request);
        Ok(request)
    }
}

/// `<Code>` of S3's error document; the status where there is none, as for `HEAD`.
fn error_code(answer: &Answer) -> String {
    let text = answer.text();
    let code = text.split_once("<Code>").and_then(|(_, rest)| rest.split_once("</Code>"));
    code.map_or_else(|| answer.status.as_u16().to_string(), |(code, _)| code.to_owned())
}
