//! What goes over the wire (docs/openapi.yaml): the requests and answers of `/v1`, written by the sidecar and read by its commands.
//!
//! Words of closed sets are text here, and members that are not known are ignored: a command also reads the answers of a
//! sidecar that is newer than itself.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::clock::Timestamp;
use crate::identity::SpiffeId;
use crate::secret::Secret;

/// The body of `POST /v1/tasks`.
#[derive(Debug, Clone, Serialize)]
pub struct BeginRequest {
    /// The scope's id.
    pub scope: String,
    /// A label of the caller's own choice.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The scope's parameters.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub params: BTreeMap<String, String>,
    /// How long the task may last at most, as text: `15m`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ttl: Option<String>,
    /// Whether the task ends when nobody holds it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub hold: bool,
    /// Why, in the caller's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The answer to `POST /v1/tasks`: a task that has begun.
#[derive(Debug, Serialize, Deserialize)]
pub struct Begun {
    /// The task's id.
    pub id: String,
    /// Its scope.
    pub scope: String,
    /// Whose task it is.
    pub spiffe_id: SpiffeId,
    /// The task's token.
    #[serde(serialize_with = "expose", deserialize_with = "secret")]
    pub token: Secret,
    /// The task's deadline.
    pub expires_at: Timestamp,
    /// What its environment needs to hold, by name.
    #[serde(default, serialize_with = "expose_all", deserialize_with = "secrets")]
    pub environment: BTreeMap<String, Secret>,
}

/// The answer to `GET /v1/tasks`.
#[derive(Debug, Serialize, Deserialize)]
pub struct TaskList {
    /// The caller's tasks, the latest first.
    pub tasks: Vec<TaskView>,
    /// The last of them, where there are more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<String>,
}

/// The answer to `GET /v1/tasks/{id}`: a task as its owner sees it.
#[derive(Debug, Serialize, Deserialize)]
pub struct TaskView {
    /// Its id.
    pub id: String,
    /// Its scope.
    pub scope: String,
    /// Whose it is.
    pub spiffe_id: SpiffeId,
    /// The caller's label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<String>,
    /// The task that it is part of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parent: Option<String>,
    /// The decision's tier.
    pub tier: String,
    /// `active` or `ended`.
    pub state: String,
    /// Whether it ends when nobody holds it.
    pub hold: bool,
    /// When it began, UTC.
    pub begun_at: Timestamp,
    /// Its deadline, UTC.
    pub expires_at: Timestamp,
    /// When it ended, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ended_at: Option<Timestamp>,
    /// Why it ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What was minted for it.
    #[serde(default)]
    pub leases: Vec<LeaseView>,
}

/// A lease as the task's owner sees it.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeaseView {
    /// Its id.
    pub id: String,
    /// Its provider.
    pub provider: String,
    /// `exact` or `expire`.
    pub revocation: String,
    /// `intent`, `issued`, `ending`, `revoked` or `expired`.
    pub state: String,
    /// When the credential can no longer be used at its provider, UTC.
    pub usable_until: Timestamp,
    /// Whether it may have opened or created what outlives even that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open_ended: bool,
    /// The session's name at the provider.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session_name: Option<String>,
    /// The grant it implements.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grant: Option<String>,
    /// What its provider calls it, once known and where an operator needs it there, by the provider's name of the member.
    #[serde(flatten)]
    pub names: BTreeMap<String, serde_json::Value>,
}

impl LeaseView {
    /// AWS's name for the session (its ARN), once known: what an operator needs to deny it there.
    pub fn assumed_role(&self) -> Option<&str> {
        self.names.get("assumed_role")?.as_str()
    }
}

/// The answer to `DELETE /v1/tasks/{id}`: how a task ended.
#[derive(Debug, Serialize, Deserialize)]
pub struct Ending {
    /// The task's id.
    pub id: String,
    /// Why it ended.
    pub reason: String,
    /// When, UTC.
    pub ended_at: Timestamp,
    /// What became of each credential.
    #[serde(default)]
    pub leases: Vec<LeaseEnding>,
    /// Whether a crash of the sidecar would not undo it. Said only while it is not: the journal cannot be written, and a crash
    /// now would bring the task back until the sidecar is ended again, or its deadline.
    #[serde(default = "yes", skip_serializing_if = "Clone::clone")]
    pub durable: bool,
}

const fn yes() -> bool {
    true
}

/// What became of one credential.
#[derive(Debug, Serialize, Deserialize)]
pub struct LeaseEnding {
    /// The lease's id.
    pub id: String,
    /// Its provider.
    pub provider: String,
    /// `revoked` or `expires`.
    pub outcome: String,
    /// When the credential can no longer be used at its provider, UTC.
    pub usable_until: Timestamp,
    /// Whether it may have opened or created what outlives even that.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub open_ended: bool,
}

/// One line of the answer to `POST /v1/tasks/{id}/hold`.
#[derive(Debug, Serialize, Deserialize)]
pub struct HoldLine {
    /// The task's id.
    #[serde(default)]
    pub id: String,
    /// `active` or `ended`.
    pub state: String,
    /// The deadline of one that is active, UTC.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<Timestamp>,
    /// Why one has ended.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// A refusal: a problem document (RFC 9457). The sidecar writes every member.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Problem {
    /// Always `about:blank`: the code tells the kinds apart.
    #[serde(rename = "type")]
    pub kind: Option<String>,
    /// The status in words.
    pub title: Option<String>,
    /// The HTTP status.
    pub status: Option<u16>,
    /// What is told of it.
    pub detail: Option<String>,
    /// The stable code.
    pub code: Option<String>,
    /// The request's id, which the audit log also has.
    pub request_id: Option<String>,
}

