//! No secret is written anywhere, whatever goes wrong: one table of every fault that the fakes can do, and after each a
//! search of every place that anything is written to, for every secret that anybody gave out, in whole or in part.

use std::collections::HashMap;
use std::fs;
use std::future::Future;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use serde_json::json;
use sidemint::clock::ManualClock;
use sidemint::exchange::Provider;
use sidemint::identity::task_token::{self, TokenHash};
use sidemint::identity::workload_api::WorkloadApi as _;
use sidemint::identity::workload_api::testing::{OnFetch, claims};
use sidemint::identity::{Evidence, TrustDomain};
use sidemint::journal::Journal as _;
use sidemint::policy::cache::RefreshOutcome;
use sidemint::secret::{Secret, SecretBytes};

use crate::http::{Call, Connection};
use crate::policy_files::{OTHER, REPORT, Scope, write};
use crate::sts::{OnCall, Sts};
use crate::world::{AUDIENCE, Begun, START, Setup, World, secs};

// ---- the search ----

/// A secret is found by any so many of its bytes: nobody cuts one so short that less of it would matter.
const TELLING: usize = 16;
/// What is looked up. Any [`TELLING`] bytes of a form hold a whole block.
const BLOCK: usize = TELLING / 2;

/// Looks for secrets as they are, in base64 (both alphabets, at any offset), in hexadecimal, percent-encoded and as
/// `Debug` shows bytes.
struct Search {
    forms: Vec<Vec<u8>>,
    /// Where each block is: which form, at which offset.
    blocks: HashMap<u64, Vec<(usize, usize)>>,
    /// Whether there may be such a block, to pass over the rest quickly.
    may_be: Vec<bool>,
}

impl Search {
    fn new(secrets: impl IntoIterator<Item = String>) -> Self {
        let mut search = Self { forms: Vec::new(), blocks: HashMap::new(), may_be: vec![false; 1 << 20] };
        for secret in secrets {
            search.add(&secret);
        }
        search
    }

    fn add(&mut self, secret: &str) {
        assert!(secret.len() >= TELLING);
        let bytes = secret.as_bytes();
        let mut forms = vec![secret.to_owned()];
        for offset in 0..3 {
            forms.extend([STANDARD.encode(&bytes[offset..]), URL_SAFE_NO_PAD.encode(&bytes[offset..])]);
        }
        forms.push(bytes.iter().map(|byte| format!("{byte:02x}")).collect());
        forms.push(bytes.iter().map(|byte| format!("{byte:02X}")).collect());
        let escaped = |byte: &u8| match byte {
            b'/' | b'+' | b'=' => format!("%{byte:02X}"),
            _ => char::from(*byte).to_string(),
        };
        forms.push(bytes.iter().map(escaped).collect());
        // Its end, where a JWT has its signature: digits alone would be found in any list of numbers.
        forms.push(format!("{:?}", &bytes[bytes.len() - TELLING..]).replace(['[', ']'], ""));
        for form in forms {
            let (number, form) = (self.forms.len(), form.into_bytes());
            for (at, block) in form.chunks_exact(BLOCK).enumerate() {
                let block = u64::from_ne_bytes(block.try_into().unwrap());
                self.may_be[slot(block)] = true;
                self.blocks.entry(block).or_default().push((number, at * BLOCK));
            }
            self.forms.push(form);
        }
    }

    /// What is around the first secret in `bytes`.
    fn find(&self, bytes: &[u8]) -> Option<String> {
        let mut block = 0;
        for (end, byte) in bytes.iter().enumerate() {
            block = block << 8 | u64::from(*byte);
            if !self.may_be[slot(block.to_be())] || end + 1 < BLOCK {
                continue;
            }
            let at = end + 1 - BLOCK;
            for (form, offset) in self.blocks.get(&block.to_be()).into_iter().flatten() {
                if self.is_telling(*form, *offset, bytes, at) {
                    let around = at.saturating_sub(200)..(at + 100).min(bytes.len());
                    return Some(String::from_utf8_lossy(&bytes[around]).into_owned());
                }
            }
        }
        None
    }

