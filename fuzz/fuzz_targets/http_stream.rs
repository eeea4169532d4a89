//! Raw bytes on a connection to the real server, which knows no task: nothing succeeds, nothing breaks, and whoever comes
//! next is answered.
#![no_main]

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use libfuzzer_sys::fuzz_target;
use sidemint::audit::Audit;
use sidemint::broker::{Broker, Parts};
use sidemint::clock::{ManualClock, SharedClock};
use sidemint::config::Config;
use sidemint::identity::Authenticator;
use sidemint::journal::DiskJournal;
use sidemint::policy::LoadOptions;
use sidemint::policy::cache::PolicyCache;
use sidemint::policy::repository::DirectorySource;
use sidemint::retry::SystemJitter;
use sidemint::server::{Listener, ListenerLimits, Server, serve};
use sidemint_fuzz::{AUDIENCE, FixedWorkloadApi, NOW};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// An honest request, and how its answer begins.
const HONEST: &[u8] = b"GET /v1/aws/credentials HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
const REFUSED: &[u8] = b"HTTP/1.1 401 ";

struct Stage {
    runtime: Runtime,
    socket: PathBuf,
    count: u32,
    _stop: watch::Sender<bool>,
    _directory: TempDir,
}

impl Stage {
    fn new() -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let socket = directory.path().join("s");
        let (stop, stopping) = watch::channel(false);
        runtime.block_on(async {
            let clock: SharedClock = Arc::new(ManualClock::at(NOW));
            let (journal, recovered) = DiskJournal::open(&directory.path().join("state")).unwrap();
            let workload_api = FixedWorkloadApi::new();
            let source = Arc::new(DirectorySource::new(directory.path()));
            let parts = Parts {
                clock: Arc::clone(&clock),
                authenticator: Authenticator::new(workload_api.clone(), AUDIENCE.into()),
                workload_api,
                policy: Arc::new(PolicyCache::new(source, LoadOptions::default())),
                exchanges: BTreeMap::new(),
                journal: Arc::new(journal),
                audit: Arc::new(Audit::off()),
                metrics: Arc::new(sidemint::app::metrics().unwrap()),
                jitter: Arc::new(SystemJitter),
                limits: sidemint::app::limits(&config()),
            };
            let server =
                Arc::new(Server::new(Broker::new(parts, recovered), "127.0.0.1:9870".parse().unwrap()).unwrap());
            let listener = Listener::Unix(UnixListener::bind(&socket).unwrap());
            let handle = move |request, peer| Arc::clone(&server).handle(request, peer);
            tokio::spawn(serve(listener, ListenerLimits::default(), clock, stopping, handle));
        });
        Self { runtime, socket, count: 0, _stop: stop, _directory: directory }
    }

    /// Everything that the server says to `bytes` until it closes.
    fn say(&self, bytes: &[u8]) -> Vec<u8> {
        self.runtime.block_on(async {
            let stream = UnixStream::connect(&self.socket).await.unwrap();
            let (mut read, mut write) = stream.into_split();
            let mut said = Vec::new();
            let talk = async {
                // it may close before it has heard everything
                let _ = write.write_all(bytes).await;
                let _ = write.shutdown().await;
            };
            let _ = tokio::join!(talk, read.read_to_end(&mut said));
            said
        })
    }
}

fn config() -> Config {
    let variables = [("SPIFFE_ENDPOINT_SOCKET", "unix:///s"), ("HOME", "/h")];
    let file = "[policy]\ndirectory = \"/p\"\ntrust = \"unsigned\"\n";
    Config::parse(file, "f", variables.map(|(name, value)| (name.to_owned(), value.to_owned()))).unwrap()
}

thread_local!(static STAGE: RefCell<Option<Stage>> = const { RefCell::new(None) });

fuzz_target!(|data: &[u8]| {
    STAGE.with_borrow_mut(|stage| {
        let stage = stage.get_or_insert_with(Stage::new);
        let said = stage.say(data);
        let found = |what: &[u8]| said.windows(what.len()).any(|window| window == what);
        assert!(!found(b"HTTP/1.1 2") && !found(b"HTTP/1.1 500"), "{}", String::from_utf8_lossy(&said));
        stage.count += 1;
        if stage.count % 64 == 0 {
            assert!(stage.say(HONEST).starts_with(REFUSED));
        }
    });
});
