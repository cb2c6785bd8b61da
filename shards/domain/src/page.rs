//! Pages of lists: bounded by count, and by bytes, so that every answer fits into its messages.

use prost::Message;

/// What an answer with many items has at most, bytes: with room in every message that carries it.
pub const PAGE_BYTES_MAX: usize = 1 << 20;

/// What a page has at most, items, whatever is asked for. While they are looked at nothing is applied, and while a gateway puts them
/// into an answer it answers nobody else: that is to take a fraction of a millisecond.
pub const PAGE_ITEMS_MAX: u32 = 500;

/// Takes items as long as they fit into a page of `limit` items, `max` whatever is asked for. Says whether there are more.
pub fn page<T: Message>(items: impl Iterator<Item = T>, limit: u32, max: u32) -> (Vec<T>, bool) {
    let (mut page, mut bytes) = (Vec::new(), 0);
    for item in items {
        bytes += item.encoded_len();
        let full = page.len() >= limit.clamp(1, max.min(PAGE_ITEMS_MAX)) as usize || bytes > PAGE_BYTES_MAX;
        if full && !page.is_empty() {
            return (page, true);
        }
        page.push(item);
    }
    (page, false)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_ends_by_count_and_by_bytes_and_has_one_item_at_least() {
        let of = |bytes: usize, count: usize, limit: u32| {
            let (page, more) = page((0..count).map(|_| "x".repeat(bytes)), limit, 1_000);
            (page.len(), more)
        };
        assert_eq!(of(10, 5, 3), (3, true));
        assert_eq!(of(10, 3, 3), (3, false));
        assert_eq!(of(10, 2_000, 5_000), (PAGE_ITEMS_MAX as usize, true), "whatever is asked for");
        assert_eq!(of(10, 5, 0), (1, true));
        let (length, more) = of(PAGE_BYTES_MAX / 4, 50, 1_000);
        assert!(more && (1..=4).contains(&length), "{length}");
        assert_eq!(of(2 * PAGE_BYTES_MAX, 3, 1_000), (1, true));
        assert_eq!(of(10, 0, 3), (0, false));
    }
}
