use proptest::prelude::*;

use super::super::repository::metadata::{LocalKey, Signer as _};
use super::*;

const CHARTER_FILE: &str = r#"
schema = 1
orphan_grace = "3days"
[max_staleness]
baseline = "12h"
elevated = "10m"
break-glass = "2days"
"#;

const OWNER: &str = r#"
schema = 1
name = "Finance data"
mail = "finance-data@example.org"
active_until = 2027-12-31
keys = ["KEY"]
"#;

fn key() -> String {
    LocalKey::generate().unwrap().0.public().keyval.public.clone()
}

fn owner(from: &str, to: &str) -> Result<Owner, DocumentError> {
    assert!(OWNER.contains(from));
    Owner::parse(OWNER.replace(from, to).replace("KEY", &key()).as_bytes())
}

fn files(list: &[(&str, &str)]) -> BTreeMap<String, Bytes> {
    list.iter().map(|(path, text)| ((*path).to_owned(), Bytes::copy_from_slice(text.as_bytes()))).collect()
}

fn plain(mail: &str) -> String {
    format!("schema = 1\nname = \"N\"\nmail = \"{mail}\"\n")
}

#[test]
fn reads_a_charter_and_fills_in_what_it_leaves_out() {
    let hours = |hours: u64| Duration::from_secs(hours * 3600);
    let charter = Charter::parse(CHARTER_FILE.as_bytes()).unwrap();
    let of = |charter: &Charter| Tier::ALL.map(|tier| (charter.max_staleness(tier), charter.orphan_grace(tier)));
    let zero = Duration::ZERO;
    assert_eq!(of(&charter), [(hours(12), hours(72)), (Duration::from_secs(600), zero), (hours(48), hours(72))]);
    let least = Charter::parse(b"schema = 1").unwrap();
    assert_eq!(least, Charter::default());
    assert_eq!(of(&least), [(hours(24), hours(168)), (hours(1), zero), (hours(24), hours(168))]);
    let one = Charter::parse(b"schema = 1\nmax_staleness = { elevated = \"2h\" }").unwrap();
    assert_eq!(one.max_staleness(Tier::Elevated), hours(2));
    assert_eq!(one.max_staleness(Tier::Baseline), hours(24));
}

#[test]
fn rejects_a_charter_with_unknown_keys_or_values_out_of_range() {
    for (from, to) in [
        ("\"12h\"", "\"59s\""),
        ("\"12h\"", "\"31days\""),
        ("\"12h\"", "12"),
        ("\"12h\"", "\"soon\""),
        ("\"10m\"", "\"0s\""),
        ("\"3days\"", "\"91days\""),
        ("break-glass", "break_glass"),
        ("break-glass", "breakglass"),
        ("orphan_grace", "orphan_mercy"),
        ("schema = 1", "schema = 2"),
        ("schema = 1", ""),
    ] {
        assert!(CHARTER_FILE.contains(from));
        assert!(Charter::parse(CHARTER_FILE.replace(from, to).as_bytes()).is_err(), "{from} → {to}");
    }
    assert!(Charter::parse(CHARTER_FILE.replace("\"12h\"", "\"1m\"").as_bytes()).is_ok());
    assert!(Charter::parse(CHARTER_FILE.replace("\"12h\"", "\"30days\"").as_bytes()).is_ok());
    assert!(Charter::parse(CHARTER_FILE.replace("\"3days\"", "\"0s\"").as_bytes()).is_ok());
}

#[test]
fn reads_an_owner() {
    let full = owner("schema", "schema").unwrap();
    assert_eq!(full.active_until, Some("2028-01-01T00:00:00Z".parse().unwrap()), "to the end of the day");
    assert_eq!((full.keys.len(), full.name.as_str()), (1, "Finance data"));
    let least = Owner::parse(plain("a@b").as_bytes()).unwrap();
    assert_eq!((least.active_until, least.keys), (None, Vec::new()));
    let instant = owner("2027-12-31", "2027-12-31T12:00:00Z").unwrap();
    assert_eq!(instant.active_until, Some("2027-12-31T12:00:00Z".parse().unwrap()));
}

#[test]
fn rejects_an_owner_whose_file_is_wrong() {
    for (from, to) in [
        ("schema = 1", "schema = 9"),
        ("name = \"Finance data\"\n", ""),
        ("Finance data", " "),
        ("finance-data@example.org", "finance-data"),
        ("finance-data@example.org", "@example.org"),
        ("finance-data@example.org", "a@b@c"),
        ("finance-data@example.org", "a b@example.org"),
        ("2027-12-31", "\"2027-12-31\""),
        ("2027-12-31", "2027-12-31T12:00:00+01:00"),
        ("[\"KEY\"]", "[\"KEYKEY\"]"),
        ("[\"KEY\"]", "[\"\"]"),
        ("[\"KEY\"]", "\"KEY\""),
        (
            "[\"KEY\"]",
            "[\"KEY\", \"KEY\", \"KEY\", \"KEY\", \"KEY\", \"KEY\", \"KEY\", \"KEY\", \"KEY\", \"KEY\", \
           \"KEY\", \"KEY\", \"KEY\", \"KEY\", \"KEY\", \"KEY\", \"KEY\"]",
        ),
        ("mail", "email"),
    ] {
        assert!(owner(from, to).is_err(), "{from} → {to}");
    }
    let twice = key();
    assert!(owner("[\"KEY\"]", &format!("[\"{twice}\", \"{twice}\"]")).is_err());
    assert!(owner("[\"KEY\"]", &format!("[\"{twice}\", \"KEY\"]")).is_ok());
}

