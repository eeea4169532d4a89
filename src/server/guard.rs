//! What is refused before anything else is looked at: requests that came through a proxy, from a browser, or for
//! another host (DNS rebinding). All get the same constant answer.

use http::Method;
use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, ORIGIN, REFERER, VIA};
use http::request::Parts;

use super::Peer;
use super::problem::Problem;

const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const SEC_FETCH_SITE: HeaderName = HeaderName::from_static("sec-fetch-site");
/// No SDK sends these to a loopback endpoint. (`Sec-Fetch-Mode` is not here: Node's own fetch sends it.)
fn is_forbidden(name: &HeaderName) -> bool {
    *name == FORWARDED
        || *name == VIA
        || *name == ORIGIN
        || *name == REFERER
        || *name == X_FORWARDED_FOR
        || *name == SEC_FETCH_SITE
}

/// What the requests of one dialect must be like, besides what is asked of all.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// What may stand before the port in `Host`.
    pub hosts: &'static [&'static str],
    /// Headers that must be there, each once, and their values: what another site's page or a forwarded request lacks.
    pub headers: &'static [(&'static str, &'static str)],
}

impl Rules {
    /// The listener's own names, and no header more.
    pub const GENERAL: Self = Self { hosts: &["127.0.0.1", "localhost", "[::1]"], headers: &[] };
}

/// Why a request was refused at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The peer is not on this machine.
    Peer,
    /// The `Host` header is missing, doubled, or names something other than this listener.
    Host,
    /// A header that only proxies and browsers send.
    Header(HeaderName),
    /// A header that the dialect's clients send is missing, doubled, or says something else.
    Missing(&'static str),
    /// A request target in absolute form, as proxies get it, or a method that opens a tunnel.
    Target,
}

impl Refusal {
    /// What the outside is told: for all of them the same.
    pub fn problem(&self) -> Problem {
        Problem::forbidden_request()
    }

    /// What the audit log is told.
    pub fn detail(&self) -> String {
        match self {
            Self::Peer => "the peer is not on loopback".into(),
            Self::Host => "the Host header does not name this listener".into(),
            Self::Header(name) => format!("the header {name} is never sent by an SDK"),
            Self::Missing(name) => format!("the header {name} is not as this dialect's clients send it"),
            Self::Target => "the request target is one for a proxy".into(),
        }
    }
}

/// Lets a request pass that an SDK beside us could have sent to `port` by the `rules` of its dialect.
///
/// # Errors
/// Names the first thing that is wrong with it.
pub fn check(request: &Parts, peer: Peer, port: u16, rules: &Rules) -> Result<(), Refusal> {
    match peer {
        Peer::Tcp(address) if !address.ip().to_canonical().is_loopback() => return Err(Refusal::Peer),
        Peer::Tcp(_) => check_host(&request.headers, port, rules.hosts)?,
        // A browser cannot be made to open a Unix socket, and a client has no host to name there.
        Peer::Unix => {}
        // Nor can it hold an SVID; and a client names us there as it reaches us.
        Peer::Mtls(_) => {}
    }
    if let Some(name) = request.headers.keys().find(|name| is_forbidden(name)) {
        return Err(Refusal::Header(name.clone()));
    }
    if request.uri.authority().is_some() || request.method == Method::CONNECT {
        return Err(Refusal::Target);
    }
    let has = |name: &str, wanted: &str| {
        let mut values = request.headers.get_all(name).iter();
        values.next().is_some_and(|value| value == wanted) && values.next().is_none()
    };
    match rules.headers.iter().find(|(name, wanted)| !has(name, wanted)) {
        Some((name, _)) => Err(Refusal::Missing(name)),
        None => Ok(()),
    }
}

