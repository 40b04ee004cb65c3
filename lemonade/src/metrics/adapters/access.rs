//! Access records, written by a thread of their own.
//!
//! The data plane moves a record into a bounded channel and goes on; nothing is formatted there. What finds the
//! channel full is lost and counted.

use std::io::{self, Write};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TryRecvError;

use crate::log::Style;
use crate::metrics::port::{AccessRecord, Recorder};
use crate::model::ProcessCell;
use crate::model::config::AccessLog;

use super::access_file::RotatedFile;
use super::access_format::{json_line, pretty_line};

/// Records that may wait for the writer.
pub const CAPACITY: usize = 8_192;

/// Time the writer leaves records to gather, so that a busy data plane does not wake it for each.
const GATHER: Duration = Duration::from_millis(10);

/// Bytes of lines after which the writer writes even while more records wait.
const BATCH: usize = 64 * 1024;

/// The [`Recorder`] of a running process; clones share one writer, which ends when the last is gone.
///
/// The thread is not waited for: call [`AccessWriter::flush`] before the process ends.
#[derive(Clone, Debug)]
pub struct AccessWriter {
    sender: mpsc::Sender<Message>,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    enabled: AtomicBool,
    process: Arc<ProcessCell>,
    next: Mutex<Option<Target>>,
    /// The file may have been moved away just now.
    rotated: AtomicBool,
    flushes: Mutex<Vec<std::sync::mpsc::Sender<()>>>,
    unwritten: AtomicU64,
}

#[expect(
    clippy::large_enum_variant,
    reason = "records are the rule, and a box would be an allocation in the data plane"
)]
#[derive(Debug)]
enum Message {
    Record(AccessRecord),
    /// Come and look at `next` and `flushes`.
    Wake,
}

#[derive(Debug)]
enum Target {
    Stream,
    Nowhere,
    File(RotatedFile),
}

impl AccessWriter {
    /// Starts the writer; `stream` is where [`AccessLog::On`] leads, in `style`.
    ///
    /// # Errors
    /// The file of `log` cannot be opened, or no thread can be started.
    pub fn start(
        log: &AccessLog,
        style: Style,
        stream: Box<dyn Write + Send>,
        process: Arc<ProcessCell>,
    ) -> io::Result<Self> {
        let target = Target::open(log)?;
        let (sender, receiver) = mpsc::channel(CAPACITY);
        let shared = Arc::new(Shared {
            enabled: AtomicBool::new(*log != AccessLog::Off),
            process,
            next: Mutex::default(),
            rotated: AtomicBool::new(false),
            flushes: Mutex::default(),
            unwritten: AtomicU64::new(0),
        });
        let writer = Writer {
            shared: Arc::clone(&shared),
            target,
            style,
            stream,
            batch: Vec::new(),
            held: 0,
            checked: Instant::now(),
        };
        std::thread::Builder::new().name("access".to_owned()).spawn(move || writer.run(receiver))?;
        Ok(Self { sender, shared })
    }

    /// Whether records lead anywhere.
    pub fn enabled(&self) -> bool {
        self.shared.enabled.load(Ordering::Relaxed)
    }

    /// Leads records elsewhere from now on; those that wait may go to either place.
    ///
    /// # Errors
    /// The file cannot be opened; then nothing has changed.
    pub fn set(&self, log: &AccessLog) -> io::Result<()> {
        *lock(&self.shared.next) = Some(Target::open(log)?);
        self.shared.enabled.store(*log != AccessLog::Off, Ordering::Relaxed);
        self.wake();
        Ok(())
    }

    /// Looks at once whether the file was moved away; without it that is seen within a second.
    pub fn reopen(&self) {
        self.shared.rotated.store(true, Ordering::Release);
        self.wake();
    }

    /// Waits until everything recorded so far is written; `false` when it takes longer than `within`.
    pub fn flush(&self, within: Duration) -> bool {
        let (done, written) = std::sync::mpsc::channel();
        lock(&self.shared.flushes).push(done);
        self.wake();
        written.recv_timeout(within).is_ok()
    }

    /// Records lost because the writer could not write them; those that found the channel full are not in it.
    pub fn unwritten(&self) -> u64 {
        self.shared.unwritten.load(Ordering::Relaxed)
    }

