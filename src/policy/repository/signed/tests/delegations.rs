//! Who may own which names.

use super::*;
use crate::policy::kind;

/// What a version with bent roles gives to a sidecar that has the one before in force.
async fn after(bend: impl FnOnce(&mut World)) -> PolicyFiles {
    let mut world = World::trusted().await;
    let source = world.source();
    let before = new(source.fetch(None).await);
    bend(&mut world);
    new(source.fetch(Some(&before.version)).await)
}

/// The version is refused by whoever has the one before, and by whoever has none.
async fn refused(kind: FaultKind, names: &str, bend: impl Fn(&mut World)) {
    let mut world = World::trusted().await;
    let source = world.source();
    let before = new(source.fetch(None).await);
    bend(&mut world);
    refuses(&world, &source, &before, kind, names).await;
    let mut world = World::new();
    bend(&mut world);
    refuses_at_first(&world, kind, names).await;
}

fn list(world: &mut World, role: &str, path: &str, bytes: &'static [u8]) {
    let place = format!("targets/{}", target_name(path, &Digest::of(bytes)));
    world.sample.published_mut().insert(place, Bytes::from_static(bytes));
    world.bend(|roles| roles.get_mut(role).unwrap()["targets"][path] = listing(bytes), |_| {});
}

fn strays(files: &PolicyFiles) -> Vec<(&str, &'static str)> {
    files.signed.as_ref().unwrap().stray.iter().map(|problem| (&*problem.file, problem.kind)).collect()
}

#[tokio::test]
async fn each_file_comes_from_the_role_that_owns_its_folder() {
    let world = World::trusted().await;
    let files = files(&world).await;
    assert_eq!(files.files, policy_files());
    let signed = files.signed.unwrap();
    let publisher = |path: &str| &*signed.publishers[path];
    for (path, role) in [
        ("owners/charter.toml", "targets"),
        ("boundaries/wall.cedar", "security"),
        ("decisions/a.toml", "governance"),
        ("scopes/a.toml", "business-owners"),
        ("scopes/finance/b.toml", "finance"),
        ("grants/x.toml", "implementers"),
        ("kill/list.toml", "incident"),
    ] {
        assert_eq!(publisher(path), role, "{path}");
    }
    assert_eq!((signed.snapshot, signed.incident, signed.stray), (1, 1, Vec::new()));
    assert_eq!(signed.standing.ends.len(), ROLES.len() + 3);
    assert!(files.version.0.starts_with("1-") && files.version.0.len() == 18, "{}", files.version);
}

#[tokio::test]
async fn ignores_a_grant_that_business_owners_list() {
    let files = after(|world| list(world, "business-owners", "grants/evil.toml", b"evil")).await;
    assert_eq!(files.files, policy_files());
    assert_eq!(strays(&files), [("grants/evil.toml", kind::NOT_OWNER)]);
}

#[tokio::test]
async fn a_grant_that_business_owners_list_too_is_read_from_the_implementers() {
    let files = after(|world| list(world, "business-owners", "grants/x.toml", b"evil")).await;
    assert_eq!(files.files["grants/x.toml"], "x");
    assert_eq!(&*files.signed.as_ref().unwrap().publishers["grants/x.toml"], "implementers");
    assert_eq!(strays(&files), [("grants/x.toml", kind::NOT_OWNER)]);
}

#[tokio::test]
async fn governance_and_the_charter_cannot_sign_for_another_folder() {
    for role in ["governance", "targets", "incident"] {
        let files = after(|world| list(world, role, "grants/x.toml", b"evil")).await;
        assert_eq!(files.files["grants/x.toml"], "x", "{role}");
        assert_eq!(strays(&files), [("grants/x.toml", kind::NOT_OWNER)], "{role}");
    }
}

#[tokio::test]
async fn a_departments_file_comes_from_its_own_role() {
    let files = after(|world| list(world, "business-owners", "scopes/finance/b.toml", b"evil")).await;
    assert_eq!(files.files["scopes/finance/b.toml"], "b");
    assert_eq!(strays(&files), [("scopes/finance/b.toml", kind::NOT_OWNER)]);
    // Nor one that the department has not.
    let files = after(|world| list(world, "business-owners", "scopes/finance/c.toml", b"evil")).await;
    assert!(!files.files.contains_key("scopes/finance/c.toml"));
}

#[tokio::test]
async fn a_department_cannot_sign_outside_its_folder() {
    let files = after(|world| list(world, "finance", "scopes/a.toml", b"evil")).await;
    assert_eq!(files.files["scopes/a.toml"], "a");
    assert_eq!(strays(&files), [("scopes/a.toml", kind::NOT_OWNER)]);
}

