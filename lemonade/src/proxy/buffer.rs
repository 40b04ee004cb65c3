//! Relay buffers: borrowed from the worker for the time of a copy, so that an idle connection holds none.

use std::cell::RefCell;

/// Free buffers that a worker keeps; more are given back to the allocator.
const KEPT: usize = 16;

/// Bytes of the smallest buffer that the configuration allows; what holds fewer was not borrowed here.
pub(super) const LEAST: usize = 4 * 1024;

thread_local! {
    static FREE: RefCell<Vec<Box<[u8]>>> = const { RefCell::new(Vec::new()) };
}

/// Takes a buffer of `size` bytes from this thread's free list, or makes one.
pub(super) fn take(size: usize) -> Box<[u8]> {
    let kept = FREE.with_borrow_mut(Vec::pop).filter(|buffer| buffer.len() == size);
    kept.unwrap_or_else(|| vec![0; size].into_boxed_slice())
}

/// Gives a buffer back.
pub(super) fn put(buffer: Box<[u8]>) {
    FREE.with_borrow_mut(|free| {
        if free.len() < KEPT && buffer.len() >= LEAST {
            free.push(buffer);
        }
    });
}
