//! A `repository.toml`: no bytes break its reader, and what it accepts keeps owners apart.
#![no_main]

use std::collections::BTreeMap;

use libfuzzer_sys::fuzz_target;
use sidemint::policy::publish::workspace::Settings;
use sidemint_fuzz::NOW;

const FOLDERS: [(&str, &str); 5] = [
    ("security", "boundaries/"),
    ("governance", "decisions/"),
    ("business-owners", "scopes/"),
    ("implementers", "grants/"),
    ("incident", "kill/"),
];
const NAMES: [&str; 6] =
    ["scopes/a.toml", "scopes/finance/a.toml", "grants/a/b.toml", "kill/list.toml", "owners/a.toml", "x"];

fuzz_target!(|data: &[u8]| match Settings::parse(data) {
    Ok(settings) => {
        for (name, role) in settings.roles() {
            assert!(role.threshold >= 1 && role.threshold as usize <= role.keys.len(), "{name}");
            // A department owns nothing outside the folder of the owner that it is below.
            let mut top = (name, role);
            while let Some(parent) = top.1.parent.as_deref().filter(|parent| *parent != "targets") {
                top = (parent, settings.role(parent).unwrap());
            }
            let folder = FOLDERS.iter().find(|(owner, _)| *owner == top.0).map(|(_, folder)| *folder);
            assert!(
                role.paths.iter().all(|path| folder.is_some_and(|folder| path.is_below(folder.trim_end_matches('/')))),
                "{name}"
            );
        }
        for path in NAMES {
            if let Some(owner) = settings.owner_of(path) {
                assert!(settings.content(owner, 1, NOW, &BTreeMap::new()).is_ok(), "{owner}");
            }
        }
    }
    Err(error) => assert!(!error.to_string().is_empty()),
});
