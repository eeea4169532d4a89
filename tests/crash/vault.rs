//! A Vault that outlives the sidecar: tokens, leases and their ends in its own books, and the points before and after it
//! makes or revokes a lease. Its tokens live 35 s, so that each lease is dead within the decision's 40 s by itself.

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use serde_json::{Value, json};
use sidemint::clock::{Clock as _, SystemClock, Timestamp};

use crate::gate::{Gate, Point};
use crate::ledger::Mint;

const TOKEN_LIFE: u64 = 35;
const LEASE_LIFE: u64 = 300;
/// The audience of its role.
pub(crate) const AUDIENCE: &str = "vault";

struct Token {
    subject: String,
    until: Timestamp,
    dead: bool,
}

struct Lease {
    token: String,
    made_at: Timestamp,
    until: Timestamp,
    revoked_at: Option<Timestamp>,
}

#[derive(Default)]
struct State {
    serial: u64,
    tokens: BTreeMap<String, Token>,
    leases: BTreeMap<String, Lease>,
}

/// The Vault's own books.
#[derive(Default)]
pub(crate) struct Vault(Mutex<State>);

impl Vault {
    /// Answers one request, with the points on the way.
    pub(crate) async fn answer(&self, gate: &Gate, request: Request<Bytes>) -> Response<Bytes> {
        let path = request.uri().path().strip_prefix("/v1/").unwrap_or_default().to_owned();
        let (before, after) = match path.as_str() {
            "auth/jwt/login" => (Some(Point::LoginCalled), None),
            path if path.starts_with("database/creds/") => (None, Some(Point::LeaseMade)),
            "sys/leases/revoke" => (Some(Point::RevokeCalled), Some(Point::Revoked)),
            _ => (None, None),
        };
        if let Some(point) = before {
            gate.stop_at(point).await;
        }
        let token = request.headers().get("x-vault-token").map(|token| token.to_str().unwrap().to_owned());
        let body: Value = serde_json::from_slice(request.body()).unwrap_or(Value::Null);
        let (status, answer) = self.act(&path, token.unwrap_or_default(), &body);
        if let Some(point) = after {
            gate.stop_at(point).await;
        }
        let answer = if answer.is_null() { Bytes::new() } else { answer.to_string().into() };
        Response::builder().status(status).body(answer).unwrap()
    }

    fn act(&self, path: &str, token: String, body: &Value) -> (u16, Value) {
        let now = SystemClock.now();
        let secs = |name: &str| Duration::from_secs(body[name].as_u64().unwrap_or_default());
        let mut state = self.0.lock().unwrap();
        let state = &mut *state;
        let invalid = || (400, json!({ "errors": ["invalid"] }));
        if path == "auth/jwt/login" {
            let claims = body["jwt"].as_str().and_then(|jwt| jwt.split('.').nth(1)).unwrap_or_default();
            let claims: Value =
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap_or_default()).unwrap_or_default();
            let Some(subject) = claims["sub"].as_str().filter(|_| claims["aud"] == json!([AUDIENCE])) else {
                return invalid();
            };
            state.serial += 1;
            let (token, accessor) = (format!("hvs.{:08}", state.serial), format!("accessor-{}", state.serial));
            let until = now + Duration::from_secs(TOKEN_LIFE);
            state.tokens.insert(token.clone(), Token { subject: subject.to_owned(), until, dead: false });
            return (
                200,
                json!({ "auth": { "client_token": token, "accessor": accessor, "policies": ["default", "app"],
                "token_policies": ["default", "app"], "lease_duration": TOKEN_LIFE, "renewable": true,
                "token_type": "service", "num_uses": 0 }, "data": null, "lease_id": "" }),
            );
        }
        let Some(own) = state.tokens.get_mut(&token).filter(|token| !token.dead && token.until > now) else {
            return (403, json!({ "errors": ["permission denied"] }));
        };
        let lease = body["lease_id"].as_str().unwrap_or_default().to_owned();
        match path {
            path if path.starts_with("database/creds/") => {
                state.serial += 1;
                let id = format!("{path}/{:024}", state.serial);
                let until = now + Duration::from_secs(LEASE_LIFE);
                state.leases.insert(id.clone(), Lease { token, made_at: now, until, revoked_at: None });
                (
                    200,
                    json!({ "lease_id": id, "renewable": true, "lease_duration": LEASE_LIFE,
                    "data": { "username": "v-app", "password": "only here" } }),
                )
            }
            "auth/token/renew-self" => {
                own.until = now + secs("increment");
                let auth = json!({ "client_token": token, "accessor": "accessor", "renewable": true,
                    "lease_duration": body["increment"], "token_type": "service" });
                (200, json!({ "auth": auth }))
            }
            "sys/leases/renew" => {
                let Some(found) = state.leases.get_mut(&lease) else { return invalid() };
                found.until = now + secs("increment");
                (200, json!({ "lease_id": lease, "lease_duration": body["increment"], "renewable": true }))
            }
            "sys/leases/revoke" => {
                if let Some(lease) = state.leases.get_mut(&lease) {
                    lease.revoked_at.get_or_insert(now);
                }
                (204, Value::Null)
            }
            "sys/leases/lookup" => match state.leases.get(&lease).filter(|lease| lease.revoked_at.is_none()) {
                Some(_) => (200, json!({ "data": { "id": lease, "ttl": 1 } })),
                None => invalid(),
            },
            "auth/token/revoke-self" => {
                own.dead = true;
                for lease in state.leases.values_mut().filter(|lease| lease.token == token) {
                    lease.revoked_at.get_or_insert(now);
                }
                (204, Value::Null)
            }
            _ => (403, json!({ "errors": ["permission denied"] })),
        }
    }

    /// Everything that it ever leased. A lease ends with its token.
    pub(crate) fn mints(&self) -> Vec<Mint> {
        let state = self.0.lock().unwrap();
        let mint = |(id, lease): (&String, &Lease)| {
            let token = &state.tokens[&lease.token];
            let natural = lease.until.min(token.until);
            Mint {
                key: id.clone(),
                subject: token.subject.clone(),
                task: None,
                group: format!("vault of {}", token.subject),
                minted_at: lease.made_at,
                ends_at: lease.revoked_at.map_or(natural, |at| at.min(natural)),
                revoked: lease.revoked_at.is_some(),
            }
        };
        state.leases.iter().map(mint).collect()
    }
}
