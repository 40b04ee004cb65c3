//! Attaching the programs that give sockets of this host a backend, to cgroups that the user names.

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, CgroupSockAddr};

use super::Forward;
use crate::proxy::adapters::bpf::cgroup;
use crate::proxy::adapters::bpf::held::Held;
use crate::proxy::adapters::bpf::loader::{Verified, corrupt, refused};
use crate::proxy::adapters::bpf::{Unavailable, pins};

/// The programs: those that show a socket the service come first, so that none has a backend without them.
const PROGRAMS: [&str; 8] = [
    "forward_getpeername4",
    "forward_getpeername6",
    "forward_recvmsg4",
    "forward_recvmsg6",
    "forward_sendmsg4",
    "forward_sendmsg6",
    "forward_connect4",
    "forward_connect6",
];

/// `CGROUP2_SUPER_MAGIC` of `linux/magic.h`
const MAGIC: u64 = 0x6367_7270;

/// A cgroup that programs are attached to: its number, and the links.
pub(super) type Seen = (u64, Vec<Held<FdLink>>);

impl Forward {
    /// Has the sockets of a cgroup, and of those below it, get backends of services that are put at
    /// [`at_connect`](lemonade_common::forward::ServiceKey::at_connect); once is enough.
    ///
    /// # Errors
    /// It is no cgroup v2, or may not be attached to.
    pub fn attach_cgroup(&mut self, path: &Path) -> Result<(), Unavailable> {
        let (folder, number) = open(path)?;
        if self.cgroups.get(path).is_some_and(|(there, _)| *there == number) {
            return Ok(());
        }
        let mut links = Vec::new();
        for name in PROGRAMS {
            match self.attach_socket_program(name, &folder, number) {
                Ok(link) => links.push(link),
                Err(error) => {
                    let_go(links);
                    return Err(of_cgroup(path, error));
                }
            }
        }
        if let Some((_, gone)) = self.cgroups.insert(path.to_owned(), (number, links)) {
            // Of a cgroup that was removed and made again.
            let_go(gone);
        }
        Ok(())
    }

    /// As [`Self::attach_cgroup`], of the cgroup that this process is in.
    ///
    /// # Errors
    /// There is no cgroup v2 here, and as there.
    pub fn attach_own_cgroup(&mut self) -> Result<(), Unavailable> {
        self.attach_cgroup(&cgroup::own()?)
    }

    /// Whether sockets of a cgroup could be seen, as far as its folder tells.
    ///
    /// # Errors
    /// It is no cgroup v2.
    pub fn sees(path: &Path) -> Result<(), Unavailable> {
        open(path).map(drop)
    }

    fn attach_socket_program(
        &mut self,
        name: &str,
        folder: &File,
        number: u64,
    ) -> Result<Held<FdLink>, Unavailable> {
        let place = self.pins.as_ref().map(|pins| pins.cgroup(number, name));
        let program = self.socket_program(name)?;
        // Of links there may be several all the same.
        let link = program.attach(folder, CgroupAttachMode::Single).map_err(|error| refused(&error))?;
        let link = program.take_link(link).map_err(|error| refused(&error))?;
        let link = FdLink::try_from(link).map_err(|error| refused(&error))?;
        match place {
            Some(place) => link.pin(place).map(Held::Pinned).map_err(|error| refused(&error)),
            None => Ok(Held::Own(link)),
        }
    }

    fn socket_program(&mut self, name: &str) -> Result<&mut CgroupSockAddr, Unavailable> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| corrupt(&format!("no program {name}")))?;
        let program: &mut CgroupSockAddr =
            program.try_into().map_err(|error: aya::programs::ProgramError| corrupt(&error.to_string()))?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(&error))?;
        }
        Ok(program)
    }

    /// Sees the sockets of no other cgroups than these.
    pub fn leave_cgroups(&mut self, kept: &BTreeSet<PathBuf>) {
        for (path, (number, links)) in std::mem::take(&mut self.cgroups) {
            if kept.contains(&path) {
                self.cgroups.insert(path, (number, links));
            } else {
                let_go(links);
            }
        }
    }

    /// Cgroups whose sockets it sees.
    pub fn cgroups(&self) -> Vec<String> {
        self.cgroups.keys().map(|path| path.display().to_string()).collect()
    }

    /// As [`Self::verify`], the programs for sockets.
    pub fn verify_sockets() -> Vec<Verified> {
        let followed = |name: &str| -> Result<u32, Unavailable> {
            let mut own = Self::load(1, 1, 0)?;
            let info = own.socket_program(name)?.info().map_err(|error| refused(&error))?;
            Ok(info.verified_instruction_count().unwrap_or(0))
        };
        PROGRAMS.map(|name| Verified { name: name.to_owned(), verdict: followed(name) }).into()
    }

    /// Has the links of cgroups go with the process.
    pub(super) fn forsake_cgroups(&mut self) {
        for (_, links) in self.cgroups.values_mut() {
            for held in std::mem::take(links) {
                match held {
                    Held::Pinned(link) => links.extend(link.unpin().ok().map(Held::Own)),
                    own @ Held::Own(_) => links.push(own),
                }
            }
        }
    }

    /// Links to cgroups that a process before this one has left: they go on until those of this one are there too.
    pub(super) fn former_cgroups(&mut self) {
        self.former = self.pins.as_ref().map(pins::Pins::cgroups).unwrap_or_default();
    }

    /// Takes them away.
    pub(super) fn leave_former_cgroups(&mut self) {
        for place in std::mem::take(&mut self.former) {
            // Another process that sweeps may have been faster.
            let _ = std::fs::remove_file(place);
        }
    }
}

/// The folder of a cgroup, and its number.
fn open(path: &Path) -> Result<(File, u64), Unavailable> {
    let unfit = |why: String| Unavailable {
        why: format!("accelerate_cgroup {}: {why}", path.display()),
        cure: "name the folder of a cgroup v2, such as /sys/fs/cgroup/web.slice".to_owned(),
    };
    let folder = File::open(path).map_err(|error| unfit(error.to_string()))?;
    let about = rustix::fs::fstatfs(&folder).map_err(|error| unfit(error.to_string()))?;
    if about.f_type as u64 != MAGIC {
        return Err(unfit("it is no cgroup v2".to_owned()));
    }
    let number = folder.metadata().map_err(|error| unfit(error.to_string()))?.ino();
    Ok((folder, number))
}

/// Detaches. Links without a name end when they are dropped.
fn let_go(links: Vec<Held<FdLink>>) {
    for held in links {
        if let Held::Pinned(link) = held {
            drop(link.unpin());
        }
    }
}

fn of_cgroup(path: &Path, Unavailable { why, cure }: Unavailable) -> Unavailable {
    Unavailable { why: format!("accelerate_cgroup {}: {why}", path.display()), cure }
}
