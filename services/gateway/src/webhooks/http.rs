//! Calls over real connections. A name is looked up once for each connection, and what is called is one of the addresses that were
//! looked at: a name that means something else a moment later leads nowhere.

use std::net::{SocketAddr, ToSocketAddrs as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Method, Request, Uri, header};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::ServerName;
use rustls::{ClientConfig, RootCertStore};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::guard::{Network, check_url, may_call};
use super::outside::{Answered, Outside, Post};

/// How long one address may take to be connected to.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(1_500);
/// Addresses of a name that are tried.
const ADDRESSES_MAX: usize = 3;
/// How long all of it may take: looking up, connecting, and the handshake. A connection that nobody waits for any more ends as well.
const CONNECTED_WITHIN: Duration = Duration::from_secs(10);
/// Names that are looked up at a time: each takes a thread until it is answered.
const LOOKUPS_MAX: usize = 64;
/// Bytes of the head of an answer.
const HEAD_BYTES_MAX: usize = 16 << 10;

/// Calls servers over HTTP/1.1.
pub struct Http {
    client: Client<Connector, Full<Bytes>>,
    allowed: Arc<[Network]>,
}

impl std::fmt::Debug for Http {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("allowed", &self.allowed).finish_non_exhaustive()
    }
}

impl Http {
    /// Calls public addresses, and those of `allowed` networks.
    ///
    /// # Errors
    /// TLS cannot be set up.
    pub fn new(allowed: &[Network]) -> Result<Self, rustls::Error> {
        let roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut tls = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots)
            .with_no_client_auth();
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        let allowed: Arc<[Network]> = allowed.into();
        let connector = Connector {
            tls: TlsConnector::from(Arc::new(tls)),
            allowed: Arc::clone(&allowed),
            lookups: Arc::new(Semaphore::new(LOOKUPS_MAX)),
        };
        let client = Client::builder(TokioExecutor::new())
            // A connection for each call: whoever has many names would have us keep one for each.
            .pool_max_idle_per_host(0)
            .http1_max_buf_size(HEAD_BYTES_MAX)
            .retry_canceled_requests(false)
            .build(connector);
        Ok(Self { client, allowed })
    }

    async fn call(&self, post: Post) -> Result<Answered, String> {
        let url = check_url(&post.url, &self.allowed).map_err(|why| format!("its address {why}"))?;
        let mut request = Request::builder().method(Method::POST).uri(url.as_str());
        for (name, value) in &post.headers {
            let value = HeaderValue::from_str(value).map_err(|_| format!("{name} is no header"))?;
            request = request.header(*name, value);
        }
        let request = request.body(Full::from(post.body)).map_err(|why| why.to_string())?;
        let answer = self.client.request(request).await.map_err(|why| reason(&why))?;
        let code = answer.status().as_u16();
        let after = answer.headers().get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
        let retry_after = after.and_then(|seconds| seconds.parse().ok()).map(Duration::from_secs);
        // Whatever else it says, nobody reads.
        Ok(Answered::Status { code, retry_after })
    }
}

impl Outside for Http {
    fn post(&self, post: Post) -> Pin<Box<dyn Future<Output = Answered> + Send + '_>> {
        Box::pin(async move { self.call(post).await.unwrap_or_else(Answered::Failed) })
    }
}

/// The innermost reason, which says most.
fn reason(error: &dyn std::error::Error) -> String {
    let mut inner = error;
    while let Some(source) = inner.source() {
        inner = source;
    }
    inner.to_string()
}

/// Connects to the server of an address.
#[derive(Clone)]
struct Connector {
    tls: TlsConnector,
    allowed: Arc<[Network]>,
    lookups: Arc<Semaphore>,
}

impl Connector {
    async fn connect(self, uri: Uri) -> Result<TokioIo<Stream>, NotConnected> {
        let host = uri.host().ok_or_else(|| NotConnected("the address has no host".into()))?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let tls = uri.scheme_str() == Some("https");
        let port = uri.port_u16().unwrap_or(if tls { 443 } else { 80 });
        let found = self.look_up(host.clone(), port).await;
        let mut last = None;
        for address in found.iter().take(ADDRESSES_MAX) {
            if !may_call(address.ip(), tls, &self.allowed) {
                continue;
            }
            match timeout(CONNECT_TIMEOUT, TcpStream::connect(address)).await {
                Ok(Ok(stream)) => {
                    let _ = stream.set_nodelay(true);
                    return self.secured(stream, &host, tls).await;
                }
                Ok(Err(why)) => last = Some(why.to_string()),
                Err(_) => last = Some("it does not answer".to_owned()),
            }
        }
        // Which names mean something inside is nobody's business.
        let none = || format!("{host} leads to no address of the public internet");
        Err(NotConnected(last.map_or_else(none, |why| format!("cannot connect to {host}: {why}"))))
    }

    /// Addresses of a name; none when it has none.
    async fn look_up(&self, host: String, port: u16) -> Vec<SocketAddr> {
        let Ok(permit) = Arc::clone(&self.lookups).acquire_owned().await else { return Vec::new() };
        let found = tokio::task::spawn_blocking(move || {
            // Whoever asked may be gone: the thread is not.
            let _permit = permit;
            (host.as_str(), port).to_socket_addrs().map(Iterator::collect).unwrap_or_default()
        });
        found.await.unwrap_or_default()
    }

