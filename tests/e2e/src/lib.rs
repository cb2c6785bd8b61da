//! tidewall-e2e
