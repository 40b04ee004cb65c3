//! The programs of relay `sk_msg`: loaded when a frontend asks for it, attached to Lemonade's own cgroup and to those
//! that the user names.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray, SockHash};
use aya::programs::links::FdLink;
use aya::programs::{CgroupAttachMode, SkMsg as Program, SockOps};
use aya::{Ebpf, EbpfLoader};
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT, Endpoint};
use lemonade_common::sk_msg::{Count, End, Socket};

use super::Unavailable;
use super::layout::Types;
use super::loader::{Verified, corrupt, refused, verify_all};
use super::mapped::Mapped;

/// The object.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("LEMONADE_BPF_SK_MSG"));

/// Bytes of a key of the maps of sockets.
const END: usize = size_of::<End>();

/// Bytes of a value of the map `ENDS`.
const SOCKET: usize = size_of::<Socket>();

/// Bytes of a key of the map `FRONTENDS`.
const ENDPOINT: usize = size_of::<Endpoint>();

/// The relay in the kernel. Dropping it takes everything away.
pub struct SkMsg {
    inner: Mutex<Inner>,
    dials: Mutex<HashMap<MapData, u64, u32>>,
    unread: Mutex<HashMap<MapData, [u8; END], u32>>,
    ends: HashMap<MapData, [u8; END], [u8; SOCKET]>,
    detours: Mapped<u64>,
}

struct Inner {
    frontends: HashMap<MapData, [u8; ENDPOINT], u32>,
    counts: PerCpuArray<MapData, u64>,
    socks: SockHash<MapData, [u8; END]>,
    named: BTreeSet<SocketAddr>,
    cgroups: BTreeMap<PathBuf, FdLink>,
    ebpf: Ebpf,
}

