//! A recorder that keeps what it is told, bounded.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::metrics::port::{AccessRecord, Recorder};

/// Keeps the first `capacity` records and counts the rest.
#[derive(Debug)]
pub struct Memory {
    capacity: usize,
    records: Mutex<Vec<AccessRecord>>,
    dropped: AtomicU64,
}

impl Memory {
    /// Makes an empty one.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, records: Mutex::default(), dropped: AtomicU64::new(0) }
    }

    /// Records taken so far, in order.
    pub fn records(&self) -> Vec<AccessRecord> {
        self.records.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Records that found no room.
    pub fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

impl Recorder for Memory {
    fn wants(&self, _id: u64) -> bool {
        true
    }

    fn record(&self, record: AccessRecord) {
        let mut records = self.records.lock().unwrap_or_else(PoisonError::into_inner);
        if records.len() < self.capacity {
            records.push(record);
        } else {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}
