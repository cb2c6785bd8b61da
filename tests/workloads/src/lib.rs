//! What clients of a domain do, and what they must be told: one workload a domain, for simulation, chaos and load alike.
//!
//! A workload asks through the public API and judges every answer by what it did before. Whatever it asks it repeats under the same
//! request id until there is an answer, whatever happens to the cluster. Time, chance and connections come from the [`Site`] that it
//! runs at. **Never here:** a clock, a random number, or anything of the code under test but its protocol.

mod accounts;
pub mod server;
mod tickets;

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::time::Duration;

use tidewall_proto::v1;
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::Channel;
use tonic::{Code, Request, Response, Status};
use tonic_types::StatusExt as _;

use server::Arrived;

/// The workloads, one for each domain.
macro_rules! workloads {
    ($($workload:ty),*) => {
        /// Their names.
        pub const NAMES: &[&str] = &[$(<$workload>::NAME),*];

        /// Tells a story of the workload of this name.
        async fn tell_one<S: Site>(story: &Story<'_, S>) -> Result<(), Over> {
            match story.workload {
                $(<$workload>::NAME => <$workload>::story(story).await,)*
                _ => Err(Over),
            }
        }
    };
}

workloads!(accounts::Accounts, tickets::Tickets);

/// Pause before something is asked again.
const AGAIN_AFTER: Duration = Duration::from_millis(20);

/// Where a workload runs.
pub trait Site {
    /// Lives as long as a call is under way.
    type Call;

