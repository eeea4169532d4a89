//! `owners/`: the charter (`owners/charter.toml`) and who the owners are (`owners/ID.toml`). All owners sign it together
//! (docs/policy.md#what-a-bad-file-does), so a bad file here refuses the whole version.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;

use super::public_key::PublicKey;
use super::{DocumentError, Problem, Tier, kind};
use crate::clock::Timestamp;
use crate::names::is_segment;
use crate::toml_file;

/// The folder of the charter and the owners.
pub const FOLDER: &str = "owners";
/// The charter's own file.
pub const CHARTER: &str = "owners/charter.toml";
/// The most owners.
pub const MAX_OWNERS: usize = 10_000;
/// The most keys of one owner.
pub const MAX_KEYS: usize = 16;
/// How long the policy may have lapsed, where the charter says nothing: `baseline`.
pub const DEFAULT_STALENESS: Duration = Duration::from_secs(24 * 3600);
/// The same, `elevated`.
pub const DEFAULT_STALENESS_ELEVATED: Duration = Duration::from_secs(3600);
/// The shortest `max_staleness`.
pub const MIN_STALENESS: Duration = Duration::from_secs(60);
/// The longest `max_staleness`.
pub const MAX_STALENESS: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long scopes go on after their owner left, where the charter says nothing.
pub const DEFAULT_ORPHAN_GRACE: Duration = Duration::from_secs(7 * 24 * 3600);
/// The longest `orphan_grace`.
pub const MAX_ORPHAN_GRACE: Duration = Duration::from_secs(90 * 24 * 3600);

/// `owners/charter.toml`: what the owners agreed on for everybody.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Charter {
    baseline: Duration,
    elevated: Duration,
    break_glass: Duration,
    orphan_grace: Duration,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCharter {
    #[serde(rename = "schema")]
    _schema: i64,
    #[serde(default)]
    max_staleness: RawStaleness,
    orphan_grace: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
struct RawStaleness {
    baseline: Option<String>,
    elevated: Option<String>,
    break_glass: Option<String>,
}

impl Default for Charter {
    /// What holds where there is no charter.
    fn default() -> Self {
        Self {
            baseline: DEFAULT_STALENESS,
            elevated: DEFAULT_STALENESS_ELEVATED,
            break_glass: DEFAULT_STALENESS,
            orphan_grace: DEFAULT_ORPHAN_GRACE,
        }
    }
}

impl Charter {
    /// Reads the bytes of the charter.
    ///
    /// # Errors
    /// Anything unknown, missing or out of its range.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawCharter = toml_file::read(bytes)?;
        let staleness = |tier: &str, text: Option<String>, default| match text {
            Some(text) => toml_file::duration(&format!("max_staleness.{tier}"), &text, MIN_STALENESS, MAX_STALENESS),
            None => Ok(default),
        };
        let orphan_grace = match &raw.orphan_grace {
            Some(text) => toml_file::duration("orphan_grace", text, Duration::ZERO, MAX_ORPHAN_GRACE)?,
            None => DEFAULT_ORPHAN_GRACE,
        };
        Ok(Self {
            baseline: staleness("baseline", raw.max_staleness.baseline, DEFAULT_STALENESS)?,
            elevated: staleness("elevated", raw.max_staleness.elevated, DEFAULT_STALENESS_ELEVATED)?,
            break_glass: staleness("break-glass", raw.max_staleness.break_glass, DEFAULT_STALENESS)?,
            orphan_grace,
        })
    }

    /// For how long a signed policy may have lapsed before scopes of `tier` neither begin nor mint. It is also the window
    /// in which whoever controls the way to the repository could withhold a kill.
    pub const fn max_staleness(&self, tier: Tier) -> Duration {
        match tier {
            Tier::Baseline => self.baseline,
            Tier::Elevated => self.elevated,
            Tier::BreakGlass => self.break_glass,
        }
    }

    /// For how long scopes of `tier` go on after one of their owners left; nothing for `elevated` (requirement G05).
    pub const fn orphan_grace(&self, tier: Tier) -> Duration {
        match tier {
            Tier::Elevated => Duration::ZERO,
            Tier::Baseline | Tier::BreakGlass => self.orphan_grace,
        }
    }
}

/// Reads a public key that an owner approves with: 64 lower-case hex digits (Ed25519) or the PEM of a
/// `SubjectPublicKeyInfo` (Ed25519 or P-256), which is what `openssl pkey -pubout` writes.
fn owner_key(text: &str) -> Result<PublicKey, DocumentError> {
    let text = text.trim();
    let key = match text.starts_with('-') {
        true => PublicKey::from_pem(text),
        false if text.bytes().any(|byte| byte.is_ascii_uppercase()) => None,
        false => PublicKey::from_hex(text),
    };
    key.ok_or_else(|| {
        DocumentError::invalid(
            "keys are 64 lower-case hex digits (ed25519) or a PEM public key (BEGIN PUBLIC KEY), ed25519 or P-256",
        )
    })
}

