//! The configuration file, watched.
//!
//! Editors, `mv`, Kubernetes and `cat >` change a file in different ways. What replaces a file in one step is read at
//! once; what is written in place is read when it is closed, or quiet; and what looks torn is read twice.

mod chain;
#[cfg(test)]
mod tests;
mod watch;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::BoxFuture;
use crate::config::error::ConfigError;
use crate::config::port::{ConfigService, ConfigUpdate};
use crate::config::{Accepted, file, parse_after};
use crate::model::Config;

use watch::{Change, Urgency, Watch};

/// A file that is written in place is complete after this much silence.
const QUIET: Duration = Duration::from_millis(50);
/// A file that never falls silent is read after this long.
const PATIENCE: Duration = Duration::from_secs(1);
/// Time between looks where the system cannot tell of changes.
const POLL: Duration = Duration::from_secs(2);

/// What a file holds, or why it cannot be read.
type Content = Result<String, ConfigError>;

/// The configuration in a file, with environment overrides.
#[derive(Debug)]
pub struct FileConfig {
    path: PathBuf,
    env: Vec<(String, String)>,
    watched: bool,
    /// What was sent last, or loaded.
    last: Mutex<Option<Content>>,
    /// What was right last.
    right: Mutex<Option<Accepted>>,
}

impl FileConfig {
    /// Follows the file with the system's change notices.
    pub const fn new(path: PathBuf, env: Vec<(String, String)>) -> Self {
        Self { path, env, watched: true, last: Mutex::new(None), right: Mutex::new(None) }
    }

    /// Follows the file by a look every two seconds, for file systems that tell of no changes, such as NFS.
    pub const fn polled(path: PathBuf, env: Vec<(String, String)>) -> Self {
        Self { path, env, watched: false, last: Mutex::new(None), right: Mutex::new(None) }
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn parse(&self, content: &Content) -> Result<Arc<Config>, ConfigError> {
        let text = content.as_ref().map_err(Clone::clone)?;
        let mut right = self.right.lock().unwrap_or_else(PoisonError::into_inner);
        let config = Arc::new(parse_after(right.as_ref(), &self.path, text, &self.env)?);
        *right = Some(Accepted { text: text.clone(), config: Arc::clone(&config) });
        Ok(config)
    }

    /// Reads the file; `None` if it holds what was sent last.
    fn changed(&self) -> Option<Reading> {
        let content = file::text(&self.path);
        let last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        if last.as_ref() == Some(&content) {
            return None;
        }
        let length = |content: &Content| content.as_ref().map_or(0, String::len);
        let shorter = last.as_ref().is_some_and(|last| length(&content) < length(last));
        drop(last);
        Some(Reading { result: self.parse(&content), content, shorter })
    }

    fn remember(&self, content: Content) {
        *self.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(content);
    }
}

impl ConfigService for FileConfig {
    fn load(&self) -> Result<Arc<Config>, ConfigError> {
        let content = file::text(&self.path);
        let result = self.parse(&content);
        self.remember(content);
        result
    }

