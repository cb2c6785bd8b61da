//! The one place that turns every kind of "no" into a gRPC status with `google.rpc` details. No other module
//! makes a status; what is *unknown* is never reported as *failed* here.

use std::collections::HashMap;
use std::time::Duration;

use prost::Message as _;
use rand::Rng as _;
use tidewall_client::ClientError;
use tidewall_messages::Rejection;
use tidewall_proto::internal::v1 as pb;
use tidewall_proto::v1;
use tidewall_proto::v1::Effect;
use tonic::metadata::MetadataValue;
use tonic::{Code, Status};
use tonic_types::{ErrorDetails, StatusExt as _};

/// Domain of all `google.rpc.ErrorInfo`.
const DOMAIN: &str = "tidewall";
/// What to do about an outcome that nobody knows.
const ASK_AGAIN: &str = "it may or may not have been decided: send the same request again with the same \
                         request_id, or ask OutcomeService.GetOutcome";
/// The same for what has no request id: an order may be wrong to give twice.
const LOOK_FIRST: &str = "it may or may not have been done: look at what is there before you send it again";

/// Why a call is not answered with a result.
#[derive(Debug)]
pub(crate) enum ApiError {
    /// A field of the request breaks a rule.
    Field { field: String, reason: &'static str, message: String },
    /// No field is to blame.
    Plain { code: Code, reason: &'static str, message: String },
    /// Refused before anything was sent to the region.
    Overloaded { retry_after: Duration, message: String },
    /// The region said "no".
    Rejected {
        rejection: Rejection,
        /// Where it was decided; none when it was said without the log, and so is not remembered.
        receipt: Option<Box<v1::Receipt>>,
    },
    /// The region could not be asked, or did not answer.
    Client {
        error: ClientError,
        /// Of a mutation; a query has none.
        request_id: Option<String>,
    },
}

impl ApiError {
    /// Whether the region has answered with this.
    pub(crate) fn is_answer(&self) -> bool {
        match self {
            Self::Rejected { .. } => true,
            Self::Plain { code, .. } => matches!(code, Code::NotFound | Code::FailedPrecondition),
            Self::Field { .. } | Self::Overloaded { .. } | Self::Client { .. } => false,
        }
    }

    /// The same about a request of which a step failed: its id is the one that the caller knows.
    pub(crate) fn of_request(self, id: &[u8]) -> Self {
        match self {
            Self::Client { error, request_id: Some(_) } => {
                Self::Client { error, request_id: Some(crate::request_id::format(id)) }
            }
            other => other,
        }
    }

    /// A bound of this gateway was reached; nothing was sent.
    pub(crate) fn overloaded(what: &str) -> Self {
        Self::Overloaded { retry_after: jittered(Duration::from_millis(500)), message: what.to_owned() }
    }

    /// A field has a value that it may not have.
    pub(crate) fn field(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self::Field { field: field.into(), reason: "INVALID_FIELD", message: message.into() }
    }

    /// As [`ApiError::field`], with a reason of its own.
    pub(crate) fn field_reason(
        field: impl Into<String>,
        reason: &'static str,
        message: impl Into<String>,
    ) -> Self {
        Self::Field { field: field.into(), reason, message: message.into() }
    }

    pub(crate) fn unauthenticated(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Plain { code: Code::Unauthenticated, reason, message: message.into() }
    }

    pub(crate) fn denied(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Plain { code: Code::PermissionDenied, reason, message: message.into() }
    }

    /// The state of the region does not allow it.
    pub(crate) fn precondition(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Plain { code: Code::FailedPrecondition, reason, message: message.into() }
    }

    pub(crate) fn not_found(reason: &'static str, message: impl Into<String>) -> Self {
        Self::Plain { code: Code::NotFound, reason, message: message.into() }
    }

    /// Of a session that has ended, or that no gateway of this cluster has begun; as the region words it.
    pub(crate) fn session_invalid() -> Self {
        Self::unauthenticated("SESSION_INVALID", tidewall_messages::accounts::SESSION_INVALID)
    }

    pub(crate) fn accounts_not_served() -> Self {
        Self::precondition(
            "ACCOUNTS_NOT_SERVED",
            "this gateway has no account key and serves no accounts: start it with --account-key and --signing-key",
        )
    }

    /// The keyring gave no answer. Whatever was to be kept is of no use to anybody without its command.
    pub(crate) fn keyring(error: &tidewall_client::KeyringError) -> Self {
        if *error == tidewall_client::KeyringError::Missing {
            return Self::Plain { code: Code::DataLoss, reason: "KEY_MISSING", message: error.to_string() };
        }
        let error = ClientError::Unavailable { why: error.to_string() };
        Self::Client { error, request_id: None }
    }

    /// What has happened behind a place is not kept any more.
    pub(crate) fn place_gone(oldest: crate::feed::Place) -> Self {
        let crate::feed::Place { incarnation, index, .. } = oldest;
        let message = format!(
            "what has happened behind this place is not kept any more, or the region was restored (kept since incarnation \
             {incarnation}, index {index}): watch without a place, read what is there, and go on"
        );
        Self::Plain { code: Code::OutOfRange, reason: "PLACE_GONE", message }
    }

    /// Who watches does not read.
    pub(crate) fn not_read() -> Self {
        let message =
            "what has happened was not read for 30 s: watch again, behind the last place".to_owned();
        Self::Plain { code: Code::ResourceExhausted, reason: "NOT_READ", message }
    }

    /// The token of a stream has become void.
    pub(crate) fn token_expired() -> Self {
        let message = "the token has expired: watch again with a new one, behind the last place";
        Self::unauthenticated("TOKEN_INVALID", message)
    }

    /// The event that is watched is gone.
    pub(crate) fn event_gone() -> Self {
        Self::not_found("EVENT_NOT_FOUND", "the event is gone: it was deleted, or the region was restored")
    }

    /// A region did not say how something is.
    pub(crate) fn region_silent() -> Self {
        let why = "the region did not say how the event is".to_owned();
        Self::Client { error: ClientError::Unavailable { why }, request_id: None }
    }

    /// The other side broke the protocol.
    pub(crate) fn internal(message: impl Into<String>) -> Self {
        Self::Plain { code: Code::Internal, reason: "INTERNAL", message: message.into() }
    }

    /// The gRPC code that the caller will see.
    pub(crate) fn code(&self) -> Code {
        match self {
            Self::Field { .. } => Code::InvalidArgument,
            Self::Plain { code, .. } => *code,
            Self::Overloaded { .. } | Self::Client { error: ClientError::Overloaded { .. }, .. } => {
                Code::ResourceExhausted
            }
            Self::Rejected { rejection, .. } => rejection_code(rejection),
            Self::Client { error: ClientError::Unknown { .. }, .. } => Code::DeadlineExceeded,
            Self::Client { error: ClientError::Unavailable { .. }, .. } => Code::Unavailable,
            Self::Client { error: ClientError::Invalid(_), .. } => Code::InvalidArgument,
        }
    }
}

/// The code of a rejection; one that makes no sense must not look like success.
fn rejection_code(rejection: &Rejection) -> Code {
    match Code::from(rejection.code) {
        Code::Ok => Code::Internal,
        code => code,
    }
}

/// Whether a region's "no" leaves the request as it was before: its deadline had passed when the region came
/// to it, so that nothing was executed and nothing is remembered. Unlike an unknown outcome this is certain:
/// the region looks for an earlier copy's outcome first.
pub(crate) fn is_undecided(rejection: &Rejection) -> bool {
    matches!(rejection.reason.as_str(), "EXPIRED" | "GATEWAY_CLOCK_AHEAD")
}

/// A delay before trying again that spreads a crowd.
fn jittered(base: Duration) -> Duration {
    base.mul_f64(tidewall_env::random::rng().random_range(0.5..=1.5))
}

fn build(
    code: Code,
    reason: &str,
    message: String,
    field: Option<&str>,
    retry_after: Option<Duration>,
    metadata: HashMap<String, String>,
) -> Status {
    let mut details = ErrorDetails::with_error_info(reason, DOMAIN, metadata);
    if let Some(field) = field {
        details.add_bad_request_violation(field, message.clone());
    }
    if let Some(retry_after) = retry_after {
        details.set_retry_info(Some(retry_after));
    }
    let mut status = Status::with_error_details(code, message, details);
    if let Some(retry_after) = retry_after {
        // What the retries that gRPC libraries make by themselves go by: they do not look into details.
        let pushback = MetadataValue::from(u64::try_from(retry_after.as_millis()).unwrap_or(u64::MAX));
        status.metadata_mut().insert("grpc-retry-pushback-ms", pushback);
    }
    status
}

/// The same status with the receipt of the decision as one more of its details.
fn with_receipt(status: &Status, receipt: &v1::Receipt) -> Status {
    const TYPE_URL: &str = "type.googleapis.com/tidewall.v1.Receipt";
    let any = prost_types::Any { type_url: TYPE_URL.to_owned(), value: receipt.encode_to_vec() };
    // Messages that are written one after the other are one message, with the details of both.
    let more = tonic_types::pb::Status { details: vec![any], ..Default::default() };
    let mut details = status.details().to_vec();
    details.extend(more.encode_to_vec());
    Status::with_details_and_metadata(
        status.code(),
        status.message(),
        details.into(),
        status.metadata().clone(),
    )
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = error.code();
        let none = HashMap::new;
        match error {
            ApiError::Field { field, reason, message } => {
                build(code, reason, format!("{field}: {message}"), Some(&field), None, none())
            }
            ApiError::Plain { reason, message, .. } => build(code, reason, message, None, None, none()),
            ApiError::Overloaded { retry_after, message } => {
                build(code, "OVERLOADED", message, None, Some(retry_after), none())
            }
            ApiError::Rejected { rejection, receipt } => {
                let field = (!rejection.field.is_empty()).then_some(rejection.field.as_str());
                let status = build(code, &rejection.reason, rejection.message, field, None, none());
                match receipt {
                    Some(receipt) => with_receipt(&status, &receipt),
                    None => status,
                }
            }
            ApiError::Client { error, request_id } => client_status(code, error, request_id),
        }
    }
}

fn client_status(code: Code, error: ClientError, request_id: Option<String>) -> Status {
    let metadata: HashMap<String, String> =
        request_id.map(|id| ("request_id".to_owned(), id)).into_iter().collect();
    match error {
        ClientError::Unknown { why } => {
            let what_to_do = if metadata.is_empty() { LOOK_FIRST } else { ASK_AGAIN };
            build(code, "OUTCOME_UNKNOWN", format!("{what_to_do} ({why})"), None, None, metadata)
        }
        ClientError::Unavailable { why } => {
            let message = format!(
                "the region did not answer before the deadline and nothing was decided: try again ({why})"
            );
            let retry_after = jittered(Duration::from_millis(500));
            build(code, "REGION_UNAVAILABLE", message, None, Some(retry_after), metadata)
        }
        ClientError::Overloaded { retry_after, message } => {
            let message = format!("the region is overloaded and decided nothing: {message}");
            // A refusal without a delay would be answered by a crowd at once.
            let retry_after =
                if retry_after.is_zero() { jittered(Duration::from_millis(200)) } else { retry_after };
            build(code, "OVERLOADED", message, None, Some(retry_after), metadata)
        }
        ClientError::Invalid(message) => build(code, "INVALID_REQUEST", message, None, None, metadata),
    }
}

/// A status that libraries do not repeat by themselves, although they repeat others of its code (gRFC A6).
pub(crate) fn never_again(mut status: Status) -> Status {
    status.metadata_mut().insert("grpc-retry-pushback-ms", MetadataValue::from_static("-1"));
    status
}

/// A status with a reason and nothing else.
pub(crate) fn plain_status(code: Code, reason: &str, message: String) -> Status {
    build(code, reason, message, None, None, HashMap::new())
}

/// Which compressions are read.
const ACCEPT_ENCODING: &str = "grpc-accept-encoding";

/// What somebody is told whose deadline passed before there was an answer.
pub(crate) fn late(effect: Effect) -> Status {
    let (reason, message) = match effect {
        Effect::Command | Effect::Commands => ("OUTCOME_UNKNOWN", ASK_AGAIN),
        Effect::Order | Effect::Idempotent => ("OUTCOME_UNKNOWN", LOOK_FIRST),
        Effect::Read | Effect::Unspecified => {
            ("DEADLINE_EXCEEDED", "the deadline passed before there was an answer: ask again, with more time")
        }
    };
    plain_status(Code::DeadlineExceeded, reason, message.to_owned())
}

/// Gives errors of the transport library, which carry no details, a reason and a way out. `None` when the
/// status already says enough.
pub(crate) fn translate_transport_error(status: &Status) -> Option<Status> {
    if !status.details().is_empty() {
        return None;
    }
    let plain = |code, reason, message| Some(plain_status(code, reason, message));
    match status.code() {
        Code::OutOfRange | Code::ResourceExhausted
            if ["message length too large", "exceeded while decompressing"]
                .iter()
                .any(|words| status.message().contains(words)) =>
        {
            let advice = "send less in one request, for example fewer purchases per batch";
            plain(Code::InvalidArgument, "MESSAGE_TOO_LARGE", format!("{}: {advice}", status.message()))
        }
        Code::Internal => plain(
            Code::InvalidArgument,
            "MALFORMED_MESSAGE",
            format!(
                "the message could not be decoded ({}): build it from the .proto files of tidewall.v1",
                status.message()
            ),
        ),
        Code::Unimplemented if status.metadata().contains_key(ACCEPT_ENCODING) => {
            let message =
                "messages with this compression are not read here: `grpc-accept-encoding` says which are";
            let mut better = plain_status(Code::Unimplemented, "ENCODING_NOT_SUPPORTED", message.to_owned());
            if let Some(accepted) = status.metadata().get(ACCEPT_ENCODING) {
                better.metadata_mut().insert(ACCEPT_ENCODING, accepted.clone());
            }
            Some(better)
        }
        Code::Unimplemented => plain(
            Code::Unimplemented,
            "NO_SUCH_METHOD",
            "this server has no such method, or not with this encoding: server reflection lists what it has"
                .to_owned(),
        ),
        _ => None,
    }
}

/// What a decided or undecided item of a batch says instead of a result.
pub(crate) fn batch_refusal(refusal: &pb::Refusal) -> (Code, &'static str, String) {
    match refusal.kind() {
        pb::RefusalKind::Overloaded => (
            Code::ResourceExhausted,
            "OVERLOADED",
            format!(
                "not decided: {}; send it again after {} ms",
                refusal.message,
                refusal.retry_after_ms.max(50)
            ),
        ),
        pb::RefusalKind::NotLeader
        | pb::RefusalKind::Behind
        | pb::RefusalKind::Halted
        | pb::RefusalKind::NotYet => {
            (Code::Unavailable, "REGION_UNAVAILABLE", format!("not decided: {}", refusal.message))
        }
        pb::RefusalKind::Invalid => (Code::InvalidArgument, "INVALID_REQUEST", refusal.message.clone()),
        pb::RefusalKind::Unknown | pb::RefusalKind::Unspecified => {
            (Code::DeadlineExceeded, "OUTCOME_UNKNOWN", format!("{ASK_AGAIN} ({})", refusal.message))
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn client(error: ClientError) -> Status {
        ApiError::Client { error, request_id: Some("id-1".into()) }.into()
    }

    #[test]
    fn unknown_stays_unknown_and_carries_the_request_id() {
        let status = client(ClientError::Unknown { why: "the connection broke".into() });
        assert_eq!(status.code(), Code::DeadlineExceeded);
        let details = status.get_error_details();
        let info = details.error_info().unwrap();
        assert_eq!((info.reason.as_str(), info.domain.as_str()), ("OUTCOME_UNKNOWN", "tidewall"));
        assert_eq!(info.metadata["request_id"], "id-1");
        assert!(details.retry_info().is_none());
        assert!(status.message().contains("same request_id") && status.message().contains("GetOutcome"));
    }

    #[test]
    fn overload_always_says_when_to_come_back() {
        for retry_ms in [0, 70] {
            let retry_after = Duration::from_millis(retry_ms);
            let status = client(ClientError::Overloaded { retry_after, message: "queue".into() });
            assert_eq!(status.code(), Code::ResourceExhausted);
            let delay = status.get_details_retry_info().unwrap().retry_delay.unwrap();
            assert!(delay >= Duration::from_millis(70), "{delay:?}");
            let pushback = status.metadata().get("grpc-retry-pushback-ms").unwrap().to_str().unwrap();
            assert_eq!(pushback.parse::<u128>().unwrap(), delay.as_millis());
        }
        let status = client(ClientError::Unavailable { why: "electing".into() });
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.get_details_retry_info().unwrap().retry_delay.is_some());
    }

    #[test]
    fn a_rejection_keeps_its_reason_and_names_its_field() {
        let rejection = Rejection {
            reason: "SOLD_OUT".into(),
            message: "no ticket is left".into(),
            code: Code::FailedPrecondition.into(),
            field: "tier_id".into(),
        };
        let receipt = v1::Receipt { index: 7, term: 2, ..Default::default() };
        let boxed = Some(Box::new(receipt.clone()));
        let decided: Status = ApiError::Rejected { rejection: rejection.clone(), receipt: boxed }.into();
        let details = tonic_types::pb::Status::decode(decided.details()).unwrap().details;
        let carried = details.iter().find(|any| any.type_url.ends_with("/tidewall.v1.Receipt")).unwrap();
        assert_eq!(v1::Receipt::decode(carried.value.as_slice()).unwrap(), receipt);
        assert_eq!(decided.get_details_error_info().unwrap().reason, "SOLD_OUT");
        let status: Status = ApiError::Rejected { rejection, receipt: None }.into();
        assert_eq!(status.code(), Code::FailedPrecondition);
        assert_eq!((decided.code(), decided.message()), (status.code(), status.message()));
        let details = status.get_error_details();
        assert_eq!(details.error_info().unwrap().reason, "SOLD_OUT");
        assert_eq!(details.bad_request().unwrap().field_violations[0].field, "tier_id");
        let rejection = Rejection { code: 0, ..Default::default() };
        let nonsense = ApiError::Rejected { rejection, receipt: None };
        assert_eq!(nonsense.code(), Code::Internal, "a no is never OK");
    }

    #[test]
    fn a_command_that_came_too_late_is_expired_and_not_unknown() {
        let expired = Rejection {
            reason: "EXPIRED".into(),
            message: "too late".into(),
            code: Code::DeadlineExceeded.into(),
            field: String::new(),
        };
        assert!(is_undecided(&expired));
        let status: Status = ApiError::Rejected { rejection: expired, receipt: None }.into();
        assert_eq!(status.code(), Code::DeadlineExceeded);
        assert_eq!(status.get_details_error_info().unwrap().reason, "EXPIRED");
        assert_eq!(status.message(), "too late");
    }

    #[test]
    fn the_librarys_errors_get_a_way_out() {
        let large = Status::out_of_range("Error, decoded message length too large: found 9 bytes");
        let status = translate_transport_error(&large).unwrap();
        assert_eq!(status.code(), Code::InvalidArgument);
        assert_eq!(status.get_details_error_info().unwrap().reason, "MESSAGE_TOO_LARGE");
        let own: Status = ApiError::internal("x").into();
        assert!(translate_transport_error(&own).is_none(), "our own errors stay as they are");
        let told = |effect| {
            let status = late(effect);
            (status.get_details_error_info().unwrap().reason, status.message().contains("same request_id"))
        };
        assert_eq!(told(Effect::Command), ("OUTCOME_UNKNOWN".to_owned(), true));
        assert_eq!(told(Effect::Order), ("OUTCOME_UNKNOWN".to_owned(), false));
        assert_eq!(told(Effect::Read), ("DEADLINE_EXCEEDED".to_owned(), false));
        assert!(translate_transport_error(&Status::cancelled("the client went away")).is_none());
    }
}
