//! Our own dialect: tasks, and the credential of a task in its provider's own shape.

use futures_util::FutureExt as _;
use http::Method;
use http::header::AUTHORIZATION;
use http::request::Parts;

use super::dialect::{
    self, Action, Asked, CredentialRoute, Dialect, Presented, Refusal, Resource, Value, Variable, Wanted,
};
use super::guard::Rules;
use super::problem::Problem;
use super::{Server, tasks};
use crate::exchange::Provider;
use crate::identity::Evidence;
use crate::identity::task_token::{PREFIX, TokenHash};
use crate::secret::Secret;

/// Where the credential of a task is.
const CREDENTIALS: &str = "/v1/tasks/{id}/credentials";

/// Our own: `application/problem+json`, and everything that is nobody else's.
pub(super) static DIALECT: Dialect = Dialect {
    label: "native",
    below: "",
    rules: Rules::GENERAL,
    presented,
    resources: &[
        Resource {
            path: CREDENTIALS,
            methods: &[(
                Method::GET,
                Action::Credential(CredentialRoute {
                    wanted,
                    answer: dialect::native_answer,
                    problem: |error| error.into(),
                }),
            )],
        },
        Resource {
            path: "/v1/tasks",
            methods: &[
                (Method::GET, Action::Other(|server, call| async move { tasks::list(&server, call) }.boxed())),
                (Method::POST, Action::Other(|server, call| tasks::begin(server, call).boxed())),
            ],
        },
        Resource {
            path: "/v1/tasks/{id}",
            methods: &[
                (Method::GET, Action::Other(|server, call| async move { tasks::show(&server, call) }.boxed())),
                (Method::DELETE, Action::Other(|server, call| tasks::end(server, call).boxed())),
            ],
        },
        Resource {
            path: "/v1/tasks/{id}/hold",
            methods: &[(Method::POST, Action::Other(|server, call| tasks::hold(server, call).boxed()))],
        },
    ],
    refusal: Problem::answer,
    provider: None,
    variables: &[
        Variable { name: "SIDEMINT_CREDENTIALS_URI", value: Value::Url(CREDENTIALS) },
        Variable { name: "SIDEMINT_TOKEN", value: Value::Token },
        Variable { name: "SIDEMINT_TOKEN_FILE", value: Value::TokenFile },
    ],
    displaced: &[],
};

/// What stands behind `Authorization: Bearer`: a task's token, or else what is judged as a JWT-SVID.
fn presented(parts: &Parts) -> Presented {
    let text = match dialect::one(&parts.headers, &AUTHORIZATION) {
        Ok(text) => text,
        Err(other) => return other,
    };
    match text.split_once(' ') {
        Some((scheme, text)) if scheme.eq_ignore_ascii_case("bearer") => {
            if text.starts_with(PREFIX) {
                TokenHash::of(text).map_or(Presented::Unusable, Presented::Token)
            } else {
                Presented::Svid(Evidence::JwtSvid(Secret::new(text.to_owned())))
            }
        }
        _ => Presented::Unusable,
    }
}

/// `GET /v1/tasks/{id}/credentials[?provider=]`
fn wanted(server: &Server, asked: &Asked<'_>) -> Result<Wanted, Refusal> {
    let Presented::Token(token) = asked.presented else { return Err(tasks::unauthenticated()) };
    tasks::own(server.broker(), token, asked.parameter)?;
    let provider = match asked.uri.query() {
        // The only one: which it is, the policy in force says, and only once the task was judged by it.
        None | Some("") => None,
        Some(query) => Some(named(query)?),
    };
    Ok(Wanted { token: *token, provider })
}

fn named(query: &str) -> Result<Provider, Refusal> {
    let name = query.strip_prefix("provider=");
    Provider::ALL.into_iter().find(|provider| name == Some(provider.as_str())).ok_or_else(|| {
        let known = Provider::ALL.map(|provider| format!("provider={provider}")).join(", ");
        Refusal::new(Problem::invalid_request(format!("the query is {known}, or nothing")), "unknown query")
    })
}
