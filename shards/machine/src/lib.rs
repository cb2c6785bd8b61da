//! tidewall-machine
