//! A dialect is a value: what its file says, and the server follows. [`ALL`] is the list of them.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;

use futures_util::future::BoxFuture;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Method, Response, Uri};
use http_body_util::{Either, Full};
use hyper::body::Incoming;

use super::guard::Rules;
use super::problem::Problem;
use super::{Answer, RequestId, Server, aws, native};
use crate::broker::CredentialsError;
use crate::clock::Moment;
use crate::exchange::Provider;
use crate::identity::Evidence;
use crate::identity::task_token::TokenHash;
use crate::secret::Secret;
use crate::task::Issued;
use crate::task::{ProviderSet, TaskId};

/// Every dialect. The last one answers for all paths that no other has.
pub(crate) static ALL: [&Dialect; 2] = [&aws::DIALECT, &native::DIALECT];

/// One dialect: what it asks for, how it is proved, and how it is answered.
pub(crate) struct Dialect {
    /// The label in metrics and audit.
    pub(crate) label: &'static str,
    /// Every path below this one is answered in this dialect, also where nothing is there.
    pub(crate) below: &'static str,
    /// What its requests must be like, on top of what [`super::guard`] asks of all.
    pub(crate) rules: Rules,
    /// Reads the token where this dialect has it.
    pub(crate) presented: fn(&Parts) -> Presented,
    /// What is there.
    pub(crate) resources: &'static [Resource],
    /// Writes a refusal, given the request's id.
    pub(crate) refusal: fn(&Problem, &str) -> Answer,
    /// The provider whose credentials it gives; `None`: those of all.
    pub(crate) provider: Option<Provider>,
    /// What a workload's environment needs to hold for it.
    pub(crate) variables: &'static [Variable],
    /// The variables by which its SDKs would find other credentials first.
    pub(crate) displaced: &'static [&'static str],
}

impl std::fmt::Debug for Dialect {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Dialect({})", self.label)
    }
}

/// What is at one path.
pub(crate) struct Resource {
    /// Its segments, separated by `/`; `{id}` stands for any one, which is the parameter.
    pub(crate) path: &'static str,
    /// What each of its methods does.
    pub(crate) methods: &'static [(Method, Action)],
}

/// What a method does.
#[derive(Clone, Copy)]
pub(crate) enum Action {
    /// Gives a credential of a task: at once where there is a live one.
    Credential(CredentialRoute),
    /// Anything else.
    Other(Handler),
}

/// Answers one request.
pub(crate) type Handler = fn(Arc<Server>, Call) -> BoxFuture<'static, Result<Answer, Refusal>>;

/// How a dialect gives credentials.
#[derive(Clone, Copy)]
pub(crate) struct CredentialRoute {
    /// Which one a request asks for.
    pub(crate) wanted: fn(&Server, &Asked<'_>) -> Result<Wanted, Refusal>,
    /// Writes it out when the clocks show this moment; `None` where too little of it is left.
    pub(crate) answer: fn(&Issued, Moment) -> Option<Answer>,
    /// What is told where there is none.
    pub(crate) problem: fn(&CredentialsError) -> Problem,
}

/// The credential that a request asks for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted {
    /// Of the task that has this token.
    pub(crate) token: TokenHash,
    /// At this provider; `None`: at the only one at which the task's scope grants something.
    pub(crate) provider: Option<Provider>,
}

/// A request as far as it is read at once.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    /// Its target, with the query.
    pub(crate) uri: &'a Uri,
    /// What stands for `{id}` in its path.
    pub(crate) parameter: &'a str,
    /// Its proof.
    pub(crate) presented: &'a Presented,
}

/// A whole request, for a [`Handler`].
pub(crate) struct Call {
    /// Its head.
    pub(crate) parts: Parts,
    /// Its body, not yet read.
    pub(crate) body: Incoming,
    /// What stands for `{id}` in its path.
    pub(crate) parameter: String,
    /// Its proof.
    pub(crate) presented: Presented,
    /// Its id.
    pub(crate) id: RequestId,
}

/// What a request proves itself by. Read once, before any gate.
#[derive(Debug)]
pub(crate) enum Presented {
    /// By nothing: over mutual TLS the connection is the proof.
    Nothing,
    /// By something that is invalid wherever it is asked for.
    Unusable,
    /// By a task's token.
    Token(TokenHash),
    /// By a JWT-SVID, or what is to be judged as one.
    Svid(Evidence),
}

/// The one value of the header `name` as text.
///
/// # Errors
/// [`Presented::Nothing`] where there is none, [`Presented::Unusable`] where there are several or it is no text.
pub(crate) fn one<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Result<&'a str, Presented> {
    let mut values = headers.get_all(name).iter();
    let value = values.next().ok_or(Presented::Nothing)?;
    match (values.next(), value.to_str()) {
        (None, Ok(text)) => Ok(text),
        _ => Err(Presented::Unusable),
    }
}

