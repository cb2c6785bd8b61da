//! What a place costs. Kept with what was decided: a price that changes later must not change what was sold.

use std::fmt;

use crate::codec::{DecodeError, Reader, Writer};

/// ISO 4217 code of a currency; empty where nothing is to be paid.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Currency([u8; 3]);

impl Currency {
    /// A code of three capital letters, or none at all.
    pub fn parse(code: &str) -> Option<Self> {
        match code.as_bytes() {
            [] => Some(Self::default()),
            &[a, b, c] if code.bytes().all(|letter| letter.is_ascii_uppercase()) => Some(Self([a, b, c])),
            _ => None,
        }
    }

    /// The code.
    pub fn as_str(&self) -> &str {
        let letters = if self.0 == [0; 3] { &[] } else { self.0.as_slice() };
        std::str::from_utf8(letters).unwrap_or_default()
    }
}

impl fmt::Debug for Currency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A price in the currency's smallest unit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Price {
    /// In the currency's smallest unit.
    pub minor_units: u64,
    /// Of the number.
    pub currency: Currency,
}

impl Price {
    pub(crate) fn encode(&self, w: &mut Writer) {
        w.u64(self.minor_units);
        w.str(self.currency.as_str());
    }

    pub(crate) fn decode(r: &mut Reader<'_>) -> Result<Self, DecodeError> {
        Ok(Self { minor_units: r.u64()?, currency: Currency::parse(r.str()?).ok_or(DecodeError::Text)? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_currency_is_three_capital_letters_or_nothing() {
        for code in ["", "EUR", "JPY"] {
            assert_eq!(Currency::parse(code).as_ref().map(Currency::as_str), Some(code));
        }
        for wrong in ["eur", "EU", "EURO", "E1R", "€"] {
            assert_eq!(Currency::parse(wrong), None, "{wrong}");
        }
    }
}
