//! Programs of Lemonade that run in the kernel, by what they serve; `bin/` holds their entries.

#![no_std]
#![cfg_attr(
    all(
        target_arch = "bpf",
        any(
            feature = "proxy",
            feature = "forward",
            feature = "sk_msg",
            feature = "splice",
            feature = "timing"
        )
    ),
    feature(asm_experimental_arch)
)]

#[cfg(feature = "forward")]
pub mod connect;
#[cfg(feature = "decap")]
pub mod decap;
#[cfg(feature = "faults")]
pub mod faults;
#[cfg(feature = "forward")]
pub mod forget;
#[cfg(feature = "forward")]
pub mod forward;
#[cfg(feature = "forward")]
pub mod forward_xdp;
#[cfg(feature = "forward")]
pub mod global;
#[cfg(feature = "forward")]
pub mod hop;
// A network with faults has no maps, so that `tc` loads it.
#[cfg(any(
    feature = "proxy",
    feature = "sk_msg",
    feature = "forward",
    feature = "decap",
    feature = "splice"
))]
pub mod maps;
#[cfg(any(feature = "forward", feature = "timing"))]
pub mod near;
#[cfg(any(feature = "forward", feature = "splice"))]
pub mod packet;
#[cfg(feature = "timing")]
pub mod restore;
#[cfg(feature = "proxy")]
pub mod signals;
#[cfg(feature = "sk_msg")]
pub mod sk_msg;
#[cfg(any(feature = "decap", feature = "forward", feature = "splice", feature = "timing"))]
pub mod skb;
#[cfg(feature = "proxy")]
pub mod sockmap;
#[cfg(feature = "splice")]
pub mod splice;
#[cfg(feature = "forward")]
pub mod tables;
#[cfg(any(feature = "forward", feature = "sk_msg", feature = "splice"))]
pub mod word;
