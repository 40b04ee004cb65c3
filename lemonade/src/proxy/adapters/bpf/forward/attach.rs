//! Attaching the programs to interfaces, by links that may outlive the process.

use aya::programs::links::FdLink;
use aya::programs::{LinkOrder, SchedClassifier, TcAttachType, Xdp, XdpMode};

use super::Forward;
use crate::proxy::adapters::bpf::Unavailable;
use crate::proxy::adapters::bpf::held::{Held, index_of, of_interface, pinned};
use crate::proxy::adapters::bpf::loader::{corrupt, refused};
use crate::proxy::adapters::bpf::pins::Hold;

impl Forward {
    pub(super) fn program(&mut self) -> Result<&mut SchedClassifier, Unavailable> {
        let program = self.ebpf.program_mut("forward_tc").ok_or_else(|| corrupt("no program forward_tc"))?;
        program.try_into().map_err(|error: aya::programs::ProgramError| corrupt(&error.to_string()))
    }

    /// The program for XDP in the driver or behind it, which goes through the verifier when it is first asked for.
    pub(super) fn xdp(&mut self, native: bool) -> Result<&mut Xdp, Unavailable> {
        let name = if native { "forward_xdp" } else { "forward_generic" };
        let program = self.ebpf.program_mut(name).ok_or_else(|| corrupt(&format!("no program {name}")))?;
        let program: &mut Xdp =
            program.try_into().map_err(|error: aya::programs::ProgramError| corrupt(&error.to_string()))?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(&error))?;
        }
        Ok(program)
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
        let link = attached.map_err(|error| of_interface(interface, refused(&error)))?;
        let held = match self.named(Hold::Tc, interface) {
            Some(path) => {
                let link =
                    FdLink::try_from(self.program()?.take_link(link).map_err(|error| refused(&error))?);
                Held::Pinned(
                    link.map_err(|error| refused(&error)).and_then(|link| pinned(link, interface, &path))?,
                )
            }
            None => Held::Own(link),
        };
        self.links.insert(interface.to_owned(), held);
        Ok(())
    }

    /// Attaches to what arrives on an interface before the kernel has made anything of it, too, and in the driver if
    /// `native`. What the program leaves goes to the one that [`Self::attach`] attaches, which this does as well.
    ///
    /// Where another set of this owner has its link, which an interface has but one of, the link stays until that set goes;
    /// a later call attaches.
    ///
    /// # Errors
    /// Why that is not possible.
    pub fn attach_xdp(&mut self, interface: &str, native: bool) -> Result<(), Unavailable> {
        self.attach(interface)?;
        match self.xdp_links.get(interface) {
            Some((there, _)) if *there == native => return Ok(()),
            Some(_) => self.detach_xdp(interface),
            None => {}
        }
        let others = |index| self.pins.as_ref().is_some_and(|pins| pins.others_hold(index));
        if index_of(interface).is_some_and(others) {
            return Ok(());
        }
        let mode = if native { XdpMode::Driver } else { XdpMode::Skb };
        let link = self.xdp(native)?.attach(interface, mode).map_err(|error| {
            let refused = refused(&error);
            of_interface(interface, Unavailable { why: format!("XDP: {}", refused.why), cure: refused.cure })
        })?;
        let hold = if native { Hold::Native } else { Hold::Generic };
        let held = match self.named(hold, interface) {
            Some(path) => {
                let link =
                    FdLink::try_from(self.xdp(native)?.take_link(link).map_err(|error| refused(&error))?);
                Held::Pinned(
                    link.map_err(|error| refused(&error)).and_then(|link| pinned(link, interface, &path))?,
                )
            }
            None => Held::Own(link),
        };
        self.xdp_links.insert(interface.to_owned(), (native, held));
        Ok(())
    }

    /// Detaches from every interface that is not in `kept`.
    pub fn detach_others(&mut self, kept: &[String]) {
        let gone: Vec<String> = self.xdp_links.keys().filter(|name| !kept.contains(name)).cloned().collect();
        gone.iter().for_each(|name| self.detach_xdp(name));
        let gone: Vec<String> = self.links.keys().filter(|name| !kept.contains(name)).cloned().collect();
        for name in gone {
            // An interface that is gone has taken its link with it.
            match self.links.remove(&name) {
                Some(Held::Own(link)) => drop(self.program().map(|program| program.detach(link))),
                Some(Held::Pinned(link)) => drop(link.unpin()),
                None => {}
            }
        }
    }

    /// Detaches the program at XDP from an interface if it is there; the one at tc goes on with its flows.
    pub fn detach_xdp(&mut self, interface: &str) {
        // As in `detach_others`.
        match self.xdp_links.remove(interface) {
            Some((native, Held::Own(link))) => drop(self.xdp(native).map(|program| program.detach(link))),
            Some((_, Held::Pinned(link))) => drop(link.unpin()),
            None => {}
        }
    }

    /// Interfaces that it is attached to, each with whether it is at XDP and there in the driver.
    pub fn interfaces(&self) -> Vec<(String, Option<bool>)> {
        let native = |name| self.xdp_links.get(name).map(|(native, _)| *native);
        self.links.keys().map(|name| (name.clone(), native(name))).collect()
    }
}
