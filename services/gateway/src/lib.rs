//! tidewall-gateway
