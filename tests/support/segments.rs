//! TCP segments with numbers and options, made whole with checksums computed over all of them.

use std::net::SocketAddr;

use crate::packets::framed;

/// What a segment is made of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Sender.
    pub from: SocketAddr,
    /// Receiver, of the same family.
    pub to: SocketAddr,
    /// Time to live or hop limit.
    pub ttl: u8,
    /// Flags.
    pub flags: u8,
    /// Sequence number.
    pub sequence: u32,
    /// Acknowledgement.
    pub ack: u32,
    /// Window as it stands in the header.
    pub window: u16,
    /// Timestamps.
    pub stamp: Option<(u32, u32)>,
    /// SACK blocks, up to three with timestamps and four without.
    pub blocks: Vec<(u32, u32)>,
    /// Whether one padding byte in front of the options makes their numbers begin at odd places.
    pub shifted: bool,
    /// Padding bytes behind the other options.
    pub nothings: usize,
    /// Data.
    pub data: Vec<u8>,
}

impl Segment {
    /// A segment without data or options.
    pub fn new(from: SocketAddr, to: SocketAddr, flags: u8, sequence: u32, ack: u32) -> Self {
        let (stamp, blocks, data, shifted, nothings) = (None, Vec::new(), Vec::new(), false, 0);
        Self { from, to, ttl: 64, flags, sequence, ack, window: 500, stamp, blocks, shifted, nothings, data }
    }

    /// Its bytes from the Ethernet header on.
    pub fn build(&self) -> Vec<u8> {
        let mut options = vec![1; if self.shifted { 1 } else { 2 }];
        if let Some((value, echo)) = self.stamp {
            options.extend([8, 10]);
            options.extend(value.to_be_bytes());
            options.extend(echo.to_be_bytes());
        }
        if !self.blocks.is_empty() {
            options.extend([5, 2 + 8 * self.blocks.len() as u8]);
            for (from, to) in &self.blocks {
                options.extend(from.to_be_bytes());
                options.extend(to.to_be_bytes());
            }
        }
        options.extend(std::iter::repeat_n(1, self.nothings));
        while options.len() % 4 != 0 {
            options.push(0);
        }
        assert!(options.len() <= 40, "no room for {self:?}");
        let mut segment = [self.from.port().to_be_bytes(), self.to.port().to_be_bytes()].concat();
        segment.extend(self.sequence.to_be_bytes());
        segment.extend(self.ack.to_be_bytes());
        segment.extend([((20 + options.len()) / 4 * 16) as u8, self.flags]);
        segment.extend(self.window.to_be_bytes());
        segment.extend([0; 4]);
        segment.extend(options);
        segment.extend(&self.data);
        framed(self.from.ip(), self.to.ip(), self.ttl, segment)
    }
}