    /// A connection to a gateway. It connects again by itself.
    fn gateway(&self) -> Channel;
    /// Resource names of the regions.
    fn regions(&self) -> &[String];
    /// What sets the names apart that this site makes from those of every other one.
    fn name(&self) -> String;
    /// A random number below `count`.
    fn below(&self, count: u64) -> u64;
    /// A token of somebody with these roles.
    fn token(&self, subject: &str, roles: &[&str]) -> String;
    /// A new request id: a UUIDv7 of the present.
    fn request_id(&self) -> String;
    /// Time since some beginning.
    fn now(&self) -> Duration;
    /// Nothing more is to be asked of a region.
    fn is_over(&self, region: &str) -> bool;
    /// How often a region was brought back to an earlier state, as far as is known by now.
    fn returns(&self, region: &str) -> usize;
    /// A call begins.
    fn begin(&self) -> Self::Call;
    /// Something happened that who looks into a failure wants to read.
    fn note(&self, what: fmt::Arguments<'_>);
    /// The cluster is there for this alone: nobody minds who becomes an admin of it.
    fn is_own(&self) -> bool;
    /// A method has answered, so long after it was asked for the first time.
    fn answered(&self, _method: &'static str, _took: Duration) {}
    /// Address of a server that webhooks of this name can call, for some stories; `None`: there is none. The server may fail.
    fn server(&self, name: &str) -> Option<String>;
    /// What has arrived at such an address so far, in order.
    fn arrived(&self, url: &str) -> Vec<Arrived>;
    /// What is found goes here.
    fn book(&self) -> &RefCell<Book>;
}

/// What was found wrong, unless one of its regions was brought back to an earlier state meanwhile.
#[derive(Debug, Clone)]
pub struct Suspicion {
    /// The regions that it is about, each with how often it had been brought back when the story began.
    pub regions: Vec<(String, usize)>,
    /// What is wrong.
    pub what: String,
}

/// What workloads did, and found.
#[derive(Debug, Default)]
pub struct Book {
    /// Stories that were told to their end.
    pub done: u64,
    /// Answers.
    pub answers: u64,
    /// Webhooks at whose servers all has arrived.
    pub webhooks: u64,
    /// What was found wrong.
    pub suspicions: Vec<Suspicion>,
    /// What may happen once in a region: region, how often that had been brought back, and to whom it did.
    once: Vec<(String, usize, String)>,
}

impl Book {
    /// What is wrong indeed: what a region remembers may go with an earlier state that it was brought back to, and with nothing else.
    pub fn wrong(&self, returns: impl Fn(&str) -> usize) -> Vec<String> {
        let unchanged = |found: &&Suspicion| found.regions.iter().all(|(region, at)| returns(region) == *at);
        let wrong = self.suspicions.iter().filter(unchanged);
        let mut wrong: Vec<String> = wrong.map(|found| found.what.clone()).collect();
        let mut first = BTreeMap::new();
        for (region, at, whom) in self.once.iter().filter(|(region, at, _)| returns(region) == *at) {
            if let Some(before) = first.insert((region, at), whom) {
                wrong.push(format!("what happens once in {region} happened to {before} and to {whom}"));
            }
        }
        wrong
    }
}

/// A story ends early: there is nobody to ask any more, or an answer was wrong.
#[derive(Debug)]
struct Over;

/// What clients of one domain do. It is one of [`NAMES`].
trait Workload {
    /// Its name.
    const NAME: &'static str;

    /// One story, from a beginning of its own to its end.
    ///
    /// # Errors
    /// [`Over`]: it was not told to its end.
    fn story<S: Site>(story: &Story<'_, S>) -> impl Future<Output = Result<(), Over>>;
}

/// Tells one story after the other, of any of these workloads, until `over` says so.
pub async fn tell<S: Site>(site: &S, workloads: &[&'static str], pause_ms: u64, over: impl Fn() -> bool) {
    for number in 0_u64.. {
        if pause_ms > 0 {
            tokio::time::sleep(Duration::from_millis(site.below(pause_ms))).await;
        }
        if over() {
            return;
        }
        let one_of = |count: usize| site.below(count as u64) as usize;
        let (workload, regions) = (workloads[one_of(workloads.len())], site.regions());
        let region = regions[one_of(regions.len())].clone();
        let returns = regions.iter().map(|region| (region.clone(), site.returns(region))).collect();
        let name = format!("{}-{number}", site.name());
        // The latest, or no less than what they have seen, at whatever replica.
        let consistency = match site.below(2) {
            0 => v1::ReadConsistency::Session,
            _ => v1::ReadConsistency::Linearizable,
        };
        let (abroad, seen) = (RefCell::default(), RefCell::default());
        let story = Story { site, workload, name, region, returns, abroad, seen, consistency };
        if tell_one(&story).await.is_ok() {
            site.book().borrow_mut().done += 1;
        }
    }
}

/// A story under way.
struct Story<'a, S: Site> {
    /// Where it happens.
    site: &'a S,
    workload: &'static str,
    /// What no other story is called.
    name: String,
    /// Of which region.
    region: String,
    /// How often each region had been brought back when it began.
    returns: Vec<(String, usize)>,
    /// Another region in which it asks for something as well.
    abroad: RefCell<Option<String>>,
    /// How far those in it have seen the regions, as answers said: several, when some came while another was waited for.
    seen: RefCell<Vec<MetadataValue<Ascii>>>,
    /// How fresh answers must be that show what those in it know.
    consistency: v1::ReadConsistency,
}

/// The metadata that says how far somebody has seen the regions.
const SEEN: &str = "tidewall-seen";

impl<S: Site> Story<'_, S> {
    /// Something is wrong, unless the region went back meanwhile.
    ///
    /// # Errors
    /// [`Over`], always.
    fn object<T>(&self, what: impl fmt::Display) -> Result<T, Over> {
        self.object_about(|region| region == self.region, what)
    }

    /// Something is wrong between regions, unless any went back meanwhile.
    ///
    /// # Errors
    /// [`Over`], always.
    fn object_anywhere<T>(&self, what: impl fmt::Display) -> Result<T, Over> {
        self.object_about(|_| true, what)
    }

    fn object_about<T>(&self, about: impl Fn(&str) -> bool, what: impl fmt::Display) -> Result<T, Over> {
        let what = format!("{} {} in {}: {what}", self.workload, self.name, self.region);
        self.site.note(format_args!("SUSPICION {what}"));
        let regions = self.returns.iter().filter(|(region, _)| about(region)).cloned().collect();
        self.site.book().borrow_mut().suspicions.push(Suspicion { regions, what });
        Err(Over)
    }

    /// Whether nothing more is to be asked.
    fn is_over(&self) -> bool {
        let abroad = self.abroad.borrow();
        self.site.is_over(&self.region) || abroad.as_ref().is_some_and(|region| self.site.is_over(region))
    }

    /// Notes that to this account has happened what happens once in a region.
    fn once(&self, whom: &str) {
        let returns = self.returns.iter().find(|(region, _)| *region == self.region).map_or(0, |(_, at)| *at);
        let once = (self.region.clone(), returns, whom.to_owned());
        self.site.book().borrow_mut().once.push(once);
    }

    /// A random number below `count`.
    fn below(&self, count: u64) -> u64 {
        self.site.below(count)
    }

    /// How fresh an answer must be that shows what those in the story know.
    fn consistency(&self) -> i32 {
        self.consistency.into()
    }

    /// Asks until there is an answer: what it is, or the reason of a refusal.
    ///
    /// # Errors
    /// [`Over`] when nothing more is to be asked.
    async fn insist<T: Clone, R, F>(
        &self,
        what: &'static str,
        message: T,
        ask: impl Fn(Request<T>) -> F,
    ) -> Result<Result<R, String>, Over>
    where
        F: Future<Output = Result<Response<R>, Status>>,
    {
        let site = self.site;
        let began = site.now();
        loop {
            if self.is_over() {
                return Err(Over);
            }
            let patience = Duration::from_millis(1_500 + site.below(4_000));
            let mut request = Request::new(message.clone());
            request.set_timeout(patience);
            let brought = self.seen.borrow().clone();
            for seen in &brought {
                request.metadata_mut().append(SEEN, seen.clone());
            }
            // Some go away before their answer, and ask again.
            let waits = if site.below(20) == 0 { patience / 50 } else { patience };
            let answer = {
                let _call = site.begin();
                tokio::time::timeout(waits, ask(request)).await
            };
            if let Ok(answer) = &answer {
                let metadata = answer.as_ref().map_or_else(Status::metadata, Response::metadata);
                if let Some(shown) = metadata.get(SEEN) {
                    // It has all that was brought along.
                    let mut seen = self.seen.borrow_mut();
                    seen.retain(|seen| !brought.contains(seen));
                    seen.push(shown.clone());
                }
            }
            let told = match answer {
                Ok(Ok(answer)) => Ok(answer.into_inner()),
                Ok(Err(status)) => match final_reason(&status) {
                    Some(reason) => Err(reason),
                    None => {
                        let wait = status.get_details_retry_info().and_then(|info| info.retry_delay);
                        tokio::time::sleep(wait.unwrap_or(AGAIN_AFTER).min(Duration::from_secs(1))).await;
                        continue;
                    }
                },
                Err(_) => continue,
            };
            site.answered(what, site.now().saturating_sub(began));
            site.book().borrow_mut().answers += 1;
            let shown = told.as_ref().map_or_else(String::as_str, |_| "ok");
            site.note(format_args!("{} {what}: {shown}", self.name));
            return Ok(told);
        }
    }

    /// An answer that must be a yes.
    ///
    /// # Errors
    /// [`Over`] when it is not.
    fn yes<R>(&self, what: &str, told: Result<R, String>) -> Result<R, Over> {
        told.or_else(|reason| self.object(format_args!("{what} is refused: {reason}")))
    }

    /// An answer that must be this no.
    ///
    /// # Errors
    /// [`Over`] when it is not.
    fn no<R>(&self, what: &str, told: Result<R, String>, expected: &str) -> Result<(), Over> {
        match told {
            Err(reason) if reason == expected => Ok(()),
            Err(reason) => self.object(format_args!("{what} is refused with {reason}, not {expected}")),
            Ok(_) => self.object(format_args!("{what} is accepted, not refused with {expected}")),
        }
    }
}

/// A request with an access token.
fn bearing<T>(token: &str, mut request: Request<T>) -> Request<T> {
    // What is no text is no token either: the gateway says so.
    let value = format!("Bearer {token}").parse();
    if let Ok(value) = value {
        request.metadata_mut().insert("authorization", value);
    }
    request
}

/// Asks a method of a client until there is an answer, with an access token if one is given.
macro_rules! ask {
    ($story:expr, $client:expr, $method:ident, $message:expr $(, $token:expr)?) => {{
        let ask = |request| {
            let mut client = $client.clone();
            $(let request = crate::bearing($token, request);)?
            async move { client.$method(request).await }
        };
        $story.insist(stringify!($method), $message, ask).await?
    }};
}
use ask;

/// A client that compresses now and then, as some do by their configuration.
macro_rules! client {
    ($story:expr, $client:ident) => {{
        let client = $client::new($story.site.gateway());
        match $story.below(4) {
            0 => client.send_compressed(Gzip).accept_compressed(Gzip),
            1 => client.send_compressed(Deflate).accept_compressed(Deflate),
            _ => client,
        }
    }};
}
use client;

/// The reason of a refusal that will not change; `None`: ask again.
fn final_reason(status: &Status) -> Option<String> {
    let again = [Code::Unavailable, Code::DeadlineExceeded, Code::ResourceExhausted];
    let reason = status.get_details_error_info().map(|info| info.reason)?;
    (!again.contains(&status.code())).then_some(reason)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_went_with_an_earlier_state_is_not_wrong() {
        let suspicion =
            |region: &str, at| Suspicion { regions: vec![(region.into(), at)], what: region.into() };
        let book = Book {
            suspicions: vec![suspicion("a", 0), suspicion("b", 1), suspicion("c", 2)],
            ..Default::default()
        };
        assert_eq!(
            book.wrong(|region| if region == "a" { 1 } else { 2 }),
            ["b".to_owned(), "c".to_owned()][1..]
        );
    }

    #[test]
    fn what_happens_once_must_not_happen_twice_unless_the_region_went_back() {
        let once = |returns: usize, whom: &str| ("a".to_owned(), returns, whom.to_owned());
        let of = |once: &[(String, usize, String)]| {
            Book { once: once.to_vec(), ..Default::default() }.wrong(|_| 1).len()
        };
        assert_eq!(of(&[once(1, "ann")]), 0);
        assert_eq!(of(&[once(0, "ann"), once(0, "bob"), once(1, "ann")]), 0);
        assert_eq!(of(&[once(1, "ann"), once(1, "bob")]), 1);
    }

    #[test]
    fn only_what_is_decided_is_an_answer() {
        use tonic_types::ErrorDetails;
        let status = |code, reason: &str| {
            let details = ErrorDetails::with_error_info(reason, "tidewall", std::collections::HashMap::new());
            Status::with_error_details(code, "text", details)
        };
        assert_eq!(final_reason(&status(Code::Aborted, "X")), Some("X".to_owned()));
        assert_eq!(final_reason(&status(Code::ResourceExhausted, "OVERLOADED")), None);
        assert_eq!(final_reason(&Status::internal("the connection broke")), None);
    }
}