    /// Whether enough is the same around a block that is.
    fn is_telling(&self, form: usize, offset: usize, bytes: &[u8], at: usize) -> bool {
        let form = &self.forms[form];
        let before = form[..offset].iter().rev().zip(bytes[..at].iter().rev());
        let after = form[offset..].iter().zip(&bytes[at..]);
        let same = before.take_while(|(a, b)| a == b).count() + after.take_while(|(a, b)| a == b).count();
        // A list of numbers says a quarter as much as text.
        same >= if form.contains(&b',') { 4 * TELLING.min(10) } else { TELLING }
    }
}

fn slot(block: u64) -> usize {
    (block.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 44) as usize
}

#[test]
fn finds_a_planted_secret_in_every_form_and_by_a_part() {
    let mut buffer = [0; 30];
    task_token::random(&mut buffer).unwrap();
    let secret = format!("smt_/+{}", URL_SAFE_NO_PAD.encode(buffer));
    let search = Search::new([secret.clone()]);
    let bytes = secret.as_bytes();
    let forms = [
        secret.clone(),
        secret[..TELLING].to_owned(),
        secret[20..20 + TELLING].to_owned(),
        STANDARD.encode(bytes),
        STANDARD.encode(format!("x{secret}")),
        URL_SAFE_NO_PAD.encode(format!("xy{secret} and more")),
        bytes.iter().map(|byte| format!("{byte:02x}")).collect(),
        bytes.iter().map(|byte| format!("{byte:02X}")).collect(),
        secret.replace('/', "%2F").replace('+', "%2B"),
        format!("{bytes:?}"),
        format!("{:?}", String::from_utf8_lossy(bytes)),
    ];
    for form in forms {
        assert!(search.find(format!("before {form} after").as_bytes()).is_some(), "{form}");
        assert!(search.find(&[b"\xff\0", form.as_bytes()].concat()).is_some(), "{form}");
    }
    assert_eq!(search.find(b"nothing of the sort, smt_ nor Secret(redacted), however long it may be"), None);
    assert_eq!(search.find(&bytes[..TELLING - 1]), None);
}

// ---- the table ----

