//! What makes an answer of STS a credential: non-empty, alive no longer than asked, and of the role, session, subject
//! and audience that were asked for (threat T24: a hostile or confused STS). Anything else is unusable.

use std::time::Duration;

use aws_sdk_sts::operation::assume_role_with_web_identity::AssumeRoleWithWebIdentityOutput;
use aws_smithy_types::DateTime;

use super::AssumedRole;
use crate::clock::Timestamp;
use crate::exchange::{AwsCredential, Credential, Handle, Minted, Revocability};
use crate::identity::SpiffeId;
use crate::provider::aws::arn::Role;
use crate::secret::Secret;

/// By how much the provider's clock may differ from ours.
pub(super) const MAX_SKEW: Duration = Duration::from_secs(30);
/// STS declares `SubjectFromWebIdentityToken` as at most this long; SPIFFE IDs may be longer.
const MAX_SUBJECT: usize = 255;

/// A point in time of the SDK as ours; `None` before 1970.
fn timestamp(time: &DateTime) -> Option<Timestamp> {
    time.to_millis().ok().and_then(|millis| u64::try_from(millis).ok()).map(Timestamp::from_millis)
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

/// Accepts or refuses an answer that arrived at `received`.
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
    let account_id = Some(asked.role.account()).filter(|a| a.len() == 12 && a.bytes().all(|b| b.is_ascii_digit()));
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
