//! The `lemonade` command.

use std::process::ExitCode;

/// Packs the 128-byte aligned parts of a connection without waste, where glibc adds up to 112 bytes to each of three.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    lemonade::cli::main()
}
