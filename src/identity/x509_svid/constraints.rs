//! Name constraints (RFC 5280 §4.2.1.10): those on URIs and DNS names are applied; of any other form, a name of that
//! form below the CA is refused.

use std::net::Ipv4Addr;

use super::X509SvidError;
use super::certificate::{Certificate, Name, NameConstraints};

/// `id-emailAddress` (1.2.840.113549.1.9.1) in DER: an e-mail address in a subject obeys constraints on e-mail addresses.
const EMAIL_ATTRIBUTE: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x09, 0x01];

/// Whether any certificate of `path` constrains URIs.
pub(super) fn any_on_uris(path: &[&Certificate<'_>]) -> bool {
    let constraints = path.iter().filter_map(|certificate| certificate.extensions.name_constraints.as_ref());
    let mut bases = constraints.flat_map(|all| all.permitted.iter().chain(&all.excluded));
    bases.any(|base| matches!(base, Name::Uri(_)))
}

/// Applies the constraints of each CA of `path`, the root's included, to every certificate below it.
///
/// # Errors
/// When a name is excluded, not permitted, or cannot be judged.
pub(super) fn check(path: &[&Certificate<'_>]) -> Result<(), X509SvidError> {
    for (position, ca) in path.iter().enumerate() {
        let Some(constraints) = &ca.extensions.name_constraints else { continue };
        for below in path.iter().take(position) {
            names(below).try_for_each(|name| judge(&name, constraints))?;
        }
    }
    Ok(())
}

/// The names that a certificate goes by, its subject included, be it empty.
fn names<'a>(certificate: &Certificate<'a>) -> impl Iterator<Item = Name<'a>> {
    let has_email = certificate.subject.windows(EMAIL_ATTRIBUTE.len()).any(|window| *window == EMAIL_ATTRIBUTE);
    certificate.extensions.names.clone().into_iter().chain([Name::Directory]).chain(has_email.then_some(Name::Email))
}

/// Within one of the permitted subtrees of its form, if there are any, and within none of the excluded.
fn judge(name: &Name<'_>, constraints: &NameConstraints<'_>) -> Result<(), X509SvidError> {
    let mut permitted = None;
    for base in &constraints.permitted {
        if let Some(within) = within(name, base, false)? {
            permitted = Some(permitted.unwrap_or(false) || within);
        }
    }
    for base in &constraints.excluded {
        if within(name, base, true)? == Some(true) {
            return Err(X509SvidError::NameConstraints);
        }
    }
    if permitted == Some(false) { Err(X509SvidError::NameConstraints) } else { Ok(()) }
}

/// Whether `name` is within `base`; `None` when they are of different forms.
fn within(name: &Name<'_>, base: &Name<'_>, excluded: bool) -> Result<Option<bool>, X509SvidError> {
    match (name, base) {
        (Name::Uri(uri), Name::Uri(base)) => uri_within(uri, base).map(Some),
        (Name::Dns(name), Name::Dns(base)) => Ok(Some(dns_within(name, base, excluded))),
        (name, base) if std::mem::discriminant(name) != std::mem::discriminant(base) => Ok(None),
        (Name::Other(tag), Name::Other(other)) if tag != other => Ok(None),
        _ => Err(X509SvidError::NameConstraintForm),
    }
}

/// A base that begins with a period means every host below it, any other means that host alone. What has no host, or an
/// address for one, is refused (RFC 5280 §4.2.1.10), as is a base that is no host.
fn uri_within(uri: &str, base: &str) -> Result<bool, X509SvidError> {
    let host = host(uri).ok_or(X509SvidError::NameConstraints)?;
    if !is_host(base.strip_prefix('.').unwrap_or(base)) {
        return Err(X509SvidError::NameConstraintForm);
    }
    Ok(if base.starts_with('.') {
        ends_with(host, base) && host.len() > base.len()
    } else {
        host.eq_ignore_ascii_case(base)
    })
}

