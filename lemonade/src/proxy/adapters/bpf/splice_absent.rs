//! Relay `splice` in a build without kernel programs.

use std::collections::BTreeMap;
use std::io;

use lemonade_common::FlowKey;
use lemonade_common::splice::{Count, Leg, MEMO};

use super::{Kernel, Trial, Unavailable};

/// Nothing to pass packets with.
#[derive(Debug)]
pub enum Splice {}

/// Legs by the flow's slot, client's and backend's.
pub type Legs = BTreeMap<u32, [Option<(FlowKey, Leg)>; 2]>;

/// What was seen of one side of a flow; see `lemonade_common::splice::Side`.
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
    pub bytes: u64,
    pub seen: u64,
}

#[expect(clippy::missing_errors_doc, reason = "there is no value to call these on")]
impl Splice {
    /// Says why there is nothing.
    pub fn load(_: u32) -> Result<Self, Unavailable> {
        match Kernel::load()? {}
    }

    /// Says why there is nothing.
    pub fn load_or_adopt(_: u64, flows: u32) -> Result<Self, Unavailable> {
        Self::load(flows)
    }

    /// Nothing was left.
    pub const fn left_by(_: u64) -> (bool, usize) {
        (false, 0)
    }

    /// Never called.
    pub fn legs(&self) -> io::Result<Legs> {
        match *self {}
    }

    /// Never called.
    pub fn own(&self) {
        match *self {}
    }

    /// Never called.
    pub fn remove_others(&self) -> usize {
        match *self {}
    }

    /// Never called.
    pub fn outlives(&self) -> bool {
        match *self {}
    }

    /// Never called.
    pub fn close(&self) {
        match *self {}
    }

    /// Never called.
    pub fn slots(&self) -> u32 {
        match *self {}
    }

    /// Never called.
    pub fn set_memo(&self, _: u32, _: [u64; MEMO]) {
        match *self {}
    }

    /// Never called.
    pub fn memo(&self, _: u32) -> [u64; MEMO] {
        match *self {}
    }

    /// Never called.
    pub fn attach(&self) -> Result<Vec<String>, Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn join(&self, _: &[(FlowKey, Leg); 2]) -> io::Result<()> {
        match *self {}
    }

    /// Never called.
    pub fn part(&self, _: &[FlowKey]) {
        match *self {}
    }

    /// Never called.
    pub fn begin(&self, _: u32, _: [u32; 2], _: [u32; 2]) {
        match *self {}
    }

    /// Never called.
    pub fn state(&self, _: u32) -> u64 {
        match *self {}
    }

    /// Never called.
    pub fn seen(&self, _: u32, _: usize) -> Seen {
        match *self {}
    }

    /// Never called.
    pub fn promise(&self, _: u32, _: usize, _: u32, _: u32, _: u32) {
        match *self {}
    }

    /// Never called.
    pub fn hand_over(&self, _: u32, _: u64) -> bool {
        match *self {}
    }

    /// Never called.
    pub fn counts(&self) -> [u64; Count::LEN as usize] {
        match *self {}
    }

    /// Never called.
    pub fn trial(&self, _: bool, _: &[u8]) -> Result<Trial, Unavailable> {
        match *self {}
    }

    /// Never called.
    pub fn set_lull(&self, _: u32, _: u64) {
        match *self {}
    }

    /// Never called.
    pub fn set_windows(&self, _: u32, _: [u16; 2]) {
        match *self {}
    }

    /// Never called.
    pub fn halt(&self, _: u32) {
        match *self {}
    }
}
