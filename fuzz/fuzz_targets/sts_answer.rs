//! What a hostile STS answers (threat T24): through the real client, an answer is a credential only if it is of the role
//! and session that were asked for, and dies when it must.
#![no_main]

use std::cell::RefCell;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use sidemint::exchange::aws::{AwsSts, Settings};
use sidemint::exchange::{Context, Exchange as _, MintOrder};
use sidemint::policy::ResolvedGrant;
use sidemint::provider::ProviderGrant;
use sidemint::provider::aws::AwsGrant;
use sidemint::retry::Rate;
use sidemint_fuzz::{AtOnce, FixedWorkloadApi, NOW, REPORT, Still, next_input, serve_http};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

const STATUSES: [u16; 8] = [200, 400, 403, 429, 500, 503, 302, 204];
const UPSTREAM: &str = "arn:aws:sts::111122223333:assumed-role/ledger/report.ledger-read.t-1";

type Answer = Arc<Mutex<Vec<u8>>>;

struct Stage {
    runtime: Runtime,
    sts: AwsSts,
    answer: Answer,
}

impl Stage {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let answer = Answer::default();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let settings = Settings {
            sts_endpoint: Some(format!("http://{}", listener.local_addr().unwrap())),
            rate: Rate { interval: Duration::ZERO, burst: 1_000_000 },
            ..Settings::default()
        };
        let shared = Arc::clone(&answer);
        runtime.spawn(serve_http(listener, move || shared.lock().unwrap().clone()));
        let context =
            Context { workload_api: FixedWorkloadApi::new(), clock: Arc::new(Still), jitter: Arc::new(AtOnce) };
        let sts = AwsSts::new(settings, context).unwrap();
        Self { runtime, sts, answer }
    }
}

thread_local!(static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) });

fuzz_target!(|data: &[u8]| {
    let Some((status, body)) = data.split_first() else { return };
    let status = STATUSES[usize::from(*status) % STATUSES.len()];
    STAGE.with_borrow_mut(|stage| {
        next_input();
        let stage = stage.get_or_insert_with(Stage::new);
        let head = format!("HTTP/1.1 {status} X\r\ncontent-type: text/xml\r\ncontent-length: {}\r\n\r\n", body.len());
        // 204 has no body, whatever is said of its length (RFC 9112 §6.3)
        let (head, body) = if status == 204 { ("HTTP/1.1 204 X\r\n\r\n".into(), &[][..]) } else { (head, body) };
        *stage.answer.lock().unwrap() = [head.as_bytes(), body].concat();
        let order = MintOrder {
            caller: REPORT.parse().unwrap(),
            session_name: "report.ledger-read.t-1".into(),
            grant: ResolvedGrant {
                id: "ledger-read-aws".parse().unwrap(),
                max_session: Duration::from_secs(3600),
                outlives: Default::default(),
                provider: ProviderGrant::Aws(AwsGrant {
                    role_arn: "arn:aws:iam::111122223333:role/ledger".into(),
                    session_policy: None,
                    region: None,
                    audience: None,
                }),
            },
            dead_by: NOW + Duration::from_secs(1200),
            max_life: Duration::from_secs(1200),
            limit: Duration::from_secs(15),
        };
        let Ok(minted) = stage.runtime.block_on(stage.sts.mint(&order)) else { return };
        assert_eq!((status, minted.revocability.handle().to_string().as_str()), (200, UPSTREAM));
        assert!(minted.usable_until > NOW && minted.usable_until <= NOW + Duration::from_secs(1185 + 30));
        let sidemint::exchange::Credential::Aws(aws) = &minted.credential else { panic!("from AWS") };
        for secret in [&aws.access_key_id, &aws.secret_access_key, &aws.session_token] {
            assert!(!secret.expose().is_empty() && secret.expose().bytes().all(|b| b.is_ascii_graphic()));
        }
    });
});
