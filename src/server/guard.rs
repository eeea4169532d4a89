//! What is refused before anything else is looked at: requests that came through a proxy, from a browser, or for
//! another host (DNS rebinding). All get the same constant answer.

use http::header::{FORWARDED, HOST, HeaderMap, HeaderName, ORIGIN, REFERER, VIA};
use http::{Method, Request};

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

/// Why a request was refused at the door.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The peer is not on this machine.
    Peer,
    /// The `Host` header is missing, doubled, or names something other than this listener.
    Host,
    /// A header that only proxies and browsers send.
    Header(HeaderName),
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
            Self::Target => "the request target is one for a proxy".into(),
        }
    }
}

/// Lets a request pass that an SDK beside us could have sent to `port`.
///
/// # Errors
/// Names the first thing that is wrong with it.
pub fn check<B>(request: &Request<B>, peer: Peer, port: u16) -> Result<(), Refusal> {
    match peer {
        Peer::Tcp(address) if !address.ip().to_canonical().is_loopback() => return Err(Refusal::Peer),
        Peer::Tcp(_) => check_host(request.headers(), port)?,
        // A browser cannot be made to open a Unix socket, and a client has no host to name there.
        Peer::Unix => {}
        // Nor can it hold an SVID; and a client names us there as it reaches us.
        Peer::Mtls(_) => {}
    }
    if let Some(name) = request.headers().keys().find(|name| is_forbidden(name)) {
        return Err(Refusal::Header(name.clone()));
    }
    if request.uri().authority().is_some() || request.method() == Method::CONNECT {
        return Err(Refusal::Target);
    }
    Ok(())
}

/// Exactly one `Host`: a literal loopback address or `localhost`, with our port.
fn check_host(headers: &HeaderMap, port: u16) -> Result<(), Refusal> {
    let mut hosts = headers.get_all(HOST).iter();
    let (Some(host), None) = (hosts.next(), hosts.next()) else { return Err(Refusal::Host) };
    let (name, told) = host.to_str().ok().and_then(|host| host.rsplit_once(':')).ok_or(Refusal::Host)?;
    // read strictly: `+9870` and `09870` are not how a client writes a port
    let same_port = told.starts_with(|first: char| matches!(first, '1'..='9')) && told.parse() == Ok(port);
    if matches!(name, "127.0.0.1" | "localhost" | "[::1]") && same_port { Ok(()) } else { Err(Refusal::Host) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOCAL: Peer =
        Peer::Tcp(std::net::SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 40_000));

    fn request(host: Option<&str>, extra: Option<(&str, &str)>) -> Request<()> {
        let mut builder = Request::get("/v1/aws/credentials");
        if let Some(host) = host {
            builder = builder.header("host", host);
        }
        if let Some((name, value)) = extra {
            builder = builder.header(name, value);
        }
        builder.body(()).unwrap()
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
        doubled.headers_mut().append("host", "127.0.0.1:9870".parse().unwrap());
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
        *absolute.uri_mut() = "http://127.0.0.1:1/v1/aws/credentials".parse().unwrap();
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
}
