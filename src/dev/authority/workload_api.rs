//! The Workload API (SPIFFE Workload API §4–§6): the gRPC service `SpiffeWorkloadAPI`, no package, on a Unix socket.
//!
//! Streams stay open and say everything anew at each change. An identity set that became empty ends them with
//! `PermissionDenied`, as SPIRE's agent does.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::os::unix::fs::FileTypeExt as _;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use prost::Message;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinSet;
use tokio_stream::wrappers::ReceiverStream;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::Grpc;
use tonic::{Request, Response, Status};
use tonic_prost::ProstCodec;

use super::{Authority, AuthorityError, Published};
use crate::dev::Running;
use crate::identity::SpiffeId;

/// The mandatory metadata of every request (Workload Endpoint, "security header").
const HEADER: &str = "workload.spiffe.io";
/// The most connections at a time.
const MAX_CONNECTIONS: usize = 256;
/// The most audiences in one request.
const MAX_AUDIENCES: usize = 16;

/// Serves `authority` on a Unix socket at `path`, replacing a socket that a former run left there, until the result is
/// dropped. The path must be shorter than 108 bytes.
///
/// # Errors
/// When something other than a socket is at `path`, or it cannot be bound.
pub fn serve(authority: &Arc<Authority>, path: &Path) -> Result<Running, AuthorityError> {
    let listener = bind(path).map_err(|source| AuthorityError::Socket { path: path.display().to_string(), source })?;
    let authority = Arc::clone(authority);
    Ok(Running::new(tokio::spawn(async move {
        tokio::select! {
            () = accept(&authority, &listener) => (),
            () = authority.keep_renewing() => (),
        }
    })))
}

fn bind(path: &Path) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => return Err(io::Error::new(io::ErrorKind::AlreadyExists, "something else is there")),
        Err(error) if error.kind() == io::ErrorKind::NotFound => (),
        Err(error) => return Err(error),
    }
    UnixListener::bind(path)
}

/// Accepts for ever; dropping the future closes every connection.
async fn accept(authority: &Arc<Authority>, listener: &UnixListener) {
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(slot) = Arc::clone(&slots).acquire_owned().await else { return };
        let Ok((stream, _)) = listener.accept().await else {
            // Out of file descriptors, most likely: let connections end first.
            connections.join_next().await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        let authority = Arc::clone(authority);
        connections.spawn(async move {
            connection(authority, stream).await;
            drop(slot);
        });
    }
}

async fn connection(authority: Arc<Authority>, stream: UnixStream) {
    let service = hyper::service::service_fn(move |request| {
        let authority = Arc::clone(&authority);
        async move { Ok::<_, Infallible>(route(authority, request).await) }
    });
    let served = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .max_concurrent_streams(64)
        .serve_connection(TokioIo::new(stream), service)
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a Workload API connection ended early");
    }
}

async fn route(authority: Arc<Authority>, request: http::Request<Incoming>) -> http::Response<Body> {
    let mut values = request.headers().get_all(HEADER).iter();
    if values.next().is_none_or(|value| value != "true") || values.next().is_some() {
        return Status::invalid_argument("security header missing from request").into_http();
    }
    let method = request.uri().path().strip_prefix("/SpiffeWorkloadAPI/").unwrap_or_default().to_owned();
    match method.as_str() {
        "FetchX509SVID" => stream(authority, request, x509_svids).await,
        "FetchX509Bundles" => stream(authority, request, x509_bundles).await,
        "FetchJWTBundles" => stream(authority, request, jwt_bundles).await,
        "FetchJWTSVID" => Grpc::new(ProstCodec::default()).unary(FetchJwtSvid(authority), request).await,
        _ => Status::unimplemented("not served here").into_http(),
    }
}

/// What one stream says of the state of things: a full message, or why there is none.
type Say<M> = fn(&Authority, &Published) -> Result<M, Status>;

async fn stream<M: Message + Default + 'static>(
    authority: Arc<Authority>,
    request: http::Request<Incoming>,
    say: Say<M>,
) -> http::Response<Body> {
    Grpc::new(ProstCodec::<M, Empty>::default()).server_streaming(Watch { authority, say }, request).await
}

struct Watch<M> {
    authority: Arc<Authority>,
    say: Say<M>,
}

type Answer<T> = Pin<Box<dyn Future<Output = Result<Response<T>, Status>> + Send>>;

impl<M: Message + 'static> Service<Request<Empty>> for Watch<M> {
    type Response = Response<ReceiverStream<Result<M, Status>>>;
    type Error = Status;
    type Future = Answer<ReceiverStream<Result<M, Status>>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request<Empty>) -> Self::Future {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(tell(Arc::clone(&self.authority), self.say, sender));
        Box::pin(async move { Ok(Response::new(ReceiverStream::new(receiver))) })
    }
}

/// Says the whole state at once and after each change, until the other side goes or there is nothing to give.
async fn tell<M>(authority: Arc<Authority>, say: Say<M>, sender: mpsc::Sender<Result<M, Status>>) {
    let mut published = authority.watch();
    loop {
        let now = Arc::clone(&published.borrow_and_update());
        let message = say(&authority, &now);
        let last = message.is_err();
        if sender.send(message).await.is_err() || last {
            return;
        }
        tokio::select! {
            () = sender.closed() => return,
            changed = published.changed() => if changed.is_err() { return },
        }
    }
}

