//! Who owns which names: the tree of delegations below the charter, and the rules that it keeps (docs/publishing.md).
//!
//! A name belongs to the deepest role whose chain of patterns matches it, the first in its parent's order.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sigstore_tuf::{DelegatedRole, Targets};

use super::keys;
use crate::policy::public_key::PublicKey;
use crate::policy::repository::fault::{Fault, FaultKind};
pub use crate::policy::repository::path_pattern::MAX_DEPTH;
use crate::policy::repository::path_pattern::{PathPattern, is_plain};
use crate::policy::standing::{OWNERS, RoleName, TOP_ROLES};

/// The most targets roles, the charter included.
pub const MAX_ROLES: usize = 64;
/// The most patterns of one role.
const MAX_PATTERNS: usize = 64;
/// The longest name of a role or file, in bytes.
const MAX_NAME: usize = 512;

#[derive(Debug)]
struct Node {
    patterns: Vec<PathPattern>,
    children: Vec<RoleName>,
    /// Which of the five owners it is below, or is.
    owner: usize,
    depth: usize,
}

/// The roles below the charter.
#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<RoleName, Node>,
    /// Whose each key is: separate duties are separate keys (requirement G06).
    keys: BTreeMap<PublicKey, Whose>,
}

/// Whose a key is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    /// One of the four top-level roles'.
    Top,
    /// One of the five owners', or of a department below it.
    Owner(usize),
}

impl Tree {
    /// An empty tree below the roles that have these keys.
    pub(super) fn under(top: BTreeSet<PublicKey>) -> Self {
        Self { nodes: BTreeMap::new(), keys: top.into_iter().map(|key| (key, Whose::Top)).collect() }
    }

    /// Takes in what `role` delegates. Returns the roles that are to be read next, in order.
    pub(super) fn delegate(&mut self, role: &str, targets: &Targets) -> Result<Vec<RoleName>, Fault> {
        let Some(delegations) = &targets.delegations else {
            return if role == "targets" { self.complete().map(|()| Vec::new()) } else { Ok(Vec::new()) };
        };
        if delegations.extra.contains_key("succinct_roles") {
            return Err(Fault::malformed(format!("{role}: delegates by hash bins; patterns of names are needed")));
        }
        let mut children = Vec::new();
        for delegated in &delegations.roles {
            let keys = keys::of_role(&delegated.name, &delegated.keyids, delegated.threshold, &delegations.keys)?;
            children.push(self.add(role, delegated, keys)?);
        }
        if role == "targets" {
            self.complete()?;
        } else if let Some(parent) = self.nodes.get_mut(role) {
            parent.children.clone_from(&children);
        }
        Ok(children)
    }

    /// All five owners are there: a folder whose owner is withheld has nothing in it that anybody signed.
    fn complete(&self) -> Result<(), Fault> {
        match OWNERS.iter().find(|(role, _)| !self.nodes.contains_key(*role)) {
            None => Ok(()),
            Some((role, folder)) => {
                let message = format!("targets: delegates {folder}/ to nobody: the role {role} must be there");
                Err(Fault::new(FaultKind::Missing, message))
            }
        }
    }

