//! Leases that nobody could revoke: their provider is not configured any more, or the one that is configured is another.

use std::collections::BTreeMap;
use std::fmt;

use crate::clock::Timestamp;
use crate::exchange::Provider;
use crate::lease::LeaseRecord;
use crate::lease::revoke::over_at;

/// The live leases of one provider that is out of reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stranded {
    /// Whose they are.
    pub provider: Provider,
    /// The leases; at least one.
    pub leases: Vec<LeaseRecord>,
    /// When the last of them has died by itself, UTC.
    pub until: Timestamp,
}

impl fmt::Display for Stranded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (provider, count) = (self.provider, self.leases.len());
        let credentials = if count == 1 { "1 credential" } else { &format!("{count} credentials") };
        write!(f, "{provider}: {credentials} can be used there until {}", self.until)
    }
}

/// The leases that may still be used at `now` and whose provider is out of reach, by provider.
pub fn stranded<'a>(
    leases: impl IntoIterator<Item = &'a LeaseRecord>,
    now: Timestamp,
    reached: impl Fn(&LeaseRecord) -> bool,
) -> Vec<Stranded> {
    let mut all: BTreeMap<Provider, Vec<LeaseRecord>> = BTreeMap::new();
    for lease in leases {
        if !lease.state.is_over() && over_at(lease) > now && !reached(lease) {
            all.entry(lease.provider).or_default().push(lease.clone());
        }
    }
    let of = |(provider, leases): (Provider, Vec<LeaseRecord>)| {
        let until = leases.iter().map(|lease| lease.usable_until).max().unwrap_or(now);
        Stranded { provider, leases, until }
    };
    all.into_iter().map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn lease(id: u8, provider: &str, state: &str, until: &str) -> LeaseRecord {
        serde_json::from_value(json!({
            "id": format!("l-0000000000000000000000000{id}"), "task": "t-00000000000000000000000000",
            "provider": provider, "grant": "g", "session_name": "a.b.c", "state": state, "revocation": "exact",
            "opened_at": "2026-11-23T10:00:00Z", "usable_until": until, "upstream": "u",
        }))
        .unwrap()
    }

    #[test]
    fn what_lives_at_a_provider_out_of_reach_is_counted_and_nothing_else() {
        let at = |text: &str| -> Timestamp { text.parse().unwrap() };
        let leases = [
            lease(1, "vault", "issued", "2026-11-23T10:20:00Z"),
            lease(2, "vault", "intent", "2026-11-23T10:25:00Z"),
            lease(3, "vault", "revoked", "2026-11-23T10:59:00Z"),
            lease(4, "vault", "expired", "2026-11-23T10:59:00Z"),
            lease(5, "aws", "issued", "2026-11-23T10:59:00Z"),
            lease(6, "vault", "ending", "2026-11-23T10:09:00Z"),
        ];
        let reached = |lease: &LeaseRecord| lease.provider == Provider::Aws;
        let found = stranded(&leases, at("2026-11-23T10:10:00Z"), reached);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].to_string(), "vault: 2 credentials can be used there until 2026-11-23T10:25:00Z");
        assert!(stranded(&leases, at("2026-11-23T10:26:00Z"), reached).is_empty(), "they are dead");
        assert!(stranded(&leases, at("2026-11-23T10:10:00Z"), |_| true).is_empty());
        let one = stranded(&leases[..1], at("2026-11-23T10:10:00Z"), |_| false);
        assert!(one[0].to_string().starts_with("vault: 1 credential can"), "{}", one[0]);
    }
}
