//! Programs in the kernel: each passes this kernel's verifier, and does what it promises.

#![cfg(target_os = "linux")]

mod cost;
mod errors;
mod forward;
mod forwarding;
mod katran;
mod modes;
mod notices;
mod passing;
mod programs;
mod signals;
mod splice;
mod too_big;
mod xdp;
