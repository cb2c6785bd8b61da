//! tidewall-node
