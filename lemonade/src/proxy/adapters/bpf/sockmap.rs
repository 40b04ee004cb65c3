//! The maps of relay `sockmap`: sockets that redirect to each other, and what the program counts of them.

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf, SockHash};
use aya::programs::SkSkb;
use lemonade_common::abi::{ACKS_WANTED_AT, PLACE_CB, PLACE_COPIED_SEQ, RelayFlow};

use super::Unavailable;
use super::layout::Types;
use super::loader::{Kernel, corrupt, refused};

/// Bytes of a value of the map `FLOWS`.
const FLOW: usize = size_of::<RelayFlow>();

/// Maps of the relay, with the program attached; lives as long as the [`Kernel`] that it is of.
#[derive(Debug)]
pub struct Sockmap {
    maps: Mutex<Maps>,
    /// A second descriptor of the ring buffer, to wait for.
    events: OwnedFd,
}

struct Maps {
    targets: SockHash<MapData, u64>,
    armed: SockHash<MapData, u64>,
    flows: HashMap<MapData, u64, [u8; FLOW]>,
    moved: HashMap<MapData, u64, u64>,
    acked: HashMap<MapData, u64, u64>,
    acks_wanted: Array<MapData, u32>,
    events: RingBuf<MapData>,
}

impl std::fmt::Debug for Maps {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Maps")
    }
}

impl Sockmap {
    /// Attaches the program and takes the maps out of `kernel`.
    ///
    /// # Errors
    /// What the kernel refuses, or that the maps were taken already.
    pub fn attach(kernel: &mut Kernel) -> Result<Self, Unavailable> {
        Self::attach_program(kernel, "sockmap")
    }

    /// As [`Self::attach`], with another program of the object.
    ///
    /// # Errors
    /// As [`Self::attach`].
    pub fn attach_program(kernel: &mut Kernel, name: &str) -> Result<Self, Unavailable> {
        let types = Types::of_kernel()?;
        let places = [
            (PLACE_CB, types.offset("sk_buff", "cb")?),
            (PLACE_COPIED_SEQ, types.offset("tcp_sock", "copied_seq")?),
        ];
        let ebpf = kernel.ebpf();
        let mut known: Array<MapData, u32> = taken(ebpf.take_map("PLACES"))?;
        for (at, place) in places {
            known.set(at, place, 0).map_err(|error| refused(&error))?;
        }
        let armed: SockHash<_, u64> = taken(ebpf.take_map("ARMED"))?;
        let program = ebpf.program_mut(name).ok_or_else(|| corrupt("the relay's program is missing"))?;
        let program = <&mut SkSkb>::try_from(program).map_err(|error| corrupt(&error.to_string()))?;
        program.load().map_err(|error| refused(&error))?;
        program.attach(armed.fd()).map_err(|error| refused(&error))?;
        let events: RingBuf<MapData> = taken(ebpf.take_map("EVENTS"))?;
        // SAFETY: the ring buffer is alive, so its descriptor is open.
        let descriptor = unsafe { BorrowedFd::borrow_raw(events.as_raw_fd()) };
        let descriptor = descriptor.try_clone_to_owned().map_err(|error| refused(&error))?;
        let maps = Maps {
            targets: taken(ebpf.take_map("TARGETS"))?,
            armed,
            flows: taken(ebpf.take_map("FLOWS"))?,
            moved: taken(ebpf.take_map("MOVED"))?,
            acked: taken(ebpf.take_map("ACKED"))?,
            acks_wanted: taken(ebpf.take_map("ACKS_WANTED"))?,
            events,
        };
        Ok(Self { maps: Mutex::new(maps), events: descriptor })
    }