/// Exactly one `Host`: one of `names` with our port.
fn check_host(headers: &HeaderMap, port: u16, names: &[&str]) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(Refusal::Host) };
    let (name, told) = host.to_str().ok().and_then(|host| host.rsplit_once(':')).ok_or(Refusal::Host)?;
    // read strictly: `+9870` and `09870` are not how a client writes a port
    let same_port = told.starts_with(|first: char| matches!(first, '1'..='9')) && told.parse() == Ok(port);
    if names.contains(&name) && same_port { Ok(()) } else { Err(Refusal::Host) }
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;

    fn check(request: &Parts, peer: Peer, port: u16) -> Result<(), Refusal> {
        super::check(request, peer, port, &Rules::GENERAL)
    }

    const LOCAL: Peer =
        Peer::Tcp(std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 40_000));

    fn request(host: Option<&str>, extra: Option<(&str, &str)>) -> Parts {
        let mut builder = Request::get("/v1/aws/credentials");
        if let Some(host) = host {
            builder = builder.header("host", host);
        }
        if let Some((name, value)) = extra {
            builder = builder.header(name, value);
        }
        builder.body(()).unwrap().into_parts().0
    }

    #[test]
    fn only_our_own_loopback_names_with_our_port_are_hosts() {
        for good in ["127.0.0.1:9870", "localhost:9870", "[::1]:9870"] {
            assert_eq!(check(&request(Some(good), None), LOCAL, 9870), Ok(()), "{good}");
        }
        for bad in [
            "127.0.0.1",
            "127.0.0.1:9871",
            "evil.example:9870",
            "127.0.0.1.evil.example:9870",
            "127.0.0.1:09870",
            "127.0.0.2:9870",
            "LOCALHOST:9870",
            "localhost.:9870",
            ":9870",
            "",
        ] {
            assert_eq!(check(&request(Some(bad), None), LOCAL, 9870), Err(Refusal::Host), "{bad}");
        }
        assert_eq!(check(&request(None, None), LOCAL, 9870), Err(Refusal::Host));
        let mut doubled = request(Some("127.0.0.1:9870"), None);
        doubled.headers.append("host", "127.0.0.1:9870".parse().unwrap());
        assert_eq!(check(&doubled, LOCAL, 9870), Err(Refusal::Host));
    }

    #[test]
    fn headers_of_proxies_and_browsers_are_refused_and_those_of_sdks_are_not() {
        for name in ["x-forwarded-for", "forwarded", "via", "origin", "referer", "sec-fetch-site"] {
            let refused = check(&request(Some("127.0.0.1:1"), Some((name, "x"))), LOCAL, 1);
            assert!(matches!(refused, Err(Refusal::Header(_))), "{name}");
        }
        for name in ["sec-fetch-mode", "user-agent", "accept", "amz-sdk-invocation-id"] {
            assert_eq!(check(&request(Some("127.0.0.1:1"), Some((name, "cors"))), LOCAL, 1), Ok(()), "{name}");
        }
    }

    #[test]
    fn a_peer_from_elsewhere_or_a_proxy_target_is_refused() {
        let far = Peer::Tcp("192.0.2.1:4000".parse().unwrap());
        assert_eq!(check(&request(Some("127.0.0.1:1"), None), far, 1), Err(Refusal::Peer));
        let mapped = Peer::Tcp("[::ffff:127.0.0.1]:4000".parse().unwrap());
        assert_eq!(check(&request(Some("127.0.0.1:1"), None), mapped, 1), Ok(()));
        let mut absolute = request(Some("127.0.0.1:1"), None);
        absolute.uri = "http://127.0.0.1:1/v1/aws/credentials".parse().unwrap();
        assert_eq!(check(&absolute, LOCAL, 1), Err(Refusal::Target));
        assert_eq!(check(&request(None, None), Peer::Unix, 1), Ok(()));
    }

    #[test]
    fn a_peer_with_an_svid_may_be_elsewhere_and_is_still_no_proxy() {
        let far = Peer::Mtls("192.0.2.1:4000".parse().unwrap());
        assert_eq!(check(&request(Some("sidemint.example:443"), None), far, 1), Ok(()));
        let forwarded = request(None, Some(("x-forwarded-for", "192.0.2.2")));
        assert!(matches!(check(&forwarded, far, 1), Err(Refusal::Header(_))));
    }

    #[test]
    fn a_dialect_may_ask_for_a_header_and_take_another_host() {
        let rules = Rules { hosts: &["metadata.example"], headers: &[("metadata-flavor", "Example")] };
        let check = |request: &Parts| super::check(request, LOCAL, 80, &rules);
        let host = Some("metadata.example:80");
        let mut right = request(host, Some(("metadata-flavor", "Example")));
        assert_eq!(check(&right), Ok(()));
        right.headers.append("metadata-flavor", "Example".parse().unwrap());
        assert_eq!(check(&right), Err(Refusal::Missing("metadata-flavor")));
        assert_eq!(check(&request(host, None)), Err(Refusal::Missing("metadata-flavor")));
        let other = request(host, Some(("metadata-flavor", "example")));
        assert_eq!(check(&other), Err(Refusal::Missing("metadata-flavor")));
        let elsewhere = request(Some("127.0.0.1:80"), Some(("metadata-flavor", "Example")));
        assert_eq!(check(&elsewhere), Err(Refusal::Host));
        let forwarded = request(host, Some(("x-forwarded-for", "127.0.0.1")));
        assert!(matches!(check(&forwarded), Err(Refusal::Header(_))));
    }
}
