//! What comes before gRPC: only a well-formed gRPC request reaches a service, everything else is told in the words of HTTP what is
//! wrong with it, and nothing of it is executed. And what comes after it: errors of the transport library say what to do, too.
//!
//! The rules are those of the gRPC protocol over HTTP/2 (PROTOCOL-HTTP2.md) and of RFC 9110.

use std::collections::HashMap;
use std::future::{Future, Ready, ready};
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::task::{Context, Poll, ready as ready_or_wait};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use http::header::{ALLOW, CONTENT_TYPE, DATE, HeaderValue};
use http::{HeaderMap, Method as Verb, Request, Response, StatusCode, Version};
use http_body::{Body as HttpBody, Frame, SizeHint};
use tidewall_env::simulation;
use tidewall_proto::v1::Effect;
use tidewall_proto::{Declared, Method};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep, sleep_until};
use tonic::body::Body;
use tonic::{Code, Status};
use tonic_web::{GrpcWebLayer, GrpcWebService};
use tower::{Layer, Service};

use crate::deadline::parse_timeout;
use crate::errors::{ApiError, late, never_again, plain_status, translate_transport_error};

/// Pages for machines that do not speak gRPC.
pub(crate) const PAGES: [&str; 4] = ["/metrics", "/livez", "/readyz", "/healthz"];
/// Methods that the transport library brings along.
const BORROWED: [&str; 4] = [
    "/grpc.health.v1.Health/Check",
    "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
];
/// Content types of gRPC-Web, as they are recognised.
const WEB: [&str; 4] = [
    "application/grpc-web",
    "application/grpc-web+proto",
    "application/grpc-web-text",
    "application/grpc-web-text+proto",
];
/// Names and values of the metadata of a call, bytes, each with 32 of overhead as RFC 9113 counts them.
const METADATA_BYTES_MAX: usize = 16 << 10;
/// Compressed messages that may be on their way at once: each may be as large as a message may, whatever it has cost to send.
const COMPRESSED_MAX: usize = 64;
/// A client is told of its deadline so much before it, or a twentieth.
const TOLD_BEFORE_MAX: Duration = Duration::from_millis(2);
/// What is in front of a message: whether it is compressed, and its length.
const PREFIX_BYTES: usize = 5;

/// The methods of the API by their paths.
static METHODS: LazyLock<HashMap<String, Method>> = LazyLock::new(|| {
    let path = |method: &Method| {
        let Declared { service, name, .. } = method.declared();
        format!("/{service}/{name}")
    };
    Method::ALL.iter().map(|method| (path(method), *method)).collect()
});

/// Lets gRPC and gRPC-Web through, and nothing else.
#[derive(Debug, Clone, Copy)]
pub(crate) struct OnlyGrpc;

impl<S: Clone> Layer<S> for OnlyGrpc {
    type Service = Gate<S>;

    fn layer(&self, inner: S) -> Gate<S> {
        let grpc = Checked { inner };
        let compressed = Arc::new(Semaphore::new(COMPRESSED_MAX));
        Gate { web: GrpcWebLayer::new().layer(grpc.clone()), grpc, compressed }
    }
}

/// See [`OnlyGrpc`].
#[derive(Debug, Clone)]
pub(crate) struct Gate<S> {
    grpc: Checked<S>,
    web: GrpcWebService<Checked<S>>,
    /// Compressed messages that are on their way: little that comes may be much that is held.
    compressed: Arc<Semaphore>,
}

/// The place of a compressed message among those that may be on their way at once.
type CompressedHeld = Arc<OwnedSemaphorePermit>;

impl<S> Service<Request<Body>> for Gate<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Answering<S>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        ready_or_wait!(self.grpc.poll_ready(context))?;
        Service::<Request<Body>>::poll_ready(&mut self.web, context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Answering<S> {
        if request.headers().get("grpc-encoding").is_some_and(|encoding| encoding != "identity") {
            let Ok(held) = Arc::clone(&self.compressed).try_acquire_owned() else {
                let why = "this gateway reads as many compressed messages as it may at once";
                let status = Status::from(ApiError::overloaded(why));
                return Answering::Refused(ready(Ok(dated(status.into_http()))));
            };
            request.extensions_mut().insert(CompressedHeld::new(held));
        }
        match judge(&request) {
            Judgement::Refused(response) => Answering::Refused(ready(Ok(dated(response)))),
            Judgement::Grpc => Answering::Grpc(self.grpc.call(request)),
            Judgement::Web => Answering::Web(Box::pin(self.web.call(request))),
        }
    }
}

