//! Programs in the kernel: each passes this kernel's verifier, and does what it promises.

#![cfg(target_os = "linux")]

mod forward;
mod forwarding;
mod programs;
mod signals;
mod splice;