/// The answer to the admin listener's `GET /status`.
#[derive(Debug, Deserialize)]
pub struct Status {
    /// Whether tasks can begin.
    pub ready: bool,
    /// Why not.
    #[serde(default)]
    pub reasons: Vec<String>,
    /// The sidecar's version.
    pub version: String,
    /// Its policy.
    #[serde(default)]
    pub policy: PolicyStatus,
    /// Its connection to the Workload API.
    #[serde(default)]
    pub workload_api: WorkloadApiStatus,
    /// How many tasks.
    #[serde(default)]
    pub tasks: TaskCounts,
    /// How many live leases.
    #[serde(default)]
    pub leases: LeaseCounts,
    /// The journal.
    #[serde(default)]
    pub journal: JournalStatus,
    /// Its identities; only the admin Unix socket tells them.
    #[serde(default)]
    pub identities: Option<Vec<IdentityStatus>>,
    /// Every task; only the admin Unix socket tells them.
    #[serde(default)]
    pub task_list: Option<Vec<TaskView>>,
    /// What of ended tasks can still be used, the most urgent first; not all of it where there is much.
    #[serde(default)]
    pub outstanding: Vec<OutstandingView>,
}

/// The sidecar's policy.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct PolicyStatus {
    /// Which policy.
    pub version: Option<String>,
    /// How fresh it is.
    pub state: Option<String>,
    /// `unsigned` where nobody signed it.
    pub trust: Option<String>,
    /// How many scopes can decide.
    pub active_scopes: u64,
    /// The suspended scopes and what is wrong with each: text, or an object with a `message`.
    pub suspended: BTreeMap<String, Vec<serde_json::Value>>,
    /// Entries of the kill list that are in force.
    pub killed: u64,
    /// When each role expires, where the policy is signed.
    pub ends: BTreeMap<String, String>,
    /// What is wrong with what was looked at last.
    pub problems: Vec<serde_json::Value>,
    /// What was refused last, also where it was fixed since.
    pub last_refusal: Option<Refusal>,
    /// What is odd about the source and harms nothing.
    pub notes: Vec<String>,
}

/// A policy version that was refused.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Refusal {
    /// When it was last seen.
    pub at: String,
    /// What was wrong with it.
    pub problems: Vec<serde_json::Value>,
}

/// The sidecar's connection to the Workload API.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct WorkloadApiStatus {
    /// Whether it is connected now.
    pub connected: bool,
    /// How many SVIDs it has.
    pub svids: u64,
}

/// How many tasks.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct TaskCounts {
    /// That have not ended.
    pub active: u64,
    /// That ended, as far as they are remembered.
    pub ended: u64,
}

/// How many leases.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct LeaseCounts {
    /// Whose credential could still be used.
    pub active: u64,
    /// Of these, those whose task has ended.
    pub outstanding: u64,
    /// Of these, those that are to be revoked.
    pub to_revoke: u64,
}

/// A credential of an ended task that can still be used.
#[derive(Debug, Deserialize)]
pub struct OutstandingView {
    /// The lease.
    pub id: String,
    /// Its provider.
    pub provider: String,
    /// Whether it is to be revoked; else it dies by itself.
    #[serde(default)]
    pub to_revoke: bool,
    /// When it can no longer be used at its provider.
    pub usable_until: Timestamp,
    /// How often its revocation was tried since the sidecar started.
    #[serde(default)]
    pub tries: u32,
    /// How the last try failed: a status.
    pub last_error: Option<String>,
    /// The same in full; only the admin Unix socket tells it.
    pub detail: Option<String>,
    /// Its task; only the admin Unix socket tells it.
    pub task: Option<String>,
}

/// The journal.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct JournalStatus {
    /// Records that wait to be written.
    pub pending: u64,
}

/// One identity of the sidecar.
#[derive(Debug, Deserialize)]
pub struct IdentityStatus {
    /// The identity.
    pub spiffe_id: SpiffeId,
    /// When its SVID expires.
    pub expires_at: Timestamp,
}

/// Reads a secret straight into its own type.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Secret, D::Error> {
    String::deserialize(deserializer).map(Secret::new)
}

/// The same for the values of an object.
fn secrets<'de, D: Deserializer<'de>>(deserializer: D) -> Result<BTreeMap<String, Secret>, D::Error> {
    let texts = BTreeMap::<String, String>::deserialize(deserializer)?;
    Ok(texts.into_iter().map(|(name, text)| (name, Secret::new(text))).collect())
}

fn expose<S: Serializer>(secret: &Secret, serializer: S) -> Result<S::Ok, S::Error> {
    // exposed: this is the answer to whoever began the task
    serializer.serialize_str(secret.expose())
}

fn expose_all<S: Serializer>(secrets: &BTreeMap<String, Secret>, serializer: S) -> Result<S::Ok, S::Error> {
    // exposed: as above
    serializer.collect_map(secrets.iter().map(|(name, secret)| (name, secret.expose())))
}
