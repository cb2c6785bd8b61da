//! Where the bearer token of each attempt comes from. Tokens are never logged, shown or written down here.

use std::fmt;
use std::future::Future;

use async_trait::async_trait;

/// Why there is no token.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TokenError(pub String);

/// Supplies the token that says who calls. It is asked before every attempt, so it should keep a token as long
/// as that is valid. All tokens of one source must name the same subject: request ids belong to it.
#[async_trait]
pub trait TokenSource: Send + Sync {
    /// A token (the JWT alone, without `Bearer`).
    ///
    /// # Errors
    /// When there is none now. The call goes on asking until its deadline.
    async fn token(&self) -> Result<String, TokenError>;

    /// A gateway refused `token` (expired, for example). Returns whether another one may be had, in which case
    /// it is asked for once more; a source whose token cannot change says no, as is the default.
    fn refused(&self, token: &str) -> bool {
        let _ = token;
        false
    }
}

/// Always the same token.
#[derive(Clone)]
pub struct StaticToken(String);

impl StaticToken {
    /// A source of this token.
    pub fn new(token: impl Into<String>) -> Self {
        Self(token.into())
    }
}

impl fmt::Debug for StaticToken {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("StaticToken(..)")
    }
}

#[async_trait]
impl TokenSource for StaticToken {
    async fn token(&self) -> Result<String, TokenError> {
        Ok(self.0.clone())
    }
}

/// Tokens from a function; see [`token_fn`].
pub struct TokenFn<F>(F);

/// A source that calls `function` for every attempt. After a refusal it is called once more.
pub fn token_fn<F, Fut>(function: F) -> TokenFn<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = Result<String, TokenError>> + Send,
{
    TokenFn(function)
}

#[async_trait]
impl<F, Fut> TokenSource for TokenFn<F>
where
    F: Fn() -> Fut + Send + Sync,
    Fut: Future<Output = Result<String, TokenError>> + Send,
{
    async fn token(&self) -> Result<String, TokenError> {
        (self.0)().await
    }

    fn refused(&self, _token: &str) -> bool {
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn a_token_is_not_shown() {
        assert!(!format!("{:?}", StaticToken::new("secret")).contains("secret"));
    }

    #[tokio::test]
    async fn a_static_source_has_no_other_token_and_a_function_may() {
        let fixed = StaticToken::new("one");
        assert_eq!(fixed.token().await.unwrap(), "one");
        assert!(!fixed.refused("one"));
        let function = token_fn(|| async { Err(TokenError("no key".into())) });
        assert_eq!(function.token().await, Err(TokenError("no key".into())));
        assert!(function.refused("one"));
    }
}
