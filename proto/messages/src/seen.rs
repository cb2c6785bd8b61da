//! How far somebody has seen the rows of a group, so that nobody is shown less afterwards.

use std::fmt;
use std::str::FromStr;

use crate::Seen;

/// The text that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NotSeen;

impl fmt::Display for NotSeen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not of the form {incarnation}.{index}.{time}")
    }
}

impl std::error::Error for NotSeen {}

/// As clients carry it around.
impl fmt::Display for Seen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.incarnation, self.index, self.steady_ms)
    }
}

impl FromStr for Seen {
    type Err = NotSeen;

    fn from_str(text: &str) -> Result<Self, NotSeen> {
        let mut numbers = text.split('.').map(|number| number.parse().map_err(|_| NotSeen));
        let mut next = || numbers.next().ok_or(NotSeen)?;
        // What a later build says beyond that is left out.
        Ok(Self { incarnation: next()?, index: next()?, steady_ms: next()? })
    }
}

impl Seen {
    /// Whether rows that have come as far as `other` show no less. What an older incarnation had is no more to be seen: any
    /// state of a newer one will do.
    pub fn is_within(self, other: Self) -> bool {
        (self.incarnation, self.index) <= (other.incarnation, other.index)
    }

    /// What somebody has seen who has seen both.
    #[must_use]
    pub fn and(self, other: Self) -> Self {
        let (more, less) = if self.is_within(other) { (other, self) } else { (self, other) };
        // Times of different incarnations cannot be compared.
        let same = more.incarnation == less.incarnation;
        Self { steady_ms: if same { more.steady_ms.max(less.steady_ms) } else { more.steady_ms }, ..more }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn seen() -> impl Strategy<Value = Seen> {
        (0..3u64, 0..5u64, 0..4u64).prop_map(|(incarnation, index, steady_ms)| Seen {
            incarnation,
            index,
            steady_ms,
        })
    }

    proptest! {
        #[test]
        fn both_are_within_what_was_seen_together(one in seen(), other in seen(), third in seen()) {
            let both = one.and(other);
            prop_assert!(one.is_within(both) && other.is_within(both));
            prop_assert!(both.is_within(one) || both.is_within(other), "and nothing more");
            for part in [one, other] {
                prop_assert!(part.incarnation < both.incarnation || part.steady_ms <= both.steady_ms);
            }
            prop_assert_eq!(both, other.and(one));
            prop_assert_eq!(one.and(other).and(third), one.and(other.and(third)));
            prop_assert_eq!(one.and(one), one);
            prop_assert_eq!(one.to_string().parse(), Ok(one));
        }
    }

    #[test]
    fn other_texts_are_none() {
        assert_eq!("1.2.3.later".parse(), Ok(Seen { incarnation: 1, index: 2, steady_ms: 3 }));
        for text in ["", "1", "1.2", "1.2.x", "-1.2.3", "1.2.", " 1.2.3"] {
            assert_eq!(text.parse::<Seen>(), Err(NotSeen), "{text:?}");
        }
    }
}
