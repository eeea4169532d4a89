//! Descriptors are kept back for what must go on when every connection is taken: the journal, the audit log, the way to the
//! Workload API and to the clouds.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// So many are for other things than callers' connections.
const KEPT_BACK: u64 = 128;

/// Asks the system for as many descriptors as it gives to this process, and says how many that are; `None` for no limit.
pub fn raise() -> Option<u64> {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => maximum,
        Err(_) => current,
    }
}

/// How many connections each of `listeners` may have, where `wanted` are configured and `limit` descriptors can be had.
pub fn connections(limit: Option<u64>, listeners: usize, wanted: usize) -> usize {
    let Some(limit) = limit else { return wanted };
    let shared = usize::try_from(limit.saturating_sub(KEPT_BACK)).unwrap_or(usize::MAX);
    wanted.min(shared / listeners.max(1)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_descriptors_for_everything_else() {
        assert_eq!(connections(None, 3, 1024), 1024);
        assert_eq!(connections(Some(1_048_576), 5, 1024), 1024);
        for (limit, listeners) in [(1024, 2), (1024, 5), (256, 3), (130, 2)] {
            let each = connections(Some(limit), listeners, 1024);
            assert!(each * listeners + 128 <= usize::try_from(limit).unwrap(), "{limit} {listeners}");
        }
        assert_eq!(connections(Some(64), 4, 1024), 1);
    }
}