/// A refusal before it has a dialect's shape.
#[derive(Debug)]
pub(crate) struct Refusal {
    /// What is told.
    pub(crate) problem: Problem,
    /// What the audit log is told; `None` where it has been.
    pub(crate) detail: Option<String>,
    /// The methods that the path takes (RFC 9110 §15.5.6), where it was one of others.
    pub(crate) allow: Option<String>,
}

impl Refusal {
    /// `problem`, and `detail` for the audit log.
    pub(crate) fn new(problem: Problem, detail: impl Into<String>) -> Self {
        Self { problem, detail: Some(detail.into()), allow: None }
    }

    /// `problem`, of which the audit log knows.
    pub(crate) fn audited(problem: Problem) -> Self {
        Self { problem, detail: None, allow: None }
    }

    /// None of several providers was named.
    pub(crate) fn several(providers: ProviderSet) -> Self {
        let queries: Vec<_> = providers.iter().map(|provider| format!("provider={provider}")).collect();
        let detail = format!("the scope has several providers: say {}", queries.join(" or "));
        Self::new(Problem::invalid_request(detail), "no provider named")
    }

    fn method(resource: &Resource) -> Self {
        let methods: Vec<_> = resource.methods.iter().map(|(method, _)| method.as_str()).collect();
        let allow = Some(methods.join(", "));
        Self { allow, ..Self::new(Problem::method_not_allowed(), "method not allowed") }
    }
}

/// The credential in the shape of its provider's own API.
pub(crate) fn native_answer(issued: &Issued, at: Moment) -> Option<Answer> {
    let mut answer = Response::new(Either::Left(Full::new(issued.native_answer(at.now, at.boot)?)));
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Some(answer)
}

impl Dialect {
    /// What is at `path`, and its parameter.
    pub(crate) fn resource<'a>(&self, path: &'a str) -> Option<(&'static Resource, &'a str)> {
        self.resources.iter().find_map(|resource| Some((resource, parameter(resource.path, path)?)))
    }

    /// Whether `path` is one that this dialect answers for.
    pub(crate) fn has(&self, path: &str) -> bool {
        let mut theirs = segments(path);
        segments(self.below).all(|ours| theirs.next() == Some(ours))
            && (self.below.is_empty() || theirs.next().is_some())
    }
}

/// What `method` does at what was found.
///
/// # Errors
/// Not found, or another method.
pub(crate) fn action<'a>(
    found: Option<(&'static Resource, &'a str)>,
    method: &Method,
) -> Result<(&'static Action, &'a str), Refusal> {
    let Some((resource, parameter)) = found else {
        return Err(Refusal::new(Problem::not_found(), "no such path"));
    };
    match resource.methods.iter().find(|(known, _)| known == method) {
        Some((_, action)) => Ok((action, parameter)),
        None => Err(Refusal::method(resource)),
    }
}

/// What stands in `path` for the `{id}` of `pattern`; empty where it has none, `None` where they do not match.
fn parameter<'a>(pattern: &str, path: &'a str) -> Option<&'a str> {
    // As nearly every client writes it.
    if pattern == path {
        return Some("");
    }
    let (mut ours, mut theirs, mut parameter) = (segments(pattern), segments(path), "");
    loop {
        match (ours.next(), theirs.next()) {
            (None, None) => return Some(parameter),
            (Some("{id}"), Some(segment)) => parameter = segment,
            (Some(ours), Some(segment)) if ours == segment => {}
            _ => return None,
        }
    }
}

/// SDKs join paths carelessly: a trailing slash and doubled slashes mean the same path.
fn segments(path: &str) -> impl Iterator<Item = &str> {
    path.split('/').filter(|segment| !segment.is_empty())
}

/// One variable of a workload's environment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Variable {
    /// Its name.
    pub(crate) name: &'static str,
    /// What it holds.
    pub(crate) value: Value,
}

/// What a variable holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Value {
    /// The URL of this path on the loopback listener; `{id}` is the task's.
    Url(&'static str),
    /// The task's token.
    Token,
    /// The name of a file that holds it, for whoever can write one; then [`Value::Token`] is not needed.
    TokenFile,
}

/// The dialects by which the credentials of `granted` providers are had: each provider's own, else the one of all.
fn needed(granted: ProviderSet) -> impl Iterator<Item = &'static Dialect> {
    let has_own = |provider| ALL.iter().any(|dialect| dialect.provider == Some(provider));
    let others = !granted.iter().all(has_own);
    ALL.into_iter().filter(move |dialect| match dialect.provider {
        Some(provider) => granted.contains(provider),
        None => others,
    })
}

