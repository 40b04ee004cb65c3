//! The `lemonade` command.

use std::process::ExitCode;

/// Packs the 128-byte aligned parts of a connection without waste: 1.50 KiB per idle connection were measured, against
/// 1.82 with glibc and 1.87 with mimalloc.
#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Settings that the allocator reads at start: freed pages go back to the system within about a second.
#[cfg(target_os = "linux")]
// SAFETY: jemalloc declares this symbol as a pointer to a C string, and nothing else defines it.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: Option<&'static std::ffi::c_char> =
    // SAFETY: a C string literal lives as long as the process and has at least its terminating byte.
    Some(unsafe { &*c"background_thread:true,dirty_decay_ms:1000,muzzy_decay_ms:0".as_ptr() });

fn main() -> ExitCode {
    lemonade::cli::main()
}
