//! tidewall-client