fn x509_svids(_: &Authority, published: &Published) -> Result<X509SvidResponse, Status> {
    let bundle = Bytes::copy_from_slice(&published.x509_bundle);
    let svids = published.svids.iter().map(|svid| X509Svid {
        spiffe_id: svid.spiffe_id.to_string(),
        x509_svid: svid.certificate.clone(),
        // exposed: the Workload API gives the workload its own key
        x509_svid_key: svid.private_key.expose(),
        bundle: bundle.clone(),
        hint: String::new(),
    });
    let svids: Vec<_> = svids.collect();
    if svids.is_empty() { Err(no_identity()) } else { Ok(X509SvidResponse { svids }) }
}

fn x509_bundles(authority: &Authority, published: &Published) -> Result<X509BundlesResponse, Status> {
    let bundles = bundles(authority, published, &published.x509_bundle)?;
    Ok(X509BundlesResponse { bundles })
}

fn jwt_bundles(authority: &Authority, published: &Published) -> Result<JwtBundlesResponse, Status> {
    let bundles = bundles(authority, published, &published.jwks)?;
    Ok(JwtBundlesResponse { bundles })
}

/// A bundle under its trust domain's SPIFFE ID (Workload API §5.1), for those who have an identity.
fn bundles(authority: &Authority, published: &Published, bundle: &[u8]) -> Result<BTreeMap<String, Bytes>, Status> {
    if published.svids.is_empty() {
        return Err(no_identity());
    }
    let trust_domain = format!("spiffe://{}", authority.trust_domain());
    Ok(BTreeMap::from([(trust_domain, Bytes::copy_from_slice(bundle))]))
}

fn no_identity() -> Status {
    Status::permission_denied("no identity issued")
}

struct FetchJwtSvid(Arc<Authority>);

impl Service<Request<JwtSvidRequest>> for FetchJwtSvid {
    type Response = Response<JwtSvidResponse>;
    type Error = Status;
    type Future = Answer<JwtSvidResponse>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<JwtSvidRequest>) -> Self::Future {
        let answer = fetch_jwt_svids(&self.0, &request.into_inner()).map(Response::new);
        Box::pin(async move { answer })
    }
}

pub(super) fn fetch_jwt_svids(authority: &Authority, request: &JwtSvidRequest) -> Result<JwtSvidResponse, Status> {
    let audience = &request.audience;
    if audience.is_empty() || audience.len() > MAX_AUDIENCES || audience.iter().any(String::is_empty) {
        return Err(Status::invalid_argument("audience must be specified"));
    }
    let wanted: Vec<SpiffeId> = if request.spiffe_id.is_empty() {
        authority.identities()
    } else {
        let id = request.spiffe_id.parse().map_err(|_| Status::invalid_argument("invalid requested SPIFFE ID"))?;
        vec![id]
    };
    let mut svids = Vec::new();
    for spiffe_id in &wanted {
        match authority.jwt_svid(spiffe_id, audience) {
            Ok(Some(token)) => svids.push(JwtSvid {
                spiffe_id: spiffe_id.to_string(),
                // exposed: the Workload API gives the workload its own token
                svid: token.expose().to_owned(),
                hint: String::new(),
            }),
            Ok(None) => (),
            Err(error) => return Err(Status::unavailable(format!("could not sign: {error}"))),
        }
    }
    if svids.is_empty() { Err(no_identity()) } else { Ok(JwtSvidResponse { svids }) }
}

// The messages, with the field numbers of workload.proto. The optional fields that this authority never fills (CRLs,
// federated bundles) are left out: absent and empty are the same on the wire.

#[derive(Clone, PartialEq, Message)]
struct Empty {}

#[derive(Clone, PartialEq, Message)]
struct X509SvidResponse {
    #[prost(message, repeated, tag = "1")]
    svids: Vec<X509Svid>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
struct X509Svid {
    #[prost(string, tag = "1")]
    spiffe_id: String,
    #[prost(bytes = "bytes", tag = "2")]
    x509_svid: Bytes,
    #[prost(bytes = "bytes", tag = "3")]
    x509_svid_key: Bytes,
    #[prost(bytes = "bytes", tag = "4")]
    bundle: Bytes,
    #[prost(string, tag = "5")]
    hint: String,
}

impl std::fmt::Debug for X509Svid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("X509Svid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Message)]
struct X509BundlesResponse {
    #[prost(btree_map = "string, bytes", tag = "2")]
    bundles: BTreeMap<String, Bytes>,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct JwtSvidRequest {
    #[prost(string, repeated, tag = "1")]
    pub(super) audience: Vec<String>,
    #[prost(string, tag = "2")]
    pub(super) spiffe_id: String,
}

#[derive(Clone, PartialEq, Message)]
pub(super) struct JwtSvidResponse {
    #[prost(message, repeated, tag = "1")]
    pub(super) svids: Vec<JwtSvid>,
}

#[derive(Clone, PartialEq, Message)]
#[prost(skip_debug)]
pub(super) struct JwtSvid {
    #[prost(string, tag = "1")]
    pub(super) spiffe_id: String,
    #[prost(string, tag = "2")]
    pub(super) svid: String,
    #[prost(string, tag = "3")]
    hint: String,
}

impl std::fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JwtSvid").field("spiffe_id", &self.spiffe_id).finish_non_exhaustive()
    }
}

#[derive(Clone, PartialEq, Message)]
struct JwtBundlesResponse {
    #[prost(btree_map = "string, bytes", tag = "1")]
    bundles: BTreeMap<String, Bytes>,
}
