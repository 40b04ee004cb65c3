//! What of a plane or relay outlives a killed process: maps and links with names in the BPF filesystem.
//!
//! Each set has a folder `OWNER-TOKEN` of its own: OWNER tells whose it is, TOKEN which of the sets that it made. The process
//! that uses it has an entry `pid-N` there.

#![cfg(target_os = "linux")]

use std::ffi::{CStr, CString};
use std::fs::{self, DirBuilder};
use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use rustix::mount::{MountFlags, mount};

/// Where the BPF filesystem is on every distribution.
const BPFFS: &str = "/sys/fs/bpf";

/// Folder for all sets.
const SETS: &str = "/sys/fs/bpf/lemonade";

/// `BPF_FS_MAGIC` of `linux/magic.h`
const MAGIC: u64 = 0xcafe_4a11;

/// `linux/bpf.h`
const BPF_OBJ_GET: libc::c_long = 7;
const BPF_LINK_DETACH: libc::c_long = 34;

/// What the name of a process's entry begins with.
const PROCESS: &str = "pid-";

/// What a link holds at an interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Hold {
    /// The program at tc that sees what arrives.
    Tc,
    /// The one that sees what leaves.
    Leaves,
    /// The one at XDP, in the driver.
    Native,
    /// The one at XDP, behind the driver.
    Generic,
}

impl Hold {
    const ALL: [Self; 4] = [Self::Tc, Self::Leaves, Self::Native, Self::Generic];

    /// What the names of such links begin with; index and name of the interface follow.
    const fn prefix(self) -> &'static str {
        match self {
            Self::Tc => "tc-",
            Self::Leaves => "tcout-",
            Self::Native => "xdp-",
            Self::Generic => "xdpgeneric-",
        }
    }
}

/// What the names of links to cgroups begin with; a number of the link's own, that of the cgroup and the program follow.
const CGROUP: &str = "cgroup-";

/// A link by its name: what it holds, interface and index.
fn link(name: &str) -> Option<(Hold, &str, u32)> {
    let (hold, rest) =
        Hold::ALL.into_iter().find_map(|hold| Some((hold, name.strip_prefix(hold.prefix())?)))?;
    let (index, interface) = rest.split_once('-')?;
    Some((hold, interface, index.parse().ok()?))
}

/// One set.
#[derive(Debug)]
pub struct Pins {
    folder: PathBuf,
    owner: String,
}

impl Pins {
    /// The set of `owner` with this token, which may be there already; it is of this process from now on. Mounts the BPF
    /// filesystem where it is not, as bpftool(8) does.
    ///
    /// # Errors
    /// Nothing can be kept there, in words.
    pub fn open(owner: u64, token: u64) -> Result<Self, String> {
        mounted()?;
        let owner = format!("{owner:016x}");
        let folder = Path::new(SETS).join(format!("{owner}-{token:016x}"));
        let made = || {
            DirBuilder::new().mode(0o700).recursive(true).create(&folder)?;
            for (name, _) in names(&folder)?.filter(|(name, _)| name.starts_with(PROCESS)) {
                fs::remove_dir(folder.join(name))?;
            }
            fs::create_dir(folder.join(format!("{PROCESS}{}", std::process::id())))
        };
        made().map_err(|error: io::Error| format!("{}: {error}", folder.display()))?;
        Ok(Self { folder, owner })
    }

    /// Place of a map.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// Place of a link to an interface.
    pub(super) fn link(&self, hold: Hold, interface: &str, index: u32) -> PathBuf {
        self.folder.join(format!("{}{index}-{interface}", hold.prefix()))
    }

    /// Place of a link to the cgroup with a number, which no other link has.
    pub(super) fn cgroup(&self, number: u64, program: &str) -> PathBuf {
        self.folder.join(format!("{CGROUP}{:08x}-{number}-{program}", fastrand::u32(..)))
    }

    /// Places of links to cgroups that are there.
    pub(super) fn cgroups(&self) -> Vec<PathBuf> {
        let names = names(&self.folder).into_iter().flatten();
        names.filter(|(name, _)| name.starts_with(CGROUP)).map(|(_, path)| path).collect()
    }

    /// Links to interfaces that are there: what they hold, the interface with its index, and the place.
    pub(super) fn links(&self) -> Vec<(Hold, String, u32, PathBuf)> {
        let names = names(&self.folder).into_iter().flatten();
        let links = names.filter_map(|(name, path)| {
            let (hold, interface, index) = link(&name)?;
            Some((hold, interface.to_owned(), index, path))
        });
        links.collect()
    }

