//! What an error of one attempt says: its details as fields, and what follows from it. The one place that knows
//! the reasons of docs/API.md. It must never read more certainty into an error than the service put there:
//! what has no known reason may have been executed.

use std::collections::BTreeMap;
use std::error::Error as _;
use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};
use tonic_types::StatusExt as _;

/// Domain of the service's own `google.rpc.ErrorInfo`.
const DOMAIN: &str = "tidewall";

/// What a reason says about the attempt that ended with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Execution {
    /// The region decided "no".
    Decided,
    /// This attempt was not executed.
    NotExecuted,
    /// Nobody knows.
    Unknown,
}

macro_rules! reasons {
    ($($(#[$doc:meta])* $variant:ident $text:literal $execution:ident;)*) => {
        /// Why the service said no: `reason` of its `google.rpc.ErrorInfo`. docs/API.md explains each.
        #[derive(Debug, Clone, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Reason {
            $($(#[$doc])* $variant,)*
            /// A reason that this version of the crate does not know.
            Other(String),
        }

        impl Reason {
            fn parse(text: &str) -> Self {
                match text {
                    $($text => Self::$variant,)*
                    other => Self::Other(other.to_owned()),
                }
            }

            /// As in docs/API.md, for example `SOLD_OUT`.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other(text) => text,
                }
            }

            pub(crate) fn execution(&self) -> Execution {
                match self {
                    $(Self::$variant => Execution::$execution,)*
                    Self::Other(_) => Execution::Unknown,
                }
            }

            #[cfg(test)]
            const ALL: &[(&str, Execution)] = &[$(($text, Execution::$execution),)*];
        }
    };
}

reasons! {
    /// Fewer places are free than were asked for.
    SoldOut "SOLD_OUT" Decided;
    /// Somebody holds or owns a named seat.
    SeatTaken "SEAT_TAKEN" Decided;
    /// More than the quota per buyer.
    QuotaExceeded "QUOTA_EXCEEDED" Decided;
    /// Before the sale.
    SaleNotOpen "SALE_NOT_OPEN" Decided;
    /// After the sale.
    SaleClosed "SALE_CLOSED" Decided;
    /// The hold ran out before it was confirmed.
    HoldExpired "HOLD_EXPIRED" Decided;
    /// The ticket was cancelled before.
    TicketCancelled "TICKET_CANCELLED" Decided;
    /// A capacity below what is held and sold.
    CapacityTooSmall "CAPACITY_TOO_SMALL" Decided;
    /// A change of a tier that is not allowed.
    TierFixed "TIER_FIXED" Decided;
    /// Places of the event were held or sold: it stays.
    EventInUse "EVENT_IN_USE" Decided;
    /// No such event.
    EventNotFound "EVENT_NOT_FOUND" Decided;
    /// No such tier.
    TierNotFound "TIER_NOT_FOUND" Decided;
    /// No such seat.
    SeatNotFound "SEAT_NOT_FOUND" Decided;
    /// The hold never existed, or is over.
    HoldNotFound "HOLD_NOT_FOUND" Decided;
    /// There is no such webhook.
    WebhookNotFound "WEBHOOK_NOT_FOUND" Decided;
    /// There are as many webhooks as may be.
    TooManyWebhooks "TOO_MANY_WEBHOOKS" Decided;
    /// No such ticket.
    TicketNotFound "TICKET_NOT_FOUND" Decided;
    /// The event id is taken.
    EventExists "EVENT_EXISTS" Decided;
    /// The event, hold or ticket belongs to somebody else.
    NotOwner "NOT_OWNER" Decided;
    /// The event was changed meanwhile.
    RevisionMismatch "REVISION_MISMATCH" Decided;
    /// It would have broken an invariant; nothing was changed.
    InternalInvariant "INTERNAL_INVARIANT" Decided;
    /// No such account. Only said to those who may look at accounts.
    AccountNotFound "ACCOUNT_NOT_FOUND" Decided;
    /// E-mail and password do not belong together.
    LogInFailed "LOG_IN_FAILED" Decided;
    /// The session has ended, or the token is none of it.
    SessionInvalid "SESSION_INVALID" Decided;
    /// As many passwords were tried as may be.
    TooManyAttempts "TOO_MANY_ATTEMPTS" Decided;
    /// Another change of the password came first.
    PasswordChanged "PASSWORD_CHANGED" Decided;
    /// The e-mail of the account is being changed already.
    EmailChanging "EMAIL_CHANGING" Decided;
    /// Another account has the new e-mail.
    EmailTaken "EMAIL_TAKEN" Decided;
    /// Whether the new e-mail is free could not be found out: it was not changed.
    EmailNotChanged "EMAIL_NOT_CHANGED" Decided;
    /// Whether the e-mail is free could not be found out: there is no account.
    NotRegistered "NOT_REGISTERED" Decided;
    /// The region has an admin.
    AdminExists "ADMIN_EXISTS" Decided;
    /// One admin must be left.
    LastAdmin "LAST_ADMIN" Decided;
    /// A bound was reached; try again after the stated time.
    Overloaded "OVERLOADED" NotExecuted;
    /// No leader answered in time.
    RegionUnavailable "REGION_UNAVAILABLE" NotExecuted;
    /// The attempt reached its decision after its deadline.
    Expired "EXPIRED" NotExecuted;
    /// The request id is missing.
    RequestIdRequired "REQUEST_ID_REQUIRED" NotExecuted;
    /// The request id is not a UUID of version 7, or from the future.
    RequestIdInvalid "REQUEST_ID_INVALID" NotExecuted;
    /// The request id is older than what the region remembers.
    RequestIdExpired "REQUEST_ID_EXPIRED" NotExecuted;
    /// The request id was sealed before anything was decided under it.
    RequestIdSealed "REQUEST_ID_SEALED" NotExecuted;
    /// The buyer has as many holds as anybody may have.
    TooManyHolds "TOO_MANY_HOLDS" Decided;
    /// The gateway's clock is ahead of the region's.
    GatewayClockAhead "GATEWAY_CLOCK_AHEAD" NotExecuted;
    /// The request id was used before with other content.
    RequestIdReused "REQUEST_ID_REUSED" NotExecuted;
    /// No token.
    TokenRequired "TOKEN_REQUIRED" NotExecuted;
    /// Not a token.
    TokenMalformed "TOKEN_MALFORMED" NotExecuted;
    /// A token that is not accepted, for example an expired one.
    TokenInvalid "TOKEN_INVALID" NotExecuted;
    /// The token lacks a role.
    RoleRequired "ROLE_REQUIRED" NotExecuted;
    /// Somebody else's ticket.
    NotYourTicket "NOT_YOUR_TICKET" NotExecuted;
    /// Somebody else's tickets.
    NotYourTickets "NOT_YOUR_TICKETS" NotExecuted;
    /// Somebody else's hold.
    NotYourHold "NOT_YOUR_HOLD" NotExecuted;
    /// Somebody else's holds.
    NotYourHolds "NOT_YOUR_HOLDS" NotExecuted;
    /// What concerns others.
    NotYourChanges "NOT_YOUR_CHANGES" NotExecuted;
    /// What has happened behind a place is not kept any more.
    PlaceGone "PLACE_GONE" NotExecuted;
    /// What was told was not read.
    NotRead "NOT_READ" NotExecuted;
    /// Somebody else's account.
    NotYourAccount "NOT_YOUR_ACCOUNT" NotExecuted;
    /// Somebody else's webhook.
    NotYourWebhook "NOT_YOUR_WEBHOOK" NotExecuted;
    /// The gateway serves no accounts.
    AccountsNotServed "ACCOUNTS_NOT_SERVED" NotExecuted;
    /// The personal fields of the account were erased.
    PersonErased "PERSON_ERASED" NotExecuted;
    /// No deadline.
    DeadlineRequired "DEADLINE_REQUIRED" NotExecuted;
    /// A malformed deadline.
    DeadlineInvalid "DEADLINE_INVALID" NotExecuted;
    /// A malformed resource name; the field is named.
    NameInvalid "NAME_INVALID" NotExecuted;
    /// A value that breaks a rule; the field is named.
    InvalidField "INVALID_FIELD" NotExecuted;
    /// An update mask that cannot be used.
    UpdateMaskInvalid "UPDATE_MASK_INVALID" NotExecuted;
    /// A page token that cannot be used.
    PageTokenInvalid "PAGE_TOKEN_INVALID" NotExecuted;
    /// The region cannot make sense of the request.
    InvalidRequest "INVALID_REQUEST" NotExecuted;
    /// This cluster has no such region.
    RegionNotFound "REGION_NOT_FOUND" NotExecuted;
    /// The message is too large.
    MessageTooLarge "MESSAGE_TOO_LARGE" NotExecuted;
    /// Not a message of this API.
    MalformedMessage "MALFORMED_MESSAGE" NotExecuted;
    /// No such method.
    NoSuchMethod "NO_SUCH_METHOD" NotExecuted;
    /// A compression that gateways do not read.
    EncodingNotSupported "ENCODING_NOT_SUPPORTED" NotExecuted;
    /// The health of a service that is not there was asked for.
    ServiceNotFound "SERVICE_NOT_FOUND" NotExecuted;
    /// A second message where one belongs.
    MoreThanOneMessage "MORE_THAN_ONE_MESSAGE" NotExecuted;
    /// More metadata than a gateway reads.
    MetadataTooLarge "METADATA_TOO_LARGE" NotExecuted;
    /// A call that changes nothing had no answer in time.
    DeadlineExceeded "DEADLINE_EXCEEDED" NotExecuted;
    /// Nobody knows whether it was decided.
    OutcomeUnknown "OUTCOME_UNKNOWN" Unknown;
    /// The key of an account was lost.
    KeyMissing "KEY_MISSING" Unknown;
    /// Gateway and node do not fit together.
    Internal "INTERNAL" Unknown;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A wrong field of a request, from `google.rpc.BadRequest`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WrongField {
    /// Its path, such as `purchases[3].quantity`.
    pub field: String,
    /// What is wrong with it.
    pub description: String,
}

/// What an attempt ended with, its details as fields.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The gRPC code.
    pub code: Code,
    /// Why, when the service itself said it; `None` for errors of the transport.
    pub reason: Option<Reason>,
    /// What happened, to what, and what to do; for people.
    pub message: String,
    /// The wrong fields, if any.
    pub fields: Vec<WrongField>,
    /// After which time to try again, if the service said so.
    pub retry_after: Option<Duration>,
    /// Further details of the service, such as `request_id`.
    pub metadata: BTreeMap<String, String>,
    /// The gateway that was asked; empty when none was.
    pub endpoint: String,
}

impl Failure {
    /// Reads a status.
    pub(crate) fn of_status(status: &Status, endpoint: &str) -> Self {
        let details = status.get_error_details();
        let info = details.error_info().filter(|info| info.domain == DOMAIN).cloned();
        let (reason, metadata) = match info {
            Some(info) => (Some(Reason::parse(&info.reason)), info.metadata.into_iter().collect()),
            None => (None, BTreeMap::new()),
        };
        let fields = details.bad_request().map(|wrong| wrong.field_violations.clone()).unwrap_or_default();
        Self {
            code: status.code(),
            reason,
            message: status.message().to_owned(),
            fields: fields
                .into_iter()
                .map(|wrong| WrongField { field: wrong.field, description: wrong.description })
                .collect(),
            retry_after: details.retry_info().and_then(|info| info.retry_delay),
            metadata,
            endpoint: endpoint.to_owned(),
        }
    }

    /// A rejection that stands in a message: an item of a batch, a remembered outcome.
    pub(crate) fn of_rejection(rejection: &tidewall_proto::v1::Rejection, endpoint: &str) -> Self {
        Self {
            code: Code::from(rejection.code),
            reason: Some(Reason::parse(&rejection.reason)),
            message: rejection.message.clone(),
            fields: Vec::new(),
            retry_after: None,
            metadata: BTreeMap::new(),
            endpoint: endpoint.to_owned(),
        }
    }

    /// Something that happened on this side.
    pub(crate) fn local(code: Code, message: impl Into<String>, endpoint: &str) -> Self {
        Self {
            code,
            reason: None,
            message: message.into(),
            fields: Vec::new(),
            retry_after: None,
            metadata: BTreeMap::new(),
            endpoint: endpoint.to_owned(),
        }
    }

    /// What the reason says; without one, nobody knows.
    pub(crate) fn execution(&self) -> Execution {
        self.reason.as_ref().map_or(Execution::Unknown, Reason::execution)
    }

    /// Whether the same request may fare better soon.
    pub(crate) fn is_passing(&self) -> bool {
        match &self.reason {
            Some(Reason::Overloaded | Reason::RegionUnavailable | Reason::Expired) => true,
            Some(Reason::OutcomeUnknown | Reason::Internal) => true,
            Some(Reason::Other(_)) | None => matches!(
                self.code,
                Code::Unavailable
                    | Code::DeadlineExceeded
                    | Code::ResourceExhausted
                    | Code::Cancelled
                    | Code::Unknown
                    | Code::Internal
            ),
            Some(_) => false,
        }
    }

    /// Whether it looks as if the connection or the gateway failed, not the request.
    pub(crate) fn blames_endpoint(&self) -> bool {
        self.reason.is_none()
            && matches!(
                self.code,
                Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled | Code::Unknown | Code::Internal
            )
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            Some(reason) => write!(f, "{reason}: {}", self.message),
            None => write!(f, "{:?}: {}", self.code, self.message),
        }
    }
}

