//! The workload of the story: the AWS SDK for Rust with nothing but the endpoint, in a process of its own whose
//! environment holds the `AWS_` variables and nothing else. The SDK's unmodified credential chain finds the endpoint, and
//! the SDK's own signer signs with what it gives. It does what it is told on standard input, a line each, and answers with
//! a JSON line each.
//!
//! | line | does |
//! |---|---|
//! | `read KEY` | reads an object with one client that keeps its credentials until they expire, as applications do |
//! | `fresh KEY` | the same with a new client, which must ask the endpoint anew |
//! | `copy` | keeps a copy of the credentials, as a thief in the process would |
//! | `replay KEY` | reads an object with the copy |

use std::io::Write as _;
use std::process::Stdio;

use aws_config::{BehaviorVersion, SdkConfig};
use aws_sdk_sts::config::{Credentials, ProvideCredentials as _};
use aws_sdk_sts::error::DisplayErrorContext;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};

use crate::cli::{CliError, CliResult, Exit};
use crate::clock::{Clock as _, SystemClock};
use crate::dev::bucket::{Bucket, BucketError};
use crate::dev::world::BUCKET;

/// What came of one line.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Outcome {
    /// The object's content, or for `copy` the access key's id (which is no secret).
    Done(String),
    /// The cloud refused, with this error code.
    Refused(String),
    /// The SDK had no credentials, or did not get as far as an answer.
    Failed(String),
}

/// The longest line of explanation.
const MAX_EXPLANATION: usize = 400;

/// Is the workload, until standard input ends.
pub(super) async fn run() -> CliResult {
    let broken = |error: std::io::Error| CliError::new(Exit::Failed, format!("the workload's pipe: {error}"));
    let mut sdk = Sdk::new().await;
    while let Some(line) = next_line().await.map_err(broken)? {
        let outcome = match line.split_once(' ').unwrap_or((&line, "")) {
            ("read", key) => sdk.read(key).await,
            ("fresh", key) => Sdk::new().await.read(key).await,
            ("copy", _) => sdk.copy().await,
            ("replay", key) => match sdk.copied.clone() {
                Some(copied) => sdk.read_as(copied, key).await,
                None => Outcome::Failed("nothing was copied".into()),
            },
            _ => Outcome::Failed("unknown line".into()),
        };
        let mut answer = serde_json::to_vec(&outcome)
            .map_err(|error| CliError::new(Exit::Failed, format!("the workload's answer: {error}")))?;
        answer.push(b'\n');
        let mut out = std::io::stdout().lock();
        out.write_all(&answer).and_then(|()| out.flush()).map_err(broken)?;
    }
    Ok(Exit::Ok as u8)
}

/// The next line of standard input, or `None` at its end.
async fn next_line() -> std::io::Result<Option<String>> {
    let line = tokio::task::spawn_blocking(|| std::io::stdin().lines().next().transpose());
    line.await.map_err(std::io::Error::other)?
}

struct Sdk {
    config: SdkConfig,
    kept: Option<Credentials>,
    copied: Option<Credentials>,
}

impl Sdk {
    /// The SDK's default chain: everything it needs comes from the environment.
    async fn new() -> Self {
        let config = aws_config::defaults(BehaviorVersion::latest())
            .http_client(aws_smithy_http_client::Builder::new().build_http())
            .load()
            .await;
        Self { config, kept: None, copied: None }
    }

    /// What the chain gives, kept until it expires.
    async fn credentials(&mut self) -> Result<Credentials, Outcome> {
        let now = SystemClock.now().to_system();
        if let Some(kept) = self.kept.as_ref().filter(|kept| kept.expiry().is_none_or(|expiry| now < expiry)) {
            return Ok(kept.clone());
        }
        let Some(chain) = self.config.credentials_provider() else {
            return Err(Outcome::Failed("no credentials provider".into()));
        };
        let found = chain.provide_credentials().await;
        let live = found.map_err(|error| Outcome::Failed(shortened(DisplayErrorContext(error).to_string())))?;
        self.kept = Some(live.clone());
        Ok(live)
    }

    async fn copy(&mut self) -> Outcome {
        let live = match self.credentials().await {
            Ok(live) => live,
            Err(outcome) => return outcome,
        };
        // Without the expiry, which only ever bound the honest.
        let token = live.session_token().map(str::to_owned);
        self.copied = Some(Credentials::new(live.access_key_id(), live.secret_access_key(), token, None, "copied"));
        Outcome::Done(live.access_key_id().to_owned())
    }

    async fn read(&mut self, key: &str) -> Outcome {
        match self.credentials().await {
            Ok(live) => self.read_as(live, key).await,
            Err(outcome) => outcome,
        }
    }

    async fn read_as(&self, credentials: Credentials, key: &str) -> Outcome {
        let store = std::env::var("AWS_ENDPOINT_URL_S3").ok();
        let store = store.as_deref().and_then(|url| url.strip_prefix("http://")?.parse().ok());
        let (Some(store), Some(region)) = (store, self.config.region()) else {
            return Outcome::Failed("the environment names no store or no region".into());
        };
        let bucket = Bucket { store, region: region.to_string(), name: BUCKET.to_owned(), credentials };
        match bucket.get(&SystemClock, key).await {
            Ok(content) => Outcome::Done(String::from_utf8_lossy(&content).into_owned()),
            Err(BucketError::Refused(code)) => Outcome::Refused(code),
            Err(BucketError::NoAnswer(detail)) => Outcome::Failed(shortened(detail)),
        }
    }
}

fn shortened(text: String) -> String {
    text.chars().take(MAX_EXPLANATION).collect()
}

/// The demo's side of the pipe. The workload ends when this is dropped.
pub(super) struct Workload {
    _child: Child,
    stdin: ChildStdin,
    answers: Lines<BufReader<ChildStdout>>,
}

impl Workload {
    /// Starts this program again as the workload, with `environment` and nothing else.
    pub(super) fn start(environment: &[(&str, &str)]) -> std::io::Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(["demo", "--as-workload"])
            .env_clear()
            .envs(environment.iter().copied())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()?;
        let (Some(stdin), Some(stdout)) = (child.stdin.take(), child.stdout.take()) else {
            return Err(std::io::Error::other("the workload has no pipes"));
        };
        Ok(Self { _child: child, stdin, answers: BufReader::new(stdout).lines() })
    }

    /// Sends one line and waits for its answer.
    pub(super) async fn ask(&mut self, line: &str) -> Outcome {
        match self.exchange(line).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Failed(format!("the workload is gone: {error}")),
        }
    }

    async fn exchange(&mut self, line: &str) -> std::io::Result<Outcome> {
        self.stdin.write_all(format!("{line}\n").as_bytes()).await?;
        self.stdin.flush().await?;
        let answer = self.answers.next_line().await?.ok_or(std::io::ErrorKind::UnexpectedEof)?;
        Ok(serde_json::from_str(&answer)?)
    }
}
