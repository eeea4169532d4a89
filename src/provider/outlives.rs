//! What a credential may leave behind when it is dead.

use std::time::Duration;

/// One thing by which access outlives a credential.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outliving {
    /// The provider's name for what is allowed, e.g. the action `sts:AssumeRole` (also where a policy says `sts:*`).
    pub action: &'static str,
    /// What is left when the credential is dead.
    pub leaves: &'static str,
    /// For how long at most; `None` where nobody ends it.
    pub lasts: Option<Duration>,
}

impl Outliving {
    /// What it alone leaves behind.
    pub fn alone(&self) -> Outlives {
        Outlives { lasts: self.lasts.unwrap_or_default(), open_ended: self.lasts.is_none() }
    }
}

/// What one grant lets its credentials leave behind, taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Outlives {
    /// The longest that anything with an end lives on after the credential.
    pub lasts: Duration,
    /// Whether there is something that nobody ends: a connection, a shell, a key.
    pub open_ended: bool,
}

impl Outlives {
    /// All of `things` together.
    pub fn of(things: &[Outliving]) -> Self {
        let lasts = things.iter().filter_map(|known| known.lasts).max().unwrap_or_default();
        Self { lasts, open_ended: things.iter().any(|known| known.lasts.is_none()) }
    }

    /// How much of `max_residual` is left for the credential itself, so that all that it leaves is dead in time; `None`
    /// where the law of life cannot be kept: that is less than `least`, or something has no end.
    pub fn leave(self, max_residual: Duration, least: Duration) -> Option<Duration> {
        let left = max_residual.checked_sub(self.lasts)?;
        (!self.open_ended && left >= least).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_law_of_life_leaves_the_rest_to_the_session_or_nothing() {
        let (minute, least) = (Duration::from_secs(60), Duration::from_secs(30));
        let hour = Outlives { lasts: 60 * minute, open_ended: false };
        assert_eq!(hour.leave(90 * minute, least), Some(30 * minute));
        assert_eq!(hour.leave(60 * minute + least, least), Some(least));
        assert_eq!(hour.leave(60 * minute + Duration::from_secs(29), least), None);
        assert_eq!(hour.leave(20 * minute, least), None);
        assert_eq!(Outlives { open_ended: true, ..hour }.leave(720 * minute, least), None);
        assert_eq!(Outlives::default().leave(20 * minute, least), Some(20 * minute));
    }
}
