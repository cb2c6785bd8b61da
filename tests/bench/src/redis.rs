//! The same job in Redis: a Lua script, `appendfsync always`, one server, not replicated.
//!
//! A server of our own in a temporary directory, reached through a Unix socket; it never touches a running one.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use redis::Script;
use redis::aio::MultiplexedConnection;

use crate::cell::{Done, Job};
use crate::machine;
use crate::postgres::in_path;

const STOCK: i64 = 1_000_000_000;

/// Conditional decrement, a record under the request id, the same answer for the same id.
const BUY: &str = "
    local earlier = redis.call('GET', KEYS[2])
    if earlier then return 1 end
    if tonumber(redis.call('GET', KEYS[1])) < 1 then return 0 end
    redis.call('DECR', KEYS[1])
    redis.call('SET', KEYS[2], ARGV[1])
    return 1";

/// A server of our own.
pub struct Redis {
    server: Child,
    directory: tempfile::TempDir,
    /// What the binary says about itself.
    pub version: String,
}

impl Redis {
    /// Starts a server on an empty directory below `base`.
    ///
    /// # Errors
    /// When Redis is not installed or does not start.
    pub async fn start(base: &Path) -> anyhow::Result<Self> {
        let program =
            in_path("redis-server").context("there is no redis-server: run tests/bench/install.sh")?;
        let directory = tempfile::Builder::new().prefix("tidewall-bench-redis-").tempdir_in(base)?;
        let server = Command::new(&program)
            .args(["--port", "0", "--appendonly", "yes", "--appendfsync", "always", "--save", ""])
            .args(["--maxclients", "4000", "--dir"])
            .arg(directory.path())
            .arg("--unixsocket")
            .arg(directory.path().join("socket"))
            .stdin(Stdio::null())
            .stdout(std::fs::File::create(directory.path().join("log"))?)
            .spawn()?;
        let mut redis = Self { server, directory, version: machine::version_of(&program) };
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match redis.connect().await {
                Ok(mut connection) => {
                    redis::cmd("SET").arg("free").arg(STOCK).exec_async(&mut connection).await?;
                    let setting: (String, String) = redis::cmd("CONFIG")
                        .arg("GET")
                        .arg("appendfsync")
                        .query_async(&mut connection)
                        .await?;
                    ensure!(setting.1 == "always", "Redis runs with appendfsync {}", setting.1);
                    return Ok(redis);
                }
                Err(error) => {
                    if redis.server.try_wait()?.is_some() || Instant::now() > deadline {
                        let log = std::fs::read_to_string(redis.directory.path().join("log"))?;
                        bail!("Redis does not answer ({error}): {log}");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        }
    }

    /// Its process.
    pub fn root(&self) -> u32 {
        self.server.id()
    }

    async fn connect(&self) -> anyhow::Result<MultiplexedConnection> {
        let url = format!("redis+unix://{}", self.directory.path().join("socket").display());
        // A queue of a thousand scripts may take longer than the library's half second.
        let config = redis::AsyncConnectionConfig::new().set_response_timeout(Duration::from_secs(60));
        Ok(redis::Client::open(url)?.get_multiplexed_async_connection_with_config(&config).await?)
    }

    /// One job and one connection per client.
    ///
    /// # Errors
    /// When a connection fails.
    pub async fn jobs(&self, clients: usize) -> anyhow::Result<Vec<impl Job + use<>>> {
        let mut jobs = Vec::with_capacity(clients);
        for number in 0..clients {
            let connection =
                self.connect().await.with_context(|| format!("connection {number} of {clients}"))?;
            jobs.push(RedisJob { connection, script: Script::new(BUY), buyer: format!("buyer-{number}") });
        }
        Ok(jobs)
    }

    /// Checks that what was sold is what was recorded.
    ///
    /// # Errors
    /// When the counts differ.
    pub async fn audit(&self) -> anyhow::Result<()> {
        let mut connection = self.connect().await?;
        let free: i64 = redis::cmd("GET").arg("free").query_async(&mut connection).await?;
        let keys: i64 = redis::cmd("DBSIZE").query_async(&mut connection).await?;
        ensure!(STOCK - free == keys - 1, "Redis sold {} and recorded {}", STOCK - free, keys - 1);
        Ok(())
    }
}

impl Drop for Redis {
    fn drop(&mut self) {
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

struct RedisJob {
    connection: MultiplexedConnection,
    script: Script,
    buyer: String,
}

impl Job for RedisJob {
    async fn once(&mut self) -> anyhow::Result<Done> {
        let sold: i64 = self
            .script
            .key("free")
            .key(format!("request:{}", uuid::Uuid::now_v7()))
            .arg(&self.buyer)
            .invoke_async(&mut self.connection)
            .await?;
        ensure!(sold == 1, "sold out");
        Ok(Done { purchases: 1, overloaded: 0 })
    }
}
