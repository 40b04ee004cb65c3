//! The forward plane's part in the kernel, in a build without kernel programs.

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use lemonade_common::forward::{Carried, Flow, Forgotten, Service, ServiceKey, Target};
use lemonade_common::least::{Choices, Load};
use lemonade_common::notice::Notice;
use lemonade_common::{FlowKey, PacketReason};

use super::{Kernel, Pins, Unavailable};

/// What one trial run of a program came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trial {
    /// Action of tc that the program returned.
    pub action: u32,
    /// The packet as the program left it.
    pub packet: Vec<u8>,
    /// Time of one run, on average.
    pub took: Duration,
}

/// Nothing that was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// Services by address.
    pub services: Vec<(ServiceKey, Service)>,
    /// Backends by index.
    pub targets: Vec<(u32, Target)>,
}

/// Nothing to forward with.
#[derive(Debug)]
pub enum Forward {}

#[expect(clippy::missing_errors_doc, reason = "there is no value to call these on")]
impl Forward {
    /// Says why there is nothing.
    pub fn load(_: u32, _: u32, _: u64) -> Result<Self, Unavailable> {
        match Kernel::load()? {}
    }

    /// Never called.
    pub fn load_pinned(pins: Pins, _: u32, _: u32, _: u64) -> Result<Self, Unavailable> {
        match pins {}
    }

    /// Never called.
    pub fn fits(pins: &Pins, _: u32, _: u64) -> Option<bool> {
        match *pins {}
    }

    /// Never called.
    pub fn found(&self) -> io::Result<Found> {
        match *self {}
    }

    /// Never called.
    pub fn room_for_rings(&self) -> u32 {
        match *self {}
    }

    /// Never called.
    pub fn ring(&self, _: u32) -> Vec<u32> {
        match *self {}
    }

    /// Never called.
    pub fn own(&mut self) -> usize {
        match *self {}
    }

    /// Never called.
    pub const fn outlives(&self) -> bool {
        match *self {}
    }

    /// Never called.
    pub fn forsake(&mut self) {
        match *self {}
    }

    /// Never called.
    pub fn attach(&mut self, _: &str) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn detach_others(&mut self, _: &[String]) {
        match *self {}
    }

    /// Never called.
    pub fn attach_xdp(&mut self, _: &str, _: bool) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn detach_xdp(&mut self, _: &str) {
        match *self {}
    }

    /// Never called.
    pub fn interfaces(&self) -> Vec<(String, Option<bool>)> {
        match *self {}
    }

    /// Never called.
    pub fn attach_cgroup(&mut self, _: &Path) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn attach_own_cgroup(&mut self) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Says why there is nothing.
    pub fn sees(_: &Path) -> Result<(), Unavailable> {
        match Kernel::load()? {}
    }

    /// Never called.
    pub fn leave_cgroups(&mut self, _: &BTreeSet<PathBuf>) {
        match *self {}
    }

    /// Never called.
    pub fn cgroups(&self) -> Vec<String> {
        match *self {}
    }

    /// Never called.
    pub fn put_service(&mut self, _: ServiceKey, _: Service) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn remove_service(&mut self, _: ServiceKey) {
        match *self {}
    }

    /// Never called.
    pub fn put_target(&mut self, _: u32, _: Target) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn remove_target(&mut self, _: u32) {
        match *self {}
    }

    /// Never called.
    pub fn fill_ring(&mut self, _: u32, _: &[u32]) {
        match *self {}
    }

    /// Never called.
    pub fn reasons(&self) -> [u64; PacketReason::COUNT] {
        match *self {}
    }

    /// Never called.
    pub fn replaced(&self) -> u64 {
        match *self {}
    }

    /// Never called.
    pub fn listen(&mut self, _: bool) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn notices(&mut self, _: usize) -> Vec<Notice> {
        match *self {}
    }

    /// Never called.
    pub fn untold(&self) -> u64 {
        match *self {}
    }

    /// Never called.
    pub fn flows(&self) -> io::Result<Vec<(FlowKey, Flow)>> {
        match *self {}
    }

    /// Never called.
    pub fn each_flow(&self, _: impl FnMut(FlowKey, Flow)) -> io::Result<()> {
        match *self {}
    }

    /// Never called.
    pub fn sweep(&mut self) -> io::Result<(Vec<(FlowKey, Flow)>, bool)> {
        match *self {}
    }

    /// Never called.
    pub fn flow(&self, _: &FlowKey) -> Option<Flow> {
        match *self {}
    }

    /// Never called.
    pub fn count_opened(&mut self, _: u32, _: u32) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn opened(&self, _: u32, _: u32) -> u64 {
        match *self {}
    }

    /// Never called.
    pub fn forget_opened(&mut self, _: u32, _: u32) {
        match *self {}
    }

    /// Never called.
    pub fn put_choices(&mut self, _: u32, _: &Choices) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn count_live(&mut self, _: u32) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn load_of(&self, _: u32) -> Option<Load> {
        match *self {}
    }

    /// Never called.
    pub fn forget_live(&mut self, _: u32) {
        match *self {}
    }

    /// Never called.
    pub fn count_gone(&mut self, _: u32, _: u32) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn gone(&self, _: u32, _: u32) -> Carried {
        match *self {}
    }

    /// Never called.
    pub fn forget_gone(&mut self, _: u32, _: u32) {
        match *self {}
    }

    /// Never called.
    pub fn count_frontend(&mut self, _: u32) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn live_of_frontend(&self, _: u32) -> Option<u64> {
        match *self {}
    }

    /// Never called.
    pub fn forget_frontend(&mut self, _: u32) {
        match *self {}
    }

    /// Never called.
    pub fn put_elsewhere(&mut self, _: u64, _: u32) -> Result<(), Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn forget_elsewhere(&mut self, _: u64) {
        match *self {}
    }

    /// Never called.
    pub fn forget(&mut self, _: &[FlowKey]) {
        match *self {}
    }

    /// Never called.
    pub fn forget_unless_seen(&mut self, _: &[Forgotten]) -> Vec<bool> {
        match *self {}
    }

    /// Never called.
    pub fn trial(&mut self, _: &[u8], _: u32) -> Result<Trial, Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn trial_xdp(&mut self, _: &[u8], _: u32, _: u32) -> Result<Trial, Unavailable> {
        match *self {}
    }
}
