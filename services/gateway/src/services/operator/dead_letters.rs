//! Dead letters as operators see them: looked at through the region's query path, resolved by an order to its leader. Nothing here looks
//! into a message.

use tidewall_client::ClientError;
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;

use super::PAGE_MAX;
use crate::convert::{self, hex};
use crate::edge::{Call, Edge};
use crate::errors::ApiError;
use crate::{names, page};

/// Dead letters on a page, unless told otherwise.
const LETTERS_DEFAULT: u32 = 100;

pub(super) async fn list(
    edge: &Edge,
    call: &Call,
    message: v1::ListDeadLettersRequest,
) -> Result<v1::ListDeadLettersResponse, ApiError> {
    let region = names::parse_region("parent", &message.parent)?;
    let limit = page::size(message.page_size, LETTERS_DEFAULT, PAGE_MAX)?;
    let scope = format!("dead letters {}", message.parent);
    let after = page::decode(&scope, &message.page_token)?;
    let asked = pb::ListDeadLetters { after, limit, ..Default::default() };
    let pb::DeadLetters { letters, more } = look(edge, call, asked).await?;
    let last = letters.last().filter(|_| more).map(|letter| page::encode(&scope, &letter.id));
    let dead_letters = letters.into_iter().map(|letter| shown(edge, region, letter)).collect();
    Ok(v1::ListDeadLettersResponse { dead_letters, next_page_token: last.unwrap_or_default() })
}

pub(super) async fn get(
    edge: &Edge,
    call: &Call,
    message: v1::GetDeadLetterRequest,
) -> Result<v1::GetDeadLetterResponse, ApiError> {
    let region = names::leading_region("name", &message.name)?;
    let letter = one(edge, call, &message.name).await?;
    Ok(v1::GetDeadLetterResponse { dead_letter: Some(shown(edge, region, letter)) })
}

/// The dead letter of this name.
async fn one(edge: &Edge, call: &Call, name: &str) -> Result<pb::DeadLetter, ApiError> {
    let id = names::parse_dead_letter("name", name)?.to_owned();
    let asked = pb::ListDeadLetters { id, limit: 1, ..Default::default() };
    look(edge, call, asked).await?.letters.into_iter().next().ok_or_else(|| not_found(name))
}

/// Dead letters of the region that a call is for.
async fn look(edge: &Edge, call: &Call, asked: pb::ListDeadLetters) -> Result<pb::DeadLetters, ApiError> {
    let query = pb::Query { op: Some(pb::query::Op::DeadLetters(asked)) };
    let answer = edge.client.query(call.group, query, call.deadline.at).await;
    let answer = answer.map_err(|error| ApiError::Client { error, request_id: None })?;
    if let Some(seen) = answer.seen {
        call.seen.note(call.group, seen);
    }
    match answer.result {
        Some(pb::query_result::Result::DeadLetters(letters)) => Ok(letters),
        _ => Err(convert::mismatch()),
    }
}

fn shown(edge: &Edge, region: &str, letter: pb::DeadLetter) -> v1::DeadLetter {
    let from = edge.topology.region_of_group(letter.from).map(|from| names::region(&from.id));
    v1::DeadLetter {
        name: names::dead_letter(region, &letter.id),
        from_region: from.unwrap_or_default(),
        domain: letter.module,
        saga: hex(&letter.saga),
        reason: letter.reason,
        waits: letter.waits,
        set_aside_time: Some(convert::timestamp(letter.since_ms)),
        message: letter.payload,
        delivery: letter.effect,
    }
}

/// Carries a dead letter out once more, or drops it. How many the region has then.
pub(super) async fn resolve(edge: &Edge, call: &Call, name: &str, drop: bool) -> Result<u64, ApiError> {
    // Whoever names one that is not there, or not any more, is told that.
    let id = one(edge, call, name).await?.id;
    let (principal, left) = (call.principal.subject.as_str(), call.deadline.remaining());
    match edge.client.resolve_dead_letter(call.group, &id, drop, principal, left).await {
        Ok(remaining) => Ok(remaining),
        Err(ClientError::Invalid(why)) => Err(ApiError::precondition("REFUSED", why)),
        Err(error) => Err(ApiError::Client { error, request_id: None }),
    }
}

fn not_found(name: &str) -> ApiError {
    let why = format!("there is no {name}: it was resolved, or there never was one");
    ApiError::not_found("DEAD_LETTER_NOT_FOUND", why)
}