    /// Asks sockets that are connected from now on to tell of acknowledgements, or not to.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn want_acks(&self, wanted: bool) -> io::Result<()> {
        self.lock().acks_wanted.set(ACKS_WANTED_AT, u32::from(wanted), 0).map_err(of_map)
    }

    /// Makes both directions known; nothing is redirected before [`Self::arm`].
    ///
    /// Each flow stands under the cookie of the socket that receives; its `target` is that of the other one.
    ///
    /// # Errors
    /// As bpf(2): a map is full, or a socket may not be in one. Then nothing of the pair is left.
    pub fn join(&self, ends: [BorrowedFd<'_>; 2], flows: [RelayFlow; 2]) -> io::Result<()> {
        let [one, other] = flows;
        let cookies = [other.target, one.target];
        let mut maps = self.lock();
        let mut put = || {
            for (at, flow) in flows.into_iter().enumerate() {
                maps.flows.insert(cookies[at], flow.to_bytes(), 0)?;
                maps.acked.insert(flow.target, flow.acked, 0)?;
                maps.targets.insert(cookies[at], ends[1 - at], 0)?;
            }
            Ok(())
        };
        let put = put().map_err(of_map);
        drop(maps);
        if put.is_err() {
            self.forget(cookies);
            self.part(cookies);
        }
        put
    }

    /// Takes the sockets of a pair of which none is armed out of their map: they are as before.
    pub fn part(&self, cookies: [u64; 2]) {
        let mut maps = self.lock();
        for cookie in cookies {
            let _ = maps.targets.remove(&cookie);
        }
    }

    /// Lets the program see what `socket` receives.
    ///
    /// # Errors
    /// As bpf(2): the other side has closed already, or the map is full.
    pub fn arm(&self, cookie: u64, socket: BorrowedFd<'_>) -> io::Result<()> {
        self.lock().armed.insert(cookie, socket, 0).map_err(of_map)
    }

    /// What the program counted of the direction that `cookie` receives.
    pub fn flow(&self, cookie: u64) -> Option<RelayFlow> {
        let bytes = self.lock().flows.get(&cookie, 0).ok()?;
        Some(RelayFlow::from_bytes(&bytes))
    }

    /// Says how many of the bytes left to userspace it has moved; with all of them moved, the program goes on.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn moved(&self, cookie: u64, bytes: u64) -> io::Result<()> {
        self.lock().moved.insert(cookie, bytes, 0).map_err(of_map)
    }

    /// Brings the acknowledged bytes of a socket up to date, if no callback of its has done so.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn acknowledged(&self, cookie: u64, bytes: u64) -> io::Result<()> {
        self.lock().acked.insert(cookie, bytes, 0).map_err(of_map)
    }

    /// Forgets both directions. The sockets leave their maps when they are closed, which must follow.
    pub fn forget(&self, cookies: [u64; 2]) {
        let mut maps = self.lock();
        for cookie in cookies {
            // Not there is as good as removed.
            let _ = maps.flows.remove(&cookie);
            let _ = maps.moved.remove(&cookie);
            let _ = maps.acked.remove(&cookie);
        }
    }

    /// Cookie of a socket whose bytes the program has begun to leave to userspace.
    pub fn next_event(&self) -> Option<u64> {
        let mut maps = self.lock();
        let event = maps.events.next()?;
        let cookie = event.first_chunk::<8>().map(|bytes| u64::from_ne_bytes(*bytes));
        Some(cookie.unwrap_or(0))
    }

    fn lock(&self) -> MutexGuard<'_, Maps> {
        // Nothing inside panics half-way, so a poisoned lock still holds usable maps.
        self.maps.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for Sockmap {
    /// Readable while events wait.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.events.as_fd()
    }
}

fn taken<T: TryFrom<Map, Error = MapError>>(map: Option<Map>) -> Result<T, Unavailable> {
    let map = map.ok_or_else(|| corrupt("a map of relay sockmap is missing or in use"))?;
    T::try_from(map).map_err(|error| corrupt(&error.to_string()))
}

fn of_map(error: MapError) -> io::Error {
    if let MapError::SyscallError(error) = error { error.io_error } else { io::Error::other(error) }
}
