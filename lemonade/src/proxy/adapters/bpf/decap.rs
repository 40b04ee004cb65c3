//! The object of `lemonade decap`: takes off, on a backend, the headers that mode `dsr-ipip` puts in front of packets.

use std::net::IpAddr;

use aya::maps::{Array, HashMap, Map, PerCpuArray};
use aya::programs::tc::TcAttachOptions;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType};
use aya::{Ebpf, EbpfLoader};
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};
use lemonade_common::decap::Unwrapped;
use lemonade_common::flow::mapped;

use super::Unavailable;
use super::loader::{Verified, corrupt, refused};

/// The program on backends.
static DECAP: &[u8] = aya::include_bytes_aligned!(env!("LEMONADE_BPF_DECAP"));

/// The program on backends. Dropping it takes it away.
#[derive(Debug)]
pub struct Decap {
    ebpf: Ebpf,
}

impl Decap {
    /// Sends the program through the verifier; it takes off outer headers from these balancers.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load(balancers: &[IpAddr]) -> Result<Self, Unavailable> {
        let mut ebpf = EbpfLoader::new().load(DECAP).map_err(|error| refused(&error))?;
        let abi = ebpf.map_mut("ABI").ok_or_else(|| corrupt("no map ABI"))?;
        let mut versions = Array::<_, u32>::try_from(abi).map_err(|error| corrupt(&error.to_string()))?;
        versions.set(ABI_VERSION_AT, ABI_VERSION, 0).map_err(|error| refused(&error))?;
        let map = ebpf.map_mut("BALANCERS").ok_or_else(|| corrupt("no map BALANCERS"))?;
        let mut known: HashMap<_, [u8; 16], u32> =
            HashMap::try_from(map).map_err(|error| corrupt(&error.to_string()))?;
        for balancer in balancers {
            known.insert(mapped(*balancer), 1, 0).map_err(|error| refused(&error))?;
        }
        let mut own = Self { ebpf };
        own.program()?.load().map_err(|error| refused(&error))?;
        Ok(own)
    }

    /// Sends the program through the verifier and lets it go again.
    pub fn verify() -> Verified {
        let followed = || -> Result<u32, Unavailable> {
            let mut own = Self::load(&[])?;
            let info = own.program()?.info().map_err(|error| refused(&error))?;
            Ok(info.verified_instruction_count().unwrap_or(0))
        };
        Verified { name: "decap".to_owned(), verdict: followed() }
    }

    fn program(&mut self) -> Result<&mut SchedClassifier, Unavailable> {
        let program = self.ebpf.program_mut("decap").ok_or_else(|| corrupt("no program decap"))?;
        program.try_into().map_err(|error: aya::programs::ProgramError| corrupt(&error.to_string()))
    }

    /// Attaches to what arrives on an interface, ahead of other programs there.
    ///
    /// # Errors
    /// Why that is not possible.
    pub fn attach(&mut self, interface: &str) -> Result<(), Unavailable> {
        let options = TcAttachOptions::TcxOrder(LinkOrder::first());
        let attached = self.program()?.attach_with_options(interface, TcAttachType::Ingress, options);
        attached.map(drop).map_err(|error| {
            let refused = refused(&error);
            Unavailable { why: format!("interface {interface}: {}", refused.why), cure: refused.cure }
        })
    }

    /// Packets with an outer header since the program was loaded, by what became of them.
    pub fn counts(&self) -> [u64; Unwrapped::COUNT as usize] {
        let mut sums = [0; Unwrapped::COUNT as usize];
        let map: Option<&Map> = self.ebpf.map("UNWRAPPED");
        let Some(Ok(map)) = map.map(PerCpuArray::<_, u64>::try_from) else { return sums };
        for (at, sum) in sums.iter_mut().enumerate() {
            *sum = map.get(&(at as u32), 0).map_or(0, |values| values.iter().sum());
        }
        sums
    }
}