#[tokio::test]
async fn reports_malicious_names_and_never_fetches_them() {
    for path in ["scopes/../grants/x.toml", "scopes//a.toml", "scopes/a.toml\n", "scopes/.a.toml", "scopes/readme.md"] {
        let files = after(|world| list(world, "business-owners", path, b"evil")).await;
        assert_eq!(files.files, policy_files(), "{path:?}");
        assert_eq!(strays(&files), [(path, kind::FILE_NAME)]);
    }
}

#[tokio::test]
async fn rejects_a_version_with_a_grant_signed_by_business_owners() {
    refused(FaultKind::Signature, "implementers", |world| {
        let theirs = world.sample.keys.remove("business-owners").unwrap();
        let ours = world.sample.keys.insert("implementers".to_owned(), theirs).unwrap();
        list(world, "implementers", "grants/evil.toml", b"evil");
        let theirs = world.sample.keys.insert("implementers".to_owned(), ours).unwrap();
        world.sample.keys.insert("business-owners".to_owned(), theirs);
    })
    .await;
}

#[tokio::test]
async fn rejects_a_version_with_a_withheld_role_at_start_and_later() {
    for role in ["incident", "security", "finance", "targets"] {
        let name = format!("{role}.json");
        refused(FaultKind::Missing, role, |world| {
            world.bend(|_| {}, |snapshot| drop(snapshot["meta"].as_object_mut().unwrap().remove(&name)));
        })
        .await;
    }
}

#[tokio::test]
async fn rejects_a_version_with_an_owner_that_the_charter_does_not_delegate_to() {
    refused(FaultKind::Missing, "incident", |world| {
        world.bend(
            |roles| {
                let roles = roles.get_mut("targets").unwrap()["delegations"]["roles"].as_array_mut().unwrap();
                roles.retain(|role| role["name"] != "incident");
            },
            |_| {},
        );
    })
    .await;
    refused(FaultKind::Missing, "nobody", |world| {
        world.bend(
            |roles| drop(roles.get_mut("targets").unwrap().as_object_mut().unwrap().remove("delegations")),
            |_| {},
        );
    })
    .await;
}

/// Lets `role` delegate to `name` for `paths`, with a key of its own (or that of another role).
fn delegate(world: &mut World, role: &str, name: &str, paths: &[&str], key_of: Option<&str>, more: &Value) {
    let keys = match key_of {
        Some(other) => world.sample.role_keys(other),
        None => {
            let key = LocalKey::generate().unwrap().0;
            let keys = vec![metadata::Signer::public(&key).clone()];
            world.sample.keys.entry(name.to_owned()).or_insert_with(|| vec![key]);
            metadata::RoleKeys { keys, threshold: 1 }
        }
    };
    let delegation = metadata::Delegation {
        name: name.to_owned(),
        keys,
        paths: paths.iter().map(|path| (*path).to_owned()).collect(),
    };
    let mut made = metadata::targets(1, NOW, &BTreeMap::new(), &[delegation])["delegations"].clone();
    made["roles"][0].as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    world.bend(
        |roles| {
            let own = roles.get_mut(role).unwrap();
            if own["delegations"].is_null() {
                own["delegations"] = serde_json::json!({"keys": {}, "roles": []});
            }
            let keys = own["delegations"]["keys"].as_object_mut().unwrap();
            keys.extend(made["keys"].as_object().unwrap().clone());
            own["delegations"]["roles"].as_array_mut().unwrap().push(made["roles"][0].clone());
            let empty = metadata::targets(0, NOW + Sample::LIFE, &BTreeMap::new(), &[]);
            roles.entry(name.to_owned()).or_insert(empty);
        },
        |_| {},
    );
}

#[tokio::test]
async fn rejects_a_version_with_a_delegation_that_breaks_a_rule() {
    let none = serde_json::json!({});
    let cases: &[(&str, &str, &[&str], &str)] = &[
        ("business-owners", "implementers", &["scopes/x/*"], "already"),
        ("governance", "governance", &["decisions/*"], "already"),
        ("governance", "targets", &["decisions/*"], "a role of its own"),
        ("governance", "finance", &["decisions/*"], "already"),
        ("finance", "finance", &["scopes/finance/*"], "already"),
        ("targets", "finance-too", &["scopes/*"], "the five owners alone"),
        ("business-owners", "evil", &["grants/*"], "not its own to give"),
        ("finance", "evil", &["scopes/*"], "not its own to give"),
        ("finance", "evil", &["scopes/finance/x", "scopes/hr/*"], "not its own to give"),
        ("governance", "evil", &["decisions/**"], "a pattern that is invalid"),
        ("governance", "evil", &["decisions/{a,b}"], "a pattern that is invalid"),
        ("governance", "evil", &[""], "a pattern that is invalid"),
        ("governance", "evil", &[], "0 patterns"),
        ("governance", "../evil", &["decisions/x/*"], "no name of a role"),
    ];
    for (role, name, paths, why) in cases {
        refused(FaultKind::Malformed, why, |world| delegate(world, role, name, paths, None, &none)).await;
    }
    let prefixes = serde_json::json!({"path_hash_prefixes": ["0"]});
    let by_hash = |world: &mut World| delegate(world, "governance", "evil", &["decisions/x/*"], None, &prefixes);
    refused(FaultKind::Malformed, "hash prefixes", by_hash).await;
    for threshold in [0, 2] {
        let threshold = serde_json::json!({"threshold": threshold});
        let bent = |world: &mut World| delegate(world, "governance", "evil", &["decisions/x/*"], None, &threshold);
        refused(FaultKind::Malformed, "threshold", bent).await;
    }
    let unknown = serde_json::json!({"keyids": ["00"]});
    let bent = |world: &mut World| delegate(world, "governance", "evil", &["decisions/x/*"], None, &unknown);
    refused(FaultKind::Malformed, "is not given", bent).await;
}