/// `owners/ID.toml`: one owner, to whom decisions and scopes point by `ID`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Owner {
    /// What people call them.
    pub name: String,
    /// Where they are reached.
    pub mail: String,
    /// When they leave, or left; UTC. What they own stops then, or a grace later.
    pub active_until: Option<Timestamp>,
    /// The keys that they approve with.
    pub keys: Vec<PublicKey>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawOwner {
    #[serde(rename = "schema")]
    _schema: i64,
    name: String,
    mail: String,
    active_until: Option<toml::value::Datetime>,
    #[serde(default)]
    keys: Vec<String>,
}

impl Owner {
    /// Reads the bytes of an owner's file.
    ///
    /// # Errors
    /// Anything unknown, missing or out of its range; a key that is there twice.
    pub fn parse(bytes: &[u8]) -> Result<Self, DocumentError> {
        let raw: RawOwner = toml_file::read(bytes)?;
        if raw.keys.len() > MAX_KEYS {
            return Err(DocumentError::invalid(format!("has more than {MAX_KEYS} keys")));
        }
        let keys = raw.keys.iter().map(|text| owner_key(text)).collect::<Result<Vec<_>, _>>()?;
        if (1..keys.len()).any(|at| keys.get(..at).zip(keys.get(at)).is_some_and(|(before, key)| before.contains(key)))
        {
            return Err(DocumentError::invalid("has a key twice"));
        }
        if !is_mail(&raw.mail) {
            return Err(DocumentError::invalid("mail must be an address such as finance-data@example.org"));
        }
        Ok(Self {
            name: toml_file::text("name", raw.name)?,
            mail: raw.mail,
            active_until: raw.active_until.map(|at| toml_file::instant("active_until", at)).transpose()?,
            keys,
        })
    }
}

/// One `@` with something visible on both sides; RFC 5321 §4.5.3.1 allows 254 characters.
fn is_mail(text: &str) -> bool {
    let visible = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_graphic() && b != b'@');
    text.len() <= 254 && text.split_once('@').is_some_and(|(local, host)| visible(local) && visible(host))
}

/// The charter with all owners.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owners {
    /// What holds for everybody.
    pub charter: Charter,
    /// The owners, by id; `None` where no owners are named at all, which only an unsigned policy may do.
    pub by_id: Option<BTreeMap<String, Owner>>,
}

impl Owners {
    /// Reads every file below `owners/`; `signed` says that owners must be named.
    ///
    /// # Errors
    /// Every problem of every file: none of them may be overlooked.
    pub fn read(files: &BTreeMap<String, Bytes>, signed: bool) -> Result<Self, Vec<Problem>> {
        let (mut charter, mut by_id, mut problems) = (Charter::default(), BTreeMap::new(), Vec::new());
        let mut any = signed;
        let of = |path: &str, error: DocumentError| Problem::new(path, error.kind, error.message);
        for (path, bytes) in files.range(format!("{FOLDER}/")..format!("{FOLDER}0")) {
            any = true;
            if path == CHARTER {
                match Charter::parse(bytes) {
                    Ok(parsed) => charter = parsed,
                    Err(error) => problems.push(of(path, error)),
                }
                continue;
            }
            match id(path).ok_or_else(misplaced).and_then(|id| Ok((id, Owner::parse(bytes)?))) {
                Ok((id, owner)) => drop(by_id.insert(id.to_owned(), owner)),
                Err(error) => problems.push(of(path, error)),
            }
        }
        if by_id.len() > MAX_OWNERS {
            problems.push(Problem::new(FOLDER, kind::INVALID, format!("has more than {MAX_OWNERS} owners")));
        }
        problems.extend(shared_key(&by_id));
        if problems.is_empty() { Ok(Self { charter, by_id: any.then_some(by_id) }) } else { Err(problems) }
    }
}

/// `owners/ID.toml` → `ID`
fn id(path: &str) -> Option<&str> {
    let id = path.strip_prefix(FOLDER)?.strip_prefix('/')?.strip_suffix(".toml")?;
    is_segment(id, 64).then_some(id)
}

fn misplaced() -> DocumentError {
    let message = "is neither owners/charter.toml nor owners/ID.toml; ID is 1 to 64 of a-z 0-9 - _".to_owned();
    DocumentError { kind: kind::FILE_NAME, message }
}

/// Who approves must be somebody else than who asks (requirement G06): no two owners share a key.
fn shared_key(owners: &BTreeMap<String, Owner>) -> Option<Problem> {
    let mut seen: BTreeMap<&PublicKey, &str> = BTreeMap::new();
    for (id, owner) in owners {
        for key in &owner.keys {
            if let Some(other) = seen.insert(key, id) {
                let message = format!("has a key of {other}: no two owners share one");
                return Some(Problem::new(format!("{FOLDER}/{id}.toml"), kind::INVALID, message));
            }
        }
    }
    None
}

#[cfg(test)]
mod tests;