impl SkMsg {
    /// Loads the programs and attaches those for Lemonade's own cgroup there.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load(own: &Path) -> Result<Self, Unavailable> {
        Self::load_object(own, OBJECT)
    }

    /// As [`Self::load`], from another build of the object.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_object(own: &Path, object: &[u8]) -> Result<Self, Unavailable> {
        let types = Types::of_kernel()?;
        let mut ebpf = loaded(object, &types)?;
        let mut versions: Array<_, u32> = taken(&mut ebpf, "ABI")?;
        versions.set(ABI_VERSION_AT, ABI_VERSION, 0).map_err(|error| refused(&error))?;
        let socks: SockHash<_, [u8; END]> = taken(&mut ebpf, "SOCKS")?;
        redirect(&mut ebpf, "short_way", &socks)?;
        let foreign_ends: &mut SockOps = program(&mut ebpf, "foreign_ends")?;
        foreign_ends.load().map_err(|error| refused(&error))?;
        let own_ends: &mut SockOps = program(&mut ebpf, "own_ends")?;
        own_ends.load().map_err(|error| refused(&error))?;
        let own = File::open(own).map_err(|error| refused(&error))?;
        own_ends.attach(own, CgroupAttachMode::Single).map_err(|error| refused(&error))?;
        let dials = Mutex::new(taken(&mut ebpf, "DIALS")?);
        let unread = Mutex::new(taken(&mut ebpf, "UNREAD")?);
        let ends = taken(&mut ebpf, "ENDS")?;
        let frontends = taken(&mut ebpf, "FRONTENDS")?;
        let counts = taken(&mut ebpf, "COUNTS")?;
        let detours = match ebpf.map("DETOURS") {
            Some(Map::Array(map)) => Mapped::open(map, 1).map_err(|error| refused(&error))?,
            _ => return Err(corrupt("no map DETOURS")),
        };
        let (named, cgroups) = (BTreeSet::new(), BTreeMap::new());
        let inner = Mutex::new(Inner { frontends, counts, socks, named, cgroups, ebpf });
        Ok(Self { inner, dials, unread, ends, detours })
    }

    /// Sends every program through the verifier and lets it go again.
    pub fn verify() -> Vec<Verified> {
        match Types::of_kernel().and_then(|types| loaded(OBJECT, &types)) {
            Ok(mut ebpf) => verify_all(&mut ebpf),
            Err(error) => vec![Verified { name: "short_way".to_owned(), verdict: Err(error) }],
        }
    }

    /// Lets another program of the object decide for sockets that join from now on.
    ///
    /// # Errors
    /// There is none of that name, or the kernel refuses it.
    pub fn switch(&self, program: &str) -> Result<(), Unavailable> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { ebpf, socks, .. } = &mut *inner;
        redirect(ebpf, program, socks)
    }

    /// Takes part for local clients of these addresses from now on, and for no others.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn name(&self, frontends: &BTreeSet<SocketAddr>) -> Result<(), Unavailable> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { frontends: map, named, .. } = &mut *inner;
        for gone in named.difference(frontends) {
            // Not there: then it is gone already.
            let _ = map.remove(&endpoint(*gone));
        }
        for new in frontends {
            map.insert(endpoint(*new), 1, 0).map_err(|error| refused(&error))?;
        }
        named.clone_from(frontends);
        Ok(())
    }

    /// Sees the sockets of these cgroups, and of no others but Lemonade's own.
    ///
    /// # Errors
    /// The first that is no cgroup v2, or may not be attached to; the others are seen.
    pub fn see(&self, cgroups: &BTreeSet<PathBuf>) -> Result<(), Unavailable> {
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        let Inner { cgroups: seen, ebpf, .. } = &mut *inner;
        seen.retain(|path, _| cgroups.contains(path));
        let mut failed = None;
        for path in cgroups {
            if seen.contains_key(path) {
                continue;
            }
            match attach(ebpf, path) {
                Ok(link) => {
                    seen.insert(path.clone(), link);
                }
                Err(error) => failed = failed.or(Some(error)),
            }
        }
        failed.map_or(Ok(()), Err)
    }

    /// Lets a socket of this process take part that is about to connect: as the balancer's ([`OWN`]), or as the part that
    /// it plays in a self-test.
    ///
    /// [`OWN`]: lemonade_common::sk_msg::OWN
    pub fn dial(&self, socket: &impl AsFd, owner: u32) {
        let Ok(cookie) = rustix::net::sockopt::socket_cookie(socket) else { return };
        // Without the entry the connection goes by TCP.
        let _ = self.dials.lock().unwrap_or_else(PoisonError::into_inner).insert(cookie, owner, 0);
    }

    /// Whether the socket at `local`, connected to `remote`, takes part.
    pub fn joined(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        self.ends.get(&end(local, remote).to_bytes(), 0).is_ok()
    }

    /// Whether the other end of this socket was closed with bytes unread, which asks once.
    pub fn left_unread(&self, local: SocketAddr, remote: SocketAddr) -> bool {
        let end = end(local, remote).to_bytes();
        self.unread.lock().unwrap_or_else(PoisonError::into_inner).remove(&end).is_ok()
    }

    /// Messages of sockets that take part and that went by TCP all the same.
    pub fn detours(&self) -> u64 {
        // SAFETY: an aligned word within the mapping, which lives as long as this; the kernel changes it atomically.
        unsafe { AtomicU64::from_ptr(self.detours.at(0)) }.load(Ordering::Acquire)
    }

    /// The counters, by [`Count`].
    pub fn counts(&self) -> [u64; Count::LEN as usize] {
        let inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        std::array::from_fn(|at| inner.counts.get(&(at as u32), 0).map_or(0, |each| each.iter().sum()))
    }
}

impl std::fmt::Debug for SkMsg {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SkMsg").finish_non_exhaustive()
    }
}

