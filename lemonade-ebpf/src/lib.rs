//! Programs of Lemonade that run in the kernel, by what they serve; `bin/` holds their entries.

#![no_std]
#![cfg_attr(target_arch = "bpf", feature(asm_experimental_arch))]

pub mod decap;
#[cfg(feature = "faults")]
pub mod faults;
pub mod forward;
pub mod forward_xdp;
pub mod maps;
pub mod signals;
pub mod sk_msg;
pub mod skb;
pub mod sockmap;
pub mod splice;
pub mod tables;
