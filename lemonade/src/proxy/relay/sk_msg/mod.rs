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

use lemonade_common::sk_msg::Count;

pub(in crate::proxy) use self::ledger::Ledger;
use self::unread::Unread;
use crate::model::relay::SelfTest;
use crate::proxy::adapters::bpf::{SkMsg, Unavailable};

/// The relay of the process.
#[derive(Debug)]
pub struct ShortWay {
    programs: SkMsg,
    unread: Arc<Unread>,
    cgroup: PathBuf,
}

impl ShortWay {
    /// Loads the programs; `cgroup` is Lemonade's own.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load(cgroup: &Path) -> Result<Self, Unavailable> {
        let unread = Unread::open().map(Arc::new).map_err(|error| Unavailable {
            why: format!("sock_diag(7) is refused: {error}"),
            cure: "run a kernel with CONFIG_INET_DIAG".to_owned(),
        })?;
        Ok(Self { programs: SkMsg::load(cgroup)?, unread, cgroup: cgroup.to_path_buf() })
    }

    /// Runs the self-tests, which takes a second; nothing else may use the relay meanwhile.
    pub fn try_out(&self) -> Vec<SelfTest> {
        let name =
            |address| self.programs.name(&BTreeSet::from([address])).map_err(|error| error.to_string());
        // Their foreign ends are sockets of this process.
        if let Err(error) = self.programs.see(&BTreeSet::from([self.cgroup.clone()])) {
            tracing::debug!(%error, "the self-tests of sk_msg see no foreign ends");
        }
        let tests = trials::run(&self.programs, &self.unread, name);
        let _ = self.programs.name(&BTreeSet::new());
        let _ = self.programs.see(&BTreeSet::new());
        tests
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
        self.programs.dial(socket);
    }

    /// The program's counters, by [`Count`].
    pub fn counts(&self) -> [u64; Count::LEN as usize] {
        self.programs.counts()
    }
}
