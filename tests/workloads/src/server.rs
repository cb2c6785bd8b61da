//! A server that webhooks call, as somebody's application would have one: real connections, slow if that is wanted, and it fails now
//! and then. What is right about a delivery, whoever looks at it decides.

use std::collections::BTreeMap;
use std::io;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Longest body.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What a server does.
#[derive(Debug, Clone, Copy, Default)]
pub struct Conduct {
    /// Of so many calls one is refused, one is cut before it was taken in and one after; 0: none.
    pub fails_every: usize,
    /// How long it takes to answer.
    pub delay: Duration,
}

/// A delivery that has arrived.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Arrived {
    /// Its `webhook-id`.
    pub id: String,
    /// Its `webhook-timestamp`.
    pub timestamp: String,
    /// Its `webhook-signature`.
    pub signature: String,
    /// JSON.
    pub body: String,
}

type ByPath = BTreeMap<String, Vec<Arrived>>;

/// A running server. It ends when it is dropped.
#[derive(Debug)]
pub struct Server {
    /// Where it is, without a path.
    base: String,
    arrived: Arc<Mutex<ByPath>>,
    serving: JoinHandle<()>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    /// Starts a server at an address, on a port that the system chooses.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start(address: IpAddr, conduct: Conduct) -> io::Result<Self> {
        let listener = TcpListener::bind((address, 0)).await?;
        let base = format!("http://{}", listener.local_addr()?);
        let arrived = Arc::new(Mutex::new(ByPath::new()));
        let taking = Arc::clone(&arrived);
        let serving = tokio::spawn(async move {
            let mut calls = 0;
            while let Ok((stream, _)) = listener.accept().await {
                calls += 1;
                let (fate, taking) = (calls % conduct.fails_every.max(1), Arc::clone(&taking));
                let fate = if conduct.fails_every == 0 { usize::MAX } else { fate };
                // A connection that breaks is the gateway's business.
                tokio::spawn(async move { drop(serve(stream, fate, conduct.delay, &taking).await) });
            }
        });
        Ok(Self { base, arrived, serving })
    }

    /// The address of a name here.
    pub fn url(&self, name: &str) -> String {
        format!("{}/{name}", self.base)
    }

    /// What has arrived at an address of this server, in order; what was sent again is there again.
    pub fn arrived(&self, url: &str) -> Vec<Arrived> {
        let path = url.strip_prefix(&self.base).unwrap_or(url);
        self.lock().get(path).cloned().unwrap_or_default()
    }

    /// The same, and forgets it.
    pub fn take(&self, url: &str) -> Vec<Arrived> {
        let path = url.strip_prefix(&self.base).unwrap_or(url);
        self.lock().remove(path).unwrap_or_default()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, ByPath> {
        self.arrived.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers one call; those of the first numbers in a row fail.
async fn serve(stream: TcpStream, fate: usize, delay: Duration, arrived: &Mutex<ByPath>) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let (mut line, mut headers) = (String::new(), BTreeMap::new());
    stream.read_line(&mut line).await?;
    let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
    line.clear();
    while stream.read_line(&mut line).await? > 2 {
        let (name, value) = line.split_once(": ").unwrap_or_default();
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
        line.clear();
    }
    let mut header = |name: &str| headers.remove(name).unwrap_or_default();
    let length: usize = header("content-length").parse().unwrap_or(0);
    let mut body = vec![0; length.min(BODY_BYTES_MAX)];
    stream.read_exact(&mut body).await?;
    let arrival = Arrived {
        id: header("webhook-id"),
        timestamp: header("webhook-timestamp"),
        signature: header("webhook-signature"),
        body: String::from_utf8(body).unwrap_or_default(),
    };
    if fate > 1 {
        let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
        arrived.entry(path).or_default().push(arrival);
    }
    tokio::time::sleep(delay).await;
    match fate {
        0 => stream.write_all(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await,
        1 | 2 => Ok(()),
        _ => stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await,
    }
}