    // A full channel needs no wake: the writer looks again before it sleeps.
    fn wake(&self) {
        let _ = self.sender.try_send(Message::Wake);
    }
}

impl Recorder for AccessWriter {
    fn wants(&self, _id: u64) -> bool {
        self.enabled()
    }

    fn record(&self, record: AccessRecord) {
        if self.enabled() && self.sender.try_send(Message::Record(record)).is_err() {
            self.shared.process.events_dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Target {
    fn open(log: &AccessLog) -> io::Result<Self> {
        match log {
            AccessLog::On => Ok(Self::Stream),
            AccessLog::Off => Ok(Self::Nowhere),
            AccessLog::File(path) => RotatedFile::open(path).map(Self::File),
        }
    }
}

/// The thread's own state.
struct Writer {
    shared: Arc<Shared>,
    target: Target,
    style: Style,
    stream: Box<dyn Write + Send>,
    /// Lines not yet written, whole ones only, so that they never mix with those of others.
    batch: Vec<u8>,
    held: u64,
    checked: Instant,
}

impl Writer {
    fn run(mut self, mut receiver: mpsc::Receiver<Message>) {
        loop {
            // Taken before the channel is emptied: what was recorded before they asked is then written.
            let flushes = std::mem::take(&mut *lock(&self.shared.flushes));
            self.retarget();
            self.reopen();
            let left = self.take_round(&mut receiver);
            self.write();
            for done in flushes {
                // Whoever asked may have stopped waiting.
                let _ = done.send(());
            }
            match left {
                Ok(()) => continue,
                Err(TryRecvError::Disconnected) => return,
                Err(TryRecvError::Empty) => std::thread::sleep(GATHER),
            }
            // A request that found the channel full left no wake behind.
            if lock(&self.shared.flushes).is_empty() && lock(&self.shared.next).is_none() {
                let Some(first) = receiver.blocking_recv() else { return };
                self.take(first);
            }
        }
    }

    /// Takes as many messages as may have waited, no more, so that a flood keeps nothing else from being done.
    fn take_round(&mut self, receiver: &mut mpsc::Receiver<Message>) -> Result<(), TryRecvError> {
        for _ in 0..CAPACITY {
            let message = receiver.try_recv()?;
            self.take(message);
        }
        Ok(())
    }

    fn retarget(&mut self) {
        let next = lock(&self.shared.next).take();
        if let Some(next) = next {
            self.write();
            self.target = next;
        }
    }

    fn take(&mut self, message: Message) {
        match message {
            Message::Wake => self.retarget(),
            Message::Record(record) => self.format(&record),
        }
    }

    fn format(&mut self, record: &AccessRecord) {
        match (&self.target, self.style) {
            (Target::Nowhere, _) => return,
            (Target::Stream, Style::Pretty) => pretty_line(record, &mut self.batch),
            (Target::Stream, Style::Json) | (Target::File(_), _) => json_line(record, &mut self.batch),
        }
        self.held += 1;
        if self.batch.len() >= BATCH {
            self.write();
        }
    }

    fn write(&mut self) {
        if self.batch.is_empty() {
            return;
        }
        let held = std::mem::take(&mut self.held);
        let result = match &mut self.target {
            Target::Nowhere => Ok(()),
            Target::Stream => {
                let written = self.stream.write_all(&self.batch).and_then(|()| self.stream.flush());
                written.map_err(|error| (0, error))
            }
            Target::File(file) => file.write_lines(&self.batch),
        };
        self.batch.clear();
        let Err((whole, error)) = result else { return };
        let lost = held.saturating_sub(whole);
        self.shared.process.events_dropped.fetch_add(lost, Ordering::Relaxed);
        if self.shared.unwritten.fetch_add(lost, Ordering::Relaxed) == 0 {
            tracing::warn!(%error, "cannot write access records; lemonade_events_dropped_total counts the lost ones");
        }
    }

    fn reopen(&mut self) {
        let Target::File(file) = &mut self.target else { return };
        let asked = self.shared.rotated.swap(false, Ordering::Acquire);
        if asked || self.checked.elapsed() >= Duration::from_secs(1) {
            self.checked = Instant::now();
            if let Err(error) = file.reopen_if_rotated() {
                tracing::warn!(%error, "cannot reopen the access log; going on with the file that was rotated away");
            }
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