    fn add(&mut self, parent: &str, delegated: &DelegatedRole, keys: BTreeSet<PublicKey>) -> Result<RoleName, Fault> {
        let name = delegated.name.as_str();
        let bad = |why: &str| Err(Fault::malformed(format!("{parent}: delegates to {}: {why}", name.escape_debug())));
        if !is_role_name(name) {
            return bad("which is no name of a role");
        }
        if self.nodes.contains_key(name) {
            return bad("which somebody delegates to already; a role is delegated once");
        }
        // The charter is one of them.
        if self.nodes.len() + 1 >= MAX_ROLES {
            return bad(&format!("there are more than {MAX_ROLES} roles"));
        }
        if delegated.path_hash_prefixes.is_some() {
            return bad("by hash prefixes; patterns of names are needed");
        }
        let patterns = match parse_patterns(delegated) {
            Ok(patterns) => patterns,
            Err(why) => return bad(&why),
        };
        let place = OWNERS.iter().position(|(role, _)| *role == name);
        let (owner, depth) = match (parent, place, self.nodes.get(parent)) {
            ("targets", Some(owner), _) => (owner, 0),
            ("targets", None, _) => return bad("but the charter delegates to the five owners alone"),
            (_, Some(_), _) => return bad("which only the charter may"),
            (_, None, Some(node)) => (node.owner, node.depth + 1),
            (_, None, None) => return bad("and nobody delegated to itself"),
        };
        if TOP_ROLES.contains(&name) {
            return bad("which is a role of its own");
        }
        if depth > MAX_DEPTH {
            return bad(&format!("departments are nested deeper than {MAX_DEPTH}"));
        }
        let (_, folder) = OWNERS.get(owner).copied().unwrap_or_default();
        let within = |pattern: &PathPattern| match self.nodes.get(parent) {
            Some(node) => node.patterns.iter().any(|outer| outer.cut().contains(&pattern.cut())),
            None => pattern.is_below(folder),
        };
        if !patterns.iter().all(within) {
            return bad("for names that are not its own to give");
        }
        for key in keys {
            match *self.keys.entry(key).or_insert(Whose::Owner(owner)) {
                Whose::Owner(other) if other == owner => {}
                Whose::Owner(_) => return bad("with a key that another owner has too: each owner has keys of its own"),
                Whose::Top => {
                    return bad("with a key of root, targets, snapshot or timestamp: each owner has keys of its own");
                }
            }
        }
        let name: RoleName = Arc::from(name);
        self.nodes.insert(Arc::clone(&name), Node { patterns, children: Vec::new(), owner, depth });
        Ok(name)
    }

    /// The role that owns `path`; `None` where none does.
    pub(super) fn owner_of(&self, path: &str) -> Option<&str> {
        let (folder, below) = path.split_once('/')?;
        if folder == "owners" {
            return (!below.contains('/')).then_some("targets");
        }
        let (role, _) = OWNERS.iter().find(|(_, owned)| *owned == folder)?;
        let owns = |node: &Node| node.patterns.iter().any(|pattern| pattern.matches(path));
        let (mut name, mut node) = (*role, self.nodes.get(*role).filter(|node| owns(node))?);
        // As deep as the tree is; each step goes down.
        while let Some((child, found)) =
            node.children.iter().find_map(|child| Some((child, self.nodes.get(child).filter(|node| owns(node))?)))
        {
            (name, node) = (child, found);
        }
        Some(name)
    }
}

fn parse_patterns(delegated: &DelegatedRole) -> Result<Vec<PathPattern>, String> {
    let texts = delegated.paths.as_deref().unwrap_or_default();
    if texts.is_empty() || texts.len() > MAX_PATTERNS {
        return Err(format!("with {} patterns; 1 to {MAX_PATTERNS} are needed", texts.len()));
    }
    let parse = |text: &String| {
        let why = "for a pattern that is invalid (write FOLDER/*, FOLDER/*/*, one for each depth)";
        PathPattern::parse(text).ok_or_else(|| format!("{why}: {}", text.escape_debug()))
    };
    texts.iter().map(parse).collect()
}

fn is_safe(name: &str) -> bool {
    name.split('/').all(|part| !part.is_empty() && !part.starts_with('.') && part.bytes().all(is_plain))
}

/// A name that is safe in a file's name and in a URL.
fn is_role_name(name: &str) -> bool {
    name.len() <= MAX_NAME / 4 && is_safe(name)
}

/// A policy file's name that is safe to look for: `FOLDER/NAME`, without a trick in it.
pub(super) fn is_file_name(path: &str) -> bool {
    path.len() <= MAX_NAME && path.contains('/') && is_safe(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rejects_malicious_names() {
        for name in ["a", "a/", "/a", "a/..", "a/./b", "a//b", "a/.b", "a/b\n", "a/b c", "a/%2e", "a\\b/c", "a/ä"] {
            assert!(!is_file_name(name), "{name}");
        }
        assert!(is_file_name("scopes/finance/a-b_c.toml"));
        assert!(is_role_name("finance/eu") && !is_role_name("../x") && !is_role_name("a b") && !is_role_name(""));
    }
}
