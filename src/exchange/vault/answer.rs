//! Vault's answers: what is read of them, and what is accepted.

use serde::Deserialize;
use serde_json::value::RawValue;

use super::fault::{Fault, Remedy, Step};
use crate::secret::Secret;

/// The longest token, accessor or lease id that is accepted, in bytes. Real ones have about 100.
const MAX_NAME: usize = 1024;

/// A service token, fresh from a login.
#[derive(Debug)]
pub(super) struct Login {
    pub(super) token: Secret,
    pub(super) accessor: String,
    /// Seconds, counted from the answer; never 0.
    pub(super) life: u64,
    pub(super) renewable: bool,
}

/// A dynamic secret.
#[derive(Debug)]
pub(super) struct Leased {
    pub(super) lease_id: String,
    /// Seconds, counted from the answer; never 0.
    pub(super) life: u64,
    pub(super) renewable: bool,
    /// The text of a JSON object.
    pub(super) data: Secret,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    auth: Option<Auth<'a>>,
    #[serde(borrow, default)]
    lease_id: Option<&'a str>,
    #[serde(default)]
    lease_duration: Option<u64>,
    #[serde(default)]
    renewable: bool,
    #[serde(borrow, default)]
    data: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct Auth<'a> {
    #[serde(borrow)]
    client_token: &'a str,
    #[serde(borrow, default)]
    accessor: &'a str,
    lease_duration: u64,
    #[serde(default)]
    renewable: bool,
    #[serde(borrow, default)]
    token_type: Option<&'a str>,
    #[serde(borrow, default)]
    token_policies: Option<Vec<&'a str>>,
    #[serde(borrow, default)]
    policies: Option<Vec<&'a str>>,
    #[serde(default)]
    num_uses: u64,
}

/// A failed look at a login. A token that came with it is handed back, for it must be revoked.
#[derive(Debug)]
pub(super) struct BadLogin {
    pub(super) fault: Fault,
    pub(super) token: Option<Secret>,
}

fn envelope(step: Step, body: &[u8]) -> Result<Envelope<'_>, Fault> {
    serde_json::from_slice(body).map_err(|_| Fault::nonsense(step, "not the JSON that Vault answers"))
}

fn is_name(text: &str) -> bool {
    (1..=MAX_NAME).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic())
}

/// Accepts or refuses the answer to a login: one service token, of limited life, that is not everybody's master.
pub(super) fn login(body: &[u8]) -> Result<Login, BadLogin> {
    let without = |fault| BadLogin { fault, token: None };
    let auth = envelope(Step::Login, body).map_err(without)?.auth;
    let auth = auth.ok_or_else(|| without(Fault::nonsense(Step::Login, "it holds no token")))?;
    if !is_name(auth.client_token) {
        return Err(without(Fault::nonsense(Step::Login, "the token is empty or not printable ASCII")));
    }
    let token = Secret::new(auth.client_token.to_owned());
    match flaw(&auth) {
        None => Ok(Login {
            token,
            accessor: auth.accessor.to_owned(),
            life: auth.lease_duration,
            renewable: auth.renewable,
        }),
        Some(fault) => Err(BadLogin { fault, token: Some(token) }),
    }
}

fn flaw(auth: &Auth<'_>) -> Option<Fault> {
    let fix = |what: &str| Some(Fault::new(Remedy::Fix, what));
    let batch = auth.client_token.starts_with("b.") || auth.client_token.starts_with("hvb.");
    let policies = auth.policies.iter().chain(&auth.token_policies).flatten();
    if batch || auth.token_type.is_some_and(|kind| kind != "service") {
        // No accessor, no revocation, and leases that nobody can revoke by it.
        return fix("the role gives batch tokens, which cannot be revoked: set token_type=service");
    }
    if auth.lease_duration == 0 {
        return fix("the role's tokens never end: set token_ttl");
    }
    if auth.num_uses != 0 {
        return fix("the role's tokens can be used a few times only: set token_num_uses=0");
    }
    if policies.into_iter().any(|policy| *policy == "root") {
        return fix("the role gives the policy root");
    }
    if !is_name(auth.accessor) {
        return Some(Fault::nonsense(Step::Login, "the token has no accessor"));
    }
    None
}

/// Accepts or refuses the answer to reading `path`.
pub(super) fn leased(body: &[u8], path: &str) -> Result<Leased, Fault> {
    let found = envelope(Step::Read, body)?;
    let nonsense = |what| Fault::nonsense(Step::Read, what);
    let lease_id = found.lease_id.unwrap_or_default();
    if lease_id.is_empty() {
        return Err(Fault::new(Remedy::Fix, "what is read there is no dynamic secret: it has no lease"));
    }
    if !is_name(lease_id) || !lease_id.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')) {
        return Err(nonsense("the lease is of another path than was read"));
    }
    let life = found.lease_duration.unwrap_or_default();
    if life == 0 {
        return Err(nonsense("the lease has no life"));
    }
    // The text itself: nothing of it is looked at but that it is an object with something in it.
    let data = found.data.map(RawValue::get).unwrap_or_default();
    if !data.starts_with('{') || data.trim_start_matches('{').trim_start().starts_with('}') {
        return Err(nonsense("it holds no data"));
    }
    Ok(Leased { lease_id: lease_id.to_owned(), life, renewable: found.renewable, data: Secret::new(data.to_owned()) })
}

