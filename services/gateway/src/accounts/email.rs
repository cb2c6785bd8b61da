//! E-mail addresses in one spelling, so that one person has one account whatever is typed.

use unicode_normalization::UnicodeNormalization as _;

/// Longest address, bytes (RFC 5321).
const BYTES_MAX: usize = 254;
/// Longest part before the @, bytes (RFC 5321).
const LOCAL_BYTES_MAX: usize = 64;

/// The address as it is compared: compatibility forms folded (NFKC), lower case, the domain as DNS has it (IDNA). RFC 5321 lets a
/// server tell upper from lower case before the @; none that people use does.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn normalised(text: &str) -> Result<String, String> {
    if text.len() > 2 * BYTES_MAX {
        return Err(format!("has more than {BYTES_MAX} bytes"));
    }
    // Lower case can undo the composition, and composition the lower case.
    let folded: String = text.trim().nfkc().collect::<String>().to_lowercase().nfkc().collect();
    let (local, domain) = folded.rsplit_once('@').ok_or("has no @: write it as name@example.org")?;
    let sound = |c: char| {
        !c.is_control() && !c.is_whitespace() && !matches!(c, '@' | '<' | '>' | '"' | ',' | ';' | '(' | ')')
    };
    if local.is_empty() || local.len() > LOCAL_BYTES_MAX || !local.chars().all(sound) {
        return Err(format!(
            "has before the @ something else than 1 to {LOCAL_BYTES_MAX} bytes without spaces, quotes and brackets"
        ));
    }
    if local.starts_with('.') || local.ends_with('.') || local.contains("..") {
        return Err("has a dot before the @ where none can be".to_owned());
    }
    let domain =
        idna::domain_to_ascii_strict(domain).map_err(|_| "has no valid domain behind the @".to_owned())?;
    if domain.is_empty() || !domain.contains('.') || domain.ends_with('.') {
        return Err("has no whole domain behind the @: write it as name@example.org".to_owned());
    }
    let address = format!("{local}@{domain}");
    if address.len() > BYTES_MAX {
        return Err(format!("has more than {BYTES_MAX} bytes"));
    }
    Ok(address)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn spellings_of_one_address_are_one() {
        for (typed, one) in [
            ("Ann@Example.ORG", "ann@example.org"),
            ("  ann@example.org\n", "ann@example.org"),
            ("ANN+tickets@example.org", "ann+tickets@example.org"),
            // Full width, and composed against decomposed.
            ("\u{ff41}nn@example.org", "ann@example.org"),
            ("Zoe\u{308}@example.org", "zo\u{eb}@example.org"),
            ("ZO\u{cb}@example.org", "zo\u{eb}@example.org"),
            ("ann@B\u{fc}cher.example", "ann@xn--bcher-kva.example"),
            ("ann@xn--bcher-kva.example", "ann@xn--bcher-kva.example"),
        ] {
            let normal = normalised(typed).unwrap();
            assert_eq!(normal, one, "{typed:?}");
            assert_eq!(normalised(&normal).unwrap(), one, "once is enough");
        }
    }

    #[test]
    fn what_is_no_address_is_refused() {
        let long_local = format!("{}@example.org", "x".repeat(65));
        let long = format!("x@{}.org", "a.".repeat(130));
        for text in [
            "",
            "ann",
            "@example.org",
            "ann@",
            "ann@localhost",
            "ann@example.org.",
            "a nn@example.org",
            "ann@exa mple.org",
            "a@b@example.org",
            ".ann@example.org",
            "a..n@example.org",
            "<ann@example.org>",
            "a\u{0}n@example.org",
            "ann@-example.org",
            "ann@exa_mple.org",
            &long_local,
            &long,
            &"x".repeat(10_000),
        ] {
            assert!(normalised(text).is_err(), "{text:?}");
        }
    }
}
