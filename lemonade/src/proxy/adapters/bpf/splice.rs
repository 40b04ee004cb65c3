//! The object of relay `splice`: legs and slots as the proxy writes and reads them, programs on every interface.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::programs::tc::{SchedClassifierLinkId, TcAttachOptions};
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use lemonade_common::FlowKey;
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};
use lemonade_common::splice::{Count, FORWARD, HALT, Leg, Side, Slot};

use super::forward::{Trial, table};
use super::loader::{Verified, corrupt, refused};
use super::{Unavailable, interfaces};

/// The programs of relay `splice`.
static SPLICE: &[u8] = aya::include_bytes_aligned!(env!("LEMONADE_BPF_SPLICE"));

/// Programs with where they are attached.
const PROGRAMS: [(&str, TcAttachType); 2] =
    [("splice_in", TcAttachType::Ingress), ("splice_out", TcAttachType::Egress)];

/// `BPF_NOEXIST`
const NEW: u64 = 1;

type Key = [u8; size_of::<FlowKey>()];
type Value = [u8; size_of::<Leg>()];

/// The relay's part in the kernel. Dropping it takes everything away.
#[derive(Debug)]
pub struct Splice {
    object: Mutex<Object>,
    slots: Slots,
}

#[derive(Debug)]
struct Object {
    ebpf: Ebpf,
    links: BTreeMap<String, [SchedClassifierLinkId; 2]>,
}

/// What was seen of one side of a flow; see [`Side`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields mirror Side, documented there")]
pub struct Seen {
    pub end: u64,
    pub ack: u32,
    pub stamp: u32,
    pub marks: u32,
    pub fin: u32,
    pub arrives_by: u32,
    pub leaves_by: u32,
    pub owed: u32,
    pub forwarded: u64,
}

