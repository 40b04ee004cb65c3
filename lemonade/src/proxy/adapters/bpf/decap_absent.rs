//! `lemonade decap` in a build without kernel programs.

use std::net::IpAddr;

use lemonade_common::decap::Unwrapped;

use super::{Kernel, Unavailable};

/// Nothing to take headers off with.
#[derive(Debug)]
pub enum Decap {}

#[expect(clippy::missing_errors_doc, reason = "there is no value to call these on")]
impl Decap {
    /// Says why there is nothing.
    pub fn load(_: &[IpAddr]) -> Result<Self, Unavailable> {
        match Kernel::load()? {}
    }

    /// Never called.
    pub fn attach(&mut self, _: &str) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn counts(&self) -> [u64; Unwrapped::COUNT as usize] {
        match *self {}
    }
}
