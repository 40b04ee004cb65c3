//! The object of relay `splice`: legs and slots as the proxy writes and reads them, programs on every interface.

use std::collections::BTreeMap;
use std::collections::HashMap as Counts;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use aya::maps::{Array, HashMap, Map, MapError, PerCpuArray};
use aya::programs::tc::SchedClassifierLinkId;
use aya::programs::{SchedClassifier, TcAttachType, TestRun as _, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use lemonade_common::FlowKey;
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};
use lemonade_common::splice::sieve::{WORDS, bit_of};
use lemonade_common::splice::{Count, FORWARD, HALT, Leg, MEMO, Side, Slot};

use super::forward::{Trial, table};
use super::held::Held;
use super::loader::{Verified, corrupt, refused};
use super::mapped::Mapped;
use super::pins::{Hold, Pins};
use super::{Unavailable, interfaces};

mod kept;

use kept::KEPT;

pub use kept::Legs;

/// The programs of relay `splice`.
static SPLICE: &[u8] = aya::include_bytes_aligned!(env!("LEMONADE_BPF_SPLICE"));

/// Programs with where they are attached, and what their links are.
const PROGRAMS: [(&str, TcAttachType, Hold); 2] =
    [("splice_in", TcAttachType::Ingress, Hold::Tc), ("splice_out", TcAttachType::Egress, Hold::Leaves)];

/// `BPF_NOEXIST`
const NEW: u64 = 1;

type Key = [u8; size_of::<FlowKey>()];
type Value = [u8; size_of::<Leg>()];

/// The relay's part in the kernel. Dropping it takes everything away.
#[derive(Debug)]
pub struct Splice {
    object: Mutex<Object>,
    slots: Mapped<Slot>,
}

#[derive(Debug)]
struct Object {
    ebpf: Ebpf,
    /// By interface, in the order of [`PROGRAMS`].
    links: BTreeMap<String, [Option<Held<SchedClassifierLinkId>>; 2]>,
    pins: Option<Pins>,
    /// Whether a killed process has left it, and this one does not serve by it yet.
    left: bool,
    sieve: Sieve,
}

/// The bits by which the programs know packets of no leg, and how many legs have each.
#[derive(Debug)]
struct Sieve {
    words: Mapped<u64>,
    legs: Counts<u32, u32>,
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
    pub received: u32,
    pub owed: u32,
    pub forwarded: u64,
    /// Bytes from where the slot began; FIN counts as one.
    pub bytes: u64,
    pub seen: u64,
}

