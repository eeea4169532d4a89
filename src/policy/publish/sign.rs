//! One key holder, on their own machine, adds one signature to one role.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use super::super::repository::metadata::Envelope;
use super::PublishError;
use super::content::{expires_of, same_content, version_of};
use super::keys::{KeySource, good_signatures};
use super::published::{Published, Signers};
use super::workspace::Workspace;
use crate::clock::{Clock, Timestamp};

/// What is to be signed, and with what.
#[derive(Debug)]
pub struct Request<'a> {
    /// The role: `root`, `targets` or a delegated one.
    pub role: &'a str,
    /// The key that signs.
    pub key: &'a KeySource,
    /// How long it is valid; else what `repository.toml` says. Given, it renews what has not changed.
    pub expires: Option<Duration>,
    /// Drop signatures that are over something else, and begin again.
    pub restart: bool,
    /// What is published, where it can be seen; else what the working repository knows of it.
    pub published: Option<&'a Published>,
    /// The time of signing, UTC.
    pub now: Timestamp,
}

/// How many signatures there are, and how many are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignatureCount {
    /// How many keys have signed.
    pub have: usize,
    /// How many must.
    pub need: u64,
}

impl SignatureCount {
    fn is_enough(self) -> bool {
        u64::try_from(self.have).is_ok_and(|have| have >= self.need)
    }
}

/// How a role stands after a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Signed {
    /// The role that was signed.
    pub role: String,
    /// The version that is being signed.
    pub version: u64,
    /// When it expires, UTC.
    pub expires: Timestamp,
    /// Whose signatures it has, by the keys' names.
    pub signers: Vec<String>,
    /// How many it needs.
    pub threshold: u32,
    /// For a root that follows another: whose signatures of the root before it has, and how many it needs of them.
    pub before: Option<SignatureCount>,
    /// Whether this signature began a new version.
    pub begun: bool,
    /// The file that the signature was added to.
    pub file: PathBuf,
}

impl Signed {
    /// Whether it has the signatures that it needs.
    pub fn complete(&self) -> bool {
        let own = SignatureCount { have: self.signers.len(), need: u64::from(self.threshold) };
        own.is_enough() && self.before.is_none_or(SignatureCount::is_enough)
    }
}

/// Builds the metadata of the role from the folder where its content changed, and adds the signature of one key.
///
/// # Errors
/// The key is none of the role's; others signed something else (unless `restart`); there is nothing new to sign.
pub async fn sign(workspace: &Workspace, request: &Request<'_>, clock: &dyn Clock) -> Result<Signed, PublishError> {
    let role = workspace.settings().role(request.role)?;
    let known = known_version(workspace, request)?;
    let (mut envelope, begun) = match plan(workspace, request, known)? {
        Plan::Append(envelope) => (envelope, false),
        Plan::Begin => {
            let version = known.checked_add(1).ok_or_else(|| PublishError::Files("versions have run out".into()))?;
            let expires = request.now + request.expires.unwrap_or(role.life);
            let files = if request.role == "root" { BTreeMap::new() } else { workspace.files()? };
            (Envelope::unsigned(workspace.settings().content(request.role, version, expires, &files)?), true)
        }
    };
    let before = before(workspace, request.role, &envelope)?;
    let mut keys = role.keys.clone();
    if let Some(before) = &before {
        keys.extend(before.keys.iter().filter(|(_, key)| !role.keys.iter().any(|(_, known)| known == key)).cloned());
    }
    let message = envelope.message().map_err(|error| PublishError::Files(error.to_string()))?;
    let (public, signature) = request.key.sign(request.role, &message, &keys, clock).await?;
    envelope.add(&public, &signature);
    let file = workspace.stage(request.role, &envelope)?;
    Ok(Signed {
        role: request.role.to_owned(),
        version: version_of(&envelope.signed),
        expires: expires_of(&envelope.signed)?,
        signers: good_signatures(&envelope, &role.keys).into_iter().map(str::to_owned).collect(),
        threshold: role.threshold,
        before: before.map(|before| SignatureCount {
            have: good_signatures(&envelope, &before.keys).len(),
            need: before.threshold,
        }),
        begun,
        file,
    })
}

enum Plan {
    Append(Envelope),
    Begin,
}

/// Whether the signature belongs to what is staged, or a new version begins. `known` is the version published last.
fn plan(workspace: &Workspace, request: &Request<'_>, known: u64) -> Result<Plan, PublishError> {
    let name = request.role;
    let Some((_, staged)) = workspace.staged(name)? else { return Ok(Plan::Begin) };
    let (version, expires) = (version_of(&staged.signed), expires_of(&staged.signed)?);
    let files = if name == "root" { BTreeMap::new() } else { workspace.files()? };
    let same = same_content(&staged.signed, &workspace.settings().content(name, version, expires, &files)?);
    if version <= known {
        // Published: what comes now is the next version, if there is anything to say, or somebody else to say it.
        let role = workspace.settings().role(name)?;
        let enough =
            u64::try_from(good_signatures(&staged, &role.keys).len()).unwrap_or(0) >= u64::from(role.threshold);
        let wanted = request.expires.is_some() || request.restart || expires.since(request.now) < role.life / 2;
        if same && version == known && enough && !wanted {
            return Err(PublishError::Refused(format!(
                "{name}: version {version} is published and says what the folder says, until {expires}; renew it with --expires"
            )));
        }
        return Ok(Plan::Begin);
    }
    let role = workspace.settings().role(name)?;
    let lapsed = expires <= request.now;
    let other_life = request.expires.is_some_and(|life| (request.now + life).floor_to_second() != expires)
        && good_signatures(&staged, &role.keys).is_empty();
    if request.restart || lapsed || other_life {
        return Ok(Plan::Begin);
    }
    if version != known + 1 || !same {
        let why = if same {
            format!("is version {version}, and {known} is published")
        } else {
            "says something else than the folder".into()
        };
        return Err(PublishError::Signatures(format!(
            "{}: what was signed so far {why}: look at both, then begin again with --restart",
            workspace.staged_path(name).display()
        )));
    }
    Ok(Plan::Append(staged))
}

/// The version of the role that is published, 0 for none.
fn known_version(workspace: &Workspace, request: &Request<'_>) -> Result<u64, PublishError> {
    if let Some(published) = request.published {
        return Ok(published.version(request.role));
    }
    if request.role != "root" {
        return Ok(workspace.published_versions()?.get(request.role).copied().unwrap_or(0));
    }
    let mut version = 0;
    while workspace.root(version + 1)?.is_some() {
        version += 1;
    }
    Ok(version)
}

/// The keys and the threshold of the root before `envelope`, which must sign it too (specification §5.3.4).
fn before(workspace: &Workspace, role: &str, envelope: &Envelope) -> Result<Option<Signers>, PublishError> {
    let version = version_of(&envelope.signed);
    if role != "root" || version < 2 {
        return Ok(None);
    }
    let bytes = workspace.root(version - 1)?.ok_or_else(|| {
        PublishError::Files(format!(
            "metadata/{}.root.json: is not there, and its keys must sign the next",
            version - 1
        ))
    })?;
    Signers::of_root(&bytes, "root").map(Some)
}
