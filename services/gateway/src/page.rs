//! Page tokens: opaque to clients, bound to the list they came from. They carry a position, never data.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::errors::ApiError;

/// Version of the token's content.
const VERSION: &str = "1";
/// Cannot occur in names or subjects.
const SEPARATOR: char = '\u{0}';

/// A token for the page after `last` of the list that `scope` names.
pub(crate) fn encode(scope: &str, last: &str) -> String {
    URL_SAFE_NO_PAD.encode(format!("{VERSION}{SEPARATOR}{scope}{SEPARATOR}{last}"))
}

/// The key after which the page begins; empty for the first page.
pub(crate) fn decode(scope: &str, token: &str) -> Result<String, ApiError> {
    if token.is_empty() {
        return Ok(String::new());
    }
    let bytes = URL_SAFE_NO_PAD.decode(token).map_err(|_| refused())?;
    let text = String::from_utf8(bytes).map_err(|_| refused())?;
    let mut parts = text.split(SEPARATOR);
    match (parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(VERSION), Some(of), Some(last), None) if of == scope => Ok(last.to_owned()),
        _ => Err(refused()),
    }
}

/// A page of a list that is there as a whole, ordered by `key`: what comes after the token, and the next token.
pub(crate) fn of<T>(
    mut items: Vec<T>,
    scope: &str,
    (page_token, size): (&str, u32),
    key: impl Fn(&T) -> String,
) -> Result<(Vec<T>, String), ApiError> {
    let after = decode(scope, page_token)?;
    items.retain(|item| key(item) > after);
    let more = items.len() > size as usize;
    items.truncate(size as usize);
    let next = items.last().filter(|_| more).map(|last| encode(scope, &key(last))).unwrap_or_default();
    Ok((items, next))
}

/// What a token is that does not belong here.
pub(crate) fn refused() -> ApiError {
    ApiError::field_reason(
        "page_token",
        "PAGE_TOKEN_INVALID",
        "is not a next_page_token of this list with these parameters: start again without one",
    )
}

/// The page size to use: `default` for 0; negative and too large ones are refused.
pub(crate) fn size(page_size: i32, default: u32, max: u32) -> Result<u32, ApiError> {
    match u32::try_from(page_size) {
        Ok(0) => Ok(default),
        Ok(size) if size <= max => Ok(size),
        _ => Err(ApiError::field("page_size", format!("must be 0 (for {default}) to {max}"))),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_leads_back_to_its_own_list_only() {
        let token = encode("regions/north", "gala");
        assert_eq!(decode("regions/north", &token).unwrap(), "gala");
        assert_eq!(decode("regions/north", "").unwrap(), "");
        assert!(decode("regions/south", &token).is_err());
        assert!(decode("regions/north", "gala").is_err());
        assert!(decode("regions/north", &token[1..]).is_err());
    }

    #[test]
    fn a_list_that_is_there_is_shown_page_by_page() {
        let items = vec!["a", "b", "c", "d", "e"];
        let (mut seen, mut token, mut pages) = (Vec::new(), String::new(), 0);
        loop {
            let page = of(items.clone(), "letters", (&token, 2), |item| (*item).to_owned()).unwrap();
            seen.extend(page.0);
            (token, pages) = (page.1, pages + 1);
            if token.is_empty() {
                break;
            }
        }
        assert_eq!((seen, pages), (items, 3));
    }

    #[test]
    fn page_sizes_are_bounded() {
        assert_eq!(size(0, 50, 1000).unwrap(), 50);
        assert_eq!(size(1000, 50, 1000).unwrap(), 1000);
        assert!(size(1001, 50, 1000).is_err());
        assert!(size(-1, 50, 1000).is_err());
    }
}
