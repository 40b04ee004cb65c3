//! The journal: one JSON object a line for every accepted or refused configuration, health transition and admin change.
//!
//! It never fails the process: a line that cannot be written is counted, and the first one is logged.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

/// Size in bytes above which a new file is begun.
pub const MAX_BYTES: u64 = 8 * 1024 * 1024;

/// Older files kept: `journal.1.jsonl` is the newest of them.
pub const KEPT: u32 = 3;

/// Lines in which [`Journal::former`] looks.
const FORMER: usize = 1_000;

/// Most bytes [`Journal::tail`] reads of each file.
const TAIL_BYTES: u64 = 256 * 1024;

/// One line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Entry {
    /// When, RFC 3339 in UTC.
    pub time: String,
    /// Configuration version after it.
    pub version: u64,
    /// Who caused it: `start`, `stop`, `file changed`, `SIGHUP`, `admin`, `health`.
    pub who: String,
    /// User id of who asked through the admin socket.
    #[serde(default)]
    pub uid: Option<u32>,
    /// What it was about.
    pub what: Kind,
    /// What changed, in sentences.
    pub diff: Vec<String>,
    /// What differs from the file at run time since then, by backend; `None` where the line is not about that.
    #[serde(default)]
    pub changed: Option<Vec<String>>,
    /// `accepted`, or why not.
    pub result: String,
}

/// What a line is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A configuration was accepted or refused.
    Config,
    /// A backend came up or went down.
    Health,
    /// Somebody changed something through the admin socket.
    Admin,
}

impl Entry {
    /// Makes a line for something that happened at `at` and was accepted; set the other fields as needed.
    pub fn new(at: SystemTime, version: u64, who: impl Into<String>, what: Kind) -> Self {
        Self {
            time: humantime::format_rfc3339_millis(at).to_string(),
            version,
            who: who.into(),
            uid: None,
            what,
            diff: Vec::new(),
            changed: None,
            result: "accepted".to_owned(),
        }
    }
}

/// An append-only file that is rotated by size.
#[derive(Debug)]
pub struct Journal {
    folder: PathBuf,
    max_bytes: u64,
    dropped: AtomicU64,
    file: Mutex<Option<Open>>,
}

#[derive(Debug)]
struct Open {
    file: File,
    bytes: u64,
}

impl Journal {
    /// Opens the journal in `folder`, made if absent; what fails is logged and tried again with each line.
    pub fn open(folder: &Path) -> Self {
        Self::with_limit(folder, MAX_BYTES)
    }

    fn with_limit(folder: &Path, max_bytes: u64) -> Self {
        let own =
            Self { folder: folder.to_owned(), max_bytes, dropped: AtomicU64::new(0), file: Mutex::new(None) };
        match own.reopen() {
            Ok(open) => *own.lock() = Some(open),
            Err(error) => own.complain(&error),
        }
        own
    }

    /// Appends one line, in one write, so that a crash tears at most the last one.
    pub fn append(&self, entry: &Entry) {
        if let Err(error) = self.try_append(entry)
            && self.dropped.fetch_add(1, Ordering::Relaxed) == 0
        {
            self.complain(&error);
        }
    }

    /// Lines that could not be written.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    /// The last `n` lines, oldest first; fewer when there are fewer, or when they are very long.
    pub fn tail(&self, n: usize) -> Vec<Entry> {
        let _whole_lines_only = self.lock();
        let mut entries = Vec::new();
        for age in 0..=KEPT {
            let Ok(text) = read_end(&self.path(age)) else { break };
            // A line torn by a crash or by the start of what was read does not parse.
            let newest_first = text.split(|byte| *byte == b'\n').rev();
            entries.extend(
                newest_first.filter_map(|line| serde_json::from_slice(line).ok()).take(n - entries.len()),
            );
            if entries.len() >= n {
                break;
            }
        }
        entries.reverse();
        entries
    }

    /// Where a former process ended: its last version, and what differed from the file then.
    pub fn former(&self) -> (u64, Vec<String>) {
        let lines = self.tail(FORMER);
        let version = lines.iter().map(|line| line.version).max().unwrap_or(0);
        (version, lines.into_iter().rev().find_map(|line| line.changed).unwrap_or_default())
    }

    fn try_append(&self, entry: &Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(entry)?;
        line.push(b'\n');
        let length = line.len() as u64;
        let mut slot = self.lock();
        let mut open = match slot.take() {
            Some(open) => open,
            None => self.reopen()?,
        };
        if open.bytes > 0 && open.bytes + length > self.max_bytes {
            drop(open);
            self.rotate()?;
            open = self.reopen()?;
        }
        open.file.write_all(&line)?;
        open.bytes += length;
        *slot = Some(open);
        Ok(())
    }

