//! A Vault on loopback that keeps its own books: which tokens and leases are alive, whatever it answered. It can be told
//! to fail, to hang and to lie.

use std::collections::{BTreeMap, VecDeque};
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use sidemint::clock::{Clock as _, ManualClock, Timestamp};
use tokio::net::TcpListener;

use crate::world::secs;

/// How one path answers, instead of as Vault does.
#[derive(Clone, Debug)]
pub(crate) enum On {
    /// This status, and nothing done.
    Status(u16),
    /// The same, with `Retry-After`.
    Later(u16, u32),
    /// Done, but the connection closes without a word.
    Lost,
    /// Nothing done, and no answer ever.
    Hang,
    /// Nothing done, and said to be.
    NoEffect,
    /// 200 with this.
    Say(String),
}

struct Token {
    accessor: String,
    until: Timestamp,
    dead: bool,
}

struct Lease {
    token: String,
    issued_at: Timestamp,
    until: Timestamp,
    dead: bool,
}

/// How its role is set up.
pub(crate) struct Role {
    pub(crate) token_ttl: u64,
    pub(crate) lease_ttl: u64,
    pub(crate) token_type: &'static str,
    pub(crate) policies: &'static str,
    pub(crate) renewable: bool,
    /// The longest that a lease can live, renewed or not.
    pub(crate) lease_max: u64,
    pub(crate) may_revoke: bool,
    pub(crate) may_look_up: bool,
}

struct State {
    role: Role,
    serial: u32,
    tokens: BTreeMap<String, Token>,
    leases: BTreeMap<String, Lease>,
    always: BTreeMap<&'static str, On>,
    next: BTreeMap<&'static str, VecDeque<On>>,
    calls: Vec<String>,
    secrets: Vec<String>,
    /// How long every answer takes.
    latency: Duration,
}

pub(crate) struct FakeVault {
    pub(crate) address: SocketAddr,
    clock: ManualClock,
    state: Mutex<State>,
}

