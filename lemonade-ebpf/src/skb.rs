//! A packet as programs at tc see it.

use core::ffi::c_void;
use core::mem::MaybeUninit;

use aya_ebpf::bindings::{__sk_buff, BPF_F_RECOMPUTE_CSUM};
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_skb_store_bytes};
use aya_ebpf::programs::TcContext;
use lemonade_common::packet::{Bytes, BytesMut};

/// A packet in the kernel.
pub struct Skb(pub *mut __sk_buff);

impl Bytes for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        // Zeros that the helper writes over are written one by one.
        let mut bytes = MaybeUninit::<[u8; N]>::uninit();
        let to = bytes.as_mut_ptr().cast::<c_void>();
        // SAFETY: `bytes` has room for N; the helper checks the packet's end, and fills all of it unless it fails.
        unsafe {
            let failed = bpf_skb_load_bytes(self.0.cast::<c_void>(), at as u32, to, N as u32);
            if failed == 0 { Some(bytes.assume_init()) } else { None }
        }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        // SAFETY: a word of the context.
        (unsafe { (*self.0).len }) as usize
    }
}

/// The bytes of a packet that lie in one piece from its beginning on, read without a call.
pub struct Linear {
    data: usize,
    end: usize,
}

impl Linear {
    /// Those of the program's packet.
    #[inline(always)]
    pub fn of(ctx: &TcContext) -> Self {
        Self { data: ctx.data(), end: ctx.data_end() }
    }
}

impl Bytes for Linear {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        let from = self.data + at;
        // SAFETY: within the packet.
        if from + N > self.end { None } else { Some(unsafe { (from as *const [u8; N]).read() }) }
    }

    #[inline(always)]
    fn length(&self) -> usize {
        self.end - self.data
    }
}

impl BytesMut for Skb {
    #[inline(always)]
    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> bool {
        // SAFETY: `bytes` has N; the helper checks the packet's end.
        unsafe { bpf_skb_store_bytes(self.0, at as u32, bytes.as_ptr().cast::<c_void>(), N as u32, 0) == 0 }
    }
}

/// A packet of which so much is written anew that a sum over all of it, which the network card may have made, must follow.
pub struct Anew(pub *mut __sk_buff);

impl Bytes for Anew {
    #[inline(always)]
    fn load<const N: usize>(&self, at: usize) -> Option<[u8; N]> {
        Skb(self.0).load(at)
    }

    #[inline(always)]
    fn length(&self) -> usize {
        Skb(self.0).length()
    }
}

impl BytesMut for Anew {
    #[inline(always)]
    fn store<const N: usize>(&mut self, at: usize, bytes: &[u8; N]) -> bool {
        let (bytes, flags) = (bytes.as_ptr().cast::<c_void>(), u64::from(BPF_F_RECOMPUTE_CSUM));
        // SAFETY: `bytes` has N; the helper checks the packet's end.
        unsafe { bpf_skb_store_bytes(self.0, at as u32, bytes, N as u32, flags) == 0 }
    }
}
