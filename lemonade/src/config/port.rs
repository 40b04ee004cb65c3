//! The configuration port.

use std::sync::Arc;
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;
use crate::model::Config;

use super::error::ConfigError;

/// A configuration that was seen, good or bad.
#[derive(Debug)]
pub struct ConfigUpdate {
    /// Who asked: `file changed`, `SIGHUP`, `admin`.
    pub cause: String,
    /// When the change was seen.
    pub seen: Instant,
    /// The configuration, or every error in it.
    pub result: Result<Arc<Config>, ConfigError>,
}

/// Source of configurations.
pub trait ConfigService: Send + Sync {
    /// Reads and validates the configuration now.
    ///
    /// # Errors
    /// Every error in it, with file, line, column and what to write instead.
    fn load(&self) -> Result<Arc<Config>, ConfigError>;

    /// Sends an update for each change and for each cause received from `reloads`, until `stop`.
    ///
    /// A file whose text has not changed since the last update is not sent again, unless asked for by `reloads`.
    fn run(
        self: Arc<Self>,
        updates: mpsc::Sender<ConfigUpdate>,
        reloads: mpsc::Receiver<String>,
        stop: CancellationToken,
    ) -> BoxFuture<()>;
}
