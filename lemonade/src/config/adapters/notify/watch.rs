//! Change notices of the system for one file, over every link that leads to it.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use ::notify::event::{AccessKind, AccessMode, EventKind, ModifyKind, RenameMode};
use ::notify::{Event, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::mpsc;

use super::chain::Chain;

/// When a change is worth a look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Urgency {
    /// At once: it was put in place in one step.
    Replaced,
    /// At once: it was closed after writing.
    Now,
    /// After a silence: it may be half written.
    Soon,
}

/// A change of the file, or of a link that leads to it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Change {
    pub(super) urgency: Urgency,
    pub(super) seen: Instant,
}

/// What the notices are about, shared with the thread that receives them.
#[derive(Debug, Default)]
struct Scope {
    chain: Chain,
    /// Watched folders that were removed or moved since.
    lost: BTreeSet<PathBuf>,
}

/// A watch over the directories that decide what a path leads to.
pub(super) struct Watch {
    path: PathBuf,
    scope: Arc<Mutex<Scope>>,
    watcher: Option<RecommendedWatcher>,
    watched: BTreeSet<PathBuf>,
    complete: bool,
}

impl Watch {
    /// A watch that sends changes once it is armed; without `active`, it never does.
    pub(super) fn new(path: &Path, active: bool, changes: mpsc::Sender<Change>) -> Self {
        let scope = Arc::new(Mutex::new(Scope::default()));
        let shared = Arc::clone(&scope);
        let watcher = active.then(|| {
            ::notify::recommended_watcher(move |event: ::notify::Result<Event>| {
                let seen = Instant::now();
                let urgency = match event {
                    Ok(event) => judge(&event, &mut shared.lock().unwrap_or_else(PoisonError::into_inner)),
                    Err(_) => Some(Urgency::Soon),
                };
                if let Some(urgency) = urgency {
                    // A full queue means that a look is due anyway.
                    let _full = changes.try_send(Change { urgency, seen });
                }
            })
        });
        let watcher = match watcher {
            None => None,
            Some(Ok(watcher)) => Some(watcher),
            Some(Err(error)) => {
                warn(path, &error);
                None
            }
        };
        let complete = watcher.is_some();
        Self { path: path.to_owned(), scope, watcher, watched: BTreeSet::new(), complete }
    }

    /// Whether every directory is watched, so that nothing needs polling.
    pub(super) const fn complete(&self) -> bool {
        self.complete
    }

    /// Follows the path as it is now. Blocks on the file system.
    pub(super) fn arm(&mut self) {
        let Some(watcher) = &mut self.watcher else { return };
        let was_complete = self.complete;
        self.complete = true;
        // A link that changes while it is followed is followed again.
        for _ in 0..3 {
            let chain = Chain::follow(&self.path);
            let lost = {
                let mut scope = self.scope.lock().unwrap_or_else(PoisonError::into_inner);
                scope.chain = chain.clone();
                std::mem::take(&mut scope.lost)
            };
            let (watched, wanted) = (&mut self.watched, &chain.folders);
            watched.retain(|folder| {
                let keep = wanted.contains(folder) && !lost.contains(folder);
                if !keep {
                    // A folder that is gone has lost its watch already.
                    let _gone = watcher.unwatch(folder);
                }
                keep
            });
            for folder in wanted {
                if watched.contains(folder) {
                    continue;
                }
                match watcher.watch(folder, RecursiveMode::NonRecursive) {
                    Ok(()) => {
                        watched.insert(folder.clone());
                    }
                    Err(error) => {
                        if was_complete && self.complete {
                            warn(&self.path, &error);
                        }
                        self.complete = false;
                    }
                }
            }
            if Chain::follow(&self.path) == chain {
                break;
            }
        }
    }
}

fn warn(path: &Path, error: &::notify::Error) {
    tracing::warn!(
        "changes of {} cannot be watched ({error}); it is read every 2 s instead; \
         the limits are fs.inotify.max_user_watches and fs.inotify.max_user_instances",
        path.display()
    );
}

/// What an event means for the file; `None` is nothing.
fn judge(event: &Event, scope: &mut Scope) -> Option<Urgency> {
    if event.need_rescan() {
        return Some(Urgency::Soon);
    }
    let leaves =
        matches!(event.kind, EventKind::Remove(_) | EventKind::Modify(ModifyKind::Name(RenameMode::From)));
    if leaves {
        let gone: Vec<_> = event.paths.iter().filter(|path| scope.chain.folders.contains(*path)).collect();
        if !gone.is_empty() {
            scope.lost.extend(gone.into_iter().cloned());
            return Some(Urgency::Soon);
        }
    }
    let ours = event.paths.iter().find(|path| scope.chain.entries.contains(*path))?;
    if leaves {
        return Some(Urgency::Soon);
    }
    match event.kind {
        EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Urgency::Now),
        EventKind::Access(_) => None,
        EventKind::Modify(ModifyKind::Name(_)) => Some(Urgency::Replaced),
        // A new link is complete; a new file is about to be written.
        EventKind::Create(_) if ours.is_symlink() => Some(Urgency::Replaced),
        EventKind::Create(_)
        | EventKind::Modify(_)
        | EventKind::Remove(_)
        | EventKind::Any
        | EventKind::Other => Some(Urgency::Soon),
    }
}
