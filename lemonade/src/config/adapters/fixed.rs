//! A configuration from memory: fixed, or changed by whoever embeds Lemonade.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;
use crate::config::error::ConfigError;
use crate::config::port::{ConfigService, ConfigUpdate};
use crate::model::Config;

type Outcome = Result<Arc<Config>, ConfigError>;

/// A configuration from memory.
#[derive(Debug)]
pub struct FixedConfig {
    current: Mutex<Outcome>,
    changes: Mutex<Option<mpsc::Receiver<Outcome>>>,
}

impl FixedConfig {
    /// A configuration that never changes.
    pub fn new(config: Arc<Config>) -> Self {
        Self { current: Mutex::new(Ok(config)), changes: Mutex::new(None) }
    }

    /// A configuration that changes to what is sent, good or bad, one update each.
    pub fn scripted(config: Arc<Config>) -> (Self, mpsc::Sender<Outcome>) {
        let (sender, changes) = mpsc::channel(16);
        (Self { current: Mutex::new(Ok(config)), changes: Mutex::new(Some(changes)) }, sender)
    }

    async fn serve(
        &self,
        updates: mpsc::Sender<ConfigUpdate>,
        mut reloads: mpsc::Receiver<String>,
        stop: CancellationToken,
    ) {
        let mut changes = self.changes.lock().unwrap_or_else(PoisonError::into_inner).take();
        loop {
            let next_change = async {
                match &mut changes {
                    Some(changes) => changes.recv().await,
                    None => std::future::pending().await,
                }
            };
            let cause = tokio::select! {
                () = stop.cancelled() => return,
                Some(cause) = reloads.recv() => cause,
                change = next_change => {
                    let Some(change) = change else {
                        changes = None;
                        continue;
                    };
                    *self.current.lock().unwrap_or_else(PoisonError::into_inner) = change;
                    "script".to_owned()
                }
                else => return stop.cancelled().await,
            };
            let update = ConfigUpdate { cause, seen: Instant::now(), result: self.load() };
            tokio::select! {
                () = stop.cancelled() => return,
                sent = updates.send(update) => if sent.is_err() { return },
            }
        }
    }
}

impl ConfigService for FixedConfig {
    fn load(&self) -> Outcome {
        self.current.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn run(
        self: Arc<Self>,
        updates: mpsc::Sender<ConfigUpdate>,
        reloads: mpsc::Receiver<String>,
        stop: CancellationToken,
    ) -> BoxFuture<()> {
        Box::pin(async move { self.serve(updates, reloads, stop).await })
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[tokio::test]
    async fn it_sends_what_it_is_given_and_what_it_has() {
        let text = include_str!("../../../../config/lemonade.toml");
        let config = Arc::new(crate::config::parse_text(Path::new("a.toml"), text, &[]).expect("valid"));
        let (service, script) = FixedConfig::scripted(Arc::clone(&config));
        let (updates, mut received) = mpsc::channel(1);
        let (reload, reloads) = mpsc::channel(1);
        let stop = CancellationToken::new();
        let running = tokio::spawn(Arc::new(service).run(updates, reloads, stop.clone()));

        reload.send("SIGHUP".to_owned()).await.expect("running");
        let update = received.recv().await.expect("update");
        assert_eq!((update.cause.as_str(), update.result), ("SIGHUP", Ok(config)));

        let bad = ConfigError { file: "a.toml".into(), diagnostics: Vec::new() };
        script.send(Err(bad.clone())).await.expect("running");
        assert_eq!(received.recv().await.expect("update").result, Err(bad));

        drop((script, reload));
        stop.cancel();
        running.await.expect("ends");
    }
}
