//! The object of the forward plane: its maps as the control plane writes and reads them, its programs attached.

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::ptr::NonNull;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, PerCpuValues, RingBuf};
use aya::programs::tc::SchedClassifierLinkId;
use aya::programs::xdp::XdpLinkId;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, TestRun as _, TestRunOptions, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};
use lemonade_common::forward::{Flow, Service, ServiceKey, Target, opened_key};
use lemonade_common::gate::{NEW_FLOWS, NEW_FLOWS_LIMIT, TOLD, TOLD_LIMIT};
use lemonade_common::maglev::SLOTS;
use lemonade_common::notice::Notice;
use lemonade_common::{FlowKey, PacketReason};

use super::Unavailable;
use super::batch;
use super::loader::{Verified, corrupt, refused};

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
    links: BTreeMap<String, SchedClassifierLinkId>,
    xdp_links: BTreeMap<String, XdpLinkId>,
    /// Where [`Forward::sweep`] stands.
    swept: batch::Cursor,
}

impl Forward {
    /// Makes the maps, with room for `flows` entries and `rings` rings, and sends the program through the verifier.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load(flows: u32, rings: u32, seed: u64) -> Result<Self, Unavailable> {
        let mut loader = EbpfLoader::new();
        loader.map_max_entries("CONNECTIONS", flows).map_max_entries("RINGS", rings * SLOTS);
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
            Some(Map::Array(map)) => Rings::open(map, rings)
                .map_err(|error| corrupt(&format!("the rings cannot be mapped: {error}")))?,
            _ => return Err(corrupt("no map RINGS")),
        };
        let notices = ebpf.take_map("NOTICES").ok_or_else(|| corrupt("no map NOTICES"))?;
        let notices = Notices(RingBuf::try_from(notices).map_err(|error| refused(&error))?);
        let (links, xdp_links) = (BTreeMap::new(), BTreeMap::new());
        let mut own = Self { ebpf, rings, notices, links, xdp_links, swept: batch::Cursor::default() };
        own.program()?.load().map_err(|error| refused(&error))?;
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

    /// As [`Self::verify`], the program for XDP.
    pub fn verify_xdp() -> Verified {
        let followed = || -> Result<u32, Unavailable> {
            let mut own = Self::load(1, 1, 0)?;
            let info = own.xdp()?.info().map_err(|error| refused(&error))?;
            Ok(info.verified_instruction_count().unwrap_or(0))
        };
        Verified { name: "forward_xdp".to_owned(), verdict: followed() }
    }

    /// The program for XDP, which goes through the verifier when it is first asked for.
    fn xdp(&mut self) -> Result<&mut Xdp, Unavailable> {
        let program =
            self.ebpf.program_mut("forward_xdp").ok_or_else(|| corrupt("no program forward_xdp"))?;
        let program: &mut Xdp =
            program.try_into().map_err(|error: aya::programs::ProgramError| corrupt(&error.to_string()))?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(&error))?;
        }
        Ok(program)
    }

    fn program(&mut self) -> Result<&mut SchedClassifier, Unavailable> {
        let program = self.ebpf.program_mut("forward_tc").ok_or_else(|| corrupt("no program forward_tc"))?;
        program.try_into().map_err(|error: aya::programs::ProgramError| corrupt(&error.to_string()))
    }

    /// Attaches to what arrives on an interface, ahead of other programs there; once is enough.
    ///
    /// # Errors
    /// Why that is not possible.
    pub fn attach(&mut self, interface: &str) -> Result<(), Unavailable> {
        if self.links.contains_key(interface) {
            return Ok(());
        }
        let options = aya::programs::tc::TcAttachOptions::TcxOrder(LinkOrder::first());
        let attached = self.program()?.attach_with_options(interface, TcAttachType::Ingress, options);
        let link = attached.map_err(|error| {
            let refused = refused(&error);
            Unavailable { why: format!("interface {interface}: {}", refused.why), cure: refused.cure }
        })?;
        self.links.insert(interface.to_owned(), link);
        Ok(())
    }

    /// Attaches to what arrives on an interface before the kernel has made anything of it, too, and in the driver if
    /// `native`. What the program leaves goes to the one that [`Self::attach`] attaches, which this does as well.
    ///
    /// # Errors
    /// Why that is not possible.
    pub fn attach_xdp(&mut self, interface: &str, native: bool) -> Result<(), Unavailable> {
        self.attach(interface)?;
        if self.xdp_links.contains_key(interface) {
            return Ok(());
        }
        let mode = if native { XdpMode::Driver } else { XdpMode::Skb };
        let link = self.xdp()?.attach(interface, mode).map_err(|error| {
            let refused = refused(&error);
            Unavailable { why: format!("interface {interface}: XDP: {}", refused.why), cure: refused.cure }
        })?;
        self.xdp_links.insert(interface.to_owned(), link);
        Ok(())
    }

    /// Detaches from every interface that is not in `kept`.
    pub fn detach_others(&mut self, kept: &[String]) {
        let gone: Vec<String> = self.xdp_links.keys().filter(|name| !kept.contains(name)).cloned().collect();
        for name in gone {
            let Some(link) = self.xdp_links.remove(&name) else { continue };
            // As below.
            let _ = self.xdp().map(|program| program.detach(link));
        }
        let gone: Vec<String> = self.links.keys().filter(|name| !kept.contains(name)).cloned().collect();
        for name in gone {
            let Some(link) = self.links.remove(&name) else { continue };
            // An interface that is gone has taken its link with it.
            let _ = self.program().map(|program| program.detach(link));
        }
    }

    /// Interfaces that it is attached to.
    pub fn interfaces(&self) -> Vec<String> {
        self.links.keys().cloned().collect()
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

    /// Takes entries out of the connection table.
    pub fn forget(&mut self, keys: &[FlowKey]) {
        let map: Result<HashMap<_, [u8; size_of::<FlowKey>()], [u8; size_of::<Flow>()]>, _> =
            table(&mut self.ebpf, "CONNECTIONS");
        let Ok(mut map) = map else { return };
        for key in keys {
            // The program may have been faster.
            let _ = map.remove(&key.to_bytes());
        }
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
        let result = self.xdp()?.test_run(options).map_err(|error| refused(&error))?;
        out.truncate(result.data_size_out as usize);
        Ok(Trial { action: result.return_value, packet: out, took: result.duration })
    }
}

