//! What has to exist before the clock starts: tokens and events. Preparing may take its time and repeats
//! what was not decided; it must never leave the measured part anything to prepare.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tidewall_proto::v1;
use tokio::time::Instant;
use tonic::Status;
use uuid::Uuid;

use crate::drive::PROGRESS_EVERY;
use crate::offer::Offer;
use crate::pool::{Pool, Token, bearer};
use crate::run::{Lot, LotTier};
use crate::{LoadError, Mint, Phase, Progress, Target, meaning};

/// How long a step of the preparation is repeated.
pub(crate) const PREPARE_PATIENCE: Duration = Duration::from_secs(30);
/// Threads that make tokens, at most.
const MINT_THREADS_MAX: usize = 8;
/// Subject that creates the events and reads them back.
const ORGANISER: &str = "load-organiser";
/// Subject that buys in batches.
const SELLER: &str = "load-seller";
/// Characters of an event's own name that go into its id.
const SLUG_MAX: usize = 20;

/// A step of the preparation that was refused.
pub(crate) fn refused(doing: &str, status: &Status) -> LoadError {
    LoadError::Setup {
        doing: doing.to_owned(),
        code: status.code(),
        reason: meaning::reason(status),
        message: status.message().to_owned(),
    }
}

/// The organiser's token.
pub(crate) fn organiser(target: &Target) -> Result<Token, LoadError> {
    bearer(ORGANISER, &(target.mint)(ORGANISER, &["organiser"]))
}

/// The seller's token.
pub(crate) fn seller(target: &Target) -> Result<Token, LoadError> {
    bearer(SELLER, &(target.mint)(SELLER, &["seller"]))
}

/// Makes a token for each subject, on several threads, and tells progress.
pub(crate) async fn mint_all(
    mint: &Mint,
    subjects: &[String],
    progress: &(impl Fn(Progress) + Sync),
) -> Result<Vec<Token>, LoadError> {
    let began = Instant::now();
    let made = Arc::new(AtomicU64::new(0));
    let threads = std::thread::available_parallelism().map_or(1, usize::from).min(MINT_THREADS_MAX);
    let share = subjects.len().div_ceil(threads).max(1);
    let tasks: Vec<_> = subjects
        .chunks(share)
        .map(|chunk| {
            let (mint, made, chunk) = (Arc::clone(mint), Arc::clone(&made), chunk.to_vec());
            tokio::task::spawn_blocking(move || {
                chunk
                    .iter()
                    .map(|subject| {
                        let token = bearer(subject, &mint(subject, &[]));
                        made.fetch_add(1, Ordering::Relaxed);
                        token
                    })
                    .collect::<Result<Vec<_>, LoadError>>()
            })
        })
        .collect();
    let tell = || {
        let total = Some(subjects.len() as u64);
        progress(plain(Phase::Mint, began.elapsed(), made.load(Ordering::Relaxed), total));
    };
    let all = futures_util::future::join_all(tasks);
    tokio::pin!(all);
    let mut ticks = tokio::time::interval(PROGRESS_EVERY);
    let chunks = loop {
        tokio::select! {
            chunks = &mut all => break chunks,
            _ = ticks.tick() => tell(),
        }
    };
    let mut tokens = Vec::with_capacity(subjects.len());
    for chunk in chunks {
        tokens.extend(chunk.map_err(|error| LoadError::Task(error.to_string()))??);
    }
    tell();
    Ok(tokens)
}

/// Progress of a phase in which nothing is sold.
pub(crate) fn plain(phase: Phase, elapsed: Duration, done: u64, total: Option<u64>) -> Progress {
    Progress {
        phase,
        elapsed,
        done,
        total,
        sold: 0,
        sold_out: 0,
        overloaded: 0,
        unknown: 0,
        errors: 0,
        retries: 0,
    }
}

/// An event to be created.
#[derive(Debug, Clone)]
pub(crate) struct NewEvent {
    /// Resource name of the region.
    pub(crate) region: String,
    pub(crate) event_id: String,
    pub(crate) display_name: String,
    pub(crate) quota: u32,
    pub(crate) tiers: Vec<LotTier>,
}

