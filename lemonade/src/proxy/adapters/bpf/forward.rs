//! The object of the forward plane: its maps as the control plane writes and reads them, its programs attached.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf};
use aya::programs::tc::SchedClassifierLinkId;
use aya::programs::xdp::XdpLinkId;
use aya::programs::{TestRun as _, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};
use lemonade_common::forward::{Flow, Service, ServiceKey, Target, opened_key};
use lemonade_common::gate::{NEW_FLOWS, NEW_FLOWS_LIMIT, TOLD, TOLD_LIMIT};
use lemonade_common::half_open::half_open_room;
use lemonade_common::maglev::SLOTS;
use lemonade_common::notice::Notice;
use lemonade_common::{FlowKey, PacketReason};

use super::Unavailable;
use super::batch;
use super::held::Held;
use super::loader::{Verified, corrupt, refused};
use super::pins::Pins;
use super::rings::Rings;

mod attach;
mod kept;
mod loads;
mod sockets;
mod timed;

use kept::KEPT;

pub use kept::Found;
pub use timed::Timed;

/// The programs of the forward plane.
static FORWARD: &[u8] = aya::include_bytes_aligned!(env!("LEMONADE_BPF_FORWARD"));

/// What one trial run of a program came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Action of tc or XDP that the program returned.
    pub action: u32,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// Time of one run, on average.
    pub took: Duration,
}

/// What the program tells of single packets.
struct Notices(RingBuf<MapData>);

impl std::fmt::Debug for Notices {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("Notices")
    }
}

/// The forward plane's part in the kernel. Dropping it takes everything away.
#[derive(Debug)]
pub struct Forward {
    ebpf: Ebpf,
    rings: Rings,
    notices: Notices,
    links: BTreeMap<String, Held<SchedClassifierLinkId>>,
    /// Links at XDP, each with whether it is in the driver.
    xdp_links: BTreeMap<String, (bool, Held<XdpLinkId>)>,
    /// Cgroups whose sockets are seen.
    cgroups: BTreeMap<PathBuf, sockets::Seen>,
    /// Links to cgroups that a process before this one has left.
    former: Vec<PathBuf>,
    /// Where [`Forward::sweep`] stands.
    swept: batch::Cursor,
    /// Where maps and links have names that outlive the process.
    pins: Option<Pins>,
    /// Whether a process before this one left it, which this one has not made its own yet.
    left: bool,
}

