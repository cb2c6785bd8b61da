//! tidewall-store
