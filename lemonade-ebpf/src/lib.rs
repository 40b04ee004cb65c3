//! Programs of Lemonade that run in the kernel, by what they serve; `bin/` holds their entries.

#![no_std]

pub mod maps;