pub(super) fn table<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<T, Unavailable>
where
    T: TryFrom<&'a mut Map>,
    T::Error: std::fmt::Display,
{
    let map = ebpf.map_mut(name).ok_or_else(|| corrupt(&format!("no map {name}")))?;
    T::try_from(map).map_err(|error| corrupt(&error.to_string()))
}

/// The memory of the rings, which the kernel reads as it is written.
#[derive(Debug)]
struct Rings {
    first: NonNull<u32>,
    rings: usize,
}

/// Words from one slot to the next: the kernel begins each value at a multiple of eight bytes.
const STRIDE: usize = 2;

// SAFETY: the memory is shared with the kernel, not with other owners here.
unsafe impl Send for Rings {}
// SAFETY: it is only written through `&mut self`.
unsafe impl Sync for Rings {}

impl Rings {
    fn open(map: &MapData, rings: u32) -> io::Result<Self> {
        let rings = rings as usize;
        // SAFETY: a new mapping of a map that was made mappable, of the size that it was made with.
        let memory = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                rings * SLOTS as usize * STRIDE * size_of::<u32>(),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                map.fd().as_fd().as_raw_fd(),
                0,
            )
        };
        if memory == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        NonNull::new(memory.cast()).map(|first| Self { first, rings }).ok_or_else(io::Error::last_os_error)
    }

    fn fill(&mut self, ring: u32, slots: &[u32]) {
        if ring as usize >= self.rings {
            return;
        }
        let from = ring as usize * SLOTS as usize;
        for (at, slot) in slots.iter().enumerate().take(SLOTS as usize) {
            // SAFETY: within the mapping; the kernel reads whole words.
            unsafe { self.first.add((from + at) * STRIDE).write_volatile(*slot) };
        }
    }
}

impl Drop for Rings {
    fn drop(&mut self) {
        // SAFETY: the mapping is ours and nobody uses it any more.
        unsafe {
            libc::munmap(self.first.as_ptr().cast(), self.rings * SLOTS as usize * STRIDE * size_of::<u32>())
        };
    }
}
