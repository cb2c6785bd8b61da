//! Rewrites the errors that the transport library makes before a service sees the call (message too large,
//! not decodable, no such method), so that they too say what to do. Results pass untouched.

use http::Response;
use tonic::Status;
use tonic::body::Body;

use crate::errors::translate_transport_error;

/// Only errors that were known before the first byte of an answer have their status among the headers, so
/// that a result costs one failed look-up here.
pub(crate) fn decorate(response: Response<Body>) -> Response<Body> {
    if !response.headers().contains_key(Status::GRPC_STATUS) {
        return response;
    }
    match Status::from_header_map(response.headers()).as_ref().and_then(translate_transport_error) {
        Some(better) => better.into_http(),
        None => response,
    }
}
