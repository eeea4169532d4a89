//! What makes an answer of STS a credential: non-empty, alive no longer than asked, and of the role, session, subject
//! and audience that were asked for (threat T24: a hostile or confused STS). Anything else is unusable.

use std::time::Duration;

use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityOutput;
use aws_smithy_types::DateTime;

use super::AssumedRole;
use crate::clock::Timestamp;
use crate::exchange::{AwsCredential, Credential, Handle, Minted, Revocability};
use crate::identity::SpiffeId;
use crate::secret::Secret;

/// By how much the provider's clock may differ from ours.
pub(super) const MAX_SKEW: Duration = Duration::from_secs(30);
/// STS declares `SubjectFromWebIdentityToken` as at most this long; SPIFFE IDs may be longer.
const MAX_SUBJECT: usize = 255;

/// A role's ARN: `arn:PARTITION:iam::ACCOUNT:role/PATH/NAME`. At Ceph RGW the account is a tenant, or empty.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Role<'a> {
    partition: &'a str,
    account: &'a str,
    name: &'a str,
}

impl<'a> Role<'a> {
    /// Reads an ARN; `None` where it is not that of a role, or not 20 to 2,048 characters long as STS wants it.
    pub(super) fn parse(arn: &'a str) -> Option<Self> {
        if !(20..=2048).contains(&arn.len()) || !arn.bytes().all(|b| b.is_ascii_graphic()) {
            return None;
        }
        let (partition, account, resource) = split(arn, "iam")?;
        let name = resource.strip_prefix("role/")?.rsplit('/').next()?;
        (!partition.is_empty() && !name.is_empty()).then_some(Self { partition, account, name })
    }

    /// Whether `arn` names the session `session_name` of this role (`assumed-role/NAME/SESSION`: the path is left out).
    fn has_session(&self, arn: &str, session_name: &str) -> bool {
        split(arn, "sts").is_some_and(|(partition, account, resource)| {
            let names = resource.strip_prefix("assumed-role/").and_then(|rest| rest.split_once('/'));
            (partition, account, names) == (self.partition, self.account, Some((self.name, session_name)))
        })
    }
}

/// A point in time of the SDK as ours; `None` before 1970.
fn timestamp(time: &DateTime) -> Option<Timestamp> {
    time.to_millis().ok().and_then(|millis| u64::try_from(millis).ok()).map(Timestamp::from_millis)
}

/// `arn:PARTITION:SERVICE::ACCOUNT:RESOURCE` → partition, account, resource.
pub(super) fn split<'a>(arn: &'a str, service: &str) -> Option<(&'a str, &'a str, &'a str)> {
    let mut parts = arn.splitn(6, ':');
    let (prefix, partition, its_service) = (parts.next()?, parts.next()?, parts.next()?);
    let (region, account, resource) = (parts.next()?, parts.next()?, parts.next()?);
    (prefix == "arn" && its_service == service && region.is_empty()).then_some((partition, account, resource))
}

/// What was asked for, to hold the answer against.
#[derive(Debug)]
pub(super) struct Asked<'a> {
    pub(super) role: Role<'a>,
    pub(super) session_name: &'a str,
    pub(super) caller: &'a SpiffeId,
    pub(super) audience: &'a str,
    /// `DurationSeconds`.
    pub(super) duration: Duration,
    /// When the session policy stops allowing anything, where it was cut.
    pub(super) cut: Option<Timestamp>,
    /// When the request left, on our clock.
    pub(super) sent: Timestamp,
}

/// Believes or refuses an answer that arrived at `received`.
///
/// # Errors
/// Says what is wrong with it, in words that hold nothing of it.
pub(super) fn accept(
    answer: AssumeRoleWithWebIdentityOutput,
    asked: &Asked<'_>,
    received: Timestamp,
) -> Result<Minted, &'static str> {
    check_names(&answer, asked)?;
    let user = answer.assumed_role_user.ok_or("it names no assumed role")?;
    let session = AssumedRole::read(&user.arn).ok_or("it names no assumed role")?;
    let credentials = answer.credentials.ok_or("it holds no credential")?;
    let expiration = timestamp(&credentials.expiration).ok_or("its Expiration is not a time")?;
    check_expiration(expiration, asked, received)?;
    let usable_until = asked.cut.map_or(expiration, |cut| cut.min(expiration));
    if usable_until <= received {
        return Err("it came after the end of its own life");
    }
    let account_id = Some(asked.role.account).filter(|a| a.len() == 12 && a.bytes().all(|b| b.is_ascii_digit()));
    let credential = AwsCredential {
        access_key_id: secret(credentials.access_key_id)?,
        secret_access_key: secret(credentials.secret_access_key)?,
        session_token: secret(credentials.session_token)?,
        account_id: account_id.map(str::to_owned),
    };
    Ok(Minted {
        credential: Credential::Aws(credential),
        usable_until,
        revocability: Revocability::ExpiresOnly(Handle::Aws(session)),
    })
}