/// The life that a token or lease has once it was renewed, or shortened, in seconds.
pub(super) fn renewed(step: Step, body: &[u8]) -> Result<u64, Fault> {
    let found = envelope(step, body)?;
    let life = found.auth.map(|auth| auth.lease_duration).or(found.lease_duration);
    life.filter(|life| *life > 0).ok_or_else(|| Fault::nonsense(step, "it tells no life"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn auth(change: serde_json::Value) -> Vec<u8> {
        let mut auth = json!({
            "client_token": "hvs.token", "accessor": "acc", "policies": ["default", "app"], "token_policies": ["app"],
            "lease_duration": 300, "renewable": true, "token_type": "service", "num_uses": 0, "orphan": true,
        });
        auth.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        json!({ "auth": auth, "lease_id": "", "data": null }).to_string().into_bytes()
    }

    #[test]
    fn accepts_a_service_token_with_an_expiry() {
        let login = login(&auth(json!({}))).unwrap();
        assert_eq!((login.token.expose(), login.accessor.as_str(), login.life), ("hvs.token", "acc", 300));
    }

    #[test]
    fn rejects_other_tokens_and_returns_them_for_revocation() {
        for (change, says) in [
            (json!({ "token_type": "batch" }), "batch"),
            (json!({ "client_token": "b.AAAA" }), "batch"),
            (json!({ "client_token": "hvb.AAAA" }), "batch"),
            (json!({ "lease_duration": 0 }), "never end"),
            (json!({ "num_uses": 3 }), "few times"),
            (json!({ "policies": ["root"] }), "root"),
            (json!({ "accessor": "" }), "accessor"),
        ] {
            let bad = login(&auth(change.clone())).unwrap_err();
            assert!(bad.fault.detail.contains(says), "{change}: {}", bad.fault.detail);
            assert!(bad.token.is_some(), "{change}");
        }
        for body in
            [&b"{}"[..], b"", b"[]", b"{\"auth\":null}", b"{\"auth\":{\"client_token\":\"\",\"lease_duration\":1}}"]
        {
            assert!(login(body).unwrap_err().token.is_none());
        }
    }

    #[test]
    fn a_lease_must_be_of_the_path_that_was_read_and_have_a_life_and_data() {
        let read = |change: serde_json::Value| {
            let mut body = json!({ "lease_id": "database/creds/ro/x1", "lease_duration": 60, "renewable": true,
                "data": { "username": "u", "password": "p" }, "auth": null });
            body.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
            leased(body.to_string().as_bytes(), "database/creds/ro")
        };
        let good = read(json!({})).unwrap();
        let data: serde_json::Value = serde_json::from_str(good.data.expose()).unwrap();
        assert_eq!(data, json!({ "username": "u", "password": "p" }));
        for (change, says) in [
            (json!({ "lease_id": "" }), "no dynamic secret"),
            (json!({ "lease_id": null }), "no dynamic secret"),
            (json!({ "lease_id": "database/creds/rw/x1" }), "another path"),
            (json!({ "lease_id": "database/creds/ro" }), "another path"),
            (json!({ "lease_id": "database/creds/ro/ x" }), "another path"),
            (json!({ "lease_duration": 0 }), "no life"),
            (json!({ "lease_duration": -1 }), "not the JSON"),
            (json!({ "lease_duration": null }), "no life"),
            (json!({ "data": null }), "no data"),
            (json!({ "data": {} }), "no data"),
            (json!({ "data": "text" }), "no data"),
        ] {
            let fault = read(change.clone()).unwrap_err();
            assert!(fault.detail.contains(says), "{change}: {}", fault.detail);
        }
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_readers(bytes in prop::collection::vec(any::<u8>(), 0..200), text in "\\PC{0,80}") {
            for body in [bytes.clone(), text.clone().into_bytes(), format!("{{\"auth\":{text}}}").into_bytes(),
                         json!({ "lease_id": text, "lease_duration": 1, "data": { "a": text } }).to_string().into_bytes()] {
                for said in [login(&body).err().map(|bad| bad.fault.detail), leased(&body, "a/b").err().map(|f| f.detail),
                             renewed(Step::Renew, &body).err().map(|f| f.detail)].into_iter().flatten() {
                    prop_assert!(said.len() < 120 && said.is_ascii());
                }
            }
        }
    }
}
