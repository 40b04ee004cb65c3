//! Trials of the program at XDP in which each repeat meets the same packet, which others change.

use aya::maps::{Array, MapData, ProgramArray};
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};
use lemonade_common::restore::Original;

use super::{Forward, Trial, table, xdp_trial};
use crate::proxy::adapters::bpf::Unavailable;
use crate::proxy::adapters::bpf::loader::{corrupt, refused};

/// The program that restores packets, before another one.
#[derive(Debug)]
pub struct Timed(Ebpf);

impl Timed {
    /// Loads it from the object `restore`, which no build embeds, before the program at XDP or, without one, before a program
    /// that does nothing.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn load(object: &[u8], forward: Option<&mut Forward>) -> Result<Self, Unavailable> {
        let mut ebpf = EbpfLoader::new().load(object).map_err(|error| refused(&error))?;
        program(&mut ebpf, "restored")?;
        let program = match forward {
            Some(forward) => forward.xdp(true)?,
            None => program(&mut ebpf, "sent_back")?,
        };
        let program = program.fd().and_then(|fd| Ok(fd.try_clone()?)).map_err(|error| refused(&error))?;
        let mut programs: ProgramArray<&mut MapData> = table(&mut ebpf, "TIMED")?;
        programs.set(0, &program, 0).map_err(|error| refused(&error))?;
        Ok(Self(ebpf))
    }

    /// Runs a packet of at least [`lemonade_common::restore::RESTORED`] bytes `repeat` times, as [`Forward::trial_xdp`] does.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn trial(
        &mut self,
        packet: &[u8],
        original: &Original,
        interface: u32,
        repeat: u32,
    ) -> Result<Trial, Unavailable> {
        let mut originals: Array<_, [u8; size_of::<Original>()]> = table(&mut self.0, "ORIGINAL")?;
        originals.set(0, original.to_bytes(), 0).map_err(|error| refused(&error))?;
        xdp_trial(program(&mut self.0, "restored")?, packet, interface, repeat)
    }
}

fn program<'e>(ebpf: &'e mut Ebpf, name: &str) -> Result<&'e mut Xdp, Unavailable> {
    let program = ebpf.program_mut(name).ok_or_else(|| corrupt(&format!("no program {name}")))?;
    let program: &mut Xdp =
        program.try_into().map_err(|error: aya::programs::ProgramError| corrupt(&error.to_string()))?;
    if program.fd().is_err() {
        program.load().map_err(|error| refused(&error))?;
    }
    Ok(program)
}
