//! tidewall-store

pub mod log;
