//! What stands in paths and behind `Bearer`: ids, names and task tokens.
#![no_main]

use libfuzzer_sys::fuzz_target;
use sidemint::identity::task_token::{LENGTH, PREFIX, TokenHash};
use sidemint::policy::{GrantId, ParamName, ScopeId};
use sidemint::task::TaskId;

fuzz_target!(|text: &str| {
    if let Ok(id) = text.parse::<TaskId>() {
        assert!(id.as_str() == text && text.len() == 28 && text.is_ascii());
    }
    if TokenHash::of(text).is_some() {
        assert!(text.len() == LENGTH && text.starts_with(PREFIX));
    }
    for name in [
        text.parse::<ScopeId>().ok().map(|id| id.as_str().to_owned()),
        text.parse::<GrantId>().ok().map(|id| id.as_str().to_owned()),
    ] {
        // an id becomes a path below a folder: it must not be able to leave it
        assert!(name.is_none_or(|name| {
            name == text && !name.is_empty() && name.split('/').all(|part| !part.is_empty() && !part.starts_with('.'))
        }));
    }
    if let Ok(name) = text.parse::<ParamName>() {
        assert_eq!(name.as_str(), text);
    }
});
