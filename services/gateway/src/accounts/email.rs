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
    // Lower case has two small sigmas, by where they stand; upper case has one.
    let folded = folded.replace('\u{3c2}', "\u{3c3}");
    let (local, domain) = folded.rsplit_once('@').ok_or("has no @: write it as name@example.org")?;
    let sound = |c: char| {
        let special = matches!(c, '@' | '<' | '>' | '"' | ',' | ';' | '(' | ')');
        !(c.is_control() || c.is_whitespace() || special || is_invisible(c))
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

/// What no eye can see: two addresses that differ in it alone look like one (the format characters and variation selectors of Unicode).
fn is_invisible(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{34f}' | '\u{61c}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}' | '\u{180b}'..='\u{180f}'
        | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}'
        | '\u{feff}' | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{e0000}'..='\u{e0fff}')
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
            ("\u{391}\u{3a3}1@x.example", "\u{3b1}\u{3c3}1@x.example"),
            ("\u{3b1}\u{3c2}@x.example", "\u{3b1}\u{3c3}@x.example"),
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
            "a\u{200b}nn@example.org",
            "a\u{ad}nn@example.org",
            "ann\u{fe0f}@example.org",
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
