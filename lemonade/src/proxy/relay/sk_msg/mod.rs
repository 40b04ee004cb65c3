//! Relay `sk_msg`: `copy`, whose hops within this host skip TCP.
//!
//! The program in the kernel sends what one socket writes straight to what the other has to read; it keeps order and
//! bounds what comes to the balancer (`lemonade-ebpf/src/sk_msg.rs`). What goes to local clients and backends is bounded
//! here, and three things are done that TCP does by itself: FIN waits until everything before it was read, a close with
//! bytes unread counts as the reset that it would have been, and sockets that nobody closed in good order, because the
//! process was killed, end with RST, so that what was cut off never looks whole.

#![cfg(target_os = "linux")]

mod ledger;
pub mod trials;
pub mod unread;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use lemonade_common::sk_msg::{Count, OWN};

pub(in crate::proxy) use self::ledger::Ledger;
use self::unread::Unread;
use crate::model::relay::SelfTest;
use crate::proxy::adapters::bpf::{Kernel, SkMsg, Unavailable};

/// The relay of the process.
#[derive(Debug)]
pub struct ShortWay {
    programs: SkMsg,
    unread: Arc<Unread>,
}

/// Puts the relay into the kernel, runs its self-tests and takes it out again.
///
/// # Errors
/// Why it cannot be put there, and what would change that.
pub fn once() -> Result<Vec<SelfTest>, Unavailable> {
    let mut kernel = Kernel::load()?;
    kernel.attach()?;
    // Attached means that there is one.
    let cgroup = kernel.cgroup().map(Path::to_path_buf).unwrap_or_default();
    Ok(ShortWay::load(&cgroup)?.try_out())
}

impl ShortWay {
    /// Loads the programs; `cgroup` is Lemonade's own.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load(cgroup: &Path) -> Result<Self, Unavailable> {
        Self::over(SkMsg::load(cgroup)?)
    }

    /// As [`Self::load`], from another build of the object.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_object(cgroup: &Path, object: &[u8]) -> Result<Self, Unavailable> {
        Self::over(SkMsg::load_object(cgroup, object)?)
    }

    fn over(programs: SkMsg) -> Result<Self, Unavailable> {
        let unread = Unread::open().map(Arc::new).map_err(|error| Unavailable {
            why: format!("sock_diag(7) is refused: {error}"),
            cure: "run a kernel with CONFIG_INET_DIAG".to_owned(),
        })?;
        Ok(Self { programs, unread })
    }

    /// Lets another program of the object decide for connections made from now on.
    ///
    /// # Errors
    /// There is none of that name, or the kernel refuses it.
    pub fn switch(&self, program: &str) -> Result<(), Unavailable> {
        self.programs.switch(program)
    }

    /// Runs the self-tests, which takes a second.
    pub fn try_out(&self) -> Vec<SelfTest> {
        trials::run(&self.programs, &self.unread)
    }

    /// Runs one of the self-tests that disturb nobody, another each `turn`; `None` if there was nothing to run it with.
    pub fn canary(&self, turn: usize) -> Option<SelfTest> {
        trials::canary(&self.programs, &self.unread, turn)
    }

    /// Serves clients of these addresses and processes of these cgroups from now on, and no others.
    ///
    /// # Errors
    /// What may not be attached to.
    pub fn serve(
        &self,
        frontends: &BTreeSet<SocketAddr>,
        cgroups: &BTreeSet<PathBuf>,
    ) -> Result<(), Unavailable> {
        self.programs.see(cgroups)?;
        self.programs.name(frontends)
    }

    /// Lets a socket take part that is about to connect to a backend.
    pub fn dial(&self, socket: &impl AsFd) {
        self.programs.dial(socket, OWN);
    }

    /// The program's counters, by [`Count`].
    pub fn counts(&self) -> [u64; Count::LEN as usize] {
        self.programs.counts()
    }
}