impl Forward {
    /// Makes the maps, with room for `flows` entries and `rings` rings, and sends the program through the verifier.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load(flows: u32, rings: u32, seed: u64) -> Result<Self, Unavailable> {
        Self::load_in(None, flows, rings, seed)
    }

    fn load_in(pins: Option<Pins>, flows: u32, rings: u32, seed: u64) -> Result<Self, Unavailable> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("CONNECTIONS", flows).map_max_entries("RINGS", rings * SLOTS);
        loader.map_max_entries("CHOICES", rings);
        loader.map_max_entries("HALF_OPEN", half_open_room(flows));
        for name in pins.iter().flat_map(|_| KEPT) {
            loader.map_pin_path(name, pins.as_ref().map(|pins| pins.map(name)).unwrap_or_default());
        }
        let mut ebpf = loader.load(FORWARD).map_err(|error| refused(&error))?;
        let mut versions: Array<_, u32> = table(&mut ebpf, "ABI")?;
        versions.set(ABI_VERSION_AT, ABI_VERSION, 0).map_err(|error| refused(&error))?;
        let mut seeds: Array<_, u64> = table(&mut ebpf, "SEED")?;
        seeds.set(0, seed, 0).map_err(|error| refused(&error))?;
        let mut limits: Array<_, u32> = table(&mut ebpf, "LIMITS")?;
        for (kind, limit) in [(NEW_FLOWS, NEW_FLOWS_LIMIT), (TOLD, TOLD_LIMIT)] {
            limits.set(kind, limit, 0).map_err(|error| refused(&error))?;
        }
        let rings = match ebpf.map("RINGS") {
            Some(Map::Array(map)) => map
                .info()
                .map_err(io::Error::other)
                .and_then(|info| Rings::open(map, info.max_entries() / SLOTS))
                .map_err(|error| corrupt(&format!("the rings cannot be mapped: {error}")))?,
            _ => return Err(corrupt("no map RINGS")),
        };
        let notices = ebpf.take_map("NOTICES").ok_or_else(|| corrupt("no map NOTICES"))?;
        let notices = Notices(RingBuf::try_from(notices).map_err(|error| refused(&error))?);
        let (links, xdp_links) = (BTreeMap::new(), BTreeMap::new());
        let swept = batch::Cursor::default();
        let (cgroups, former) = (BTreeMap::new(), Vec::new());
        let mut own =
            Self { ebpf, rings, notices, links, xdp_links, cgroups, former, swept, pins, left: false };
        own.program()?.load().map_err(|error| refused(&error))?;
        own.forgetting()?;
        own.take_over();
        Ok(own)
    }

    /// Sends the program through the verifier and lets it go again.
    pub fn verify() -> Verified {
        let followed = || -> Result<u32, Unavailable> {
            let mut own = Self::load(1, 1, 0)?;
            let info = own.program()?.info().map_err(|error| refused(&error))?;
            Ok(info.verified_instruction_count().unwrap_or(0))
        };
        Verified { name: "forward_tc".to_owned(), verdict: followed() }
    }

    /// As [`Self::verify`], the program that forgets flows.
    pub fn verify_forget() -> Verified {
        let followed = || -> Result<u32, Unavailable> {
            let mut own = Self::load(1, 1, 0)?;
            let info = own.forgetting()?.info().map_err(|error| refused(&error))?;
            Ok(info.verified_instruction_count().unwrap_or(0))
        };
        Verified { name: "forward_forget".to_owned(), verdict: followed() }
    }

    /// As [`Self::verify`], the programs for XDP.
    pub fn verify_xdp() -> [Verified; 2] {
        let followed = |native| -> Result<u32, Unavailable> {
            let mut own = Self::load(1, 1, 0)?;
            let info = own.xdp(native)?.info().map_err(|error| refused(&error))?;
            Ok(info.verified_instruction_count().unwrap_or(0))
        };
        [("forward_xdp", true), ("forward_generic", false)]
            .map(|(name, native)| Verified { name: name.to_owned(), verdict: followed(native) })
    }

    /// Serves at an address, or serves differently there.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn put_service(&mut self, key: ServiceKey, service: Service) -> Result<(), Unavailable> {
        if key == key.any_port() && key != ServiceKey::whole(key.address) {
            let mut any: Array<_, u32> = table(&mut self.ebpf, "ANY_PORTS")?;
            any.set(0, 1, 0).map_err(|error| refused(&error))?;
        }
        let mut map: HashMap<_, [u8; size_of::<ServiceKey>()], [u8; size_of::<Service>()]> =
            table(&mut self.ebpf, "SERVICES")?;
        map.insert(key.to_bytes(), service.to_bytes(), 0).map_err(|error| refused(&error))
    }

    /// Opens no new flows at an address any more.
    pub fn remove_service(&mut self, key: ServiceKey) {
        let map: Result<HashMap<_, [u8; size_of::<ServiceKey>()], [u8; size_of::<Service>()]>, _> =
            table(&mut self.ebpf, "SERVICES");
        // What is not there needs no removal.
        let _ = map.map(|mut map| map.remove(&key.to_bytes()));
    }

    /// Says where a backend is.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn put_target(&mut self, backend: u32, target: Target) -> Result<(), Unavailable> {
        let mut map: HashMap<_, u32, [u8; size_of::<Target>()]> = table(&mut self.ebpf, "BACKEND_TARGETS")?;
        map.insert(backend, target.to_bytes(), 0).map_err(|error| refused(&error))
    }

    /// Forgets where a backend is.
    pub fn remove_target(&mut self, backend: u32) {
        let map: Result<HashMap<_, u32, [u8; size_of::<Target>()]>, _> =
            table(&mut self.ebpf, "BACKEND_TARGETS");
        // What is not there needs no removal.
        let _ = map.map(|mut map| map.remove(&backend));
    }

    /// Fills a ring that no service names.
    pub fn fill_ring(&mut self, ring: u32, slots: &[u32]) {
        self.rings.fill(ring, slots);
    }

    /// Says how many flows a second each core writes down in modes whose answers pass by; 0 is no limit.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn limit_new_flows(&mut self, per_second: u32) -> Result<(), Unavailable> {
        let mut limits: Array<_, u32> = table(&mut self.ebpf, "LIMITS")?;
        limits.set(NEW_FLOWS, per_second, 0).map_err(|error| refused(&error))
    }

    /// Packets by reason since the maps were made.
    pub fn reasons(&self) -> [u64; PacketReason::COUNT] {
        let mut sums = [0; PacketReason::COUNT];
        let Some(Ok(map)) = self.ebpf.map("REASONS").map(PerCpuArray::<_, u64>::try_from) else {
            return sums;
        };
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = map.get(&(at as u32), 0).map_or(0, |values| values.iter().sum());
        }
        sums
    }

    /// Handshakes that had to make room for others since the maps were made.
    pub fn replaced(&self) -> u64 {
        let map = self.ebpf.map("REPLACED").map(PerCpuArray::<_, u64>::try_from);
        let Some(Ok(map)) = map else { return 0 };
        map.get(&0, 0).map_or(0, |values| values.iter().sum())
    }

    /// Has single packets told of from now on, or no longer.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn listen(&mut self, on: bool) -> Result<(), Unavailable> {
        let mut listened: Array<_, u32> = table(&mut self.ebpf, "LISTENED")?;
        listened.set(0, u32::from(on), 0).map_err(|error| refused(&error))
    }

    /// Packets that were told of since the last call, so many at most.
    pub fn notices(&mut self, most: usize) -> Vec<Notice> {
        let mut read = Vec::new();
        while read.len() < most
            && let Some(notice) = self.notices.0.next()
        {
            read.extend(Notice::from_bytes(&notice));
        }
        read
    }

    /// Packets that there was no room to tell of since the maps were made.
    pub fn untold(&self) -> u64 {
        let map = self.ebpf.map("UNTOLD").map(PerCpuArray::<_, u64>::try_from);
        let Some(Ok(map)) = map else { return 0 };
        map.get(&0, 0).map_or(0, |values| values.iter().sum())
    }

    /// Every entry of the connection table; flows that open or end meanwhile may be missing or told.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn flows(&self) -> io::Result<Vec<(FlowKey, Flow)>> {
        let mut flows = Vec::new();
        self.each_flow(|key, flow| flows.push((key, flow)))?;
        Ok(flows)
    }

    /// Shows `see` the connection table, some thousand entries in memory at a time.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn each_flow(&self, mut see: impl FnMut(FlowKey, Flow)) -> io::Result<()> {
        let Some(Map::HashMap(map)) = self.ebpf.map("CONNECTIONS") else { return Ok(()) };
        let (mut cursor, mut last) = (batch::Cursor::default(), false);
        while !last {
            let mut read = Vec::new();
            last =
                batch::next::<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>(map, &mut cursor, &mut read)?;
            read.iter().for_each(|(key, flow)| see(FlowKey::from_bytes(key), Flow::from_bytes(flow)));
        }
        Ok(())
    }

    /// The next entries of the connection table, some thousand at most, and whether they were the last of all; then the
    /// first come again.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn sweep(&mut self) -> io::Result<(Vec<(FlowKey, Flow)>, bool)> {
        let Some(Map::HashMap(map)) = self.ebpf.map("CONNECTIONS") else { return Ok((Vec::new(), true)) };
        let mut read = Vec::new();
        let last =
            batch::next::<{ size_of::<FlowKey>() }, { size_of::<Flow>() }>(map, &mut self.swept, &mut read);
        let last = last.inspect_err(|_| self.swept = batch::Cursor::default())?;
        let flows = read.iter().map(|(key, flow)| (FlowKey::from_bytes(key), Flow::from_bytes(flow)));
        Ok((flows.collect(), last))
    }

    /// One direction of a flow, if it is there.
    pub fn flow(&self, key: &FlowKey) -> Option<Flow> {
        type Flows<'a> = HashMap<&'a MapData, [u8; size_of::<FlowKey>()], [u8; size_of::<Flow>()]>;
        let flows = Flows::try_from(self.ebpf.map("CONNECTIONS")?).ok()?;
        flows.get(&key.to_bytes(), 0).ok().map(|flow| Flow::from_bytes(&flow))
    }

    /// Makes the counters of flows that a frontend opens to a backend, if there are none.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn count_opened(&mut self, frontend: u32, backend: u32) -> Result<(), Unavailable> {
        let mut map: PerCpuHashMap<_, u64, u64> = table(&mut self.ebpf, "OPENED")?;
        let key = opened_key(frontend, backend);
        if map.get(&key, 0).is_ok() {
            return Ok(());
        }
        let cores = aya::util::nr_cpus().map_err(|(_, error)| refused(&error))?;
        let zeros = PerCpuValues::try_from(vec![0; cores]).map_err(|error| refused(&error))?;
        map.insert(key, zeros, 0).map_err(|error| refused(&error))
    }

    /// Flows opened by a frontend to a backend since [`Self::count_opened`].
    pub fn opened(&self, frontend: u32, backend: u32) -> u64 {
        let map = self.ebpf.map("OPENED").map(PerCpuHashMap::<_, u64, u64>::try_from);
        let Some(Ok(map)) = map else { return 0 };
        map.get(&opened_key(frontend, backend), 0).map_or(0, |values| values.iter().sum())
    }

    /// Takes the counters of a frontend and a backend away.
    pub fn forget_opened(&mut self, frontend: u32, backend: u32) {
        let map: Result<PerCpuHashMap<_, u64, u64>, _> = table(&mut self.ebpf, "OPENED");
        // What is not there needs no removal.
        let _ = map.map(|mut map| map.remove(&opened_key(frontend, backend)));
    }

    /// Runs the program on a packet that goes nowhere, `repeat` times.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn trial(&mut self, packet: &[u8], repeat: u32) -> Result<Trial, Unavailable> {
        let mut out = vec![0; packet.len() + 256];
        let options = TestRunOptions {
            data_in: Some(packet),
            data_out: Some(&mut out),
            repeat,
            ..TestRunOptions::default()
        };
        let result = self.program()?.test_run(options).map_err(|error| refused(&error))?;
        out.truncate(result.data_size_out as usize);
        Ok(Trial { action: result.return_value, packet: out, took: result.duration })
    }

    /// As [`Self::trial`], the program for XDP, as if the packet had arrived on an interface of that index. It must be one
    /// that has such a program attached, or a tunnel.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn trial_xdp(&mut self, packet: &[u8], interface: u32, repeat: u32) -> Result<Trial, Unavailable> {
        xdp_trial(self.xdp(true)?, packet, interface, repeat)
    }
}

fn xdp_trial(program: &Xdp, packet: &[u8], interface: u32, repeat: u32) -> Result<Trial, Unavailable> {
    let mut out = vec![0; packet.len() + 256];
    // `struct xdp_md` of linux/bpf.h: data, data_end, data_meta, ingress_ifindex, rx_queue_index, egress_ifindex.
    let words = [0, packet.len() as u32, 0, interface, 0, 0];
    let context: Vec<u8> = words.into_iter().flat_map(u32::to_ne_bytes).collect();
    let options = TestRunOptions {
        data_in: Some(packet),
        data_out: Some(&mut out),
        ctx_in: Some(&context),
        repeat,
        ..TestRunOptions::default()
    };
    let result = program.test_run(options).map_err(|error| refused(&error))?;
    out.truncate(result.data_size_out as usize);
    Ok(Trial { action: result.return_value, packet: out, took: result.duration })
}

pub(super) fn table<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<T, Unavailable>
where
    T: TryFrom<&'a mut Map>,
    T::Error: std::fmt::Display,
{
    let map = ebpf.map_mut(name).ok_or_else(|| corrupt(&format!("no map {name}")))?;
    T::try_from(map).map_err(|error| corrupt(&error.to_string()))
}
