//! The same job in PostgreSQL with its default durability: in the two-statement transaction that people
//! write, in the best single-statement form, and behind a batching service with one connection.
//!
//! A server of our own in a temporary directory, reached through a Unix socket (which favours it: everything
//! else here pays for TCP). It never touches a server that is already running.

use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tokio_postgres::{Client, NoTls, Statement};

use crate::cell::{Done, Job};
use crate::machine;

/// Purchases in one statement of the batched form.
pub const BATCH: usize = 64;

/// Connections that the server allows: the most clients of a cell and some for ourselves.
const CONNECTIONS: usize = 1100;

const SCHEMA: &str = "
    CREATE TABLE event (id int PRIMARY KEY, free bigint NOT NULL CHECK (free >= 0));
    CREATE TABLE purchase (request_id uuid PRIMARY KEY, event_id int NOT NULL, buyer text NOT NULL,
        at timestamptz NOT NULL DEFAULT now());
    INSERT INTO event VALUES (1, 1000000000);
    CREATE FUNCTION buy(request uuid, who text) RETURNS void LANGUAGE plpgsql AS $$
    BEGIN
        -- The insert first: the lock on the hot row is then held for as short as it can be.
        INSERT INTO purchase (request_id, event_id, buyer) VALUES (request, 1, who);
        UPDATE event SET free = free - 1 WHERE id = 1 AND free >= 1;
        IF NOT FOUND THEN RAISE EXCEPTION 'sold out'; END IF;
    END $$;";

const BATCHED: &str = "
    WITH made AS (
        INSERT INTO purchase (request_id, event_id, buyer)
        SELECT request::uuid, 1, who FROM unnest($1::text[], $2::text[]) AS wanted(request, who)
        ON CONFLICT DO NOTHING RETURNING 1)
    UPDATE event SET free = free - (SELECT count(*) FROM made)
    WHERE id = 1 AND free >= (SELECT count(*) FROM made)";

/// How the job is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// BEGIN, UPDATE, INSERT, COMMIT.
    TwoStatements,
    /// One call of a function.
    SingleStatement,
    /// [`BATCH`] purchases in a statement.
    Batched,
}

/// A server of our own.
pub struct Postgres {
    server: Child,
    directory: tempfile::TempDir,
    /// What the binary says about itself.
    pub version: String,
}

/// Where the binaries are: the newest of Debian's, or `PATH`.
fn program(name: &str) -> anyhow::Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
        .filter_map(|entry| {
            Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin").join(name)))
        })
        .filter(|(_, path)| path.is_file())
        .collect();
    versions.sort();
    if let Some((_, path)) = versions.pop() {
        return Ok(path);
    }
    in_path(name).with_context(|| format!("there is no {name}: run tests/bench/install.sh"))
}

/// A program in `PATH`.
pub fn in_path(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// User and group ids of `postgres` when we are root, since PostgreSQL refuses to run as root.
fn other_user() -> anyhow::Result<Option<(u32, u32)>> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = std::fs::read_to_string("/etc/passwd")?;
    let line = users.lines().find(|line| line.starts_with("postgres:"));
    let line = line.context("PostgreSQL does not run as root, and there is no user postgres")?;
    let fields: Vec<&str> = line.split(':').collect();
    ensure!(fields.len() > 3, "the line of postgres in /etc/passwd makes no sense: {line}");
    Ok(Some((fields[2].parse()?, fields[3].parse()?)))
}