/// What goes wrong.
enum Fault {
    /// The STS answers so when it is first asked; the request for the credential is then answered with this status, and the
    /// mint counted and audited with this word.
    Sts(OnCall, u16, &'static str),
    /// The Workload API answers so when a JWT-SVID is fetched.
    Fetch(OnFetch, u16),
    /// The world changes; the request for the credential is then answered with this status.
    Change(Change, u16),
    /// Requests that are refused.
    Requests(Requests),
}

/// Which request for a credential meets the fault: the task's first, or one when a credential is live.
type Change = fn(&World);
type Requests = fn(&World, &Begun) -> Vec<Call>;

use Fault::{Change as Changed, Fetch, Requests as Refused, Sts as Answers};

const HTML: &str = "<html><body>gateway {token} {secret} {session}</body></html>";
const LEAKY_HEADER: &str = "x-amzn-requestid: {secret} {token}";

/// The answers of an STS that throttles, fails, hangs and lies.
fn of_the_sts() -> Vec<(&'static str, Fault)> {
    let unusable = |name, on_call| (name, Answers(on_call, 503, "unusable"));
    let unavailable = |name, on_call| (name, Answers(on_call, 503, "unavailable"));
    let mut rows = vec![
        ("nothing goes wrong", Answers(OnCall::Give, 200, "minted")),
        ("a secret in a header of a good answer", {
            Answers(OnCall::GiveWith("<Audience>", "<Other>{token}</Other><Audience>"), 200, "minted")
        }),
        unavailable("throttled by status", OnCall::Say(429, "retry-after: 2", HTML)),
        unavailable("told to come back at a time that is a secret", OnCall::Say(503, "retry-after: {secret}", HTML)),
        ("a secret for an error code", Answers(OnCall::Refuse(400, "{secret}"), 403, "refused")),
        ("a token for an error code", Answers(OnCall::Refuse(403, "A{token}"), 403, "refused")),
        unavailable("a server error with a page", OnCall::Say(502, LEAKY_HEADER, HTML)),
        unavailable("a server error without a body", OnCall::Say(500, "", "")),
        unavailable("no answer at all", OnCall::Hang),
        unavailable("one byte a second", OnCall::Drip),
        unavailable("an answer that breaks off", OnCall::BreakOff),
        unavailable("an answer that is lost", OnCall::Lose),
        unusable("an answer that is too long", OnCall::SayTooMuch),
        unusable("an empty answer", OnCall::Say(200, "", "")),
        unusable("a page for an answer", OnCall::Say(200, LEAKY_HEADER, HTML)),
        unusable("JSON for an answer", OnCall::Say(200, "", "{\"SecretAccessKey\":\"{secret}\",\"t\":\"{token}\"}")),
        unusable("XML that is cut off", OnCall::Say(200, "", "<AssumeRoleWithWebIdentityResponse><A>{secret}")),
        unavailable("no HTTP", OnCall::Babble("220 {secret} {token} ready\r\n")),
        unavailable("a head that is no head", OnCall::Babble("HTTP/1.1 200 {secret}\r\n{token}\r\n\r\n")),
        unavailable("an answer of another version of HTTP", OnCall::Babble("HTTP/9.9 200 {secret}\r\n\r\n{token}")),
    ];
    for status in [301, 302, 303, 307, 308] {
        rows.push(unusable(
            "a redirect that carries the token away",
            OnCall::Say(status, "location: http://127.0.0.1:9/?t={token}&s={secret}", HTML),
        ));
    }
    let codes = [
        (400, "Throttling", 503, "unavailable"),
        (400, "AccessDenied", 403, "refused"),
        (403, "AccessDenied", 403, "refused"),
        (400, "ExpiredTokenException", 403, "refused"),
        (400, "InvalidIdentityToken", 403, "refused"),
        (400, "IDPCommunicationError", 503, "unavailable"),
        (400, "IDPRejectedClaim", 403, "refused"),
        (400, "MalformedPolicyDocument", 403, "inexpressible"),
        (400, "PackedPolicyTooLarge", 403, "inexpressible"),
        (500, "InternalFailure", 503, "unavailable"),
        (503, "ServiceUnavailable", 503, "unavailable"),
    ];
    rows.extend(
        codes.map(|(status, code, served, outcome)| (code, Answers(OnCall::Refuse(status, code), served, outcome))),
    );
    let lies = [
        ("another account", "::111122223333:", "::999988887777:"),
        ("another role", "role/tests", "role/admin"),
        ("another session", "role/tests/", "role/tests/x{session}-"),
        ("another subject", "/sa/report</Subject", "/sa/{token}</Subject"),
        ("another audience", ">sts.amazonaws.com<", ">{token}<"),
        ("an end that is past", "<Expiration>2026", "<Expiration>2020"),
        ("an end that is too far", "<Expiration>2026", "<Expiration>2046"),
        ("an end that is no time", "<Expiration>2026", "<Expiration>{secret}"),
        ("no session token", "<SessionToken>", "<SessionToken></SessionToken><X>"),
        ("no key", "<AccessKeyId>", "<AccessKeyId></AccessKeyId><X>"),
        ("no name of the session", "<AssumedRoleUser>", "<AssumedRoleOther>{secret}"),
    ];
    rows.extend(lies.map(|(name, this, that)| unusable(name, OnCall::GiveWith(this, that))));
    rows
}

/// What fails around the STS.
fn of_the_rest() -> Vec<(&'static str, Fault)> {
    vec![
        ("the Workload API is away", Fetch(OnFetch::Unavailable, 503)),
        ("the Workload API refuses", Fetch(OnFetch::Denied, 403)),
        ("the Workload API gives an invalid answer", Fetch(OnFetch::Invalid, 503)),
        ("the Workload API never answers", Fetch(OnFetch::Hang, 503)),
        ("the Workload API is slow", Fetch(OnFetch::After(secs(60)), 503)),
        ("the identity is withdrawn", Changed(|w| w.api.withdraw(REPORT), 401)),
        ("every identity and bundle is withdrawn", Changed(|w| w.api.withdraw_all(), 401)),
        ("the bundle is withdrawn", Changed(|w| w.api.update(|identities| identities.jwt_bundles.clear()), 401)),
        ("the policy is gone", Changed(|w| fs::remove_dir_all(w.policy_directory()).unwrap(), 200)),
        ("the policy is broken", {
            Changed(|w| write(&w.policy_directory(), "boundaries/wall.cedar", "forbid (principal"), 200)
        }),
        ("the policy permits it no longer", {
            Changed(|w| Scope { permits: &[OTHER], ..Scope::new("archive") }.write(&w.policy_directory()), 401)
        }),
        ("the journal takes nothing", Changed(|w| w.journal.fail("*"), 503)),
        ("the journal takes no intent", Changed(|w| w.journal.fail("intent"), 503)),
        ("the journal takes the credential not", Changed(|w| w.journal.fail("issued"), 503)),
        ("the clock is set back", Changed(|w| w.clock.set_wall(START - secs(7200)), 503)),
        ("the clock is set forward", Changed(|w| w.clock.set_wall(START + secs(400 * 24 * 3600)), 401)),
        ("a panic with the credential in hand", Changed(|w| w.heard.panic_once(), 503)),
    ]
}

/// What callers are refused.
fn of_the_callers() -> Vec<(&'static str, Fault)> {
    vec![
        ("proofs that are refused", Refused(hostile_proofs)),
        ("begins that are refused", Refused(hostile_begins)),
        ("secrets where none belong", Refused(misplaced)),
    ]
}

/// A caller's real tokens, in ways that they are refused.
fn hostile_proofs(w: &World, task: &Begun) -> Vec<Call> {
    let domain: TrustDomain = "example.org".parse().unwrap();
    let good = claims(REPORT, AUDIENCE, w.now(), secs(300));
    let with = |name: &str, value: serde_json::Value| {
        let mut claims = good.clone();
        claims[name] = value;
        format!("Bearer {}", w.api.issue_claims(&domain, claims))
    };
    let (svid, now) = (w.svid(REPORT), w.now().as_secs());
    let mut changed = svid.clone();
    changed.insert(svid.rfind('.').unwrap() + 5, '!');
    let proofs = [
        with("exp", json!(now - 1)),
        with("exp", json!(now + 90_000)),
        with("nbf", json!(now + 3600)),
        with("aud", json!(["sts.amazonaws.com"])),
        with("aud", json!([AUDIENCE, "elsewhere"])),
        with("sub", json!("spiffe://stranger.test/report")),
        with("sub", json!("no id")),
        with("exp", json!("soon")),
        format!("Bearer {}", w.api.issue_text(&domain, r#"{"alg":"none","kid":"fake"}"#, &good.to_string())),
        format!("Bearer {}", w.api.issue_text(&domain, r#"{"alg":"ES256","kid":"other"}"#, &good.to_string())),
        format!("Bearer {changed}"),
        format!("Bearer {}", &svid[..svid.len() - 4]),
        format!("Bearer {svid} {svid}"),
        format!("Bearer {}{svid}", "e".repeat(9000)),
        format!("Basic {svid}"),
        format!("DPoP {}", task.token),
        format!("Bearer {}x", task.token),
        format!("Bearer {}", &task.token[..task.token.len() - 1]),
        format!("Bearer  {}", task.token),
        svid.clone(),
    ];
    let mut calls: Vec<Call> = proofs
        .iter()
        .flat_map(|proof| {
            let begin = Call::post("/v1/tasks").header("authorization", proof).json(&json!({ "scope": "archive" }));
            let show = Call::get(&format!("/v1/tasks/{}", task.id)).header("authorization", proof);
            let serve = Call::get("/v1/aws/credentials").header("authorization", proof);
            let end = Call::delete(&format!("/v1/tasks/{}", task.id)).header("authorization", proof);
            [begin, show, serve, end.header("authorization", "Bearer other")]
        })
        .collect();
    // Somebody else's token or SVID for this task.
    let others = w.svid(OTHER);
    calls.push(Call::get(&format!("/v1/tasks/{}", task.id)).bearer(&others));
    calls.push(Call::delete(&format!("/v1/tasks/{}", task.id)).bearer(&others));
    calls.push(Call::post(&format!("/v1/tasks/{}/hold", task.id)).bearer(&others));
    calls
}

/// Begins that a real caller is refused.
fn hostile_begins(w: &World, task: &Begun) -> Vec<Call> {
    let bodies = [
        json!({ "scope": "no-such" }),
        json!({ "scope": "suspended" }),
        json!({ "scope": "others-only" }),
        json!({ "scope": "walled" }),
        json!({ "scope": "elevated" }),
        json!({ "scope": "emergency" }),
        json!({ "scope": "ledger-read", "params": { "customer": "c-44" } }),
        json!({ "scope": "ledger-read", "params": {} }),
        json!({ "scope": "archive", "ttl": "61m" }),
        json!({ "scope": "archive", "parent": task.id }),
        json!({ "scope": "archive", "parent": "01jabcdefghjkmnpqrstvwxyz0" }),
        json!({ "scope": 1 }),
        json!({ "role": "admin" }),
        json!([]),
    ];
    let mut calls: Vec<Call> = bodies.iter().map(|body| w.begin_call(body)).collect();
    calls.push(w.begin_call(&json!({ "scope": "archive" })).header("content-encoding", "gzip"));
    calls.push(w.begin_call(&json!({ "scope": "archive" })).host("sidecar.test"));
    calls.push(w.begin_call(&json!({ "scope": "archive" })).header("origin", "http://page.test"));
    calls.push(Call::post("/v1/tasks").bearer(&w.svid(REPORT)).body("scope=archive"));
    calls.push(Call::post("/v1/tasks").bearer(&w.svid(REPORT)).json(&json!({ "scope": "x".repeat(70_000) })));
    let keyed = |scope: &str| w.begin_call(&json!({ "scope": scope })).header("idempotency-key", "one");
    calls.extend([keyed("archive"), keyed("brief")]);
    calls
}

/// Requests of a caller that puts its secrets where none belong. Not in `task`, `params`, `reason` and `approval`: those are
/// recorded as it wrote them.
fn misplaced(w: &World, task: &Begun) -> Vec<Call> {
    let (token, svid) = (&task.token, w.svid(REPORT));
    let mut calls = vec![
        Call::get(&format!("/v1/tasks/{token}")).bearer(token),
        Call::get(&format!("/v1/tasks?token={token}")).bearer(&svid),
        Call::get(&format!("/v1/aws/credentials?token={token}&svid={svid}")),
        Call::get(&format!("/v1/tasks/{}/credentials?provider={token}", task.id)).bearer(token),
        Call::get(&format!("/{svid}")),
        Call::new(token, "/v1/tasks"),
        Call::get("/v1/tasks").host(token).bearer(&svid),
        Call::get("/v1/tasks").header("origin", &svid).bearer(&svid),
        Call::get("/v1/tasks").header("x-request-id", token).bearer(&svid),
        Call::get("/v1/tasks").header("user-agent", token).bearer(&svid),
        Call::post("/v1/tasks").bearer(&svid).header("content-type", token).body("{}"),
        w.begin_call(&json!({ "scope": "archive", "ttl": token })),
        w.begin_call(&json!({ "scope": token })),
        w.begin_call(&json!({ "scope": svid })),
        w.begin_call(&json!({ "scope": "archive", "parent": token })),
        w.begin_call(&json!({ "scope": "archive", token: 1 })),
    ];
    calls.push(Call::post("/v1/tasks").bearer(&svid).json(&json!({ "scope": "archive" })).header("cookie", token));
    calls
}

// ---- the test ----

/// Lets time pass by half seconds until `work` is done.
pub(crate) async fn stepping<T>(w: &World, work: impl Future<Output = T>) -> T {
    tokio::pin!(work);
    loop {
        for turn in 0..200 {
            tokio::select! {
                biased;
                done = &mut work => return done,
                () = tokio::task::yield_now() => {}
            }
            // The journal and the audit log have threads of their own.
            if turn % 40 == 0 {
                std::thread::yield_now();
            }
        }
        // On a busy machine a commit may take longer than all those turns: no time passes before it is done.
        if w.journal.pending() > 0 {
            std::thread::yield_now();
            continue;
        }
        w.clock.advance(std::time::Duration::from_millis(500));
    }
}

struct Stage {
    w: World,
    sts: Sts,
    /// What was said that nobody wrote anywhere: errors and `Debug`.
    said: String,
    /// Of how many of the callers' tokens.
    heard_of: usize,
}

impl Stage {
    async fn new() -> Self {
        // The STS's clock becomes the world's, which is not there yet.
        let clock = ManualClock::at(START);
        let sts = Sts::start(clock.clone()).await;
        let setup = Setup { guarded: true, sts: Some(sts.address), audit_files: true, ..Setup::default() };
        let w = World::with_clock(setup, clock).await;
        Self { w, sts, said: String::new(), heard_of: 0 }
    }

    async fn send(&self, call: Call) -> u16 {
        stepping(&self.w, self.w.send(call)).await.status
    }

    async fn credentials(&self, task: &Begun) -> u16 {
        stepping(&self.w, self.w.credentials(&task.token)).await.status
    }

    /// Brings the fault about while one task has a live credential, and asks for another's.
    async fn provoke(&mut self, name: &str, fault: Fault) {
        self.sts.on_call(OnCall::Give);
        // Whatever an earlier fault has made the next call wait for.
        self.w.clock.advance(secs(300));
        let live = self.w.begin_scope("archive").await;
        assert_eq!(self.credentials(&live).await, 200, "{name}");
        let task = self.w.begin_scope("archive").await;
        let (asked, of_the_sts) = (self.sts.calls(), matches!(fault, Fault::Sts(..)));
        let mut outcome = None;
        let expected = match fault {
            Fault::Sts(on_call, expected, word) => {
                self.sts.on_call(on_call);
                outcome = Some((word, self.mints(word).await));
                Some(expected)
            }
            Fault::Fetch(on_fetch, expected) => {
                self.w.api.on_fetch(on_fetch);
                Some(expected)
            }
            Fault::Change(change, expected) => {
                change(&self.w);
                let _ = self.w.reload().await;
                Some(expected)
            }
            Fault::Requests(requests) => {
                for call in requests(&self.w, &live) {
                    self.send(call).await;
                }
                None
            }
        };
        if let Some(expected) = expected {
            assert_eq!(self.credentials(&task).await, expected, "{name}");
            assert!(!of_the_sts || self.sts.calls() > asked, "{name}: the STS was not asked");
        }
        if let Some((word, before)) = outcome {
            // The exchange goes on when its caller waits no longer.
            stepping(&self.w, self.w.landed(&task)).await;
            assert_eq!(self.mints(word).await, before + 1.0, "{name}: {word}");
            self.audited(name, &task, word);
        }
        self.go_on(&task).await;
        self.listen(&live, &task).await;
    }

    /// How many exchanges ended with this word.
    async fn mints(&self, word: &str) -> f64 {
        let series = format!("sidemint_mints_total{{outcome=\"{word}\",provider=\"aws\",tier=\"baseline\"}}");
        self.w.metric(&series).await.unwrap()
    }

    /// Checks that the audit log holds one mint of `task`, with this word.
    fn audited(&self, name: &str, task: &Begun, word: &str) {
        let written = self.w.written();
        let logs = written.iter().filter(|(place, _)| place.contains("audit.jsonl"));
        let text: String = logs.map(|(_, bytes)| String::from_utf8_lossy(bytes)).collect();
        let lines = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        let mints: Vec<_> = lines.filter(|line| line["event"] == "mint" && line["task"] == task.id.as_str()).collect();
        let [line] = &mints[..] else { panic!("{name}: {mints:?}") };
        match word {
            "minted" => {
                assert_eq!((line["outcome"].as_str(), line["reason"].as_str()), (Some("minted"), None), "{name}")
            }
            _ => {
                assert_eq!((line["outcome"].as_str(), line["reason"].as_str()), (Some("failed"), Some(word)), "{name}")
            }
        }
    }

    /// All that others and the task's own holder may ask now; most of it is refused, and how does not matter here.
    async fn go_on(&mut self, task: &Begun) {
        let w = &self.w;
        for target in ["/metrics", "/readyz", "/livez", "/", "/status", "/nothing"] {
            w.ask_admin(target).await;
            w.operator(Call::get(target)).await;
        }
        let show = format!("/v1/tasks/{}", task.id);
        let others = w.svid(OTHER);
        let calls = [
            w.begin_call(&json!({ "scope": "archive" })),
            Call::post("/v1/tasks").bearer(&others).json(&json!({ "scope": "archive" })),
            Call::get("/v1/tasks").bearer(&w.svid(REPORT)),
            Call::get("/v1/tasks").bearer(&others),
            Call::get(&show).bearer(&others),
            Call::get(&show).bearer(&task.token),
            Call::get(&format!("{show}/credentials")).bearer(&others),
            Call::get(&format!("{show}/credentials?provider=mars")).bearer(&task.token),
            Call::get("/v1/aws/credentials").header("authorization", "Bearer nobody"),
            Call::post(&show).bearer(&task.token),
        ];
        for call in calls {
            self.send(call).await;
        }
        let mut holding = Connection::open(self.w.address).await;
        let hold = Call::post(&format!("{show}/hold")).bearer(&task.token);
        holding.send(&hold.bytes(self.w.address)).await;
        drop(holding);
        self.send(Call::delete(&show).bearer(&others)).await;
        self.send(Call::delete(&show).bearer(&task.token)).await;
        self.credentials(task).await;
    }

    /// What a library's user is told: errors and `Debug` of everything public that holds a secret.
    async fn listen(&mut self, live: &Begun, task: &Begun) {
        let w = &self.w;
        let mut said = Vec::new();
        let mut say = |what: &dyn std::fmt::Debug| said.push(format!("{what:?}\n"));
        say(&(&w.broker, &w.admin, &w.policy, &w.journal, &w.trusted));
        for token in [&live.token, &task.token] {
            say(&TokenHash::of(token));
            say(&Secret::new(token.clone()));
            say(&SecretBytes::new(token.clone().into_bytes()));
            let hash = TokenHash::of(token).unwrap();
            let served = stepping(w, w.broker.credentials(&hash, Provider::Aws, "leaks")).await;
            say(&served.map_err(|error| format!("{error} {error:?}")));
            if let Some(task) = w.broker.tasks().by_token(&hash) {
                say(&task);
                say(&task.state());
            }
        }
        for token in w.api.secrets().split_off(self.heard_of) {
            let evidence = Evidence::JwtSvid(Secret::new(token));
            say(&evidence);
            say(&w.broker.caller(&evidence).map_err(|error| format!("{error} {error:?}")));
        }
        let fetched = stepping(w, w.api.fetch_jwt_svid(&REPORT.parse().unwrap(), "elsewhere", secs(5))).await;
        say(&fetched.map_err(|error| format!("{error} {error:?}")));
        self.heard_of = w.api.secrets().len();
        self.said.extend(said);
    }

    /// Searches everything.
    async fn search(&mut self, name: &str) {
        let w = &self.w;
        w.broker.parts().audit.close(w.now()).await.unwrap();
        let _ = w.trusted.as_ref().unwrap().save();
        let secrets = w.secrets().into_iter().chain(self.sts.secrets());
        let search = Search::new(secrets);
        let mut places = w.written();
        places.push(("what was said".into(), self.said.clone().into_bytes()));
        for (place, bytes) in &places {
            if let Some(found) = search.find(bytes) {
                panic!("{name}: a secret is in {place}: {found:?}");
            }
        }
        // It did look where it says.
        for file in ["journal.redb", "clock.json", "audit.jsonl", "audit.jsonl.", "audit-head"] {
            let there = |(place, bytes): &&(String, Vec<u8>)| place.contains(file) && !bytes.is_empty();
            assert!(places.iter().any(|place| there(&place)), "{name}: no {file}");
        }
        let text = |wanted: &str| {
            let found = places.iter().filter(|(place, _)| place.contains(wanted));
            found.map(|(_, bytes)| String::from_utf8_lossy(bytes).into_owned()).collect::<String>()
        };
        assert!(text("audit.jsonl").contains("\"event\":\"checkpoint\""), "{name}: no checkpoint");
        assert!(text("an answer").contains("sidemint_requests_total"), "{name}: no metrics page");
        assert!(text("what the cloud said").contains("Secret(redacted)"), "{name}: no credential was given");
    }
}

/// Provokes these faults in one sidecar, one after the other, and searches what all of them left.
async fn leaks_nothing(rows: Vec<(&'static str, Fault)>) {
    let mut stage = Stage::new().await;
    let mut names = Vec::new();
    for (name, fault) in rows {
        names.push(name);
        stage.provoke(name, fault).await;
    }
    stage.w.broker.parts().audit.close(stage.w.now()).await.unwrap();
    // The next start reads what was written and logs what it finds.
    stage.w.crash().await;
    stage.search(&names.join(", ")).await;
}

#[tokio::test]
async fn no_secret_is_written_anywhere_whatever_the_sts_answers() {
    let mut rows = of_the_sts().into_iter().peekable();
    while rows.peek().is_some() {
        leaks_nothing(rows.by_ref().take(9).collect()).await;
    }
}

#[tokio::test]
async fn no_secret_is_written_anywhere_whatever_else_fails() {
    for row in of_the_rest() {
        leaks_nothing(vec![row]).await;
    }
}

#[tokio::test]
async fn no_secret_is_written_anywhere_whatever_callers_are_refused() {
    for row in of_the_callers() {
        leaks_nothing(vec![row]).await;
    }
}

#[tokio::test]
async fn no_secret_is_written_anywhere_when_the_audit_log_fails() {
    let w = World::new().await;
    let task = w.begin_scope("archive").await;
    w.served(&task.token).await;
    w.audit.fail(true);
    assert_eq!(w.send(w.begin_call(&json!({ "scope": "archive" }))).await.status, 503);
    let other = w.reload().await;
    assert_eq!(other, RefreshOutcome::Unchanged);
    w.credentials(&task.token).await;
    w.audit.repair();
    let search = Search::new(w.secrets());
    for (place, bytes) in w.written() {
        assert_eq!(search.find(&bytes), None, "{place}");
    }
}