impl FakeVault {
    pub(crate) async fn start(clock: ManualClock) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let role = Role {
            token_ttl: 300,
            lease_ttl: 300,
            token_type: "service",
            policies: "app",
            renewable: true,
            lease_max: 24 * 3600,
            may_revoke: true,
            may_look_up: true,
        };
        let state = State {
            role,
            serial: 0,
            tokens: BTreeMap::new(),
            leases: BTreeMap::new(),
            always: BTreeMap::new(),
            next: BTreeMap::new(),
            calls: Vec::new(),
            secrets: Vec::new(),
            latency: Duration::ZERO,
        };
        let fake = Arc::new(Self { address: listener.local_addr().unwrap(), clock, state: Mutex::new(state) });
        let served = Arc::clone(&fake);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let fake = Arc::clone(&served);
                let service = service_fn(move |request| {
                    let fake = Arc::clone(&fake);
                    async move { fake.serve(request).await }
                });
                tokio::spawn(
                    hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service),
                );
            }
        });
        fake
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(crate) fn role(&self, change: impl FnOnce(&mut Role)) {
        change(&mut self.state().role);
    }

    /// How `path` answers from now on; see [`FakeVault::well`].
    pub(crate) fn on(&self, path: &'static str, on: On) {
        self.state().always.insert(path, on);
    }

    /// How the next call of `path` is answered.
    pub(crate) fn next(&self, path: &'static str, on: On) {
        self.state().next.entry(path).or_default().push_back(on);
    }

    /// Every answer takes so long from now on.
    pub(crate) fn slow(&self, latency: Duration) {
        self.state().latency = latency;
    }

    /// Forgets every lease, as one that was restored from an old snapshot; the secrets work on.
    pub(crate) fn forget_leases(&self) {
        self.state().leases.clear();
    }

    /// Revokes every token, as an operator of Vault would.
    pub(crate) fn kill_tokens(&self) {
        self.state().tokens.values_mut().for_each(|token| token.dead = true);
    }

    /// Everything answers as it should.
    pub(crate) fn well(&self) {
        self.state().always.clear();
    }

    /// The calls so far, by the last words of their paths.
    pub(crate) fn calls(&self) -> Vec<String> {
        self.state().calls.clone()
    }

    pub(crate) fn count(&self, path: &str) -> usize {
        self.state().calls.iter().filter(|call| *call == path).count()
    }

    /// Every token and secret that it ever gave.
    pub(crate) fn secrets(&self) -> Vec<String> {
        self.state().secrets.clone()
    }

    /// The leases whose secret works now.
    pub(crate) fn live(&self) -> Vec<String> {
        let (state, now) = (self.state(), self.clock.now());
        let alive = |token: &str| state.tokens.get(token).is_some_and(|token| !token.dead && token.until > now);
        let live = state.leases.iter().filter(|(_, lease)| !lease.dead && lease.until > now && alive(&lease.token));
        live.map(|(id, _)| id.clone()).collect()
    }

    /// When the last of them would end by itself.
    pub(crate) fn ends(&self) -> Vec<Timestamp> {
        let state = self.state();
        state.leases.values().filter(|lease| !lease.dead).map(|lease| lease.until).collect()
    }

    /// When the secrets that work stop working by themselves: a lease dies with its token.
    pub(crate) fn work_until(&self) -> Vec<Timestamp> {
        let state = self.state();
        let alive = state.leases.values().filter(|lease| !lease.dead);
        let ends = alive.filter_map(|lease| Some(lease.until.min(state.tokens.get(&lease.token)?.until)));
        ends.collect()
    }

    /// How many tokens work now.
    pub(crate) fn live_tokens(&self) -> usize {
        let now = self.clock.now();
        self.state().tokens.values().filter(|token| !token.dead && token.until > now).count()
    }

    async fn serve(&self, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, std::io::Error> {
        let (head, body) = request.into_parts();
        let body = body.collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&body).unwrap_or(Value::Null);
        let path = head.uri.path().strip_prefix("/v1/").unwrap_or_default().to_owned();
        let name = match path.as_str() {
            path if path.starts_with("auth/") && path.ends_with("/login") => "login",
            path if path.starts_with("database/creds/") => "creds",
            path => path
                .rsplit_once("auth/token/")
                .or_else(|| path.rsplit_once("sys/leases/"))
                .map_or("?", |(_, last)| last),
        }
        .to_owned();
        assert_eq!(head.headers.get("x-vault-request").unwrap(), "true");
        let token = head.headers.get("x-vault-token").map(|token| token.to_str().unwrap().to_owned());
        let on = {
            let mut state = self.state();
            state.calls.push(name.clone());
            let next = state.next.iter_mut().find(|(path, _)| **path == name).and_then(|(_, next)| next.pop_front());
            next.or_else(|| state.always.get(name.as_str()).cloned())
        };
        let latency = self.state().latency;
        let done = match on {
            None => Some(self.act(&name, &path, token.clone(), &body)),
            _ => None,
        };
        if !latency.is_zero() {
            self.clock.sleep(latency).await;
        }
        let answer =
            |status: u16, body: String| Ok(Response::builder().status(status).body(Full::new(body.into())).unwrap());
        match on {
            None => {
                let (status, body) = done.unwrap();
                answer(status, if body.is_null() { String::new() } else { body.to_string() })
            }
            Some(On::Status(status)) => answer(status, json!({ "errors": ["the canary echoes", token] }).to_string()),
            Some(On::Later(status, seconds)) => {
                Ok(Response::builder().status(status).header("retry-after", seconds).body(Full::default()).unwrap())
            }
            Some(On::Lost) => {
                self.act(&name, &path, token, &body);
                Err(std::io::Error::other("lost"))
            }
            Some(On::Hang) => std::future::pending::<Result<_, Infallible>>().await.map_err(|never| match never {}),
            Some(On::NoEffect) => answer(204, String::new()),
            Some(On::Say(text)) => answer(200, text),
        }
    }

    /// What Vault does.
    fn act(&self, name: &str, path: &str, token: Option<String>, body: &Value) -> (u16, Value) {
        let now = self.clock.now();
        let mut state = self.state();
        let state = &mut *state;
        let invalid = || (400, json!({ "errors": ["invalid"] }));
        if name == "login" {
            let claims = body["jwt"].as_str().and_then(|jwt| jwt.split('.').nth(1)).unwrap_or_default();
            let claims: Value =
                serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap_or_default()).unwrap_or_default();
            if claims["aud"] != json!(["vault"]) || body["role"] != "ledger" || path != "auth/jwt/login" {
                return invalid();
            }
            state.serial += 1;
            let token = match state.role.token_type {
                "batch" => format!("hvb.batch-{:04}-must-never-leak", state.serial),
                _ => format!("hvs.token-{:04}-{:p}-must-never-leak", state.serial, self),
            };
            let accessor = format!("accessor-{}", state.serial);
            let until = now + secs(state.role.token_ttl);
            let issued = Token { accessor: accessor.clone(), until, dead: false };
            state.tokens.insert(token.clone(), issued);
            state.secrets.push(token.clone());
            let role = &state.role;
            return (
                200,
                json!({ "auth": { "client_token": token, "accessor": if role.token_type == "batch" { "" } else { &accessor },
                "policies": ["default", role.policies], "token_policies": ["default", role.policies],
                "lease_duration": role.token_ttl, "renewable": role.renewable, "token_type": role.token_type,
                "num_uses": 0, "orphan": true, "metadata": { "role": "ledger" } }, "data": null, "lease_id": "" }),
            );
        }
        let token = token.unwrap_or_default();
        let Some(own) = state.tokens.get_mut(&token).filter(|token| !token.dead && token.until > now) else {
            return (403, json!({ "errors": ["permission denied"] }));
        };
        let lease = body["lease_id"].as_str().unwrap_or_default().to_owned();
        match name {
            "creds" => {
                state.serial += 1;
                let id = format!("{path}/{:024}", state.serial);
                let password = format!("password-{:04}-{:p}-must-never-leak", state.serial, self);
                let until = now + secs(state.role.lease_ttl);
                state.leases.insert(id.clone(), Lease { token, issued_at: now, until, dead: false });
                state.secrets.push(password.clone());
                (
                    200,
                    json!({ "request_id": "x", "lease_id": id, "renewable": state.role.renewable,
                    "lease_duration": state.role.lease_ttl, "data": { "username": "v-jwt-ledger", "password": password },
                    "wrap_info": null, "warnings": null, "auth": null }),
                )
            }
            "renew-self" if state.role.renewable => {
                own.until = now + secs(body["increment"].as_u64().unwrap());
                (
                    200,
                    json!({ "auth": { "client_token": token, "accessor": own.accessor,
                    "lease_duration": body["increment"], "renewable": true, "token_type": "service" } }),
                )
            }
            "renew" if state.role.renewable => {
                let alive = |lease: &&mut Lease| !lease.dead && lease.until > now;
                let Some(lease) = state.leases.get_mut(&lease).filter(alive) else { return invalid() };
                // Counted from now, and cut at the longest life; once that is reached nothing is renewed.
                let last = lease.issued_at + secs(state.role.lease_max);
                lease.until = (now + secs(body["increment"].as_u64().unwrap())).min(last);
                let life = lease.until.since(now).as_secs();
                match life {
                    0 => invalid(),
                    _ => (200, json!({ "lease_id": body["lease_id"], "lease_duration": life, "renewable": true })),
                }
            }
            "revoke" if !state.role.may_revoke => (403, json!({ "errors": ["permission denied"] })),
            "revoke" => {
                assert_eq!(body["sync"], true, "only a synchronous revocation says that it is done");
                if let Some(lease) = state.leases.get_mut(&lease) {
                    lease.dead = true;
                }
                (204, Value::Null)
            }
            "lookup" if !state.role.may_look_up => (403, json!({ "errors": ["permission denied"] })),
            "lookup" => {
                let alive = |token: &str| state.tokens.get(token).is_some_and(|token| !token.dead && token.until > now);
                match state.leases.get(&lease).filter(|lease| !lease.dead && lease.until > now && alive(&lease.token)) {
                    Some(_) => (200, json!({ "data": { "id": lease, "ttl": 1 } })),
                    None => invalid(),
                }
            }
            "revoke-self" => {
                own.dead = true;
                state.leases.values_mut().filter(|lease| lease.token == token).for_each(|lease| lease.dead = true);
                (204, Value::Null)
            }
            "revoke-accessor" => (403, json!({ "errors": ["permission denied"] })),
            _ => invalid(),
        }
    }
}
