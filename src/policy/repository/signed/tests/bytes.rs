//! One bit of every byte, in the repository and in what is kept of it. What costs too much for every day takes every 23rd
//! byte of most files, and every byte with `POLICY_BYTES=all`.

use super::super::super::trusted::Known;
use super::*;

/// What a sidecar that never saw anything reads from these files; without a state directory, which costs most.
async fn read(anchor: &Roots, files: BTreeMap<String, Bytes>) -> Result<PolicyFiles, Fault> {
    let fetch: Arc<dyn Fetch> = Arc::new(KeptFetch(files));
    let marks = Marks::default();
    let Answer::Body { bytes, .. } = fetch.get(TIMESTAMP, MAX_TIMESTAMP, None).await? else {
        return Err(Fault::malformed("no timestamp"));
    };
    let top = anchor.timestamp(bytes, &marks, Some(NOW))?;
    let mut known = Known::default();
    complete(top, &fetch, &mut known, &marks, &BTreeSet::new(), Some(NOW)).await.map(|verified| verified.files)
}

/// How far apart the bytes are.
fn step() -> usize {
    if std::env::var_os("POLICY_BYTES").is_some_and(|which| which == "all") { 1 } else { 23 }
}

#[tokio::test]
async fn no_bit_of_the_repository_can_be_changed_to_another_policy() {
    let mut sample = Sample::new(policy_files(), &["finance"]).unwrap();
    sample.publish(NOW).unwrap();
    let anchor = Roots::anchor(&sample.anchor()).unwrap();
    let published = sample.published().clone();
    let good = read(&anchor, published.clone()).await.unwrap();
    let (mut refused, mut harmless) = (0, 0);
    for (name, bytes) in published.iter().filter(|(name, _)| *name != "metadata/1.root.json") {
        // What is pinned by its digest is refused for that before it is looked into, so a few of its bytes tell as much
        // as all; of the timestamp, which nothing pins, it is every byte.
        let step = if name == TIMESTAMP || bytes.len() < 64 { 1 } else { step() };
        for at in (0..bytes.len()).step_by(step) {
            let mut bent = bytes.to_vec();
            bent[at] ^= 1 << (at % 8);
            let mut files = published.clone();
            files.insert(name.clone(), bent.into());
            match read(&anchor, files).await {
                Err(_) => refused += 1,
                // White space, and names of members that nobody reads: the same was signed.
                Ok(found) => {
                    assert_eq!(name, TIMESTAMP, "byte {at}");
                    assert_eq!(
                        (&found.files, &found.version, &found.signed),
                        (&good.files, &good.version, &good.signed)
                    );
                    harmless += 1;
                }
            }
        }
    }
    assert!(refused > 500 && harmless < 200, "{refused} {harmless}");
}

#[tokio::test]
async fn no_bit_of_a_role_can_be_changed_by_whoever_holds_the_online_keys() {
    let mut sample = Sample::new(policy_files(), &["finance"]).unwrap();
    sample.publish(NOW).unwrap();
    let anchor = Roots::anchor(&sample.anchor()).unwrap();
    let published = sample.published().clone();
    let good = read(&anchor, published.clone()).await.unwrap();
    let pins: BTreeMap<String, (u64, Bytes)> = ROLES
        .iter()
        .map(|role| ((*role).to_owned(), (1, published[&format!("metadata/1.{role}.json")].clone())))
        .collect();
    let (mut refused, mut harmless) = (0, 0);
    for role in ROLES {
        let bytes = &pins[role].1;
        for at in (0..bytes.len()).step_by(step()) {
            let mut bent = bytes.to_vec();
            bent[at] ^= 1 << (at % 8);
            let mut pins = pins.clone();
            pins.insert(role.to_owned(), (1, bent.clone().into()));
            let snapshot = sample.put("snapshot", 2, metadata::snapshot(2, NOW + Sample::LIFE, &pins)).unwrap();
            sample.put("timestamp", 2, metadata::timestamp(2, NOW + Sample::LIFE, 2, &snapshot)).unwrap();
            let mut files = sample.published().clone();
            files.insert(format!("metadata/1.{role}.json"), bent.into());
            match read(&anchor, files).await {
                Err(fault) => {
                    assert!(fault.message().contains(role), "{role} {at}: {fault}");
                    refused += 1;
                }
                // A name that nobody reads, outside what is signed: the same was signed.
                Ok(found) => {
                    let (found_signed, good_signed) = (found.signed.unwrap(), good.signed.clone().unwrap());
                    assert_eq!(
                        (&found.files, found_signed.publishers),
                        (&good.files, good_signed.publishers),
                        "{role} {at}"
                    );
                    harmless += 1;
                }
            }
        }
    }
    assert!(refused > 100 && harmless < refused / 10, "{refused} {harmless}");
}

#[tokio::test]
async fn no_bit_of_the_trust_anchor_can_be_changed_and_still_be_trusted() {
    let mut sample = Sample::new(policy_files(), &[]).unwrap();
    sample.publish_root(NOW).unwrap();
    let bytes = sample.anchor();
    let good = Roots::anchor(&bytes).unwrap();
    for at in 0..bytes.len() {
        let mut bent = bytes.to_vec();
        bent[at] ^= 1 << (at % 8);
        if let Ok(roots) = Roots::anchor(&bent) {
            assert_eq!(roots.summary(), good.summary(), "byte {at}");
            assert_eq!((roots.end(), roots.mark().version), (good.end(), 1), "byte {at}");
        }
    }
}

#[tokio::test]
async fn no_bit_of_what_is_kept_can_be_changed_to_another_policy() {
    let world = World::trusted().await;
    let held = files(&world).await;
    world.down(true);
    let mut places: Vec<PathBuf> = COPIES_AND_ROOTS.iter().map(|name| world.policy().join(name)).collect();
    let version = world.policy().join("versions").join(&*held.version.0);
    places.extend(std::fs::read_dir(version).unwrap().map(|entry| entry.unwrap().path()));
    for place in places {
        let good = std::fs::read(&place).unwrap();
        for at in (0..good.len()).step_by(good.len() / 12 + 1) {
            let mut bent = good.clone();
            bent[at] ^= 1 << (at % 8);
            std::fs::write(&place, bent).unwrap();
            if let Ok(Fetched::New(found)) = world.source().fetch(None).await {
                assert_eq!(
                    (found.files, found.version, found.signed),
                    (held.files.clone(), held.version.clone(), held.signed.clone())
                );
            }
            std::fs::write(&place, &good).unwrap();
        }
    }
    assert_eq!(files(&world).await.version, held.version);
}

const COPIES_AND_ROOTS: [&str; 3] = ["high-water.a", "high-water.b", "roots/1.root.json"];
