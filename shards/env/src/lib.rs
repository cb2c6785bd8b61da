//! tidewall-env
