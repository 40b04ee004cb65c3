//! Relay `sk_msg` in a build without kernel programs.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use lemonade_common::sk_msg::Count;

use super::{Kernel, Unavailable};

/// Nothing to redirect with.
#[derive(Debug)]
pub enum SkMsg {}

#[expect(clippy::missing_errors_doc, reason = "there is no value to call these on")]
impl SkMsg {
    /// Says why there is nothing.
    pub fn load(_: &Path) -> Result<Self, Unavailable> {
        match Kernel::load()? {}
    }

    /// Says why there is nothing.
    pub fn load_object(own: &Path, _: &[u8]) -> Result<Self, Unavailable> {
        Self::load(own)
    }

    /// Never called.
    pub fn switch(&self, _: &str) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn name(&self, _: &BTreeSet<SocketAddr>) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn see(&self, _: &BTreeSet<PathBuf>) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn dial<S>(&self, _: &S, _: u32) {
        match *self {}
    }

    /// Never called.
    pub fn joined(&self, _: SocketAddr, _: SocketAddr) -> bool {
        match *self {}
    }

    /// Never called.
    pub fn left_unread(&self, _: SocketAddr, _: SocketAddr) -> bool {
        match *self {}
    }

    /// Never called.
    pub fn detours(&self) -> u64 {
        match *self {}
    }

    /// Never called.
    pub fn counts(&self) -> [u64; Count::LEN as usize] {
        match *self {}
    }
}
