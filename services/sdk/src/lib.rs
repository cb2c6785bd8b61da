//! Client of Tidewall for applications: calls that ride out failovers, and never buy twice.
//!
//! ```no_run
//! # async fn buy() -> Result<(), Box<dyn std::error::Error>> {
//! use tidewall_sdk::{Client, Error, FileJournal, FileJournalOptions, Options, StaticToken, api};
//!
//! let journal = FileJournal::open("requests.journal", FileJournalOptions::default())?;
//! let client = Client::connect(
//!     ["http://127.0.0.1:7400", "http://127.0.0.1:7401"],
//!     StaticToken::new(std::env::var("TOKEN")?),
//!     Options::default().with_journal(journal),
//! )?;
//! // What an earlier process left in doubt.
//! for sent in client.unfinished() {
//!     println!("{} on {}: {:?}", sent.method, sent.resource, client.resolve(sent.request_id).await?);
//! }
//! let request = api::BuyTicketsRequest {
//!     parent: "regions/north/events/gala".into(),
//!     tier_id: "ga".into(),
//!     quantity: 2,
//!     ..Default::default()
//! };
//! match client.buy_tickets(request).await {
//!     Ok(done) => println!("bought {:?}", done.answer.purchase),
//!     Err(Error::Decided { no, .. }) => println!("no: {no}"),
//!     Err(Error::NotDecided { why, .. }) => println!("nothing happened: {why}"),
//!     Err(Error::Unknown { request_id, .. }) => println!("ask again: {:?}", client.resolve(request_id).await?),
//! }
//! # Ok(())
//! # }
//! ```
//!
//! # What it does
//!
//! * **One id per intent.** A mutation gets its request id once; the id is in the [journal](RequestJournal) before
//!   the first attempt leaves, and every attempt carries it. The region executes it once.
//! * **Three ends.** Without a result a call ended [decided](Error::Decided), [not decided](Error::NotDecided) or
//!   [unknown](Error::Unknown). What is unknown is never told as failed: once an attempt may have arrived, only the
//!   region's word ends the doubt. Even "sold out" is believed after a lost attempt only if the region remembers
//!   it, or says it again when the lost one is void.
//! * **Retries within the deadline** of the caller: the delay in `RetryInfo` exactly; otherwise exponential with
//!   full jitter, and only while the [budget](RetryBudget) lasts. After a failure of the connection the next
//!   attempt goes to another gateway.
//! * **Connections** are probed every 5 s, replaced when they look broken, and shared by all calls.
//!
//! # What it does not do
//!
//! It does not hedge: no call is sent to two gateways at once. For mutations a second copy would be harmless (one
//! id is executed once) but would double the load on the hot row exactly when that is what is short, and the first
//! "no" to come back would prove nothing while the other copy is still under way.
//!
//! It has no leader hints to follow: gateways find leaders, hold calls through failovers and repeat them.

mod backoff;
mod batch;
mod budget;
mod client;
mod endpoints;
mod error;
mod failure;
mod journal;
mod options;
mod pursuit;
mod request_id;
mod resolve;
mod rpc;
mod seen;
mod token;
mod watch;
mod wire;

pub use backoff::Backoff;
pub use batch::{BatchItem, Bought};
pub use budget::RetryBudget;
pub use client::{Client, Done};
pub use error::{ConnectError, Error, NotDecided, Stop};
pub use failure::{Failure, Reason, WrongField};
pub use journal::{FileJournal, FileJournalOptions, JournalError, MemoryJournal, RequestJournal, Sent};
pub use options::Options;
pub use request_id::{InvalidRequestId, RequestId};
pub use resolve::{Executed, Resolution};
/// The messages of the public API, as the .proto files define and document them.
pub use tidewall_proto::v1 as api;
pub use token::{StaticToken, TokenError, TokenFn, TokenSource, token_fn};
/// Code of a [`Failure`].
pub use tonic::Code;
pub use watch::Watch;