impl Splice {
    /// Makes the maps, with room for `flows`, and sends the programs through the verifier.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load(flows: u32) -> Result<Self, Unavailable> {
        Self::load_in(None, flows)
    }

    fn load_in(pins: Option<Pins>, flows: u32) -> Result<Self, Unavailable> {
        let mut loader = EbpfLoader::new();
        for name in pins.iter().flat_map(|_| KEPT) {
            loader.map_pin_path(name, pins.as_ref().map(|pins| pins.map(name)).unwrap_or_default());
        }
        loader.map_max_entries("LEGS", 2 * flows).map_max_entries("SLOTS", flows);
        let mut ebpf = loader.load(SPLICE).map_err(|error| refused(&error))?;
        let mut versions: Array<_, u32> = table(&mut ebpf, "ABI")?;
        versions.set(ABI_VERSION_AT, ABI_VERSION, 0).map_err(|error| refused(&error))?;
        let slots = mapped(&ebpf, "SLOTS", flows)?;
        let sieve = Sieve { words: mapped(&ebpf, "SIEVE", WORDS)?, legs: Counts::new() };
        let mut object = Object { ebpf, links: BTreeMap::new(), pins, left: false, sieve };
        // Before the programs are those of the links.
        object.sift().map_err(|error| corrupt(&format!("the legs cannot be listed: {error}")))?;
        for (name, ..) in PROGRAMS {
            object.program(name)?.load().map_err(|error| refused(&error))?;
        }
        object.take_over();
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
        PROGRAMS.map(|(name, ..)| Verified { name: name.to_owned(), verdict: followed(name) }).into()
    }

    /// Attaches to every interface that is up, has an address and carries Ethernet, ahead of other programs there;
    /// those that are gone are forgotten. Tells all that it is attached to.
    ///
    /// # Errors
    /// Why one interface refuses; those before it stay.
    pub fn attach(&self) -> Result<Vec<String>, Unavailable> {
        let there = interfaces::ethernet().map_err(|error| refused(&error))?;
        let mut object = self.lock();
        object.retain(&there);
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
        let Object { ebpf, sieve, .. } = &mut *self.lock();
        let mut map: HashMap<_, Key, Value> = table(ebpf, "LEGS").map_err(io::Error::other)?;
        for (at, (key, leg)) in legs.iter().enumerate() {
            sieve.add(key);
            if let Err(error) = map.insert(key.to_bytes(), leg.to_bytes(), NEW) {
                sieve.remove(key);
                for (key, _) in &legs[..at] {
                    take(&mut map, sieve, key);
                }
                return Err(of_map(error));
            }
        }
        Ok(())
    }

    /// Forgets connections.
    pub fn part(&self, keys: &[FlowKey]) {
        let Object { ebpf, sieve, .. } = &mut *self.lock();
        let map: Result<HashMap<_, Key, Value>, _> = table(ebpf, "LEGS");
        let Ok(mut map) = map else { return };
        for key in keys {
            take(&mut map, sieve, key);
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
                (&raw mut (*side).start).cast::<u32>().write_volatile(ends[at]);
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
        let end = long(std::mem::offset_of!(Side, end));
        Seen {
            end,
            ack: word(std::mem::offset_of!(Side, ack)),
            stamp: word(std::mem::offset_of!(Side, stamp)),
            marks: word(std::mem::offset_of!(Side, marks)),
            fin: word(std::mem::offset_of!(Side, fin)),
            arrives_by: word(std::mem::offset_of!(Side, arrives_by)),
            leaves_by: word(std::mem::offset_of!(Side, leaves_by)),
            received: word(std::mem::offset_of!(Side, received)),
            owed: word(std::mem::offset_of!(Side, owed)),
            forwarded: long(std::mem::offset_of!(Side, forwarded)),
            bytes: end.saturating_sub(word(std::mem::offset_of!(Side, start)).into()),
            seen: long(std::mem::offset_of!(Side, seen)),
        }
    }

    /// Says of side `at` what the proxy's socket has received and sent up to, and what is added to TSval; before
    /// [`Self::hand_over`].
    pub fn promise(&self, slot: u32, at: usize, received: u32, owed: u32, stamp_delta: u32) {
        // SAFETY: within the mapping; programs read whole words.
        unsafe {
            let side = &raw mut (*self.slots.at(slot)).sides[at & 1];
            (&raw mut (*side).received).cast::<u32>().write_volatile(received);
            (&raw mut (*side).owed).cast::<u32>().write_volatile(owed);
            (&raw mut (*side).stamp_delta).cast::<u32>().write_volatile(stamp_delta);
        }
    }

    /// Says by which interface packets to the peer of side `at` leave, where the proxy's own ones have not shown it.
    pub fn set_way(&self, slot: u32, at: usize, interface: u32) {
        // SAFETY: within the mapping; programs read whole words.
        unsafe {
            let side = &raw mut (*self.slots.at(slot)).sides[at & 1];
            (&raw mut (*side).leaves_by).cast::<u32>().write_volatile(interface);
        }
    }

    /// Writes down what the next process needs to know of a slot.
    pub fn set_memo(&self, slot: u32, memo: [u64; MEMO]) {
        // SAFETY: within the mapping; no program looks there.
        unsafe { (&raw mut (*self.slots.at(slot)).memo).cast::<[u64; MEMO]>().write_volatile(memo) };
    }

    /// What [`Self::set_memo`] has written down; zeros after [`Self::begin`].
    pub fn memo(&self, slot: u32) -> [u64; MEMO] {
        // SAFETY: as there.
        unsafe { (&raw const (*self.slots.at(slot)).memo).cast::<[u64; MEMO]>().read_volatile() }
    }

    /// Lets packets pass between the connections from now on, unless one has come since the slot's state was `state`.
    pub fn hand_over(&self, slot: u32, state: u64) -> bool {
        self.word(slot).compare_exchange(state, state | FORWARD, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Says what the proxy's own packets tell of windows from now on, see [`lemonade_common::splice::lull`].
    pub fn set_lull(&self, slot: u32, lull: u64) {
        // SAFETY: within the mapping; programs read whole words.
        unsafe { (&raw mut (*self.slots.at(slot)).lull).cast::<u64>().write_volatile(lull) };
    }

    /// Says which window each side is told behind the hand-over, as it stands in a header; 0: none.
    pub fn set_windows(&self, slot: u32, windows: [u16; 2]) {
        // SAFETY: within the mapping; programs read whole words.
        unsafe {
            (&raw mut (*self.slots.at(slot)).windows)
                .cast::<[u32; 2]>()
                .write_volatile(windows.map(u32::from))
        };
    }

    /// Lets nothing pass any more.
    pub fn halt(&self, slot: u32) {
        self.word(slot).fetch_or(HALT, Ordering::SeqCst);
    }

    /// Slots that there are.
    pub const fn slots(&self) -> u32 {
        self.slots.values()
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
        self.trials(leaves, packet, 1)
    }

    /// As [`Self::trial`], `repeats` times, each on the packet that the one before it left; the time is that of one.
    ///
    /// # Errors
    /// As there.
    pub fn trials(&self, leaves: bool, packet: &[u8], repeats: u32) -> Result<Trial, Unavailable> {
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            repeat: repeats,
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
}

impl Sieve {
    /// Lets packets of a leg through, which is there only later.
    fn add(&mut self, key: &FlowKey) {
        *self.legs.entry(bit_of(key)).or_default() += 1;
        self.set(bit_of(key), true);
    }

    /// Holds packets of a leg back that is gone, unless they may be of another.
    fn remove(&mut self, key: &FlowKey) {
        let bit = bit_of(key);
        if let Some(legs) = self.legs.get_mut(&bit) {
            *legs -= 1;
            if *legs == 0 {
                self.legs.remove(&bit);
                self.set(bit, false);
            }
        }
    }

    fn set(&self, bit: u32, on: bool) {
        let (word, mask) = (self.words.at(bit / 64), 1 << (bit % 64));
        // SAFETY: a word of the mapping that only this process writes, one thread at a time.
        unsafe { word.write_volatile(if on { word.read() | mask } else { word.read() & !mask }) };
    }
}

/// Takes a leg away; one that is not there is as good as taken.
fn take(map: &mut HashMap<&mut aya::maps::MapData, Key, Value>, sieve: &mut Sieve, key: &FlowKey) {
    if map.remove(&key.to_bytes()).is_ok() {
        sieve.remove(key);
    }
}

/// The memory of an array whose values the programs and the process share.
fn mapped<T>(ebpf: &Ebpf, name: &str, values: u32) -> Result<Mapped<T>, Unavailable> {
    match ebpf.map(name) {
        Some(Map::Array(map)) => Mapped::open(map, values)
            .map_err(|error| corrupt(&format!("the map {name} cannot be mapped: {error}"))),
        _ => Err(corrupt(&format!("no map {name}"))),
    }
}

fn of_map(error: MapError) -> io::Error {
    if let MapError::SyscallError(error) = error { error.io_error } else { io::Error::other(error) }
}
