//! What a hostile Vault answers (threat T24): through the real client, each answer of a login, a read or a renewal in turn. A
//! credential comes of them only if it has a lease of the path that was read, and dies when it must.
#![no_main]

use std::cell::RefCell;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sidemint::exchange::vault::{Settings, Vault};
use sidemint::exchange::{Context, Credential, Exchange as _, MintOrder};
use sidemint::policy::ResolvedGrant;
use sidemint::provider::ProviderGrant;
use sidemint::provider::vault::VaultGrant;
use sidemint::retry::Rate;
use sidemint_fuzz::{AtOnce, FixedWorkloadApi, NOW, REPORT, Still, next_input, serve_http};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const STATUSES: [u16; 8] = [200, 204, 400, 403, 404, 429, 503, 302];
const READ: &str = "database/creds/ledger";

/// The answers to come; when they are used up, everything is done and says nothing.
type Answers = Arc<Mutex<VecDeque<Vec<u8>>>>;

struct Stage {
    runtime: Runtime,
    vault: Vault,
    answers: Answers,
}

impl Stage {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answers = Answers::default();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let settings = Settings {
            address: format!("http://{}", listener.local_addr().unwrap()),
            ca: None,
            namespace: None,
            timeout: Duration::from_secs(10),
            rate: Rate { interval: Duration::ZERO, burst: 1_000_000 },
            revocation_rate: Rate { interval: Duration::ZERO, burst: 1_000_000 },
        };
        let shared = Arc::clone(&answers);
        runtime.spawn(serve_http(listener, move || {
            shared.lock().unwrap().pop_front().unwrap_or_else(|| b"HTTP/1.1 204 X\r\n\r\n".to_vec())
        }));
        let context =
            Context { workload_api: FixedWorkloadApi::new(), clock: Arc::new(Still), jitter: Arc::new(AtOnce) };
        Self { runtime, vault: Vault::new(settings, context).unwrap(), answers }
    }
}

/// The first byte chooses the status, the rest is the body.
fn answer(data: &[u8]) -> Vec<u8> {
    let (status, body) = data.split_first().unwrap_or((&0, &[]));
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    if status == 204 {
        return b"HTTP/1.1 204 X\r\n\r\n".to_vec();
    }
    let length = body.len();
    let head = format!("HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {length}\r\n\r\n");
    [head.as_bytes(), body].concat()
}

thread_local!(static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) });

fuzz_target!(|data: &[u8]| {
    STAGE.with_borrow_mut(|stage| {
        next_input();
        let stage = stage.get_or_insert_with(Stage::new);
        // `0xff` cannot be part of JSON, nor of any UTF-8.
        *stage.answers.lock().unwrap() = data.split(|byte| *byte == 0xff).take(8).map(answer).collect();
        let dead_by = NOW + Duration::from_secs(600);
        let order = MintOrder {
            caller: REPORT.parse().unwrap(),
            session_name: "report.ledger-read.t-1".into(),
            grant: ResolvedGrant {
                id: "ledger-read-vault".parse().unwrap(),
                max_session: Duration::from_secs(3600),
                outlives: Default::default(),
                provider: ProviderGrant::Vault(VaultGrant {
                    address: None,
                    mount: "jwt".into(),
                    role: "ledger".into(),
                    namespace: None,
                    audience: "vault".into(),
                    read: READ.into(),
                }),
            },
            dead_by,
            max_life: Duration::from_secs(1200),
            limit: Duration::from_secs(15),
        };
        let Ok(minted) = stage.runtime.block_on(stage.vault.mint(&order)) else { return };
        assert!(minted.usable_until > NOW && minted.usable_until <= dead_by);
        let Credential::Vault(secret) = &minted.credential else { panic!("from Vault") };
        assert!(secret.lease_id.starts_with(&format!("{READ}/")));
        // exposed: it is looked at whether it is what is promised
        assert!(serde_json::from_str::<Value>(secret.data.expose()).unwrap().is_object());
    });
});