/// An answer that is translated on its way to a browser.
type WebAnswer<S> = <GrpcWebService<Checked<S>> as Service<Request<Body>>>::Future;

/// An answer on its way.
pub(crate) enum Answering<S: Service<Request<Body>, Response = Response<Body>>> {
    Refused(Ready<Result<Response<Body>, S::Error>>),
    Grpc(Translating<S::Future>),
    Web(Pin<Box<WebAnswer<S>>>),
}

impl<S> Future for Answering<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Output = Result<Response<Body>, S::Error>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Refused(response) => Pin::new(response).poll(context),
            Self::Grpc(answer) => Pin::new(answer).poll(context),
            Self::Web(answer) => answer.as_mut().poll(context),
        }
    }
}

/// Has one message in a request where one belongs, and errors of the transport library say what to do.
#[derive(Debug, Clone)]
pub(crate) struct Checked<S> {
    inner: S,
}

impl<S> Service<Request<Body>> for Checked<S>
where
    S: Service<Request<Body>, Response = Response<Body>>,
{
    type Response = Response<Body>;
    type Error = S::Error;
    type Future = Translating<S::Future>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<Body>) -> Self::Future {
        let method = METHODS.get(request.uri().path()).copied();
        let one = method.is_some_and(|method| !method.declared().client_streams);
        let held = request.extensions_mut().remove::<CompressedHeld>();
        let limit = method.and_then(|method| Limit::of(request.headers(), method));
        let request = if one { request.map(|body| Body::new(OneMessage::new(body, held))) } else { request };
        Translating { limit, timer: None, answer: Box::pin(self.inner.call(request)) }
    }
}

/// When a call must have been answered, and what is said when it was not.
struct Limit {
    at: Instant,
    effect: Effect,
}

impl Limit {
    /// Of a call with a deadline: a little earlier, so that its client hears of it. The transport library would cut it there and say
    /// nothing, and the method itself has answered by then unless its message never came, or this machine is late.
    fn of(headers: &HeaderMap, method: Method) -> Option<Self> {
        let timeout = parse_timeout(headers.get("grpc-timeout")?.as_bytes())?;
        let at = Instant::now().checked_add(timeout - (timeout / 20).min(TOLD_BEFORE_MAX))?;
        Some(Self { at, effect: method.declared().policy.effect })
    }
}

/// See [`Checked`].
pub(crate) struct Translating<F> {
    limit: Option<Limit>,
    /// Only for a call that is not answered at once.
    timer: Option<Pin<Box<Sleep>>>,
    answer: Pin<Box<F>>,
}

impl<F, E> Future for Translating<F>
where
    F: Future<Output = Result<Response<Body>, E>>,
{
    type Output = Result<Response<Body>, E>;

    fn poll(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.get_mut();
        if let Poll::Ready(response) = this.answer.as_mut().poll(context) {
            return Poll::Ready(response.map(|response| dated(translated(response))));
        }
        let Some(limit) = &this.limit else { return Poll::Pending };
        let timer = this.timer.get_or_insert_with(|| Box::pin(sleep_until(limit.at)));
        ready_or_wait!(timer.as_mut().poll(context));
        Poll::Ready(Ok(dated(late(limit.effect).into_http())))
    }
}

/// Where a request goes.
enum Judgement {
    Grpc,
    Web,
    Refused(Response<Body>),
}

