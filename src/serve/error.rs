//! What is wrong with a request, as the clients' libraries expect to be told.

use axum::{
    body::Body,
    http::{HeaderValue, Response, StatusCode, header},
};
use serde_json::{Value, json};

use super::engine::SHUTTING_DOWN;

/// One sentence, and the status that goes with it.
#[derive(Clone, Debug)]
pub struct ApiError {
    /// HTTP's.
    pub status: StatusCode,
    /// The sentence.
    pub message: String,
    /// The field of the request that is wrong, if it is one.
    pub param: Option<String>,
}

/// Whose form an error has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// `{"error": {…}}`
    OpenAi,
    /// `{"type": "error", "error": {…}}`
    Anthropic,
}

impl ApiError {
    /// With a status of its own.
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), param: None }
    }

    /// 400 because of a field.
    pub fn field(param: impl Into<String>, message: impl Into<String>) -> Self {
        Self { status: StatusCode::BAD_REQUEST, message: message.into(), param: Some(param.into()) }
    }

    /// 400.
    pub fn bad(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 503, since the server is about to end.
    pub fn shutting_down() -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, SHUTTING_DOWN)
    }

    fn kind(&self) -> &'static str {
        match self.status.as_u16() {
            401 => "authentication_error",
            404 => "not_found_error",
            413 => "request_too_large",
            429 => "rate_limit_error",
            503 => "overloaded_error",
            500..600 => "api_error",
            _ => "invalid_request_error",
        }
    }

    /// The error as JSON.
    pub fn json(&self, dialect: Dialect) -> Value {
        let Self { message, param, status } = self;
        match dialect {
            Dialect::OpenAi => json!({"error": {
                "message": message, "type": self.kind(), "param": param, "code": status.as_u16(),
            }}),
            Dialect::Anthropic => json!({"type": "error", "error": {"type": self.kind(), "message": message}}),
        }
    }

    /// The whole answer.
    pub fn response(&self, dialect: Dialect) -> Response<Body> {
        let mut response = json_response(self.status, &self.json(dialect));
        if matches!(self.status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
        }
        response
    }
}

impl From<crate::Error> for ApiError {
    /// What the library refuses of a request.
    fn from(error: crate::Error) -> Self {
        Self::bad(error.to_string())
    }
}

/// JSON with a status.
pub fn json_response(status: StatusCode, value: &Value) -> Response<Body> {
    let mut response = Response::new(Body::from(value.to_string()));
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}
