//! tidewall-domain
