//! Records arrive, or are counted; the data plane never waits.

use std::sync::Condvar;

use super::*;
use crate::metrics::adapters::memory::Memory;
use crate::metrics::fixture::record;

const SOON: Duration = Duration::from_secs(10);

/// A stream whose reader may have stopped reading.
#[derive(Clone, Default)]
struct Pipe(Arc<(Mutex<PipeState>, Condvar)>);

#[derive(Default)]
struct PipeState {
    stalled: bool,
    broken: bool,
    written: Vec<u8>,
}

impl Pipe {
    fn change(&self, change: impl FnOnce(&mut PipeState)) {
        change(&mut lock(&self.0.0));
        self.0.1.notify_all();
    }

    fn lines(&self) -> usize {
        lock(&self.0.0).written.iter().filter(|byte| **byte == b'\n').count()
    }
}

impl Write for Pipe {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let (state, changed) = &*self.0;
        let flowing = changed.wait_while(lock(state), |state| state.stalled);
        let mut state = flowing.unwrap_or_else(PoisonError::into_inner);
        if state.broken {
            return Err(io::ErrorKind::BrokenPipe.into());
        }
        state.written.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn start(log: &AccessLog, pipe: &Pipe) -> (AccessWriter, Arc<ProcessCell>) {
    let process = Arc::new(ProcessCell::default());
    let writer = AccessWriter::start(log, Style::Json, Box::new(pipe.clone()), Arc::clone(&process)).unwrap();
    (writer, process)
}

fn dropped(process: &ProcessCell) -> usize {
    usize::try_from(process.events_dropped.load(Ordering::Relaxed)).unwrap()
}

#[test]
fn records_reach_the_log_in_order() {
    let pipe = Pipe::default();
    let (writer, process) = start(&AccessLog::On, &pipe);
    for id in 0..100 {
        writer.record(record(id));
    }
    assert!(writer.flush(SOON));
    let text = String::from_utf8(lock(&pipe.0.0).written.clone()).unwrap();
    let ids = text.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["id"].clone());
    assert_eq!(ids.map(|id| id.as_u64().unwrap()).collect::<Vec<_>>(), (0..100).collect::<Vec<_>>());
    assert_eq!(dropped(&process), 0);
}

/// The predecessor stopped for ever once nobody read its events, and lost them without a word.
#[test]
fn a_stream_that_nobody_reads_never_blocks_and_each_lost_record_is_counted() {
    let pipe = Pipe::default();
    let (writer, process) = start(&AccessLog::On, &pipe);
    pipe.change(|state| state.stalled = true);
    const SENT: usize = 3 * CAPACITY;
    for id in 0..SENT {
        writer.record(record(id as u64));
    }
    let lost = dropped(&process);
    assert!(lost > 0, "three times the capacity cannot fit");
    assert!(!writer.flush(Duration::from_millis(20)), "nothing can be written yet");

    pipe.change(|state| state.stalled = false);
    while !writer.flush(SOON) {}
    assert_eq!(pipe.lines() + dropped(&process), SENT);
    assert_eq!(dropped(&process), lost);
}

#[test]
fn records_that_cannot_be_written_are_counted() {
    let pipe = Pipe::default();
    let (writer, process) = start(&AccessLog::On, &pipe);
    pipe.change(|state| state.broken = true);
    for id in 0..7 {
        writer.record(record(id));
    }
    assert!(writer.flush(SOON));
    assert_eq!((dropped(&process), writer.unwritten()), (7, 7));
}

#[test]
fn off_wants_no_records_and_a_change_takes_effect_at_run_time() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let pipe = Pipe::default();
    let (writer, process) = start(&AccessLog::Off, &pipe);
    assert!(!writer.enabled());
    writer.record(record(1));

    writer.set(&AccessLog::File(path.clone())).unwrap();
    assert!(writer.enabled() && writer.flush(SOON));
    writer.record(record(2));
    assert!(writer.flush(SOON));

    let refused = writer.set(&AccessLog::File(folder.path().join("absent/access.jsonl"))).unwrap_err();
    assert!(refused.to_string().contains("absent/access.jsonl"), "{refused}");
    writer.record(record(3));
    assert!(writer.flush(SOON));
    assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);

    writer.set(&AccessLog::On).unwrap();
    assert!(writer.flush(SOON));
    writer.record(record(4));
    assert!(writer.flush(SOON));
    assert_eq!((pipe.lines(), dropped(&process)), (1, 0));
}

#[test]
fn a_file_that_was_rotated_away_is_opened_anew() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let mut file = RotatedFile::open(&path).unwrap();
    file.write_lines(b"one\n").unwrap();
    file.reopen_if_rotated().unwrap();
    file.write_lines(b"two\n").unwrap();
    std::fs::rename(&path, folder.path().join("access.jsonl.1")).unwrap();
    file.write_lines(b"three\n").unwrap();
    file.reopen_if_rotated().unwrap();
    file.write_lines(b"four\n").unwrap();
    assert_eq!(std::fs::read_to_string(folder.path().join("access.jsonl.1")).unwrap(), "one\ntwo\nthree\n");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "four\n");
}

#[test]
fn a_file_truncated_in_place_goes_on_at_its_new_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("access.jsonl");
    let mut file = RotatedFile::open(&path).unwrap();
    file.write_lines(b"one\n").unwrap();
    std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(0).unwrap();
    file.reopen_if_rotated().unwrap();
    file.write_lines(b"two\n").unwrap();
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "two\n");
}

#[test]
fn a_rotator_that_asks_finds_nothing_more_in_the_old_file() {
    let folder = tempfile::tempdir().unwrap();
    let (path, moved) = (folder.path().join("access.jsonl"), folder.path().join("access.jsonl.1"));
    let (writer, process) = start(&AccessLog::File(path.clone()), &Pipe::default());
    for id in 0..30 {
        writer.record(record(id));
        assert!(writer.flush(SOON));
        if id % 10 == 9 {
            std::fs::rename(&path, &moved).unwrap();
            writer.reopen();
            assert!(writer.flush(SOON));
            assert_eq!(std::fs::read_to_string(&moved).unwrap().lines().count(), 10);
        }
    }
    assert_eq!(dropped(&process), 0);
}

#[test]
fn the_memory_recorder_is_bounded_and_counts() {
    let memory = Memory::new(2);
    for id in 0..5 {
        memory.record(record(id));
    }
    assert_eq!(memory.records().iter().map(|record| record.id).collect::<Vec<_>>(), [0, 1]);
    assert_eq!(memory.dropped(), 3);
}
