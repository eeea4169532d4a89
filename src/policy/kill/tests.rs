use proptest::prelude::*;

use super::*;

const TASK: &str = "t-0123456789abcdefghjkmnpqrs";
const WHO: &str = "spiffe://example.org/ns/finance/sa/report";

/// What the tests' scope is made of.
struct Made;

impl Parts for Made {
    fn grants(&self) -> impl Iterator<Item = (&GrantId, Provider)> {
        static GRANT: std::sync::LazyLock<GrantId> = std::sync::LazyLock::new(|| "ledger-read-aws".parse().unwrap());
        std::iter::once((&*GRANT, Provider::Aws))
    }

    fn owners(&self) -> [&str; 2] {
        ["identity-governance", "finance-data"]
    }
}

fn now() -> Timestamp {
    "2026-11-23T16:00:00Z".parse().unwrap()
}

fn list(text: &str) -> Result<KillList, DocumentError> {
    KillList::parse(format!("schema = 1\n{text}").as_bytes(), None)
}

fn entry(id: &str, target: &str) -> String {
    format!("[[stop]]\nid = \"{id}\"\n{target}\nreason = \"INC-1\"\n")
}

/// The id of the entry that stops the tests' subject at `at`.
fn stopped(list: &KillList, at: Timestamp) -> Option<String> {
    let (scope, who, task) = ("ledger-read".parse().unwrap(), WHO.parse().unwrap(), TASK.parse().unwrap());
    let subject = Subject { scope: &scope, spiffe_id: &who, task: Some(&task) };
    list.stop(subject, || Some(Made), at).map(|stop| stop.id.clone())
}

#[test]
fn an_empty_list_stops_nothing() {
    assert_eq!(stopped(&list("").unwrap(), now()), None);
    assert_eq!(stopped(&KillList::default(), now()), None);
}

#[test]
fn each_kind_of_entry_stops_what_it_names_and_nothing_else() {
    for (target, other) in [
        ("scope = \"ledger-read\"", "scope = \"ledger\""),
        ("scope = \"ledger-read\"", "scope = \"ledger-read/x\""),
        (&*format!("spiffe_id = \"{WHO}\""), "spiffe_id = \"spiffe://example.org/ns/finance/sa/other\""),
        ("trust_domain = \"example.org\"", "trust_domain = \"example.com\""),
        (&*format!("task = \"{TASK}\""), "task = \"t-1123456789abcdefghjkmnpqrs\""),
        ("grant = \"ledger-read-aws\"", "grant = \"ledger-read\""),
        ("owner = \"finance-data\"", "owner = \"finance\""),
        ("owner = \"identity-governance\"", "owner = \"governance\""),
        ("provider = \"aws\"", "provider = \"gcp\""),
    ] {
        assert_eq!(stopped(&list(&entry("x", target)).unwrap(), now()).as_deref(), Some("x"), "{target}");
        assert_eq!(stopped(&list(&entry("x", other)).unwrap(), now()), None, "{other}");
    }
    assert_eq!(stopped(&list(&entry("x", "all = true")).unwrap(), now()).as_deref(), Some("x"));
}

#[test]
fn a_scope_whose_parts_are_not_known_is_stopped_by_its_name_and_its_caller() {
    let (scope, who) = ("unknown".parse().unwrap(), WHO.parse().unwrap());
    let subject = Subject { scope: &scope, spiffe_id: &who, task: None };
    let asked = |target: &str| {
        let list = list(&entry("x", target)).unwrap();
        list.stop(subject, || None::<Made>, now()).is_some()
    };
    assert!(asked("scope = \"unknown\""));
    assert!(asked("trust_domain = \"example.org\""));
    assert!(!asked("owner = \"finance-data\""));
    assert!(!asked(&format!("task = \"{TASK}\"")));
}

#[test]
fn an_entry_applies_until_its_expiry_and_then_the_next_one() {
    let text = [
        entry("early", "scope = \"ledger-read\"\nuntil = 2026-11-23T17:00:00Z"),
        entry("late", "trust_domain = \"example.org\"\nuntil = 2026-11-23T18:00:00.5Z"),
        entry("day", "owner = \"finance-data\"\nuntil = 2026-11-23"),
    ]
    .concat();
    let list = list(&text).unwrap();
    let at = |time: &str| time.parse::<Timestamp>().unwrap();
    for (time, id, count) in [
        ("2026-11-23T16:59:59.999Z", Some("early"), 3),
        ("2026-11-23T17:00:00Z", Some("late"), 2),
        ("2026-11-23T18:00:00.499Z", Some("late"), 2),
        ("2026-11-23T18:00:00.5Z", Some("day"), 1),
        ("2026-11-23T23:59:59.999Z", Some("day"), 1),
        ("2026-11-24T00:00:00Z", None, 0),
    ] {
        assert_eq!((stopped(&list, at(time)).as_deref(), list.in_force(at(time))), (id, count), "{time}");
    }
    // A clock that went forward by mistake and back again finds them in force again.
    assert_eq!(stopped(&list, at("2026-11-23T16:00:00Z")).as_deref(), Some("early"));
}

#[test]
fn an_expired_entry_does_not_hide_one_in_force() {
    let text = [entry("past", "scope = \"ledger-read\"\nuntil = 2026-11-01"), entry("now", "scope = \"ledger-read\"")]
        .concat();
    assert_eq!(stopped(&list(&text).unwrap(), now()).as_deref(), Some("now"));
}

