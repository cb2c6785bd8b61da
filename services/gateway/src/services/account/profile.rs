//! What is personal of an account: which fields there are, what may stand in them, and how they are opened for those who may see them.

use std::sync::Arc;

use prost_types::FieldMask;
use tidewall_messages::accounts::{self as messages, answer};
use tidewall_proto::v1;

use super::key_id;
use crate::accounts::{Accounts, PersonKey};
use crate::auth::{Role, roles_of};
use crate::convert;
use crate::edge::Call;
use crate::errors::ApiError;
use crate::services::Services;

/// Longest display name and device name, characters.
const NAME_CHARACTERS_MAX: usize = 100;
/// Longest locale and time zone, bytes.
const TAG_BYTES_MAX: usize = 64;

/// Numbers of personal fields; never used again.
pub(super) mod field {
    pub(in super::super) const EMAIL: u32 = 1;
    pub(in super::super) const DISPLAY_NAME: u32 = 2;
    pub(in super::super) const LOCALE: u32 = 3;
    pub(in super::super) const TIME_ZONE: u32 = 4;
    pub(in super::super) const DEVICE: u32 = 5;
}

/// A name for people.
pub(super) fn check_name(field: &str, text: &str) -> Result<(), ApiError> {
    if text.chars().count() > NAME_CHARACTERS_MAX || text.chars().any(char::is_control) {
        let why = format!("must have at most {NAME_CHARACTERS_MAX} characters, and no control characters");
        return Err(ApiError::field(field, why));
    }
    Ok(())
}

/// A tag for programs, such as `de-AT` or `Europe/Vienna`; may be empty.
pub(super) fn check_tag(field: &str, text: &str) -> Result<(), ApiError> {
    let sound = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'/' | b'+');
    if text.len() > TAG_BYTES_MAX || !text.bytes().all(sound) {
        let why = format!(
            "must have at most {TAG_BYTES_MAX} of [A-Za-z0-9-_/+], for example de-AT or Europe/Vienna"
        );
        return Err(ApiError::field(field, why));
    }
    Ok(())
}

/// The personal fields that a mask names.
pub(super) fn masked<'a>(
    account: &'a v1::Account,
    mask: Option<&FieldMask>,
) -> Result<Vec<(u32, &'a str)>, ApiError> {
    const PATHS: &str = "display_name, locale, time_zone";
    let paths = mask.map(|mask| mask.paths.as_slice()).unwrap_or_default();
    if paths.is_empty() {
        return Err(ApiError::field("update_mask", format!("must name what changes: {PATHS}")));
    }
    let mut fields = Vec::new();
    for path in paths {
        let (number, text) = match path.as_str() {
            "display_name" => {
                check_name("account.display_name", &account.display_name)?;
                (field::DISPLAY_NAME, account.display_name.as_str())
            }
            "locale" => {
                check_tag("account.locale", &account.locale)?;
                (field::LOCALE, account.locale.as_str())
            }
            "time_zone" => {
                check_tag("account.time_zone", &account.time_zone)?;
                (field::TIME_ZONE, account.time_zone.as_str())
            }
            _ => return Err(ApiError::field("update_mask", format!("{path:?} is none of {PATHS}"))),
        };
        if fields.iter().any(|(known, _)| *known == number) {
            return Err(ApiError::field("update_mask", format!("names {path:?} twice")));
        }
        fields.push((number, text));
    }
    Ok(fields)
}

/// Whether a caller may see an account.
pub(super) fn check_may_see(call: &Call, account: &str) -> Result<(), ApiError> {
    let caller = &call.principal;
    if caller.subject == account || caller.has(Role::Support) || caller.has(Role::Admin) {
        return Ok(());
    }
    let why = format!("{} may not see this account: only its owner, support and admins may", caller.subject);
    Err(ApiError::denied("NOT_YOUR_ACCOUNT", why))
}

pub(super) fn shown_roles(bits: u32) -> Vec<i32> {
    roles_of(bits).into_iter().map(i32::from).collect()
}

impl Services {
    pub(super) async fn account_view(
        &self,
        call: &Call,
        query: impl Into<messages::Query>,
    ) -> Result<messages::AccountView, ApiError> {
        match self.query(call, query.into()).await?.result {
            Some(answer::Result::Account(view)) => Ok(view),
            _ => Err(convert::mismatch()),
        }
    }

    /// A person's key; an error when it was erased.
    pub(super) async fn person(&self, call: &Call, id: &[u8]) -> Result<Arc<PersonKey>, ApiError> {
        self.person_unless_erased(call, id).await?.ok_or_else(|| {
            ApiError::precondition("PERSON_ERASED", "what was personal of this account was erased for ever")
        })
    }

    pub(super) async fn person_unless_erased(
        &self,
        call: &Call,
        id: &[u8],
    ) -> Result<Option<Arc<PersonKey>>, ApiError> {
        let Accounts { persons, secrets, .. } = self.accounts()?;
        persons.key(&self.0.client, secrets, call.group, key_id(id)?, call.deadline.at).await
    }

    /// An account as its owner sees it.
    pub(super) async fn shown(
        &self,
        call: &Call,
        view: messages::AccountView,
    ) -> Result<v1::Account, ApiError> {
        let key = self.person_unless_erased(call, &view.key_id).await?;
        let text = |number: u32| -> Result<String, ApiError> {
            let sealed = view.personal.iter().find(|sealed| sealed.field == number);
            match (sealed, &key) {
                (Some(sealed), Some(key)) => key.open(number, &sealed.ciphertext).map_err(|_| {
                    ApiError::internal(format!("field {number} of account {} does not open", view.account_id))
                }),
                _ => Ok(String::new()),
            }
        };
        Ok(v1::Account {
            name: view.subject.clone(),
            email: text(field::EMAIL)?,
            display_name: text(field::DISPLAY_NAME)?,
            locale: text(field::LOCALE)?,
            time_zone: text(field::TIME_ZONE)?,
            roles: shown_roles(view.roles),
            revision: view.revision,
            create_time: Some(convert::timestamp(view.created_at_ms)),
            erased: key.is_none(),
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_mask_names_each_field_once() {
        let account = v1::Account {
            display_name: "Ann".into(),
            locale: "de-AT".into(),
            time_zone: "Europe/Vienna".into(),
            ..Default::default()
        };
        let of = |paths: &[&str]| {
            let mask = FieldMask { paths: paths.iter().map(|path| (*path).to_owned()).collect() };
            masked(&account, Some(&mask)).map(|fields| fields.len())
        };
        assert_eq!(of(&["display_name", "time_zone"]).unwrap(), 2);
        for wrong in [&[][..], &["email"], &["roles"], &["locale", "locale"]] {
            assert!(of(wrong).is_err(), "{wrong:?}");
        }
        assert!(masked(&account, None).is_err());
        let odd = [
            v1::Account { display_name: "x".repeat(101), ..Default::default() },
            v1::Account { display_name: "a\nb".into(), ..Default::default() },
        ];
        for account in odd {
            let mask = FieldMask { paths: vec!["display_name".into()] };
            assert!(masked(&account, Some(&mask)).is_err());
        }
        for tag in ["de AT", "\u{e4}", &"x".repeat(65)] {
            assert!(check_tag("locale", tag).is_err(), "{tag}");
        }
    }
}