#[tokio::test]
async fn rejects_a_version_where_two_owners_share_a_key() {
    let none = serde_json::json!({});
    for other in ["business-owners", "incident", "finance"] {
        let shared = |world: &mut World| delegate(world, "governance", "eu", &["decisions/x/*"], Some(other), &none);
        refused(FaultKind::Malformed, "keys of its own", shared).await;
    }
}

#[tokio::test]
async fn reads_a_nested_department_and_rejects_its_disappearance() {
    let mut world = World::trusted().await;
    let source = world.source();
    let before = new(source.fetch(None).await);
    let none = serde_json::json!({});
    delegate(&mut world, "finance", "finance/eu", &["scopes/finance/eu/*"], None, &none);
    let second = new(source.fetch(Some(&before.version)).await);
    assert!(second.signed.as_ref().unwrap().standing.ends.contains_key("finance/eu"));
    // It retires: nobody delegates to it any more, and it stays pinned.
    world.bend(|roles| drop(roles.get_mut("finance").unwrap().as_object_mut().unwrap().remove("delegations")), |_| {});
    let error = source.fetch(Some(&second.version)).await.unwrap_err();
    assert!(error.message.contains("withholds finance/eu"), "{error}");
}

#[tokio::test]
async fn rejects_a_version_with_one_public_key_under_two_ids() {
    refused(FaultKind::Malformed, "twice", |world| {
        world.bend(
            |roles| {
                let delegations = &mut roles.get_mut("targets").unwrap()["delegations"];
                let id = delegations["roles"][1]["keyids"][0].as_str().unwrap().to_owned();
                let mut key = delegations["keys"][&id].clone();
                // As tuf-on-ci has it: a member that is no part of the key.
                key["x-owner"] = "somebody".into();
                delegations["keys"]["00ff"] = key;
                delegations["roles"][1]["keyids"].as_array_mut().unwrap().push("00ff".into());
                delegations["roles"][1]["threshold"] = 2.into();
            },
            |_| {},
        );
    })
    .await;
}

#[tokio::test]
async fn a_threshold_of_two_is_not_met_by_one_signature_or_by_one_key_twice() {
    for twice in [false, true] {
        refused(FaultKind::Signature, "targets", |world| {
            world.bend(|roles| roles.get_mut("targets").unwrap()["x"] = 1.into(), |_| {});
            let version = world.signed("targets")["version"].as_u64().unwrap();
            let name = format!("metadata/{}", metadata_name("targets", version));
            let mut envelope: Value = serde_json::from_slice(&world.sample.published()[&name]).unwrap();
            let signatures = envelope["signatures"].as_array_mut().unwrap();
            signatures.truncate(1);
            if twice {
                signatures.push(signatures[0].clone());
            }
            let bytes = Bytes::from(serde_json::to_vec(&envelope).unwrap());
            world.sample.published_mut().insert(name, bytes.clone());
            // Pinned as it is: only the signatures are wrong.
            let mut snapshot = world.signed("snapshot");
            let number = snapshot["version"].as_u64().unwrap() + 1;
            snapshot["version"] = number.into();
            snapshot["meta"]["targets.json"] = serde_json::json!({"version": version, "length": bytes.len(),
                "hashes": {"sha256": Digest::of(&bytes).hex()}});
            let bytes = world.sample.put("snapshot", number, snapshot).unwrap();
            world.timestamp(number, &bytes);
        })
        .await;
    }
}

#[tokio::test]
async fn rejects_too_many_roles_and_too_large_files() {
    refused(FaultKind::TooLarge, "64", |world| {
        world.bend(
            |_| {},
            |snapshot| {
                for number in 0..64 {
                    snapshot["meta"][format!("r{number}.json")] = serde_json::json!({"version": 1});
                }
            },
        );
    })
    .await;
    refused(FaultKind::TooLarge, "kill/list.toml", |world| {
        world.bend(
            |roles| roles.get_mut("incident").unwrap()["targets"]["kill/list.toml"]["length"] = 262_145.into(),
            |_| {},
        );
    })
    .await;
}
