//! The protocol of generator and backend, and non-blocking sockets that speak it.
//!
//! A request is a header of 16 bytes (its own length, zero, the length wanted back; little endian) and padding.
//! Every byte of an answer is the number of the backend. A request length of 0 asks the backend to swallow all
//! that follows.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, recv, send, socket_with, sockopt,
};

/// Bytes of a request header, and the least request.
pub(super) const HEADER: usize = 16;
/// Answer length of an endless download.
pub(super) const ENDLESS: u64 = 1 << 50;
/// Bytes moved by one call at most.
pub(super) const CHUNK: usize = 256 * 1024;

/// Builds a request of `len` bytes, at least a header, that asks for `answer` bytes.
pub(super) fn request(len: u32, answer: u64) -> Vec<u8> {
    let mut bytes = vec![0; HEADER.max(len as usize)];
    bytes[..4].copy_from_slice(&len.to_le_bytes());
    bytes[8..HEADER].copy_from_slice(&answer.to_le_bytes());
    bytes
}

/// Reads a header: length of the request, length of the answer.
pub(super) fn parse(header: &[u8; HEADER]) -> (u64, u64) {
    let mut len = [0; 4];
    len.copy_from_slice(&header[..4]);
    let mut answer = [0; 8];
    answer.copy_from_slice(&header[8..]);
    (u64::from(u32::from_le_bytes(len)), u64::from_le_bytes(answer))
}

/// Starts a connection without waiting for it.
pub(super) fn dial(target: SocketAddrV4) -> Result<OwnedFd, Errno> {
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    let sock = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    sockopt::set_tcp_nodelay(&sock, true)?;
    match connect(&sock, &target) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(sock),
        Err(errno) => Err(errno),
    }
}

/// What one call moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Moved {
    /// This many bytes.
    Bytes(usize),
    /// Nothing: it would block.
    Later,
    /// Nothing, for ever: the end of the stream or an error.
    Over,
}

/// Reads what is there.
pub(super) fn read(sock: &OwnedFd, buffer: &mut [u8]) -> Moved {
    match recv(sock, buffer, RecvFlags::empty()) {
        Ok((_, 0)) => Moved::Over,
        Ok((_, n)) => Moved::Bytes(n),
        Err(Errno::AGAIN | Errno::INTR) => Moved::Later,
        Err(_) => Moved::Over,
    }
}

/// Writes what fits.
pub(super) fn write(sock: &OwnedFd, bytes: &[u8]) -> Moved {
    match send(sock, bytes, SendFlags::NOSIGNAL) {
        Ok(n) => Moved::Bytes(n),
        Err(Errno::AGAIN | Errno::INTR | Errno::NOTCONN) => Moved::Later,
        Err(_) => Moved::Over,
    }
}
