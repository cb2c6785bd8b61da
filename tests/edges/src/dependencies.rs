//! What the dependencies are licensed under, and which of them are there in several versions.
//!
//! Advisories change without us: look for them with `cargo deny check advisories` (`cargo install cargo-deny`) before a release.

use std::collections::{BTreeMap, BTreeSet};

use cargo_metadata::Metadata;

/// Licences that dependencies may be under: none of them asks anything of a program that uses them but to be named.
pub const LICENCES: &[&str] = &[
    "Apache-2.0",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    // Of data: the certificates that Mozilla trusts.
    "CDLA-Permissive-2.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Zlib",
];

/// Crates that are there in several versions, because those who need them do not agree. A new one is a decision: take versions that
/// agree, or add it here.
pub const DUPLICATES: &[&str] = &[
    "base64",
    "block-buffer",
    "cpufeatures",
    "crypto-common",
    "digest",
    "getrandom",
    "hashbrown",
    "itertools",
    "parking_lot",
    "parking_lot_core",
    "phf",
    "phf_shared",
    "rand",
    "rand_core",
    "sha2",
    "syn",
    "synstructure",
    "unicode-width",
    "winnow",
];

/// Whether an SPDX expression can be met with allowed licences alone. Old manifests say `/` for `OR`.
pub fn allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    let met = any(&mut words);
    met && words.next().is_none()
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any(words: &mut Words<'_>) -> bool {
    let mut met = all(words);
    while words.next_if_eq(&"OR").is_some() {
        met |= all(words);
    }
    met
}

fn all(words: &mut Words<'_>) -> bool {
    let mut met = one(words);
    while words.next_if_eq(&"AND").is_some() {
        met &= one(words);
    }
    met
}

fn one(words: &mut Words<'_>) -> bool {
    if words.next_if_eq(&"(").is_some() {
        let met = any(words);
        return words.next_if_eq(&")").is_some() && met;
    }
    let met = words.next().is_some_and(|name| LICENCES.contains(&name));
    // An exception only ever allows more.
    if words.next_if_eq(&"WITH").is_some() {
        words.next();
    }
    met
}

/// What is wrong with the dependencies, said so that its reader knows what to do. Empty means all is well.
pub fn check(metadata: &Metadata) -> Vec<String> {
    let ours: BTreeSet<_> = metadata.workspace_members.iter().collect();
    let foreign = metadata.packages.iter().filter(|package| !ours.contains(&package.id));
    let mut violations = Vec::new();
    let mut versions: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for package in foreign {
        versions.entry(package.name.as_str()).or_default().insert(package.version.to_string());
        let licence = package.license.as_deref().unwrap_or("none");
        if !allowed(licence) {
            violations.push(format!(
                "{} {} has the licence {licence}: use something else, or decide that it may be used (tests/edges, LICENCES)",
                package.name, package.version
            ));
        }
    }
    for (name, versions) in &versions {
        match (versions.len() > 1, DUPLICATES.contains(name)) {
            (true, false) => violations.push(format!(
                "{name} is there in several versions, {versions:?}: make those who need it agree, or add it to DUPLICATES (tests/edges)"
            )),
            (false, true) => violations.push(format!("{name} is there once by now: remove it from DUPLICATES (tests/edges)")),
            _ => {}
        }
    }
    violations
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_is_met_by_one_of_its_alternatives_and_by_all_of_its_parts() {
        for fine in [
            "MIT",
            "MIT/GPL-3.0",
            "GPL-3.0 OR MIT",
            "MIT AND ISC",
            "(MIT OR GPL-3.0) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR GPL-2.0",
            "LGPL-2.1-or-later OR (ISC AND MIT)",
        ] {
            assert!(allowed(fine), "{fine}");
        }
        for wrong in
            ["", "none", "GPL-3.0", "MIT AND GPL-3.0", "(MIT OR ISC) AND GPL-3.0", "MIT)", "(MIT", "MIT ISC"]
        {
            assert!(!allowed(wrong), "{wrong}");
        }
    }
}
