//! Patterns of names in delegations (TUF specification §4.5), for those who publish and those who read alike.

use std::fmt;

/// How many segments a name has below an owner's folder, at most: as many as an id has.
pub(in crate::policy) const MAX_SEGMENTS: usize = 8;
/// How deep departments may be nested below one of the five owners.
pub const MAX_DEPTH: usize = 4;

/// A pattern of names: `decisions/*`, `scopes/finance/*/*`. `*` stops at `/`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern(Vec<Segment>);

/// One segment of a pattern: what is there as it stands, or what begins and ends so, with anything between.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Segment {
    Plain(String),
    Star { before: String, behind: String },
}

impl Segment {
    fn parse(text: &str) -> Option<Self> {
        let plain = |part: &str| part.bytes().all(is_plain);
        match text.split_once('*') {
            Some((before, behind)) if plain(before) && plain(behind) => {
                Some(Self::Star { before: before.to_owned(), behind: behind.to_owned() })
            }
            None if plain(text) && !matches!(text, "" | "." | "..") => Some(Self::Plain(text.to_owned())),
            _ => None,
        }
    }

    fn matches(&self, name: &str) -> bool {
        match self {
            Self::Plain(text) => text == name,
            Self::Star { before, behind } => {
                name.len() >= before.len() + behind.len() && name.starts_with(before) && name.ends_with(behind)
            }
        }
    }

    fn contains(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Plain(text)) => self.matches(text),
            (Self::Plain(_), Self::Star { .. }) => false,
            (Self::Star { before, behind }, Self::Star { before: inner, behind: end }) => {
                inner.starts_with(before.as_str()) && end.ends_with(behind.as_str())
            }
        }
    }

    fn overlaps(&self, other: &Self) -> bool {
        match (self, other) {
            (_, Self::Plain(text)) => self.matches(text),
            (Self::Plain(text), _) => other.matches(text),
            (Self::Star { before, behind }, Self::Star { before: start, behind: end }) => {
                (before.starts_with(start.as_str()) || start.starts_with(before.as_str()))
                    && (behind.ends_with(end.as_str()) || end.ends_with(behind.as_str()))
            }
        }
    }
}

impl PathPattern {
    /// Reads a pattern that every TUF client reads alike: two segments or more, each with at most one `*`; no `**`, braces,
    /// classes or `?`. `None` for anything else.
    pub fn parse(text: &str) -> Option<Self> {
        let segments: Vec<Segment> = text.split('/').map(Segment::parse).collect::<Option<_>>()?;
        (2..=MAX_SEGMENTS + MAX_DEPTH + 1).contains(&segments.len()).then_some(Self(segments))
    }

    /// One pattern for each depth of names below `folder`: `FOLDER/*`, `FOLDER/*/*`, ….
    pub fn below(folder: &str) -> Vec<Self> {
        let depth = MAX_SEGMENTS.saturating_sub(folder.matches('/').count());
        (1..=depth).filter_map(|depth| Self::parse(&format!("{folder}{}", "/*".repeat(depth)))).collect()
    }

    /// How many segments it has.
    pub fn depth(&self) -> usize {
        self.0.len()
    }

    /// Whether all that it matches lies below `folder`, which has one segment.
    pub fn is_below(&self, folder: &str) -> bool {
        matches!(self.0.first(), Some(Segment::Plain(name)) if name == folder)
    }

    /// The same up to where names end: what is longer matches no name, wherever it was written.
    pub(super) fn cut(&self) -> Self {
        Self(self.0.iter().take(MAX_SEGMENTS + 1).cloned().collect())
    }

    /// Whether it matches `path`, segment by segment.
    pub fn matches(&self, path: &str) -> bool {
        let mut names = path.split('/');
        self.0.iter().all(|segment| names.next().is_some_and(|name| segment.matches(name))) && names.next().is_none()
    }

    /// Whether whatever `other` matches, this matches too.
    pub fn contains(&self, other: &Self) -> bool {
        self.each(other, Segment::contains)
    }

    /// Whether some name matches both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.each(other, Segment::overlaps)
    }

    fn each(&self, other: &Self, holds: impl Fn(&Segment, &Segment) -> bool) -> bool {
        self.0.len() == other.0.len() && self.0.iter().zip(&other.0).all(|(ours, theirs)| holds(ours, theirs))
    }
}

/// The pattern as it stands in metadata.
impl fmt::Display for PathPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, segment) in self.0.iter().enumerate() {
            let slash = if number == 0 { "" } else { "/" };
            match segment {
                Segment::Plain(text) => write!(f, "{slash}{text}")?,
                Segment::Star { before, behind } => write!(f, "{slash}{before}*{behind}")?,
            }
        }
        Ok(())
    }
}

/// A byte of a name that is safe in a file's name and in a URL.
pub(super) fn is_plain(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pattern(text: &str) -> PathPattern {
        PathPattern::parse(text).unwrap()
    }

    #[test]
    fn a_star_stops_at_a_slash() {
        assert!(pattern("scopes/*").matches("scopes/a.toml"));
        assert!(!pattern("scopes/*").matches("scopes/finance/a.toml"));
        assert!(!pattern("scopes/*").matches("scopes"));
        assert!(pattern("scopes/finance-*/*.toml").matches("scopes/finance-eu/a.toml"));
        assert!(!pattern("scopes/ab*ba/x").matches("scopes/aba/x"));
    }

    #[test]
    fn rejects_what_clients_would_read_differently() {
        for text in ["", "*", "a", "a/", "/a", "a//b", "a/**", "a/{b,c}", "a/?", "a/[b]", "a/../b", "a/*b*", "a/ä"] {
            assert_eq!(PathPattern::parse(text), None, "{text}");
        }
        assert_eq!(PathPattern::parse(&format!("a{}", "/*".repeat(13))), None);
    }

    #[test]
    fn a_pattern_contains_exactly_the_narrower_ones() {
        for (outer, inner, contains) in [
            ("scopes/*/*", "scopes/finance/*", true),
            ("scopes/*/*", "scopes/*/*", true),
            ("scopes/*", "scopes/finance/*", false),
            ("scopes/fin*/*", "scopes/finance/*", true),
            ("scopes/fin*/*", "scopes/fin*ce/*", true),
            ("scopes/finance/*", "scopes/*/*", false),
            ("scopes/fin*/*", "scopes/f*/*", false),
            ("scopes/*", "grants/*", false),
            ("scopes/*", "*/x", false),
        ] {
            assert_eq!(pattern(outer).contains(&pattern(inner)), contains, "{outer} {inner}");
        }
    }

    proptest! {
        #[test]
        fn patterns_that_match_one_name_overlap(
            a in "[ab]{0,2}[*]?[ab]{0,2}(/[ab]{0,2}[*][ab]{0,2}){1,2}",
            b in "[ab]{0,2}[*]?[ab]{0,2}(/[ab]{0,2}[*][ab]{0,2}){1,2}",
            name in "[ab]{1,3}(/[ab]{1,3}){1,2}",
        ) {
            if let (Some(first), Some(second)) = (PathPattern::parse(&a), PathPattern::parse(&b)) {
                prop_assert_eq!(first.to_string(), a);
                prop_assert!(!(first.matches(&name) && second.matches(&name)) || first.overlaps(&second));
                prop_assert!(!(second.contains(&first) && first.matches(&name)) || second.matches(&name));
                prop_assert!(!second.contains(&first) || second.overlaps(&first));
            }
        }
    }
}
