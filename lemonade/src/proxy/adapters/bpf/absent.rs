//! A build without kernel programs.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::PathBuf;

use lemonade_common::abi::{BackendSignals, RelayFlow};

use super::Unavailable;

/// Nothing in the kernel.
#[derive(Debug)]
pub enum Kernel {}

impl Kernel {
    /// Says why there is nothing.
    ///
    /// # Errors
    /// Always.
    pub fn load() -> Result<Self, Unavailable> {
        let cure = if cfg!(target_os = "linux") {
            "build with `cargo xtask run`, which finds or installs the toolchain (`cargo xtask setup` says what is missing)"
        } else {
            "they need Linux"
        };
        Err(Unavailable { why: "this build has no kernel programs".to_owned(), cure: cure.to_owned() })
    }

    /// Never called.
    ///
    /// # Errors
    /// Never.
    pub fn attach(&mut self) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn cgroup(&self) -> Option<&std::path::Path> {
        match *self {}
    }

    /// Never called.
    pub fn words(&self) -> String {
        match *self {}
    }

    /// Never called.
    ///
    /// # Errors
    /// Never.
    pub fn signals(&self) -> io::Result<Vec<(SocketAddr, BackendSignals)>> {
        match *self {}
    }

    /// Never called.
    pub fn follow_log(&mut self) {
        match *self {}
    }
}

/// A build without kernel programs leaves nothing in the kernel.
///
/// # Errors
/// Always: what another build left it does not know.
pub fn cleanup() -> Result<Vec<PathBuf>, Unavailable> {
    match Kernel::load()? {}
}

/// Nothing to redirect with.
#[derive(Debug)]
pub enum Sockmap {}

#[expect(clippy::missing_errors_doc, reason = "there is no value to call these on")]
impl Sockmap {
    /// Never called.
    pub fn attach(kernel: &mut Kernel) -> Result<Self, Unavailable> {
        match *kernel {}
    }

    /// Never called.
    pub fn want_acks(&self, _: bool) -> io::Result<()> {
        match *self {}
    }

    /// Never called.
    pub fn join(&self, _: [BorrowedFd<'_>; 2], _: [RelayFlow; 2]) -> io::Result<()> {
        match *self {}
    }

    /// Never called.
    pub fn part(&self, _: [u64; 2]) {
        match *self {}
    }

    /// Never called.
    pub fn arm(&self, _: u64, _: BorrowedFd<'_>) -> io::Result<()> {
        match *self {}
    }

    /// Never called.
    pub fn flow(&self, _: u64) -> Option<RelayFlow> {
        match *self {}
    }

    /// Never called.
    pub fn moved(&self, _: u64, _: u64) -> io::Result<()> {
        match *self {}
    }

    /// Never called.
    pub fn acknowledged(&self, _: u64, _: u64) -> io::Result<()> {
        match *self {}
    }

    /// Never called.
    pub fn forget(&self, _: [u64; 2]) {
        match *self {}
    }

    /// Never called.
    pub fn next_event(&self) -> Option<u64> {
        match *self {}
    }
}

impl AsFd for Sockmap {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match *self {}
    }
}