fn judge(request: &Request<Body>) -> Judgement {
    let path = request.uri().path();
    if PAGES.contains(&path) {
        return Judgement::Grpc;
    }
    let content_type = request.headers().get(CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let spoken = content_type.map_or(Spoken::Other, Spoken::of);
    if !METHODS.contains_key(path) && !BORROWED.contains(&path) {
        // Who speaks gRPC is told in gRPC that there is no such method.
        let properly = request.method() == Verb::POST && request.version() == Version::HTTP_2;
        return match spoken {
            Spoken::Grpc if properly => Judgement::Grpc,
            _ => refuse(
                StatusCode::NOT_FOUND,
                "there is nothing here: this port has gRPC, /metrics, /livez and /readyz",
            ),
        };
    }
    if request.method() != Verb::POST {
        let mut response = said(StatusCode::METHOD_NOT_ALLOWED, "a gRPC method is called with POST");
        response.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
        return Judgement::Refused(response);
    }
    let bytes = metadata_bytes(request.headers());
    match spoken {
        Spoken::Connect => refuse(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "the Connect protocol is not spoken here: use gRPC (content-type application/grpc) or gRPC-Web",
        ),
        Spoken::Other => refuse(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "only gRPC and gRPC-Web with protobuf messages are spoken here: content-type application/grpc",
        ),
        Spoken::Grpc if request.version() != Version::HTTP_2 => refuse(
            StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            "gRPC needs HTTP/2 (without TLS: with prior knowledge)",
        ),
        Spoken::Grpc | Spoken::Web if bytes > METADATA_BYTES_MAX => {
            let message =
                format!("the call has {bytes} bytes of metadata, at most {METADATA_BYTES_MAX} are read");
            let status = plain_status(Code::ResourceExhausted, "METADATA_TOO_LARGE", message);
            Judgement::Refused(never_again(status).into_http())
        }
        Spoken::Grpc => Judgement::Grpc,
        Spoken::Web => Judgement::Web,
    }
}

fn refuse(status: StatusCode, why: &'static str) -> Judgement {
    Judgement::Refused(said(status, why))
}

/// What a content type means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Spoken {
    Grpc,
    /// With trailers in the body, for browsers.
    Web,
    Connect,
    Other,
}

impl Spoken {
    fn of(content_type: &str) -> Self {
        let kind = content_type.split(';').next().unwrap_or_default().trim();
        if ["application/grpc", "application/grpc+proto"].iter().any(|known| kind.eq_ignore_ascii_case(known))
        {
            Self::Grpc
        } else if WEB.contains(&content_type) {
            Self::Web
        } else if [
            "application/json",
            "application/proto",
            "application/connect+json",
            "application/connect+proto",
        ]
        .iter()
        .any(|known| kind.eq_ignore_ascii_case(known))
        {
            Self::Connect
        } else {
            Self::Other
        }
    }
}

fn metadata_bytes(headers: &HeaderMap) -> usize {
    headers.iter().map(|(name, value)| name.as_str().len() + value.len() + 32).sum()
}

/// An answer in the words of HTTP.
fn said(status: StatusCode, why: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::new(format!("{why}\n")));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// In a simulation answers have its date: hyper would date them by the machine's clock, and a date that changes makes other segments
/// on the wire.
fn dated(mut response: Response<Body>) -> Response<Body> {
    if simulation::is_active() {
        response.headers_mut().insert(DATE, HeaderValue::from_static(simulation::DATE));
    }
    response
}

/// Only errors that were known before the first byte of an answer have their status among the headers, so that a result costs one
/// failed look-up here.
fn translated(response: Response<Body>) -> Response<Body> {
    if !response.headers().contains_key(Status::GRPC_STATUS) {
        return response;
    }
    match Status::from_header_map(response.headers()).as_ref().and_then(translate_transport_error) {
        Some(better) => better.into_http(),
        None => response,
    }
}

/// The body of a request that must have one message: bytes behind it are an error, before anything was made of the first.
struct OneMessage {
    inner: Body,
    /// Given back when nobody reads the message any more.
    _held: Option<CompressedHeld>,
    /// Bytes of the prefix that have come.
    prefix: [u8; PREFIX_BYTES],
    prefix_bytes: usize,
    /// Bytes of the message that are still to come.
    left: usize,
}

impl OneMessage {
    fn new(inner: Body, held: Option<CompressedHeld>) -> Self {
        Self { inner, _held: held, prefix: [0; PREFIX_BYTES], prefix_bytes: 0, left: 0 }
    }

    /// Takes note of bytes; `false` when there are more than belong to one message.
    fn take(&mut self, mut bytes: &[u8]) -> bool {
        if self.prefix_bytes < PREFIX_BYTES {
            let more = bytes.len().min(PREFIX_BYTES - self.prefix_bytes);
            self.prefix[self.prefix_bytes..self.prefix_bytes + more].copy_from_slice(&bytes[..more]);
            self.prefix_bytes += more;
            bytes = &bytes[more..];
            if self.prefix_bytes == PREFIX_BYTES {
                let mut length = &self.prefix[1..];
                self.left = usize::try_from(length.get_u32()).unwrap_or(usize::MAX);
            }
        }
        match self.left.checked_sub(bytes.len()) {
            Some(left) => {
                self.left = left;
                true
            }
            None => false,
        }
    }
}

