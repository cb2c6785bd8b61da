//! tidewall-actors
