//! tidewall-consensus
