//! The rings of the forward plane, mapped into memory.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;

use aya::maps::MapData;
use lemonade_common::maglev::SLOTS;

/// The memory of the rings, which the kernel reads as it is written.
#[derive(Debug)]
pub(super) struct Rings {
    first: NonNull<u32>,
    rings: usize,
}

/// Words from one slot to the next: the kernel begins each value at a multiple of eight bytes.
const STRIDE: usize = 2;

// SAFETY: the memory is shared with the kernel, not with other owners here.
unsafe impl Send for Rings {}
// SAFETY: it is only written through `&mut self`.
unsafe impl Sync for Rings {}

impl Rings {
    /// Maps the rings, each as long as any.
    ///
    /// # Errors
    /// As mmap(2).
    pub(super) fn open(map: &MapData, rings: u32) -> io::Result<Self> {
        let rings = rings as usize;
        // SAFETY: a new mapping of a map that was made mappable, of the size that it was made with.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                rings * SLOTS as usize * STRIDE * size_of::<u32>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(memory.cast()).map(|first| Self { first, rings }).ok_or_else(io::Error::last_os_error)
    }

    /// Fills a ring.
    pub(super) fn fill(&mut self, ring: u32, slots: &[u32]) {
        if ring as usize >= self.rings {
            return;
        }
        let from = ring as usize * SLOTS as usize;
        for (at, slot) in slots.iter().enumerate().take(SLOTS as usize) {
            // SAFETY: within the mapping; the kernel reads whole words.
            unsafe { self.first.add((from + at) * STRIDE).write_volatile(*slot) };
        }
    }
}

impl Rings {
    /// How many there are.
    pub(super) fn count(&self) -> u32 {
        self.rings as u32
    }

    /// The slots of a ring.
    pub(super) fn read(&self, ring: u32) -> Vec<u32> {
        if ring as usize >= self.rings {
            return Vec::new();
        }
        let from = ring as usize * SLOTS as usize;
        // SAFETY: within the mapping, whose words are written whole.
        (from..from + SLOTS as usize)
            .map(|at| unsafe { self.first.add(at * STRIDE).read_volatile() })
            .collect()
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody uses it any more.
        unsafe {
            libc::munmap(self.first.as_ptr().cast(), self.rings * SLOTS as usize * STRIDE * size_of::<u32>())
        };
    }
}
