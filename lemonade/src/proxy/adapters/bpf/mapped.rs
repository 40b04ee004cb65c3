//! Memory of an array in the kernel that programs and the process share.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;

use aya::maps::MapData;

/// Values of an array map that was made mappable (`BPF_F_MMAPABLE`).
///
/// Programs change them at any time, so they are only accessed by volatile and atomic operations on whole words.
#[derive(Debug)]
pub(super) struct Mapped<T> {
    first: NonNull<T>,
    values: u32,
}

// SAFETY: see the type's own words on access.
unsafe impl<T: Send> Send for Mapped<T> {}
// SAFETY: as above.
unsafe impl<T: Send> Sync for Mapped<T> {}

impl<T> Mapped<T> {
    /// Maps the `values` of `map`, of the size of `T` each.
    ///
    /// # Errors
    /// As mmap(2).
    pub(super) fn open(map: &MapData, values: u32) -> io::Result<Self> {
        // SAFETY: a new mapping of a map that was made mappable, of the size that it was made with.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                values as usize * size_of::<T>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(memory.cast()).map(|first| Self { first, values }).ok_or_else(io::Error::last_os_error)
    }

    /// Where value `at` is; one that is not there is the last.
    pub(super) fn at(&self, at: u32) -> *mut T {
        let at = at.min(self.values - 1) as usize;
        // SAFETY: within the mapping.
        unsafe { self.first.as_ptr().add(at) }
    }

    /// How many values there are.
    pub(super) const fn values(&self) -> u32 {
        self.values
    }
}

impl<T> Drop for Mapped<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody uses it any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.values as usize * size_of::<T>()) };
    }
}
