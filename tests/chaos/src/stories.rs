//! Stories of workloads beside the sale, and the verdict on them.

use std::time::Duration;

use tidewall_load::stories::{Stories, StoriesPlan, Told};
use tidewall_load::{LoadError, Target};

use crate::check::Verdict;

/// What the verdict is called.
const CHECKER: &str = "stories";
/// Longest pause between two stories.
const PAUSE: Duration = Duration::from_millis(300);
/// How many are told at the same time.
const TELLERS: usize = 2;

/// Starts to tell stories of all workloads.
///
/// # Errors
/// When nobody answers.
pub async fn start(target: &Target, seed: u64) -> Result<Stories, LoadError> {
    let plan = StoriesPlan {
        tellers: TELLERS,
        connections: 1,
        pause: PAUSE,
        seed,
        own: true,
        ..StoriesPlan::default()
    };
    Stories::start(target, &plan).await
}

/// Lets the stories end, and says whether anything was wrong.
pub async fn stop(stories: Stories) -> Verdict {
    verdict(stories.stop().await)
}

fn verdict(told: Result<Told, LoadError>) -> Verdict {
    let mut verdict = Verdict::new(CHECKER);
    match told {
        Err(error) => verdict.add(|| error.to_string()),
        Ok(told) => {
            verdict.looked_at = told.answers;
            if told.answers == 0 {
                verdict.add(|| "nobody has answered: nothing was shown".to_owned());
            }
            for wrong in told.wrong {
                verdict.add(|| wrong);
            }
        }
    }
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn silence_and_wrong_answers_are_violations() {
        let told = Told { answers: 3, ..Told::default() };
        assert!(verdict(Ok(told.clone())).ok());
        assert_eq!(verdict(Ok(Told::default())).violations, 1);
        let wrong = vec!["a".to_owned(), "b".to_owned()];
        assert_eq!(verdict(Ok(Told { wrong, ..told })).violations, 2);
        assert_eq!(verdict(Err(LoadError::Task("panicked".into()))).violations, 1);
    }
}