impl HttpBody for OneMessage {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        let frame = ready_or_wait!(Pin::new(&mut this.inner).poll_frame(context));
        Poll::Ready(frame.map(|frame| {
            let frame = frame?;
            match frame.data_ref() {
                Some(bytes) if !this.take(bytes) => {
                    let why = "the call has more than one message: a method that takes one was called, and nothing was done";
                    Err(plain_status(Code::InvalidArgument, "MORE_THAN_ONE_MESSAGE", why.to_owned()))
                }
                _ => Ok(frame),
            }
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.size_hint()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    const BUY: &str = "/tidewall.v1.TicketService/BuyTickets";

    fn answer(verb: &str, version: Version, path: &str, content_type: &str) -> Option<u16> {
        let request = Request::builder().method(verb).version(version).uri(path);
        let request = match content_type {
            "" => request,
            content_type => request.header(CONTENT_TYPE, content_type),
        };
        match judge(&request.body(Body::empty()).unwrap()) {
            Judgement::Refused(response) => Some(response.status().as_u16()),
            Judgement::Grpc | Judgement::Web => None,
        }
    }

    #[test]
    fn only_grpc_over_http_2_with_post_goes_further() {
        let two = Version::HTTP_2;
        for content_type in ["application/grpc", "application/grpc+proto", "Application/gRPC; charset=utf-8"]
        {
            assert_eq!(answer("POST", two, BUY, content_type), None, "{content_type}");
            assert_eq!(answer("POST", Version::HTTP_11, BUY, content_type), Some(505));
            for verb in ["GET", "PUT", "DELETE", "OPTIONS"] {
                assert_eq!(answer(verb, two, BUY, content_type), Some(405));
            }
        }
        for content_type in
            ["", "text/plain", "application/json", "application/grpc+json", "application/grpc-web+json"]
        {
            assert_eq!(answer("POST", two, BUY, content_type), Some(415), "{content_type}");
            assert_eq!(answer("POST", Version::HTTP_11, BUY, content_type), Some(415), "{content_type}");
        }
        for content_type in WEB {
            assert_eq!(answer("POST", two, BUY, content_type), None, "{content_type}");
            assert_eq!(answer("POST", Version::HTTP_11, BUY, content_type), None, "{content_type}");
            assert_eq!(answer("GET", Version::HTTP_11, BUY, content_type), Some(405), "{content_type}");
        }
        assert_eq!(answer("POST", two, BORROWED[0], "application/grpc"), None);
        assert_eq!(answer("POST", two, BORROWED[0], "text/plain"), Some(415));
    }

    #[test]
    fn what_is_not_there_is_not_found_unless_it_is_asked_for_in_grpc() {
        for path in ["/", "/healthy", "/tidewall.v1.TicketService/SellAll", "/tidewall.v1.TicketService"] {
            assert_eq!(answer("GET", Version::HTTP_11, path, ""), Some(404), "{path}");
            assert_eq!(answer("POST", Version::HTTP_2, path, "text/plain"), Some(404), "{path}");
            assert_eq!(answer("POST", Version::HTTP_2, path, "application/grpc"), None, "{path}");
        }
        for path in PAGES {
            assert_eq!(answer("GET", Version::HTTP_11, path, ""), None, "{path}");
        }
    }

    #[test]
    fn a_body_has_one_message_however_it_is_cut() {
        let message = [0, 0, 0, 0, 3, 1, 2, 3];
        for size in 1..=message.len() {
            let mut body = OneMessage::new(Body::empty(), None);
            assert!(message.chunks(size).all(|part| body.take(part)), "in parts of {size}");
            assert!(body.take(&[]) && !body.take(&[0]), "in parts of {size}");
        }
        let twice = [message, message].concat();
        for size in 1..=twice.len() {
            let mut body = OneMessage::new(Body::empty(), None);
            assert!(!twice.chunks(size).all(|part| body.take(part)), "in parts of {size}");
        }
        // One that says that it is empty.
        assert!(
            OneMessage::new(Body::empty(), None).take(&[0; 5])
                && !OneMessage::new(Body::empty(), None).take(&[0; 6])
        );
    }

    #[test]
    fn a_paths_table_has_every_method() {
        assert_eq!(METHODS.len(), Method::ALL.len());
        assert!(METHODS.contains_key(BUY));
    }
}
