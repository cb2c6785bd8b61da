//! A server that webhooks call, as somebody's application would have one: real connections, and it fails now and then.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Context as _;
use tidewall_proto::json::from_json;
use tidewall_proto::v1::WebhookDelivery;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;

/// Of so many calls one is refused, one is cut before it is answered and one after it was taken in.
const FAILS_EVERY: usize = 20;
/// Longest body.
const BODY_BYTES_MAX: usize = 1 << 20;

/// What has arrived.
#[derive(Debug, Default)]
pub struct Arrived {
    /// Calls, whatever became of them.
    pub calls: usize,
    /// Ids and contents of deliveries, in the order in which they came for the first time.
    pub deliveries: Vec<(String, WebhookDelivery)>,
    /// Bodies by id.
    seen: BTreeMap<String, String>,
    /// What no webhook may do.
    pub wrong: Vec<String>,
}

/// A running server. It ends when it is dropped.
#[derive(Debug)]
pub struct Receiver {
    /// Where it is.
    pub url: String,
    arrived: Arc<Mutex<Arrived>>,
    serving: JoinHandle<()>,
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Receiver {
    /// Starts a server on a port that the system chooses.
    ///
    /// # Errors
    /// When there is no port.
    pub async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("no port for a server")?;
        let url = format!("http://{}/hooks", listener.local_addr()?);
        let arrived = Arc::new(Mutex::new(Arrived::default()));
        let taking = Arc::clone(&arrived);
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let taking = Arc::clone(&taking);
                // A connection that breaks is the gateway's business.
                tokio::spawn(async move { drop(serve(stream, &taking).await) });
            }
        });
        Ok(Self { url, arrived, serving })
    }

    /// Looks at what has arrived so far.
    pub fn look<T>(&self, look: impl FnOnce(&Arrived) -> T) -> T {
        look(&self.arrived.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Arrived {
    fn take(&mut self, id: String, body: String) {
        match self.seen.get(&id) {
            Some(before) if *before == body => {}
            Some(before) => self.wrong.push(format!("{id} was {before} and is {body}")),
            None => {
                match from_json("WebhookDelivery", &body) {
                    Ok(delivery) => self.deliveries.push((id.clone(), delivery)),
                    Err(why) => self.wrong.push(format!("{body}: {why}")),
                }
                self.seen.insert(id, body);
            }
        }
    }
}

async fn serve(stream: TcpStream, arrived: &Mutex<Arrived>) -> anyhow::Result<()> {
    let mut stream = BufReader::new(stream);
    loop {
        let (mut id, mut length) = (String::new(), 0);
        let mut line = String::new();
        while stream.read_line(&mut line).await? > 2 {
            let (name, value) = line.split_once(": ").unwrap_or_default();
            match name.to_ascii_lowercase().as_str() {
                "webhook-id" => id = value.trim().to_owned(),
                "content-length" => length = value.trim().parse()?,
                _ => {}
            }
            line.clear();
        }
        if length == 0 || length > BODY_BYTES_MAX {
            return Ok(());
        }
        let mut body = vec![0; length];
        stream.read_exact(&mut body).await?;
        let body = String::from_utf8(body)?;
        let fate = {
            let mut arrived = arrived.lock().unwrap_or_else(PoisonError::into_inner);
            arrived.calls += 1;
            let fate = arrived.calls % FAILS_EVERY;
            if fate > 1 {
                arrived.take(id, body);
            }
            fate
        };
        let answer = match fate {
            0 => "HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n",
            1 | 2 => return Ok(()),
            _ => "HTTP/1.1 204 No Content\r\n\r\n",
        };
        stream.write_all(answer.as_bytes()).await?;
    }
}
