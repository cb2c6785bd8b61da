//! The file that says which regions a new cluster has: TOML, one `[[regions]]` table each.
//!
//! Only the first start of a cluster uses it; afterwards the topology in the data directory is the
//! authority, and this file may only agree with it.

use std::path::Path;

use serde::Deserialize;
use tidewall_client::topology::{Region, valid_region_id};

/// The most regions that a file may list: each is a shard group on every node.
pub const REGIONS_MAX: usize = 256;

/// The most bytes of a region's display name.
pub const DISPLAY_NAME_BYTES_MAX: usize = 200;

/// The twelve regions of a cluster that is started without a file.
const DEFAULT: &str = include_str!("../regions.default.toml");

/// Why a regions file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum RegionsError {
    /// The file could not be read.
    #[error("cannot read the regions file {path}: {source}")]
    Io {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
    /// The file is not TOML of the expected form.
    #[error(
        "the regions file {path} is not valid: {message}\n\
         It consists of tables like this one:\n\n[[regions]]\nid = \"north\"\ndisplay_name = \"North\""
    )]
    Syntax {
        /// The file.
        path: String,
        /// Where and why.
        message: String,
    },
    /// The file lists no region, or too many.
    #[error("the regions file {path} lists {count} regions; a cluster has 1 to {REGIONS_MAX}")]
    Count {
        /// The file.
        path: String,
        /// How many it lists.
        count: usize,
    },
    /// One region makes no sense.
    #[error("the regions file {path}, region {position}: {message}")]
    Region {
        /// The file.
        path: String,
        /// Which one, counted from 1.
        position: usize,
        /// What is wrong with it.
        message: String,
    },
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    regions: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: String,
    display_name: Option<String>,
}

/// The default regions.
pub fn default_regions() -> Vec<Region> {
    parse("regions.default.toml", DEFAULT).expect("the built-in regions file is checked by a test")
}

/// Reads and checks a regions file.
pub fn load(path: &Path) -> Result<Vec<Region>, RegionsError> {
    let name = path.display().to_string();
    match std::fs::read_to_string(path) {
        Ok(text) => parse(&name, &text),
        Err(source) => Err(RegionsError::Io { path: name, source }),
    }
}

/// Checks the text of a regions file; groups are numbered in the order of the file.
fn parse(path: &str, text: &str) -> Result<Vec<Region>, RegionsError> {
    let file: File = toml::from_str(text)
        .map_err(|e| RegionsError::Syntax { path: path.into(), message: e.to_string().trim_end().into() })?;
    if file.regions.is_empty() || file.regions.len() > REGIONS_MAX {
        return Err(RegionsError::Count { path: path.into(), count: file.regions.len() });
    }
    let mut regions: Vec<Region> = Vec::with_capacity(file.regions.len());
    for (group, entry) in (1u32..).zip(file.regions) {
        let refuse =
            |message| Err(RegionsError::Region { path: path.into(), position: group as usize, message });
        let display_name = entry.display_name.unwrap_or_else(|| entry.id.clone());
        if !valid_region_id(&entry.id) {
            return refuse(format!("id {:?} is not 1 to 32 of [a-z0-9-] starting with a letter", entry.id));
        }
        if let Some(first) = regions.iter().find(|other| other.id == entry.id) {
            return refuse(format!("id {:?} is already the id of region {}", entry.id, first.group));
        }
        if display_name.trim().is_empty()
            || display_name.len() > DISPLAY_NAME_BYTES_MAX
            || display_name.chars().any(char::is_control)
        {
            return refuse(format!(
                "display_name {display_name:?} is not 1 to {DISPLAY_NAME_BYTES_MAX} bytes without control characters"
            ));
        }
        regions.push(Region { id: entry.id, display_name, group });
    }
    Ok(regions)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refused(text: &str) -> String {
        parse("r.toml", text).unwrap_err().to_string()
    }

    #[test]
    fn the_default_has_twelve_regions() {
        let regions = default_regions();
        assert_eq!(regions.len(), 12);
        assert_eq!(regions[0].id, "north");
        assert_eq!(regions.iter().map(|r| r.group).collect::<Vec<_>>(), (1..=12).collect::<Vec<_>>());
    }

    #[test]
    fn a_file_may_list_others() {
        let regions =
            parse("r.toml", "[[regions]]\nid = \"a1\"\ndisplay_name = \"Ä One\"\n[[regions]]\nid = \"b\"")
                .unwrap();
        assert_eq!(regions.len(), 2);
        assert_eq!((regions[0].display_name.as_str(), regions[0].group), ("Ä One", 1));
        assert_eq!((regions[1].display_name.as_str(), regions[1].group), ("b", 2));
    }

    #[test]
    fn bad_files_are_refused_with_the_place() {
        assert!(refused("").contains("lists 0 regions"));
        assert!(refused("[[regions]]\nid = ").contains("line 2"));
        assert!(refused("[[regions]]\nname = \"x\"").contains("name"));
        assert!(refused("[[region]]\nid = \"x\"").contains("region"));
        assert!(refused("[[regions]]\nid = \"North\"").contains("region 1: id \"North\""));
        assert!(
            refused("[[regions]]\nid = \"a\"\n[[regions]]\nid = \"a\"")
                .contains("region 2: id \"a\" is already")
        );
        assert!(refused("[[regions]]\nid = \"a\"\ndisplay_name = \" \"").contains("display_name"));
        assert!(refused("[[regions]]\nid = \"a\"\ndisplay_name = \"x\\ny\"").contains("control"));
        let many: String = (0..=REGIONS_MAX).map(|n| format!("[[regions]]\nid = \"r{n}\"\n")).collect();
        assert!(refused(&many).contains("lists 257 regions"));
        assert!(
            load(Path::new("/nonexistent/r.toml")).unwrap_err().to_string().contains("/nonexistent/r.toml")
        );
    }
}
