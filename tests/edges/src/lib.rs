//! tidewall-edges