/// Whether a status means that no connection could be made, so that nothing was sent.
pub(crate) fn never_left(status: &Status) -> bool {
    let mut cause = status.source();
    while let Some(error) = cause {
        if error.downcast_ref::<tonic::ConnectError>().is_some() {
            return true;
        }
        cause = error.source();
    }
    false
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::{BTreeSet, HashMap};

    use tonic_types::ErrorDetails;

    use super::*;

    /// The reasons in one table of docs/API.md.
    fn documented(section: &str) -> BTreeSet<String> {
        let guide = include_str!("../../../docs/API.md");
        let (_, after) = guide.split_once(&format!("\n### {section}\n")).unwrap();
        let table = after.split("\n#").next().unwrap();
        let rows = table.lines().filter_map(|line| line.strip_prefix("| `"));
        let first_cells = rows.map(|row| row.split(" | ").next().unwrap());
        first_cells.flat_map(|cell| cell.split(", ").map(|text| text.trim_matches('`').to_owned())).collect()
    }

    #[test]
    fn the_reasons_are_those_of_the_guide() {
        let decided = documented("Decided by the region");
        let [not_executed, unknown] = ["Not executed", "Unknown"].map(documented);
        assert!(decided.contains("SOLD_OUT") && decided.contains("SEAT_NOT_FOUND"), "{decided:?}");
        for (text, execution) in Reason::ALL {
            let reason = Reason::parse(text);
            assert_eq!((reason.as_str(), reason.execution()), (*text, *execution));
            let table = match execution {
                Execution::Decided => &decided,
                Execution::NotExecuted => &not_executed,
                Execution::Unknown => &unknown,
            };
            assert!(table.contains(*text), "{text} is not in the guide's table of {execution:?}");
        }
        for text in &decided {
            // It is in both tables: whether the region or the gateway saw it, nothing was executed.
            let expected = if text == "INVALID_FIELD" { Execution::NotExecuted } else { Execution::Decided };
            assert_eq!(Reason::parse(text).execution(), expected, "{text}: add it to the list of reasons");
        }
        // Calls that this crate does not make have reasons of their own; those may stay unknown to it.
        for text in &unknown {
            assert_eq!(Reason::parse(text).execution(), Execution::Unknown, "{text}");
        }
    }

    fn detailed(code: Code, reason: &str, domain: &str) -> Status {
        let metadata = HashMap::from([("request_id".to_owned(), "id-1".to_owned())]);
        let mut details = ErrorDetails::with_error_info(reason, domain, metadata);
        details.add_bad_request_violation("quantity", "must be 1 to 100");
        details.set_retry_info(Some(Duration::from_millis(70)));
        Status::with_error_details(code, "no", details)
    }

    #[test]
    fn details_become_fields() {
        let status = detailed(Code::ResourceExhausted, "OVERLOADED", "tidewall");
        let failure = Failure::of_status(&status, "http://a");
        assert_eq!(failure.reason, Some(Reason::Overloaded));
        assert_eq!(failure.retry_after, Some(Duration::from_millis(70)));
        assert_eq!(failure.metadata["request_id"], "id-1");
        assert_eq!((failure.fields[0].field.as_str(), failure.endpoint.as_str()), ("quantity", "http://a"));
        assert_eq!(failure.to_string(), "OVERLOADED: no");
        assert!(failure.is_passing() && failure.execution() == Execution::NotExecuted);
    }

    #[test]
    fn what_is_not_from_the_service_or_not_known_is_unknown() {
        let other = Failure::of_status(&detailed(Code::FailedPrecondition, "SOLD_OUT", "proxy"), "");
        assert_eq!((other.reason.clone(), other.execution()), (None, Execution::Unknown));
        let newer = Failure::of_status(&detailed(Code::FailedPrecondition, "ON_STRIKE", "tidewall"), "");
        assert_eq!(newer.reason, Some(Reason::Other("ON_STRIKE".into())));
        assert!(newer.execution() == Execution::Unknown && !newer.is_passing() && !newer.blames_endpoint());
        for code in [Code::Unavailable, Code::Cancelled, Code::Unknown, Code::DeadlineExceeded] {
            let failure = Failure::of_status(&Status::new(code, "cut"), "");
            assert!(
                failure.execution() == Execution::Unknown
                    && failure.is_passing()
                    && failure.blames_endpoint()
            );
        }
        assert!(!Failure::of_status(&Status::permission_denied("proxy"), "").is_passing());
        assert!(!never_left(&Status::unavailable("cut")));
    }
}