/// The host of a URI that has a plain one: no user, no port, no address.
fn host(uri: &str) -> Option<&str> {
    let (_, rest) = uri.split_once("://")?;
    let host = rest.split(['/', '?', '#']).next()?;
    is_host(host).then_some(host)
}

/// One or more labels, and no IPv4 address.
fn is_host(text: &str) -> bool {
    let is_label =
        |label: &str| !label.is_empty() && label.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    text.split('.').all(is_label) && text.parse::<Ipv4Addr>().is_err()
}

/// `name` is `base`, or has labels before it; an empty base means every name. A wildcard is also within an excluded base
/// when the base is below it: it stands for that name too.
fn dns_within(name: &str, base: &str, excluded: bool) -> bool {
    let is_below = |name: &str, base: &str| {
        let Some(at) = name.len().checked_sub(base.len() + 1) else { return false };
        ends_with(name, base) && name.as_bytes().get(at) == Some(&b'.')
    };
    if base.is_empty() {
        return true;
    }
    if let Some(parent) = base.strip_prefix('.') {
        return is_below(name, parent) || excluded && name.strip_prefix("*.").is_some_and(|n| is_below(parent, n));
    }
    let stands_for_base = || name.strip_prefix("*.").is_some_and(|name| is_below(base, name));
    name.eq_ignore_ascii_case(base) || is_below(name, base) || excluded && stands_for_base()
}

/// Whether `text` ends with `end`, both ASCII, in any case.
fn ends_with(text: &str, end: &str) -> bool {
    let tail = text.len().checked_sub(end.len()).and_then(|at| text.as_bytes().get(at..));
    tail.is_some_and(|tail| tail.eq_ignore_ascii_case(end.as_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_matches_itself_only_and_a_leading_period_all_below() {
        for (uri, base, within) in [
            ("spiffe://example.org/a", "example.org", true),
            ("spiffe://example.org/a", "EXAMPLE.org", true),
            ("spiffe://a.example.org/a", "example.org", false),
            ("spiffe://a.example.org/a", ".example.org", true),
            ("spiffe://a.b.example.org/a", ".example.org", true),
            ("spiffe://example.org/a", ".example.org", false),
            ("spiffe://evilexample.org/a", ".example.org", false),
            ("spiffe://example.org.evil/a", "example.org", false),
        ] {
            assert_eq!(uri_within(uri, base), Ok(within), "{uri} in {base}");
        }
    }

    #[test]
    fn rejects_a_uri_without_a_valid_host_and_an_invalid_constraint() {
        for uri in
            ["spiffe://192.0.2.1/a", "spiffe://example.org./a", "spiffe://.example.org/a", "urn:a", "spiffe:///a"]
        {
            assert_eq!(uri_within(uri, "example.org"), Err(X509SvidError::NameConstraints), "{uri}");
        }
        for base in ["", ".", "..example.org", "spiffe://example.org", "example.org/a", "*.example.org", "192.0.2.1"] {
            assert_eq!(uri_within("spiffe://example.org/a", base), Err(X509SvidError::NameConstraintForm), "{base}");
        }
    }

    #[test]
    fn dns_names_are_within_their_parents_and_wildcards_stand_for_what_they_match() {
        for (name, base, permitted, excluded) in [
            ("a.example.org", "example.org", true, true),
            ("example.org", "example.org", true, true),
            ("EXAMPLE.ORG", "example.org", true, true),
            ("evilexample.org", "example.org", false, false),
            ("example.org", ".example.org", false, false),
            ("a.example.org", ".example.org", true, true),
            ("anything", "", true, true),
            ("*.example.org", "example.org", true, true),
            ("*.example.org", "a.example.org", false, true),
            ("b.example.org", "a.example.org", false, false),
        ] {
            assert_eq!(dns_within(name, base, false), permitted, "{name} permitted in {base}");
            assert_eq!(dns_within(name, base, true), excluded, "{name} excluded in {base}");
        }
    }
}