impl Splice {
    /// Makes the maps, with room for `flows`, and sends the programs through the verifier.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load(flows: u32) -> Result<Self, Unavailable> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("LEGS", 2 * flows).map_max_entries("SLOTS", flows);
        let mut ebpf = loader.load(SPLICE).map_err(|error| refused(&error))?;
        let mut versions: Array<_, u32> = table(&mut ebpf, "ABI")?;
        versions.set(ABI_VERSION_AT, ABI_VERSION, 0).map_err(|error| refused(&error))?;
        let slots = match ebpf.map("SLOTS") {
            Some(Map::Array(map)) => Slots::open(map, flows)
                .map_err(|error| corrupt(&format!("the slots cannot be mapped: {error}")))?,
            _ => return Err(corrupt("no map SLOTS")),
        };
        let mut object = Object { ebpf, links: BTreeMap::new() };
        for (name, _) in PROGRAMS {
            object.program(name)?.load().map_err(|error| refused(&error))?;
        }
        Ok(Self { object: Mutex::new(object), slots })
    }

    /// Sends the programs through the verifier and lets them go again.
    pub fn verify() -> Vec<Verified> {
        let own = Self::load(1);
        let followed = |name: &str| -> Result<u32, Unavailable> {
            let own = own.as_ref().map_err(Clone::clone)?;
            let info = own.lock().program(name)?.info().map_err(|error| refused(&error))?;
            Ok(info.verified_instruction_count().unwrap_or(0))
        };
        PROGRAMS.map(|(name, _)| Verified { name: name.to_owned(), verdict: followed(name) }).into()
    }

    /// Attaches to every interface that is up, has an address and carries Ethernet, ahead of other programs there;
    /// those that are gone are forgotten. Tells all that it is attached to.
    ///
    /// # Errors
    /// Why one interface refuses; those before it stay.
    pub fn attach(&self) -> Result<Vec<String>, Unavailable> {
        let there = interfaces::ethernet().map_err(|error| refused(&error))?;
        let mut object = self.lock();
        object.links.retain(|name, _| there.contains(name));
        for name in &there {
            object.attach(name)?;
        }
        Ok(object.links.keys().cloned().collect())
    }

    /// Makes both connections of a flow known to the programs.
    ///
    /// # Errors
    /// As bpf(2): there is no room, or another flow has an end of this one. Then nothing of it is left.
    pub fn join(&self, legs: &[(FlowKey, Leg); 2]) -> io::Result<()> {
        let mut object = self.lock();
        let mut map: HashMap<_, Key, Value> = table(&mut object.ebpf, "LEGS").map_err(io::Error::other)?;
        for (at, (key, leg)) in legs.iter().enumerate() {
            if let Err(error) = map.insert(key.to_bytes(), leg.to_bytes(), NEW) {
                for (key, _) in &legs[..at] {
                    let _ = map.remove(&key.to_bytes());
                }
                return Err(of_map(error));
            }
        }
        Ok(())
    }

    /// Forgets connections.
    pub fn part(&self, keys: &[FlowKey]) {
        let mut object = self.lock();
        let map: Result<HashMap<_, Key, Value>, _> = table(&mut object.ebpf, "LEGS");
        let Ok(mut map) = map else { return };
        for key in keys {
            // Not there is as good as removed.
            let _ = map.remove(&key.to_bytes());
        }
    }

    /// Begins a slot that no leg names, with the ends of what has come from each side and of what was sent to it.
    pub fn begin(&self, slot: u32, ends: [u32; 2], owed: [u32; 2]) {
        let slot = self.slots.at(slot);
        // SAFETY: within the mapping; programs read and write whole words.
        unsafe {
            slot.write_volatile(Slot::default());
            for at in 0..2 {
                let side = &raw mut (*slot).sides[at];
                (&raw mut (*side).end).cast::<u64>().write_volatile(ends[at].into());
                (&raw mut (*side).owed).cast::<u32>().write_volatile(owed[at]);
            }
        }
    }

    /// A slot's state.
    pub fn state(&self, slot: u32) -> u64 {
        self.word(slot).load(Ordering::SeqCst)
    }

    /// What was seen of side `at` of a slot.
    pub fn seen(&self, slot: u32, at: usize) -> Seen {
        // SAFETY: within the mapping, as each of the reads.
        let side: *const Side = unsafe { &raw const (*self.slots.at(slot)).sides[at & 1] };
        let word = |offset: usize| {
            // SAFETY: an aligned word of the side.
            unsafe { side.byte_add(offset).cast::<u32>().read_volatile() }
        };
        let long = |offset: usize| {
            // SAFETY: an aligned word of the side.
            unsafe { side.byte_add(offset).cast::<u64>().read_volatile() }
        };
        Seen {
            end: long(std::mem::offset_of!(Side, end)),
            ack: word(std::mem::offset_of!(Side, ack)),
            stamp: word(std::mem::offset_of!(Side, stamp)),
            marks: word(std::mem::offset_of!(Side, marks)),
            fin: word(std::mem::offset_of!(Side, fin)),
            arrives_by: word(std::mem::offset_of!(Side, arrives_by)),
            leaves_by: word(std::mem::offset_of!(Side, leaves_by)),
            owed: word(std::mem::offset_of!(Side, owed)),
            forwarded: long(std::mem::offset_of!(Side, forwarded)),
        }
    }

    /// Says of side `at` what the proxy's socket has sent up to, and what is added to TSval; before [`Self::hand_over`].
    pub fn promise(&self, slot: u32, at: usize, owed: u32, stamp_delta: u32) {
        // SAFETY: within the mapping; programs read whole words.
        unsafe {
            let side = &raw mut (*self.slots.at(slot)).sides[at & 1];
            (&raw mut (*side).owed).cast::<u32>().write_volatile(owed);
            (&raw mut (*side).stamp_delta).cast::<u32>().write_volatile(stamp_delta);
        }
    }

    /// Lets packets pass between the connections from now on, unless one has come since the slot's state was `state`.
    pub fn hand_over(&self, slot: u32, state: u64) -> bool {
        self.word(slot).compare_exchange(state, state | FORWARD, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Lets nothing pass any more.
    pub fn halt(&self, slot: u32) {
        self.word(slot).fetch_or(HALT, Ordering::SeqCst);
    }

    /// Slots that there are.
    pub const fn slots(&self) -> u32 {
        self.slots.slots
    }

    /// What the programs counted, by [`Count`].
    pub fn counts(&self) -> [u64; Count::LEN as usize] {
        let mut sums = [0; Count::LEN as usize];
        let object = self.lock();
        let Some(Ok(map)) = object.ebpf.map("SPLICE_COUNTS").map(PerCpuArray::<_, u64>::try_from) else {
            return sums;
        };
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = map.get(&(at as u32), 0).map_or(0, |values| values.iter().sum());
        }
        sums
    }

    /// Runs the program for packets that arrive, or the one for those that leave, on a packet that goes nowhere.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn trial(&self, leaves: bool, packet: &[u8]) -> Result<Trial, Unavailable> {
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            repeat: 1,
            ..TestRunOptions::default()
        };
        let name = PROGRAMS[usize::from(leaves)].0;
        let result = self.lock().program(name)?.test_run(options).map_err(|error| refused(&error))?;
        out.truncate(result.data_size_out as usize);
        Ok(Trial { action: result.return_value, packet: out, took: result.duration })
    }

    fn word(&self, slot: u32) -> &AtomicU64 {
        // SAFETY: an aligned word within the mapping, which lives as long as this; the kernel changes it atomically.
        unsafe { AtomicU64::from_ptr((&raw mut (*self.slots.at(slot)).state).cast()) }
    }

    fn lock(&self) -> MutexGuard<'_, Object> {
        // Nothing inside panics half-way, so a poisoned lock still holds usable maps.
        self.object.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Object {
    fn program(&mut self, name: &str) -> Result<&mut SchedClassifier, Unavailable> {
        let program = self.ebpf.program_mut(name).ok_or_else(|| corrupt(&format!("no program {name}")))?;
        program.try_into().map_err(|error: aya::programs::ProgramError| corrupt(&error.to_string()))
    }

    fn attach(&mut self, interface: &str) -> Result<(), Unavailable> {
        if self.links.contains_key(interface) {
            return Ok(());
        }
        let mut attached = Vec::new();
        for (name, direction) in PROGRAMS {
            let options = TcAttachOptions::TcxOrder(LinkOrder::first());
            let link = self.program(name)?.attach_with_options(interface, direction, options);
            attached.push(link.map_err(|error| {
                let refused = refused(&error);
                Unavailable { why: format!("interface {interface}: {}", refused.why), cure: refused.cure }
            })?);
        }
        if let Ok(links) = <[SchedClassifierLinkId; 2]>::try_from(attached) {
            self.links.insert(interface.to_owned(), links);
        }
        Ok(())
    }
}

/// The memory of the slots, which programs and proxy share.
#[derive(Debug)]
struct Slots {
    first: NonNull<Slot>,
    slots: u32,
}

// SAFETY: it is only accessed by volatile and atomic operations on whole words.
unsafe impl Send for Slots {}
// SAFETY: as above.
unsafe impl Sync for Slots {}

impl Slots {
    fn open(map: &MapData, slots: u32) -> io::Result<Self> {
        // SAFETY: a new mapping of a map that was made mappable, of the size that it was made with.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                slots as usize * size_of::<Slot>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(memory.cast()).map(|first| Self { first, slots }).ok_or_else(io::Error::last_os_error)
    }

    /// Where slot `slot` is; one that is not there is the last.
    fn at(&self, slot: u32) -> *mut Slot {
        let slot = slot.min(self.slots - 1) as usize;
        // SAFETY: within the mapping.
        unsafe { self.first.as_ptr().add(slot) }
    }
}

impl Drop for Slots {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody uses it any more.
        unsafe { libc::munmap(self.first.as_ptr().cast(), self.slots as usize * size_of::<Slot>()) };
    }
}

fn of_map(error: MapError) -> io::Error {
    if let MapError::SyscallError(error) = error { error.io_error } else { io::Error::other(error) }
}