/// An id that no earlier run has used: what people can recognise, the number within the run, and chance.
pub(crate) fn event_id(name: &str, number: usize) -> String {
    let mut slug: String = name
        .chars()
        .map(|c| if c.is_ascii_alphanumeric() { c.to_ascii_lowercase() } else { '-' })
        .take(SLUG_MAX)
        .collect();
    if !slug.starts_with(|c: char| c.is_ascii_lowercase()) {
        slug.insert(0, 'e');
    }
    let chance = Uuid::now_v7().simple().to_string();
    // The last digits of a version 7 id are random.
    format!("{slug}-{number}-{}", &chance[chance.len() - 12..])
}

/// Creates an event.
pub(crate) async fn create_event(pool: &Pool, organiser: &Token, event: NewEvent) -> Result<Lot, LoadError> {
    let NewEvent { region, event_id, display_name, quota, tiers } = event;
    let offer = Offer {
        region: &region,
        event_id: &event_id,
        display_name: &display_name,
        // At most 100,000 and 10,000,000: plan and trace were checked.
        quota: quota as i32,
        tiers: tiers.iter().map(|tier| (tier.tier_id.as_str(), tier.capacity as i64)).collect(),
    };
    let made = offer.make(pool, organiser, PREPARE_PATIENCE).await;
    let name = made.map_err(|status| refused(&format!("creating event {event_id} in {region}"), &status))?;
    Ok(Lot { name, display_name, region, quota, tiers })
}

/// Finds a region by name, or lets the seed choose one.
pub(crate) fn choose_region(
    regions: &[v1::Region],
    wanted: Option<&str>,
    seed: u64,
) -> Result<String, LoadError> {
    let known = || regions.iter().map(|region| region.name.as_str()).collect::<Vec<_>>().join(", ");
    match wanted {
        None if regions.is_empty() => {
            Err(LoadError::NoRegion { wanted: "*".to_owned(), known: "none".to_owned() })
        }
        None => {
            // The remainder is smaller than a usize: it comes from one.
            let chosen = (crate::chance::mix(seed) % regions.len() as u64) as usize;
            Ok(regions[chosen].name.clone())
        }
        Some(wanted) => {
            let full =
                if wanted.starts_with("regions/") { wanted.to_owned() } else { format!("regions/{wanted}") };
            if regions.iter().any(|region| region.name == full) {
                Ok(full)
            } else {
                Err(LoadError::NoRegion { wanted: wanted.to_owned(), known: known() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn event_ids_are_valid_recognisable_and_differ() {
        for name in ["Jazz Night. At the_Harbour and more", "1", "9 lives"] {
            let id = event_id(name, 9_999);
            assert!((4..=40).contains(&id.len()), "{id}");
            assert!(id.starts_with(|c: char| c.is_ascii_lowercase()), "{id}");
            assert!(id.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-'), "{id}");
        }
        assert!(event_id("gala", 0).starts_with("gala-0-"));
        assert_ne!(event_id("gala", 0), event_id("gala", 0));
    }

    #[test]
    fn a_region_is_found_by_either_form_of_its_name_or_by_the_seed() {
        let regions: Vec<_> = ["regions/east", "regions/west"]
            .map(|name| v1::Region { name: name.to_owned(), display_name: String::new() })
            .to_vec();
        assert_eq!(choose_region(&regions, Some("west"), 0).unwrap(), "regions/west");
        assert_eq!(choose_region(&regions, Some("regions/east"), 0).unwrap(), "regions/east");
        let chosen: std::collections::BTreeSet<_> =
            (0..20).map(|seed| choose_region(&regions, None, seed).unwrap()).collect();
        assert_eq!(chosen.len(), 2);
        let error = choose_region(&regions, Some("north"), 0).unwrap_err().to_string();
        assert!(error.contains("\"north\"") && error.contains("regions/east, regions/west"), "{error}");
        assert!(choose_region(&[], None, 0).is_err());
    }
}
