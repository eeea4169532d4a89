//! The slices of the scopes in use: a slice is some ten times as large as the text it is made of, and of thousands of
//! scopes one sidecar's tasks are in a few. So it is made when its scope is first asked for, and kept as long as no
//! [`MAX_KEPT`] others were made since.
//!
//! What a policy was loaded from is not read again: each text was parsed, validated and joined with the boundaries before
//! the policy came into force, and a slice is made of that same text.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use arc_swap::ArcSwapOption;

use super::rules::Slice;

/// The most slices that are kept, some 10 KiB each.
pub(super) const MAX_KEPT: usize = 1024;

/// One scope's rules: as text, and as a slice while they are in use.
#[derive(Debug)]
pub(super) struct Source {
    text: Box<str>,
    made: ArcSwapOption<Slice>,
}

impl Source {
    /// Rules that were parsed and validated.
    pub(super) fn new(text: &str) -> Arc<Self> {
        Arc::new(Self { text: text.into(), made: ArcSwapOption::empty() })
    }
}

/// The slices that are kept, the one made first in front.
#[derive(Debug, Default)]
pub(super) struct Slices(Mutex<VecDeque<Arc<Source>>>);

impl Slices {
    /// The slice of `source`, by `make` from its text where it is not kept.
    ///
    /// # Errors
    /// That of `make`; nothing is kept then.
    pub(super) fn of<E>(
        &self,
        source: &Arc<Source>,
        make: impl FnOnce(&str) -> Result<Slice, E>,
    ) -> Result<Arc<Slice>, E> {
        if let Some(made) = source.made.load_full() {
            return Ok(made);
        }
        let made = Arc::new(make(&source.text)?);
        source.made.store(Some(Arc::clone(&made)));
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.push_back(Arc::clone(source));
        // Two that made the same at once are both there: the slice goes a little sooner then.
        if kept.len() > MAX_KEPT
            && let Some(oldest) = kept.pop_front()
        {
            oldest.made.store(None);
        }
        Ok(made)
    }
}

#[cfg(test)]
mod tests {
    use super::super::document::Decision;
    use super::super::rules::{Engine, RuleProblem};
    use super::super::snapshot::Ends;
    use super::*;

    const DECISION: &[u8] = b"schema = 1\ntier = \"baseline\"\nkind = \"machine\"\ndecision_owner = \"g\"\n\
        review_by = 2027-01-01\nmax_task = \"1h\"\nmax_residual = \"30s\"\ngrants = { a = \"\" }\n";

    /// Slices, with how often one was made.
    struct World {
        engine: Engine,
        decision: Decision,
        slices: Slices,
        made: usize,
    }

    impl World {
        fn new() -> Self {
            let decision = Decision::parse(DECISION).unwrap();
            Self { engine: Engine::new().unwrap(), decision, slices: Slices::default(), made: 0 }
        }

        fn of(&mut self, source: &Arc<Source>) -> Result<Arc<Slice>, RuleProblem> {
            let Self { engine, decision, slices, made } = self;
            slices.of(source, |_| {
                *made += 1;
                engine.slice(&"s".parse().unwrap(), decision, &Ends::default(), &[], &[])
            })
        }
    }

    #[test]
    fn a_slice_is_made_once_while_it_is_in_use() {
        let (mut world, source) = (World::new(), Source::new("text"));
        let first = world.of(&source).unwrap();
        for _ in 0..3 {
            assert!(Arc::ptr_eq(&first, &world.of(&source).unwrap()));
        }
        assert_eq!(world.made, 1);
    }

    #[test]
    fn evicts_the_oldest_slice_over_the_limit() {
        let mut world = World::new();
        let sources: Vec<_> = (0..=MAX_KEPT).map(|n| Source::new(&n.to_string())).collect();
        for source in &sources {
            world.of(source).unwrap();
        }
        let kept = sources.iter().filter(|source| source.made.load().is_some()).count();
        assert_eq!((kept, world.slices.0.lock().unwrap().len()), (MAX_KEPT, MAX_KEPT));
        assert!(sources[0].made.load().is_none());
        // Asked for again, it is made again.
        world.of(&sources[0]).unwrap();
        assert_eq!(world.made, MAX_KEPT + 2);
        assert!(sources[0].made.load().is_some() && sources[1].made.load().is_none());
    }

    #[test]
    fn reports_each_failure_and_does_not_cache_it() {
        let (slices, source) = (Slices::default(), Source::new("text"));
        for _ in 0..2 {
            let made = slices.of(&source, |text| Err::<Slice, _>(text.to_owned()));
            assert_eq!(made.unwrap_err(), "text");
        }
        assert!(slices.0.lock().unwrap().is_empty());
    }
}
