//! Rewrites the errors that the transport library makes before a service sees the call (message too large,
//! not decodable, no such method), so that they too say what to do. Results pass untouched.

use http::Response;
use http::header::{DATE, HeaderValue};
use tidewall_env::simulation;
use tonic::Status;
use tonic::body::Body;

use crate::errors::translate_transport_error;

/// Only errors that were known before the first byte of an answer have their status among the headers, so
/// that a result costs one failed look-up here.
pub(crate) fn decorate(response: Response<Body>) -> Response<Body> {
    let mut response = translated(response);
    if simulation::is_active() {
        // hyper would date it by the machine's clock, and a date that changes makes other segments on the wire.
        response.headers_mut().insert(DATE, HeaderValue::from_static(simulation::DATE));
    }
    response
}

fn translated(response: Response<Body>) -> Response<Body> {
    if !response.headers().contains_key(Status::GRPC_STATUS) {
        return response;
    }
    match Status::from_header_map(response.headers()).as_ref().and_then(translate_transport_error) {
        Some(better) => better.into_http(),
        None => response,
    }
}