impl Postgres {
    /// Makes a database below `base` and starts a server on it.
    ///
    /// # Errors
    /// When PostgreSQL is not installed or does not start; the error carries what it said.
    pub async fn start(base: &Path) -> anyhow::Result<Self> {
        let directory = tempfile::Builder::new().prefix("tidewall-bench-postgres-").tempdir_in(base)?;
        let user = other_user()?;
        if let Some((uid, gid)) = user {
            std::os::unix::fs::chown(directory.path(), Some(uid), Some(gid))?;
        }
        let command = |name: &str| -> anyhow::Result<Command> {
            let mut command = Command::new(program(name)?);
            if let Some((uid, gid)) = user {
                command.uid(uid).gid(gid);
            }
            command.current_dir(directory.path()).stdin(Stdio::null());
            Ok(command)
        };
        let data = directory.path().join("data");
        let made = command("initdb")?
            .arg("-D")
            .arg(&data)
            .args(["-A", "trust", "-U", "bench", "-E", "UTF8", "--locale=C"])
            .output()?;
        ensure!(made.status.success(), "initdb failed: {}", String::from_utf8_lossy(&made.stderr));
        let log = std::fs::File::create(directory.path().join("log"))?;
        let server = command("postgres")?
            .arg("-D")
            .arg(&data)
            .args(["-c", "listen_addresses=", "-c", &format!("max_connections={CONNECTIONS}")])
            .arg("-c")
            .arg(format!("unix_socket_directories={}", directory.path().display()))
            .stdout(log.try_clone()?)
            .stderr(log)
            .process_group(0)
            .spawn()?;
        let version = machine::version_of(&program("postgres")?);
        let mut postgres = Self { server, directory, version };
        let deadline = Instant::now() + Duration::from_secs(60);
        let client = loop {
            match postgres.connect().await {
                Ok(client) => break client,
                Err(error) => {
                    let ended = postgres.server.try_wait()?;
                    if ended.is_some() || Instant::now() > deadline {
                        let log = std::fs::read_to_string(postgres.directory.path().join("log"))?;
                        bail!("PostgreSQL does not answer ({error}): {log}");
                    }
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        client.batch_execute(SCHEMA).await?;
        // A figure without these is not comparable.
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let row = client.query_one(&format!("SHOW {setting}"), &[]).await?;
            ensure!(row.get::<_, String>(0) == "on", "{setting} is off");
        }
        Ok(postgres)
    }

    /// Its process.
    pub fn root(&self) -> u32 {
        self.server.id()
    }

    async fn connect(&self) -> anyhow::Result<Client> {
        let (client, connection) = tokio_postgres::Config::new()
            .host_path(self.directory.path())
            .user("bench")
            .dbname("postgres")
            .connect(NoTls)
            .await?;
        // Ends with the client.
        tokio::spawn(connection);
        Ok(client)
    }

    /// One job and one connection per client.
    ///
    /// # Errors
    /// When a connection fails.
    pub async fn jobs(&self, form: Form, clients: usize) -> anyhow::Result<Vec<impl Job + use<>>> {
        let mut jobs = Vec::with_capacity(clients);
        for number in 0..clients {
            let client = self.connect().await.with_context(|| format!("connection {number} of {clients}"))?;
            let statements = match form {
                Form::TwoStatements => vec![
                    client.prepare("UPDATE event SET free = free - 1 WHERE id = 1 AND free >= 1").await?,
                    client
                        .prepare("INSERT INTO purchase (request_id, event_id, buyer) VALUES ($1::text::uuid, 1, $2)")
                        .await?,
                ],
                Form::SingleStatement => vec![client.prepare("SELECT buy($1::text::uuid, $2)").await?],
                Form::Batched => vec![client.prepare(BATCHED).await?],
            };
            jobs.push(PostgresJob { client, statements, form, buyer: format!("buyer-{number}") });
        }
        Ok(jobs)
    }

    /// Checks that what was sold is what was recorded.
    ///
    /// # Errors
    /// When the counts differ.
    pub async fn audit(&self) -> anyhow::Result<()> {
        let client = self.connect().await?;
        let row = client
            .query_one(
                "SELECT 1000000000 - free, (SELECT count(*) FROM purchase) FROM event WHERE id = 1",
                &[],
            )
            .await?;
        let (sold, recorded) = (row.get::<_, i64>(0), row.get::<_, i64>(1));
        ensure!(
            sold == recorded,
            "PostgreSQL sold {sold} and recorded {recorded}: the job is not what it should be"
        );
        Ok(())
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // SIGINT is its fast shutdown: sessions end, files are left whole.
        if let Some(pid) = i32::try_from(self.server.id()).ok().and_then(Pid::from_raw) {
            kill_process(pid, Signal::INT).ok();
            let deadline = Instant::now() + Duration::from_secs(30);
            while Instant::now() < deadline {
                if matches!(self.server.try_wait(), Ok(Some(_)) | Err(_)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        self.server.kill().ok();
        self.server.wait().ok();
    }
}

struct PostgresJob {
    client: Client,
    statements: Vec<Statement>,
    form: Form,
    buyer: String,
}

impl Job for PostgresJob {
    async fn once(&mut self) -> anyhow::Result<Done> {
        let id = || uuid::Uuid::now_v7().to_string();
        let purchases = match self.form {
            Form::TwoStatements => {
                let transaction = self.client.transaction().await?;
                let sold = transaction.execute(&self.statements[0], &[]).await?;
                ensure!(sold == 1, "sold out");
                transaction.execute(&self.statements[1], &[&id(), &self.buyer]).await?;
                transaction.commit().await?;
                1
            }
            Form::SingleStatement => {
                self.client.query_one(&self.statements[0], &[&id(), &self.buyer]).await?;
                1
            }
            Form::Batched => {
                let ids: Vec<String> = (0..BATCH).map(|_| id()).collect();
                let buyers = vec![&self.buyer; BATCH];
                let changed = self.client.execute(&self.statements[0], &[&ids, &buyers]).await?;
                ensure!(changed == 1, "sold out");
                BATCH as u64
            }
        };
        Ok(Done { purchases, overloaded: 0 })
    }
}