    fn reopen(&self) -> io::Result<Open> {
        std::fs::create_dir_all(&self.folder)?;
        let mut file =
            OpenOptions::new().create(true).append(true).read(true).mode(0o640).open(self.path(0))?;
        let mut bytes = file.metadata()?.len();
        if bytes > 0 {
            let mut last = [0];
            file.seek(SeekFrom::Start(bytes - 1))?;
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
                bytes += 1;
            }
        }
        Ok(Open { file, bytes })
    }

    fn rotate(&self) -> io::Result<()> {
        for age in (0..KEPT).rev() {
            match std::fs::rename(self.path(age), self.path(age + 1)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                Ok(()) | Err(_) => {}
            }
        }
        Ok(())
    }

    fn path(&self, age: u32) -> PathBuf {
        match age {
            0 => self.folder.join("journal.jsonl"),
            age => self.folder.join(format!("journal.{age}.jsonl")),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Open>> {
        self.file.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn complain(&self, error: &io::Error) {
        let path = self.path(0);
        tracing::warn!(%error, path = %path.display(), "cannot write the journal; going on without it until it can be");
    }
}

fn read_end(path: &Path) -> io::Result<Vec<u8>> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut bytes = Vec::new();
    file.take(TAIL_BYTES).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(version: u64) -> Entry {
        let mut entry = Entry::new(SystemTime::UNIX_EPOCH, version, "file changed", Kind::Config);
        entry.diff.push("pool.web: strategy round_robin -> adaptive".to_owned());
        entry
    }

    fn versions(journal: &Journal, n: usize) -> Vec<u64> {
        journal.tail(n).iter().map(|entry| entry.version).collect()
    }

    #[test]
    fn lines_survive_a_restart_and_a_torn_one_harms_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("made/when/needed");
        let journal = Journal::open(&state);
        journal.append(&entry(1));
        assert_eq!(journal.tail(9), [entry(1)]);
        drop(journal);
        let path = state.join("journal.jsonl");
        OpenOptions::new().append(true).open(&path).unwrap().write_all(b"{\"time\":\"20").unwrap();

        let journal = Journal::open(&state);
        journal.append(&entry(2));
        assert_eq!(versions(&journal, 9), [1, 2]);
        assert_eq!(versions(&journal, 1), [2]);
        assert_eq!(journal.dropped(), 0);
        let text = std::fs::read_to_string(path).unwrap();
        let first: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
        let guide = include_str!("../../../docs/guide/metrics.md");
        for field in first.as_object().unwrap().keys() {
            assert!(guide.contains(&format!("| `{field}` |")), "the guide does not name {field}");
        }
    }

    #[test]
    fn a_start_finds_where_the_process_before_it_ended() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path());
        assert_eq!(journal.former(), (0, Vec::new()));
        let drained = || Some(vec!["backend web/a: drained".to_owned()]);
        journal.append(&Entry { changed: Some(vec!["backend web/b: weight 9".to_owned()]), ..entry(6) });
        journal.append(&Entry { changed: drained(), ..entry(7) });
        journal.append(&Entry { what: Kind::Health, ..entry(7) });
        drop(journal);
        assert_eq!(Journal::open(folder.path()).former(), (7, drained().unwrap()));
    }

    #[test]
    fn files_stay_below_the_limit_and_three_old_ones_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::with_limit(folder.path(), 1_000);
        for version in 0..100 {
            journal.append(&entry(version));
        }
        let mut sizes: Vec<_> = std::fs::read_dir(folder.path())
            .unwrap()
            .map(|file| file.unwrap())
            .map(|file| (file.file_name().into_string().unwrap(), file.metadata().unwrap().len()))
            .collect();
        sizes.sort();
        let names: Vec<_> = sizes.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["journal.1.jsonl", "journal.2.jsonl", "journal.3.jsonl", "journal.jsonl"]);
        assert!(sizes.iter().all(|(_, size)| *size <= 1_000), "{sizes:?}");
        assert_eq!(versions(&journal, 12), (88..100).collect::<Vec<_>>());
    }

    #[test]
    fn a_journal_that_cannot_be_written_counts_and_recovers() {
        let folder = tempfile::tempdir().unwrap();
        let state = folder.path().join("state");
        std::fs::write(&state, "a file where the folder should be").unwrap();
        let journal = Journal::open(&state);
        journal.append(&entry(1));
        journal.append(&entry(2));
        assert_eq!((journal.dropped(), journal.tail(5).len()), (2, 0));
        std::fs::remove_file(&state).unwrap();
        journal.append(&entry(3));
        assert_eq!((journal.dropped(), versions(&journal, 5)), (2, vec![3]));
    }
}