#[test]
fn keys_are_ed25519_as_hex_or_pem_and_p256_as_pem() {
    let raw = key();
    let spki = [
        &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00][..], // RFC 8410
        &owner_key(&raw)
            .map(|key| match key {
                PublicKey::Ed25519(bytes) => bytes,
                PublicKey::P256(_) => panic!("hex is ed25519"),
            })
            .unwrap(),
    ]
    .concat();
    let pem = |der: &[u8], label: &str| {
        let base64 = base64::Engine::encode(&base64::engine::general_purpose::STANDARD, der);
        format!("-----BEGIN {label}-----\n{base64}\n-----END {label}-----\n")
    };
    assert_eq!(owner_key(&pem(&spki, "PUBLIC KEY")).unwrap(), owner_key(&raw).unwrap());
    let pair = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let spki_of = rcgen::PublicKeyData::subject_public_key_info;
    let p256 = pem(&spki_of(&pair), "PUBLIC KEY");
    assert!(matches!(owner_key(&p256).unwrap(), PublicKey::P256(_)));
    let other = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let mut off_the_curve = spki_of(&pair);
    *off_the_curve.last_mut().unwrap() ^= 1;
    for wrong in [
        raw.to_uppercase(),
        raw[1..].to_owned(),
        pem(&spki_of(&other), "PUBLIC KEY"),
        pem(&spki, "PRIVATE KEY"),
        pem(&spki[..43], "PUBLIC KEY"),
        pem(&[&spki[..], &[0]].concat(), "PUBLIC KEY"),
        pem(&off_the_curve, "PUBLIC KEY"),
    ] {
        assert!(owner_key(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_signed_version_names_owners_and_an_unsigned_one_may() {
    let none = files(&[("scopes/a.toml", "")]);
    assert_eq!(Owners::read(&none, false).unwrap().by_id, None);
    assert_eq!(Owners::read(&none, true).unwrap().by_id, Some(BTreeMap::new()));
    let text = plain("a@b");
    let one = files(&[("owners/finance-data.toml", &text), ("owners0", "x"), ("scopes/a.toml", "")]);
    let owners = Owners::read(&one, false).unwrap();
    assert_eq!(owners.by_id.unwrap().keys().collect::<Vec<_>>(), ["finance-data"]);
    let charter = files(&[("owners/charter.toml", CHARTER_FILE)]);
    let owners = Owners::read(&charter, false).unwrap();
    assert_eq!(owners.charter, Charter::parse(CHARTER_FILE.as_bytes()).unwrap());
    assert_eq!(owners.by_id, Some(BTreeMap::new()), "whoever has a charter has owners");
}

#[test]
fn reports_every_problem_of_every_owner_and_refuses_for_each() {
    let text = plain("a@b");
    let bad = files(&[
        ("owners/a.toml", &text),
        ("owners/B.toml", &text),
        ("owners/a/b.toml", &text),
        ("owners/a.cedar", &text),
        ("owners/charter.toml", "schema = 2"),
        ("owners/z.toml", "schema = 1"),
    ]);
    let problems = Owners::read(&bad, true).unwrap_err();
    let told: Vec<_> = problems.iter().map(|problem| (problem.file.as_str(), problem.kind)).collect();
    assert_eq!(
        told,
        [
            ("owners/B.toml", kind::FILE_NAME),
            ("owners/a.cedar", kind::FILE_NAME),
            ("owners/a/b.toml", kind::FILE_NAME),
            ("owners/charter.toml", kind::UNKNOWN_SCHEMA),
            ("owners/z.toml", kind::PARSE),
        ]
    );
}

#[test]
fn no_two_owners_share_a_key() {
    let with = |key: &str| format!("{}keys = [\"{key}\"]\n", plain("a@b"));
    let (shared, own) = (key(), key());
    let apart = files(&[("owners/a.toml", &with(&shared)), ("owners/b.toml", &with(&own))]);
    assert!(Owners::read(&apart, true).is_ok());
    let together = files(&[("owners/a.toml", &with(&shared)), ("owners/b.toml", &with(&shared))]);
    let problems = Owners::read(&together, true).unwrap_err();
    assert_eq!((problems.len(), problems[0].file.as_str()), (1, "owners/b.toml"));
    assert!(problems[0].message.starts_with("has a key of a:"), "{}", problems[0].message);
}

proptest! {
    #[test]
    fn no_bytes_make_the_readers_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200), text in any::<String>()) {
        let _ = (Charter::parse(&bytes), Owner::parse(&bytes), owner_key(&text));
    }

    #[test]
    fn no_damage_makes_the_readers_panic_or_a_charter_leave_its_range(at in 0..CHARTER_FILE.len(), with in any::<u8>()) {
        let mut bytes = CHARTER_FILE.as_bytes().to_vec();
        bytes[at] = with;
        if let Ok(charter) = Charter::parse(&bytes) {
            for tier in Tier::ALL {
                prop_assert!((MIN_STALENESS..=MAX_STALENESS).contains(&charter.max_staleness(tier)));
                prop_assert!(charter.orphan_grace(tier) <= MAX_ORPHAN_GRACE);
            }
        }
        let at = at % OWNER.len();
        let mut bytes = OWNER.as_bytes().to_vec();
        bytes[at] = with;
        let _ = Owner::parse(&bytes);
    }
}
