//! The walk over a policy repository, where the role that the first byte picks signed the rest: whatever an owner signs,
//! each file that comes out is of the owner of its folder. The same bytes as a root and as a timestamp are not trusted.
#![no_main]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use serde_json::Value;
use sidemint::policy::repository::fetch::{Answer, Fetch, FetchError, Tag};
use sidemint::policy::repository::high_water::Marks;
use sidemint::policy::repository::metadata::{self, Delegation, Envelope, LocalKey, RoleKeys, Signer as _};
use sidemint::policy::repository::trusted::{Known, Roots, complete};
use sidemint::policy::standing::{OWNERS, TOP_ROLES};
use sidemint_fuzz::NOW;
use tokio::runtime::{Builder, Runtime};

const LIFE: Duration = Duration::from_secs(3600);

/// What is served; a file of the policy is there under whichever name it is asked for, as far as `x` will do.
#[derive(Debug)]
struct Served(BTreeMap<String, Bytes>);

#[async_trait]
impl Fetch for Served {
    async fn get(&self, name: &str, _: u64, _: Option<&Tag>) -> Result<Answer, FetchError> {
        let bytes = match self.0.get(name) {
            Some(bytes) => bytes.clone(),
            None if name.starts_with("targets/") => Bytes::from_static(b"x"),
            None => return Ok(Answer::Absent),
        };
        Ok(Answer::Body { bytes, tag: None })
    }
}

static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| Builder::new_current_thread().build().unwrap());
static KEYS: LazyLock<BTreeMap<&str, LocalKey>> = LazyLock::new(|| {
    let owners = OWNERS.iter().map(|(role, _)| *role);
    TOP_ROLES.into_iter().chain(owners).map(|role| (role, LocalKey::generate().unwrap().0)).collect()
});
static ANCHOR: LazyLock<Bytes> = LazyLock::new(|| {
    let roles = TOP_ROLES.iter().map(|role| ((*role).to_owned(), keys(role))).collect();
    signed("root", metadata::root(1, NOW + LIFE, &roles))
});

fn keys(role: &str) -> RoleKeys {
    RoleKeys { keys: vec![KEYS[role].public().clone()], threshold: 1 }
}

fn signed(role: &str, value: Value) -> Bytes {
    let mut envelope = Envelope::unsigned(value);
    // What has no canonical form cannot be signed, and then is not.
    let _ = envelope.sign(&KEYS[role]);
    envelope.to_bytes()
}

fn targets(role: &str) -> Value {
    let delegation = |(name, folder): &(&str, &str)| Delegation {
        name: (*name).to_owned(),
        keys: keys(name),
        paths: (1..4).map(|depth| format!("{folder}{}", "/*".repeat(depth))).collect(),
    };
    let delegations: Vec<Delegation> = match role {
        "targets" => OWNERS.iter().map(delegation).collect(),
        _ => Vec::new(),
    };
    metadata::targets(1, NOW + LIFE, &BTreeMap::new(), &delegations)
}

fuzz_target!(|data: &[u8]| {
    let Some((which, rest)) = data.split_first() else { return };
    let anchor = Roots::anchor(&ANCHOR).unwrap();
    assert!(
        Roots::anchor(rest).is_err()
            && anchor.timestamp(Bytes::copy_from_slice(rest), &Marks::default(), None).is_err()
    );
    let _ = anchor.follow(&Bytes::copy_from_slice(rest));

    let Ok(bent) = serde_json::from_slice::<Value>(rest) else { return };
    let roles: Vec<&str> = ["targets"].into_iter().chain(OWNERS.iter().map(|(role, _)| *role)).collect();
    let bent_role = roles[usize::from(*which) % roles.len()];
    let mut files = BTreeMap::new();
    let mut pins = BTreeMap::new();
    for role in roles {
        let bytes = signed(role, if role == bent_role { bent.clone() } else { targets(role) });
        files.insert(format!("metadata/{}", metadata::metadata_name(role, 1)), bytes.clone());
        pins.insert(role.to_owned(), (1, bytes));
    }
    let snapshot = signed("snapshot", metadata::snapshot(1, NOW + LIFE, &pins));
    let timestamp = signed("timestamp", metadata::timestamp(1, NOW + LIFE, 1, &snapshot));
    files.insert("metadata/1.snapshot.json".to_owned(), snapshot);

    let top = anchor.timestamp(timestamp, &Marks::default(), Some(NOW)).unwrap();
    let (fetch, mut known): (Arc<dyn Fetch>, _) = (Arc::new(Served(files)), Known::default());
    let (marks, scopes) = (Marks::default(), BTreeSet::new());
    let walk = complete(top, &fetch, &mut known, &marks, &scopes, Some(NOW));
    match RUNTIME.block_on(walk) {
        Ok(verified) => {
            let publishers = verified.files.signed.unwrap().publishers;
            assert!(verified.files.files.keys().eq(publishers.keys()));
            for (path, role) in publishers {
                let folder = path.split('/').next().unwrap();
                let owner = OWNERS.iter().find(|(_, owned)| *owned == folder).map_or("targets", |(role, _)| role);
                let department = !OWNERS.iter().any(|(name, _)| *name == &*role) && &*role != "targets";
                assert!(*role == *owner || department, "{path} from {role}");
            }
        }
        Err(fault) => assert!(!fault.message().is_empty()),
    }
});