    async fn secured(
        &self,
        stream: TcpStream,
        host: &str,
        tls: bool,
    ) -> Result<TokioIo<Stream>, NotConnected> {
        if !tls {
            return Ok(TokioIo::new(Stream::Plain(stream)));
        }
        let name = ServerName::try_from(host.to_owned());
        let name = name.map_err(|_| NotConnected(format!("{host} is no name that a certificate has")))?;
        let stream = self.tls.connect(name, stream).await;
        let stream = stream.map_err(|why| NotConnected(format!("no TLS with {host}: {why}")))?;
        Ok(TokioIo::new(Stream::Tls(Box::new(stream))))
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct NotConnected(String);

impl tower_service::Service<Uri> for Connector {
    type Response = TokioIo<Stream>;
    type Error = NotConnected;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, NotConnected>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), NotConnected>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let connecting = self.clone().connect(uri);
        Box::pin(async move {
            let connected = timeout(CONNECTED_WITHIN, connecting).await;
            connected.unwrap_or_else(|_| Err(NotConnected("it does not answer".into())))
        })
    }
}

/// A connection.
enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        Connected::new()
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    use super::*;

    const PATIENCE: Duration = Duration::from_secs(20);

    /// What a server does with a call.
    #[derive(Clone, Copy)]
    enum Server {
        Answers(&'static str),
        Stalls,
        Resets,
        HangsUp,
        SpeaksFirst,
    }

    async fn request(stream: &mut TcpStream) -> String {
        let mut bytes = Vec::new();
        let mut buffer = [0; 1_024];
        loop {
            let read = stream.read(&mut buffer).await.unwrap();
            bytes.extend_from_slice(&buffer[..read]);
            let text = String::from_utf8_lossy(&bytes).into_owned();
            if read == 0 || text.ends_with("{}") {
                return text;
            }
        }
    }

    /// A real server, once: what it was sent.
    async fn serve(server: Server) -> (String, tokio::task::JoinHandle<String>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/hooks?x=1", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            if let Server::SpeaksFirst = server {
                stream.write_all(b"220 what do you want?\r\n").await.unwrap();
                return String::new();
            }
            let text = request(&mut stream).await;
            match server {
                Server::Answers(answer) => stream.write_all(answer.as_bytes()).await.unwrap(),
                Server::Stalls => {
                    stream.write_all(b"HTTP/1.1 200 OK\r\n").await.unwrap();
                    tokio::time::sleep(PATIENCE).await;
                }
                Server::Resets => {
                    let _ = stream.set_zero_linger();
                }
                Server::HangsUp | Server::SpeaksFirst => drop(stream),
            }
            text
        });
        (url, serving)
    }

    fn local() -> Http {
        Http::new(&["127.0.0.0/8".parse().unwrap()]).unwrap()
    }

    fn post(url: &str) -> Post {
        Post { url: url.to_owned(), headers: vec![("webhook-id", "one".into())], body: "{}".into() }
    }

    #[tokio::test]
    async fn what_a_server_answers_is_told_and_redirects_are_not_followed() {
        for (answer, code, after) in [
            ("HTTP/1.1 204 No Content\r\n\r\n", 204, None),
            ("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok", 200, None),
            ("HTTP/1.1 503 Busy\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n", 503, Some(7)),
            ("HTTP/1.1 503 Busy\r\nretry-after: soon\r\ncontent-length: 0\r\n\r\n", 503, None),
            ("HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: 0\r\n\r\n", 302, None),
        ] {
            let (url, serving) = serve(Server::Answers(answer)).await;
            let answered = timeout(PATIENCE, local().post(post(&url))).await.unwrap();
            assert_eq!(answered, Answered::Status { code, retry_after: after.map(Duration::from_secs) });
            let sent = serving.await.unwrap().to_lowercase();
            assert!(
                sent.starts_with("post /hooks?x=1 http/1.1\r\n") && sent.contains("webhook-id: one\r\n"),
                "{sent}"
            );
        }
    }

    #[tokio::test]
    async fn who_does_not_answer_fails() {
        for server in [Server::Resets, Server::HangsUp] {
            let (url, _serving) = serve(server).await;
            let answered = timeout(PATIENCE, local().post(post(&url))).await.unwrap();
            assert!(matches!(answered, Answered::Failed(_)), "{answered:?}");
        }
        let (url, serving) = serve(Server::Stalls).await;
        assert!(
            timeout(Duration::from_millis(300), local().post(post(&url))).await.is_err(),
            "whoever asks waits no longer"
        );
        serving.abort();
        let nobody = timeout(PATIENCE, local().post(post("http://127.0.0.1:1/"))).await.unwrap();
        assert!(matches!(&nobody, Answered::Failed(why) if why.contains("cannot connect")), "{nobody:?}");
        let (url, serving) = serve(Server::SpeaksFirst).await;
        let tls = timeout(PATIENCE, local().post(post(&url.replace("http:", "https:")))).await.unwrap();
        assert!(matches!(&tls, Answered::Failed(why) if why.contains("TLS")), "{tls:?}");
        serving.abort();
    }

    /// A name is as good as what it means at the moment of the call.
    #[tokio::test]
    async fn what_is_not_public_is_not_called() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let public = Http::new(&[]).unwrap();
        for url in [
            format!("https://localhost:{port}/"),
            format!("https://127.0.0.1:{port}/"),
            format!("http://localhost:{port}/"),
        ] {
            let answered = timeout(PATIENCE, public.post(post(&url))).await.unwrap();
            assert!(
                matches!(&answered, Answered::Failed(why) if why.contains("public") || why.contains("https")),
                "{url}: {answered:?}"
            );
        }
        assert!(timeout(Duration::from_millis(100), listener.accept()).await.is_err(), "nobody called");
    }
}