    /// Whether the owner's other sets have a link at XDP to the interface with this index.
    pub(super) fn others_hold(&self, index: u32) -> bool {
        let mut names = self.others().flat_map(|(_, folder)| names(&folder).into_iter().flatten());
        let xdp = |hold| matches!(hold, Hold::Native | Hold::Generic);
        names.any(|(name, _)| link(&name).is_some_and(|(hold, _, there)| xdp(hold) && there == index))
    }

    /// Takes every name away.
    pub fn remove(&self) {
        remove(&self.folder);
    }

    /// Takes the owner's other sets away, which this one stands for now; says how many.
    pub fn remove_others(&self) -> usize {
        self.others().map(|(_, folder)| remove(&folder)).count()
    }

    fn others(&self) -> impl Iterator<Item = (String, PathBuf)> {
        sets().filter(|(name, folder)| name.starts_with(&self.owner) && *folder != self.folder)
    }
}

/// Takes away the sets of processes that are gone; tells which.
pub(super) fn sweep() -> Vec<PathBuf> {
    let left = sets().map(|(_, folder)| folder).filter(|folder| !in_use(folder));
    left.inspect(|folder| remove(folder)).collect()
}

/// Tokens of the sets of `owner`.
pub(super) fn tokens(owner: u64) -> Vec<u64> {
    let owner = format!("{owner:016x}-");
    let token = |name: &str| u64::from_str_radix(name.strip_prefix(&owner)?, 16).ok();
    sets().filter_map(|(name, _)| token(&name)).collect()
}

/// Takes every set of `owner` away; says how many.
pub fn remove_all(owner: u64) -> usize {
    let owner = format!("{owner:016x}");
    sets().filter(|(name, _)| name.starts_with(&owner)).map(|(_, folder)| remove(&folder)).count()
}

fn sets() -> impl Iterator<Item = (String, PathBuf)> {
    names(Path::new(SETS)).into_iter().flatten()
}

fn names(folder: &Path) -> io::Result<impl Iterator<Item = (String, PathBuf)> + use<>> {
    let entries = fs::read_dir(folder)?.flatten();
    Ok(entries.filter_map(|entry| Some((entry.file_name().into_string().ok()?, entry.path()))))
}

fn in_use(folder: &Path) -> bool {
    let pids = names(folder).into_iter().flatten();
    pids.filter_map(|(name, _)| Some(Path::new("/proc").join(name.strip_prefix(PROCESS)?).exists()))
        .any(|lives| lives)
}

/// Links go first: without them nothing reaches the maps.
fn remove(folder: &Path) {
    let entries = || names(folder).into_iter().flatten();
    let links = entries().filter(|(name, _)| link(name).is_some() || name.starts_with(CGROUP));
    let links: Vec<_> = links.collect();
    for (_, path) in &links {
        // One without an interface or a cgroup does nothing any more.
        if let Err(error) = detach(path) {
            tracing::debug!(%error, link = %path.display(), "a link is left to the kernel to end");
        }
    }
    for (_, path) in links.into_iter().chain(entries()) {
        // Another process that sweeps may have been faster.
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    }
    let _ = fs::remove_dir(folder);
}

/// Ends at once what a link does. One whose last name and descriptor are gone ends too, but only when the kernel comes to it
/// (`bpf_link_put` of kernel/bpf/syscall.c).
fn detach(link: &Path) -> io::Result<()> {
    let path = CString::new(link.as_os_str().as_bytes())?;
    let mut asked = [path.as_ptr() as u64, 0];
    // SAFETY: the attributes are those of the command, and the path outlives the call.
    let link = unsafe { call(BPF_OBJ_GET, &mut asked)? };
    // SAFETY: the kernel has just made it, for this process.
    let link = unsafe { OwnedFd::from_raw_fd(link) };
    let [a, b, c, d] = link.as_raw_fd().to_ne_bytes();
    let mut asked = [u64::from_ne_bytes([a, b, c, d, 0, 0, 0, 0]), 0];
    // SAFETY: the attributes are those of the command, which begin with the descriptor's 32 bits.
    unsafe { call(BPF_LINK_DETACH, &mut asked) }.map(|_| ())
}

/// # Safety
/// The attributes are those that bpf(2) takes for the command.
unsafe fn call(command: libc::c_long, attributes: &mut [u64; 2]) -> io::Result<RawFd> {
    let size = size_of_val(attributes) as libc::c_uint;
    // SAFETY: the caller's promise; the kernel reads `size` bytes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_mut_ptr(), size) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as RawFd) }
}

fn mounted() -> Result<(), String> {
    let is_there = || rustix::fs::statfs(BPFFS).is_ok_and(|about| about.f_type as u64 == MAGIC);
    if is_there() {
        return Ok(());
    }
    const KIND: &CStr = c"bpf";
    mount(KIND, BPFFS, KIND, MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC, c"mode=700")
        .map_err(|error| format!("{BPFFS} is no BPF filesystem and cannot be made one ({error})"))
}