/// What the environment of the task `id` needs to hold, where it is granted something at `granted` providers.
pub(crate) fn environment(
    granted: ProviderSet,
    http: SocketAddr,
    id: &TaskId,
    token: &str,
) -> BTreeMap<String, Secret> {
    let variables = needed(granted).flat_map(|dialect| dialect.variables);
    let told = variables.filter_map(|Variable { name, value }| {
        let value = match value {
            Value::Url(path) => format!("http://{http}{}", path.replace("{id}", id.as_str())),
            Value::Token => token.to_owned(),
            Value::TokenFile => return None,
        };
        Some(((*name).to_owned(), Secret::new(value)))
    });
    told.collect()
}

#[cfg(test)]
mod tests {
    use http::Request;

    use super::*;
    use crate::identity::task_token;

    fn parts(path: &str) -> Parts {
        Request::get(path).body(()).unwrap().into_parts().0
    }

    #[test]
    fn each_path_belongs_to_one_dialect_whatever_its_slashes() {
        for (path, label, found) in [
            ("/v1/aws/credentials", "aws", true),
            ("//v1//aws/credentials/", "aws", true),
            ("/v1/aws/nothing", "aws", false),
            ("/v1/aws", "native", false),
            ("/v1/awss/credentials", "native", false),
            ("/v1/tasks/", "native", true),
            ("/v1/tasks/t-1/credentials", "native", true),
            ("/v1/tasks/t-1/nothing", "native", false),
            ("/", "native", false),
            ("*", "native", false),
        ] {
            let dialect = ALL.iter().find(|dialect| dialect.has(path)).unwrap();
            assert_eq!((dialect.label, dialect.resource(path).is_some()), (label, found), "{path}");
        }
        assert_eq!(parameter("/v1/tasks/{id}/hold", "/v1//tasks/t-7/hold"), Some("t-7"));
    }

    #[test]
    fn routes_are_below_the_path_of_their_dialect_and_hide_no_other_dialect() {
        for dialect in ALL {
            for resource in dialect.resources {
                let owner = ALL.iter().find(|other| other.has(resource.path)).unwrap();
                assert_eq!(owner.label, dialect.label, "{}", resource.path);
            }
        }
        assert_eq!(ALL.last().unwrap().below, "", "the last one answers for the rest");
        let labels: std::collections::BTreeSet<_> = ALL.iter().map(|dialect| dialect.label).collect();
        assert_eq!(labels.len(), ALL.len());
    }

    #[test]
    fn a_token_in_two_places_or_two_headers_is_unusable_in_every_dialect() {
        let (token, hash) = task_token::generate().unwrap();
        let bearer = HeaderValue::from_str(&format!("Bearer {}", token.expose())).unwrap();
        for dialect in ALL {
            let mut parts = parts("/");
            assert!(matches!((dialect.presented)(&parts), Presented::Nothing), "{dialect:?}");
            parts.headers.insert("authorization", bearer.clone());
            assert!(matches!((dialect.presented)(&parts), Presented::Token(read) if read == hash), "{dialect:?}");
            parts.headers.append("authorization", bearer.clone());
            assert!(matches!((dialect.presented)(&parts), Presented::Unusable), "{dialect:?}");
            parts.headers.insert("authorization", HeaderValue::from_bytes(b"Bearer \xff").unwrap());
            assert!(matches!((dialect.presented)(&parts), Presented::Unusable), "{dialect:?}");
        }
    }

    #[test]
    fn the_environment_follows_what_is_granted() {
        let id = TaskId::generate().unwrap();
        let names = |granted: &[Provider]| -> Vec<_> {
            environment(granted.iter().copied().collect(), "127.0.0.1:9870".parse().unwrap(), &id, "smt_x")
                .into_keys()
                .collect()
        };
        assert_eq!(names(&[]), [""; 0]);
        let aws = ["AWS_CONTAINER_AUTHORIZATION_TOKEN", "AWS_CONTAINER_CREDENTIALS_FULL_URI"];
        let native = ["SIDEMINT_CREDENTIALS_URI", "SIDEMINT_TOKEN"];
        assert_eq!(names(&[Provider::Aws]), aws);
        assert_eq!(names(&[Provider::Vault]), native);
        assert_eq!(names(&[Provider::Vault, Provider::Aws]), [aws, native].concat());
        let all = environment([Provider::Vault].into_iter().collect(), "127.0.0.1:9870".parse().unwrap(), &id, "smt_x");
        let uri = format!("http://127.0.0.1:9870/v1/tasks/{id}/credentials");
        assert_eq!(all["SIDEMINT_CREDENTIALS_URI"].expose(), uri);
    }
}