    fn run(
        self: Arc<Self>,
        updates: mpsc::Sender<ConfigUpdate>,
        reloads: mpsc::Receiver<String>,
        stop: CancellationToken,
    ) -> BoxFuture<()> {
        Box::pin(async move {
            let follower = Follower { service: self, updates, pending: None };
            tokio::select! {
                () = stop.cancelled() => {}
                // Ends only when nobody listens any more.
                _ = follower.follow(reloads) => {}
            }
        })
    }
}

/// A file's content that differs from the last.
struct Reading {
    content: Content,
    result: Result<Arc<Config>, ConfigError>,
    shorter: bool,
}

/// A change that has been seen and not been sent.
struct Pending {
    seen: Instant,
    due: Instant,
    /// It was put in place in one step, so that it cannot be torn.
    atomic: bool,
    /// What was found when it looked torn, and when.
    tried: Option<(Content, Instant)>,
}

/// Nobody listens any more, or the runtime is going down.
struct Gone;

struct Follower {
    service: Arc<FileConfig>,
    updates: mpsc::Sender<ConfigUpdate>,
    pending: Option<Pending>,
}

impl Follower {
    async fn follow(mut self, mut reloads: mpsc::Receiver<String>) -> Result<(), Gone> {
        let (changes, mut changed) = mpsc::channel(64);
        let mut watch = Watch::new(&self.service.path, self.service.watched, changes);
        let mut looks = tokio::time::interval(POLL);
        looks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        // It may have changed between the first load and now.
        self.note(Change { urgency: Urgency::Soon, seen: Instant::now() }, true);
        loop {
            let due = self.pending.as_ref().map(|pending| pending.due);
            let wait = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due.into()).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                Some(cause) = reloads.recv() => self.reload(cause).await?,
                Some(change) = changed.recv() => self.note(change, false),
                () = wait => watch = self.look(watch).await?,
                _ = looks.tick(), if !watch.complete() => {
                    self.note(Change { urgency: Urgency::Now, seen: Instant::now() }, false);
                }
            }
        }
    }

    /// Merges a change with what is pending; `at_once` skips the wait for silence.
    fn note(&mut self, change: Change, at_once: bool) {
        let Change { urgency, seen } = change;
        let pending =
            self.pending.get_or_insert(Pending { seen, due: seen + PATIENCE, atomic: false, tried: None });
        pending.atomic = urgency == Urgency::Replaced;
        pending.due = match urgency {
            Urgency::Now | Urgency::Replaced => seen,
            Urgency::Soon if at_once => seen,
            Urgency::Soon => (seen + QUIET).min(pending.seen + PATIENCE),
        };
    }

    /// Reads a pending change and sends it, unless it looks torn.
    async fn look(&mut self, mut watch: Watch) -> Result<Watch, Gone> {
        let service = Arc::clone(&self.service);
        let work = tokio::task::spawn_blocking(move || {
            // Armed before it reads, so that what changes after the read is noticed.
            watch.arm();
            (watch, service.changed())
        });
        let (watch, reading) = work.await.map_err(|_runtime_ends| Gone)?;
        let (Some(pending), Some(reading)) = (self.pending.take(), reading) else { return Ok(watch) };
        let torn = reading.result.is_err() || (reading.shorter && !pending.atomic);
        if torn && pending.seen.elapsed() < PATIENCE {
            let found = match &pending.tried {
                Some((content, at)) if *content == reading.content => *at,
                _ => Instant::now(),
            };
            if found.elapsed() < QUIET {
                self.pending =
                    Some(Pending { due: found + QUIET, tried: Some((reading.content, found)), ..pending });
                return Ok(watch);
            }
        }
        self.send("file changed".to_owned(), pending.seen, reading.content, reading.result).await?;
        Ok(watch)
    }

    /// Reads the file because somebody asks, and sends it in any case.
    async fn reload(&mut self, cause: String) -> Result<(), Gone> {
        let seen = Instant::now();
        let read = |service: Arc<FileConfig>| {
            tokio::task::spawn_blocking(move || {
                let content = file::text(&service.path);
                let result = service.parse(&content);
                (content, result)
            })
        };
        let (mut content, mut result) =
            read(Arc::clone(&self.service)).await.map_err(|_runtime_ends| Gone)?;
        if result.is_err() {
            tokio::time::sleep(QUIET).await;
            (content, result) = read(Arc::clone(&self.service)).await.map_err(|_runtime_ends| Gone)?;
        }
        self.send(cause, seen, content, result).await
    }

    async fn send(
        &self,
        cause: String,
        seen: Instant,
        content: Content,
        result: Result<Arc<Config>, ConfigError>,
    ) -> Result<(), Gone> {
        self.service.remember(content);
        self.updates.send(ConfigUpdate { cause, seen, result }).await.map_err(|_nobody_listens| Gone)
    }
}