/// Is it the credential of our role, session, subject and audience?
fn check_names(answer: &AssumeRoleWithWebIdentityOutput, asked: &Asked<'_>) -> Result<(), &'static str> {
    // AssumedRoleId is not looked at: Ceph RGW spells it otherwise, so it is empty there.
    let arn = answer.assumed_role_user().map(|user| user.arn()).unwrap_or_default();
    if !asked.role.has_session(arn, asked.session_name) {
        return Err("it is for another role or session than was asked for");
    }
    let caller = asked.caller.as_str();
    let is_caller = |subject: &str| {
        subject == caller || (subject.len() >= MAX_SUBJECT && caller.len() > MAX_SUBJECT && caller.starts_with(subject))
    };
    if answer.subject_from_web_identity_token().is_some_and(|subject| !subject.is_empty() && !is_caller(subject)) {
        return Err("it is for another subject than the caller");
    }
    if answer.audience().is_some_and(|audience| !audience.is_empty() && audience != asked.audience) {
        return Err("it is for another audience than was asked for");
    }
    Ok(())
}

/// Does it live as long as was asked?
///
/// Too long breaks the law of life. Too short is harmless by itself, but with a cut it means that our clock may be
/// ahead of the provider's, and the cut is a time of our clock: it would come late by as much.
fn check_expiration(expiration: Timestamp, asked: &Asked<'_>, received: Timestamp) -> Result<(), &'static str> {
    if expiration <= received {
        return Err("it has expired already: it is old, or this machine's clock is ahead");
    }
    if expiration > received.max(asked.sent) + asked.duration + MAX_SKEW {
        return Err("it lives longer than was asked for, or this machine's clock is behind");
    }
    if asked.cut.is_some() && expiration + MAX_SKEW < received.min(asked.sent) + asked.duration {
        return Err("it lives shorter than was asked for, or this machine's clock is ahead");
    }
    Ok(())
}

/// A part of the credential: not empty, and only characters that fit into a header.
fn secret(text: String) -> Result<Secret, &'static str> {
    let fits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_graphic());
    let secret = Secret::new(text);
    if fits { Ok(secret) } else { Err("a part of the credential is empty or not printable ASCII") }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_the_role_out_of_its_arn() {
        let role = Role::parse("arn:aws-cn:iam::111122223333:role/team/a/ledger").unwrap();
        assert_eq!(role, Role { partition: "aws-cn", account: "111122223333", name: "ledger" });
        assert_eq!(Role::parse("arn:aws:iam:::role/app").unwrap(), Role { partition: "aws", account: "", name: "app" });
        for wrong in [
            "",
            "arn:aws:iam::1:role/",
            "arn:aws:iam::111122223333:user/ledger",
            "arn:aws:sts::111122223333:role/ledger",
            "arn:aws:iam:us-east-1:111122223333:role/ledger",
            "arn:aws:iam::111122223333:roles/ledger",
            "urn:aws:iam::111122223333:role/ledger",
        ] {
            assert_eq!(Role::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn knows_its_own_session_and_no_other() {
        let role = Role::parse("arn:aws:iam::111122223333:role/team/ledger").unwrap();
        assert!(role.has_session("arn:aws:sts::111122223333:assumed-role/ledger/smt-1", "smt-1"));
        for foreign in [
            "",
            "arn:aws:sts::111122223334:assumed-role/ledger/smt-1",
            "arn:aws:sts::111122223333:assumed-role/other/smt-1",
            "arn:aws:sts::111122223333:assumed-role/ledger/smt-2",
            "arn:aws:sts::111122223333:assumed-role/ledger/smt-1/x",
            "arn:aws:iam::111122223333:assumed-role/ledger/smt-1",
            "arn:aws-cn:sts::111122223333:assumed-role/ledger/smt-1",
        ] {
            assert!(!role.has_session(foreign, "smt-1"), "{foreign}");
        }
    }

    proptest! {
        #[test]
        fn no_text_breaks_the_arn_reader(text in ".{0,60}", tail in "[a-z:/]{0,30}") {
            let _ = Role::parse(&text);
            if let Some(role) = Role::parse(&format!("arn:aws:iam:{tail}")) {
                prop_assert!(!role.name.is_empty() && !role.name.contains('/'));
            }
        }
    }
}