#[test]
fn rejects_the_whole_list_for_one_bad_entry() {
    let good = entry("good", "all = true");
    for bad in [
        entry("x", ""),
        entry("x", "scope = \"a\"\nowner = \"b\""),
        entry("x", "all = true\nscope = \"a\""),
        entry("x", "all = false"),
        entry("x", "all = \"true\""),
        entry("X Y", "scope = \"a\""),
        entry("", "scope = \"a\""),
        entry("x", "scope = \"A\""),
        entry("x", "spiffe_id = \"spiffe://example.org\""),
        entry("x", "spiffe_id = \"example.org/a\""),
        entry("x", "trust_domain = \"spiffe://example.org\""),
        entry("x", "task = \"t-1\""),
        entry("x", "grant = \"../a\""),
        entry("x", "owner = \"a/b\""),
        entry("x", "provider = \"\""),
        entry("x", "scope = \"a\"\nuntil = \"2026-11-24\""),
        entry("x", "scope = \"a\"\nuntil = 2026-11-24T00:00:00"),
        entry("x", "scope = \"a\"\nuntil = 2026-11-24T00:00:00+01:00"),
        entry("x", "scope = \"a\"\nwho = \"b\""),
        entry("x", "scope = \"a\"").replace("INC-1", " "),
        entry("x", "scope = \"a\"").replace("reason = \"INC-1\"", ""),
        "stops = []".to_owned(),
    ] {
        assert!(list(&bad).is_err(), "{bad}");
        assert!(list(&format!("{good}{bad}")).is_err(), "{bad}");
    }
    assert!(list(&format!("{good}{}", entry("good", "scope = \"a\""))).is_err(), "an id twice");
    assert!(KillList::parse(b"schema = 2", None).is_err());
    assert!(KillList::parse(b"", None).is_err(), "an empty file is no word of anybody's");
}

#[test]
fn takes_ten_thousand_entries_and_no_more() {
    let text = |count: usize| (0..count).map(|n| entry(&format!("e-{n}"), "scope = \"a\"")).collect::<String>();
    assert_eq!(list(&text(MAX_STOPS)).unwrap().stops().len(), MAX_STOPS);
    assert!(list(&text(MAX_STOPS + 1)).is_err());
}

#[test]
fn reads_or_rejects_every_file_below_kill() {
    let files = |list: &[(&str, &str)]| {
        list.iter().map(|(path, text)| ((*path).to_owned(), Bytes::copy_from_slice(text.as_bytes()))).collect()
    };
    let good = format!("schema = 1\n{}", entry("x", "all = true"));
    let list = KillList::read(&files(&[("kill/list.toml", &good), ("scopes/a.toml", "")]), Some(7)).unwrap();
    assert_eq!((list.stops().len(), list.epoch()), (1, Some(7)));
    let none = KillList::read(&files(&[("scopes/a.toml", "")]), Some(8)).unwrap();
    assert_eq!((none.stops().len(), none.epoch()), (0, Some(8)));
    for other in ["kill/lists.toml", "kill/finance/list.toml", "kill/list.cedar", "kill/List.toml"] {
        let problems = KillList::read(&files(&[("kill/list.toml", &good), (other, &good)]), None).unwrap_err();
        assert_eq!((problems.len(), problems[0].file.as_str(), problems[0].kind), (1, other, kind::FILE_NAME));
    }
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        let _ = KillList::parse(&bytes, None);
    }

    #[test]
    fn no_damage_makes_the_reader_panic_or_accept_an_entry_without_a_target(at in any::<usize>(), with in any::<u8>()) {
        let text = format!("schema = 1\n{}{}", entry("a", "scope = \"b\"\nuntil = 2026-11-24"), entry("c", "all = true"));
        let mut bytes = text.into_bytes();
        let at = at % bytes.len();
        bytes[at] = with;
        if let Ok(list) = KillList::parse(&bytes, None) {
            prop_assert!(list.stops().iter().all(|stop| !stop.id.is_empty() && !stop.reason.trim().is_empty()));
        }
    }

    /// The index says what a look at every entry says.
    #[test]
    fn an_entry_is_found_exactly_where_a_search_of_all_finds_one(
        picks in proptest::collection::vec((0usize..16, proptest::option::of(0u64..4)), 0..12),
        hour in 0u64..4,
    ) {
        let targets = [
            ("scope = \"ledger-read\"", true), ("scope = \"other\"", false),
            ("spiffe_id = \"spiffe://example.org/ns/finance/sa/report\"", true), ("spiffe_id = \"spiffe://example.org/a\"", false),
            ("trust_domain = \"example.org\"", true), ("trust_domain = \"example.net\"", false),
            ("task = \"t-0123456789abcdefghjkmnpqrs\"", true), ("task = \"t-1123456789abcdefghjkmnpqrs\"", false),
            ("grant = \"ledger-read-aws\"", true), ("grant = \"other\"", false),
            ("owner = \"finance-data\"", true), ("owner = \"other\"", false),
            ("provider = \"aws\"", true), ("provider = \"gcp\"", false),
            ("all = true", true), ("owner = \"identity-governance\"", true),
        ];
        let mut text = String::new();
        for (number, (pick, until)) in picks.iter().enumerate() {
            let until = until.map_or(String::new(), |hour| format!("\nuntil = 2026-11-23T0{hour}:00:00Z"));
            text += &entry(&format!("e-{number}"), &format!("{}{until}", targets[*pick].0));
        }
        let expected = picks.iter().position(|(pick, until)| targets[*pick].1 && until.is_none_or(|until| hour < until));
        let at = format!("2026-11-23T0{hour}:00:00Z").parse().unwrap();
        prop_assert_eq!(stopped(&list(&text).unwrap(), at), expected.map(|number| format!("e-{number}")));
    }
}
