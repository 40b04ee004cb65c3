//! Configuration: TOML text to a validated [`Config`](crate::model::Config), all errors at once, watched for changes.

pub mod error;
pub mod port;
