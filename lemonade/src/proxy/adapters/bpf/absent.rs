//! A build without kernel programs.

use std::net::SocketAddr;

use lemonade_common::abi::BackendSignals;

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
    pub fn words(&self) -> String {
        match *self {}
    }

    /// Never called.
    pub fn signals(&self) -> Vec<(SocketAddr, BackendSignals)> {
        match *self {}
    }

    /// Never called.
    pub fn follow_log(&mut self) {
        match *self {}
    }
}
