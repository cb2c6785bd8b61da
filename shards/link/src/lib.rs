//! tidewall-link
