//! Reads a whole hash map in few calls: `BPF_MAP_LOOKUP_BATCH`, which aya 0.14 does not have.

#![cfg(target_os = "linux")]

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};

use aya::maps::MapData;

/// Entries of one call; the kernel wants room for a whole bucket at least.
const ENTRIES: usize = 1024;

/// `linux/bpf.h`
const BPF_MAP_LOOKUP_BATCH: libc::c_long = 24;

/// The part of `union bpf_attr` that the command reads and writes (`linux/bpf.h`).
#[repr(C)]
struct Attributes {
    from: u64,
    to: u64,
    keys: u64,
    values: u64,
    count: u32,
    map: u32,
    element_flags: u64,
    flags: u64,
}

/// Entries with keys of `K` bytes and values of `V`.
pub(super) type Entries<const K: usize, const V: usize> = Vec<([u8; K], [u8; V])>;

/// Where a reading of a hash map stands, between one call and the next.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    at: u32,
    begun: bool,
}

/// Every entry of a hash map whose keys have `K` bytes and whose values have `V`.
///
/// # Errors
/// The sizes are not those of the map; else as bpf(2), `EINVAL` before Linux 5.6.
pub(super) fn entries<const K: usize, const V: usize>(map: &MapData) -> io::Result<Entries<K, V>> {
    let (mut cursor, mut read) = (Cursor::default(), Vec::new());
    while !next(map, &mut cursor, &mut read)? {}
    Ok(read)
}

/// Adds the next entries to `read`, some thousand at most; says whether they were the last, and begins anew then.
///
/// # Errors
/// As [`entries`].
pub(super) fn next<const K: usize, const V: usize>(
    map: &MapData,
    cursor: &mut Cursor,
    read: &mut Entries<K, V>,
) -> io::Result<bool> {
    let sizes = map.info().map(|map| (map.key_size(), map.value_size())).map_err(io::Error::other)?;
    if sizes != (K as u32, V as u32) {
        return Err(io::Error::other(format!("the map has keys and values of {sizes:?} bytes")));
    }
    let (mut keys, mut values) = (vec![[0; K]; ENTRIES], vec![[0; V]; ENTRIES]);
    let mut after = 0_u32;
    let at = cursor.at;
    let mut attributes = Attributes {
        from: if cursor.begun { (&raw const at) as u64 } else { 0 },
        to: (&raw mut after) as u64,
        keys: keys.as_mut_ptr() as u64,
        values: values.as_mut_ptr() as u64,
        count: ENTRIES as u32,
        map: map.fd().as_fd().as_raw_fd() as u32,
        element_flags: 0,
        flags: 0,
    };
    // SAFETY: the attributes point to `at` and `after`, which the kernel wants as words for hash maps, and to room
    // for `count` keys and values of the map's sizes; all of them outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_MAP_LOOKUP_BATCH,
            &raw mut attributes,
            size_of::<Attributes>() as libc::c_uint,
        )
    };
    let error = (result != 0).then(io::Error::last_os_error);
    // "No entry" says that these are the last.
    let last = error.as_ref().is_some_and(|error| error.raw_os_error() == Some(libc::ENOENT));
    match error {
        Some(error) if !last => return Err(error),
        Some(_) | None => {}
    }
    let count = (attributes.count as usize).min(ENTRIES);
    read.extend(keys[..count].iter().copied().zip(values[..count].iter().copied()));
    *cursor = if last { Cursor::default() } else { Cursor { at: after, begun: true } };
    Ok(last)
}
