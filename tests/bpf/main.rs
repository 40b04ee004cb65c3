//! Programs in the kernel: each passes this kernel's verifier, and does what it promises.

#![cfg(target_os = "linux")]

mod cost;
mod errors;
mod forward;
mod forwarding;
mod half_open;
mod katran;
mod least;
mod limits;
mod modes;
mod notices;
mod passing;
mod programs;
mod signals;
mod splice;
mod splice_beyond;
mod splice_kept;
mod splice_lull;
mod too_big;
mod xdp;
