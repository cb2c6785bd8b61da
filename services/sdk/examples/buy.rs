//! Creates an event with a small stock and buys from it with the retrying client, until it is sold out.
//!
//! Start a cluster in one terminal: `cargo run --release`. In another one:
//!
//! ```sh
//! alias tidewall=target/release/tidewall
//! ORGANISER=$(tidewall token --user olga --role organiser) BUYER=$(tidewall token --user alice) \
//!     cargo run --release -p tidewall-sdk --example buy -- http://127.0.0.1:7400
//! ```
//!
//! Name several gateways to see it change between them, and `kill -9` any process while it runs. Requests are
//! written down in `requests.journal` in the current folder: end it with Ctrl-C, and the next run says what
//! became of the request that was under way.

use std::error::Error as StdError;
use std::time::Duration;

use tidewall_sdk::{
    Client, Error, FileJournal, FileJournalOptions, MemoryJournal, Options, Reason, StaticToken, api,
};

#[tokio::main]
async fn main() -> Result<(), Box<dyn StdError>> {
    let gateways: Vec<String> = std::env::args().skip(1).collect();
    let token = |name: &str| {
        std::env::var(name).map_err(|_| format!("set {name} to a token: see the first lines of this example"))
    };
    let journal = FileJournal::open("requests.journal", FileJournalOptions::default())?;
    let buyer = StaticToken::new(token("BUYER")?);
    let alice = Client::connect(gateways, buyer, Options::default().with_journal(journal))?;
    let olga = alice.of_principal(StaticToken::new(token("ORGANISER")?), MemoryJournal::default());

    for sent in alice.unfinished() {
        let became = alice.resolve(sent.request_id).await?;
        println!("an earlier run sent {} to {}: {became:?}", sent.method, sent.resource);
    }

    let regions = olga.regions().await?;
    let region = regions.first().ok_or("the cluster has no regions")?;
    let tier = api::Tier { tier_id: "ga".into(), capacity: 50, ..Default::default() };
    let event = api::Event {
        display_name: "A concert".into(),
        tiers: vec![tier],
        quota_per_buyer: 100,
        ..Default::default()
    };
    let request =
        api::CreateEventRequest { parent: region.name.clone(), event: Some(event), ..Default::default() };
    let event = olga.create_event(request).await?.answer.event.ok_or("the answer has no event")?.name;
    println!("selling {event}");

    loop {
        let request = api::BuyTicketsRequest {
            parent: event.clone(),
            tier_id: "ga".into(),
            quantity: 1,
            ..Default::default()
        };
        match alice.buy_tickets(request).await {
            Ok(done) => {
                let tickets = done.answer.purchase.unwrap_or_default().tickets;
                println!("bought {}, sent {} time(s)", tickets.join(", "), done.attempts);
            }
            Err(Error::Decided { no, .. }) if no.reason == Some(Reason::SoldOut) => {
                println!("sold out");
                return Ok(());
            }
            Err(Error::Unknown { request_id, .. }) => {
                println!("no answer to {request_id}; it became: {:?}", alice.resolve(request_id).await?);
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}