/// Makes the maps of an object whose programs know where this kernel keeps what they read.
fn loaded(object: &[u8], types: &Types) -> Result<Ebpf, Unavailable> {
    let copied_seq = types.offset("tcp_sock", "copied_seq")?;
    let write_seq = types.offset("tcp_sock", "write_seq")?;
    let rmem_alloc = types.offset("sock", "sk_backlog.rmem_alloc")?;
    let user_data = types.offset("sock", "sk_user_data")?;
    let netns = netns_cookie().map_err(|error| refused(&error))?;
    EbpfLoader::new()
        .override_global("NETNS", &netns, true)
        .override_global("COPIED_SEQ", &copied_seq, true)
        .override_global("WRITE_SEQ", &write_seq, true)
        .override_global("RMEM_ALLOC", &rmem_alloc, true)
        .override_global("USER_DATA", &user_data, true)
        .load(object)
        .map_err(|error| refused(&error))
}

/// Lets a program decide on what sockets of the map send.
fn redirect(ebpf: &mut Ebpf, name: &str, socks: &SockHash<MapData, [u8; END]>) -> Result<(), Unavailable> {
    let program: &mut Program = program(ebpf, name)?;
    program.load().map_err(|error| refused(&error))?;
    program.attach(socks.fd()).map_err(|error| refused(&error))?;
    Ok(())
}

fn attach(ebpf: &mut Ebpf, path: &Path) -> Result<FdLink, Unavailable> {
    let refuse = |error: &(dyn std::error::Error + 'static)| Unavailable {
        why: format!("accelerate_cgroup {}: {}", path.display(), refused(error).why),
        cure: "name a folder of cgroup v2 that exists, such as one that `systemd-cgls` shows".to_owned(),
    };
    let folder = File::open(path).map_err(|error| refuse(&error))?;
    let program: &mut SockOps = program(ebpf, "foreign_ends")?;
    let link = program.attach(folder, CgroupAttachMode::Single).map_err(|error| refuse(&error))?;
    let link = program.take_link(link).map_err(|error| refuse(&error))?;
    FdLink::try_from(link).map_err(|error| refuse(&error))
}

fn program<'a, P>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P, Unavailable>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program>,
    <&'a mut P as TryFrom<&'a mut aya::programs::Program>>::Error: std::fmt::Display,
{
    let program = ebpf.program_mut(name).ok_or_else(|| corrupt(&format!("no program {name}")))?;
    program.try_into().map_err(|error| corrupt(&format!("{name}: {error}")))
}

fn taken<M: TryFrom<Map, Error = MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<M, Unavailable> {
    let map = ebpf.take_map(name).ok_or_else(|| corrupt(&format!("no map {name}")))?;
    M::try_from(map).map_err(|error| corrupt(&format!("{name}: {error}")))
}

/// Cookie of the network namespace that this process is in.
fn netns_cookie() -> io::Result<u64> {
    let socket = std::net::UdpSocket::bind("127.0.0.1:0")?;
    let (mut cookie, mut length) = (0_u64, size_of::<u64>() as libc::socklen_t);
    // SAFETY: the kernel writes at most `length` bytes, and `cookie` has that many.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_NETNS_COOKIE,
            (&raw mut cookie).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(cookie) } else { Err(io::Error::last_os_error()) }
}

fn endpoint(address: SocketAddr) -> [u8; ENDPOINT] {
    let ip = if address.ip().is_unspecified() { [0; 16] } else { octets(address.ip()) };
    Endpoint { address: ip, port: address.port().to_be_bytes(), reserved: [0; 2] }.to_bytes()
}

fn end(local: SocketAddr, remote: SocketAddr) -> End {
    End {
        local: octets(local.ip()),
        remote: octets(remote.ip()),
        local_port: local.port().to_be_bytes(),
        remote_port: remote.port().to_be_bytes(),
    }
}

fn octets(ip: IpAddr) -> [u8; 16] {
    match ip {
        IpAddr::V4(ip) => ip.to_ipv6_mapped().octets(),
        IpAddr::V6(ip) => ip.octets(),
    }
}
