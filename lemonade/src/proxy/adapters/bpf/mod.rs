//! Programs in the kernel that serve the proxy plane: loaded, attached and taken away again.
//!
//! Only this folder names `aya`. Without feature `ebpf` [`Kernel`] is a stub that says why there is nothing.

#[cfg(not(all(feature = "ebpf", target_os = "linux")))]
mod absent;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod batch;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod cgroup;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod decap;
#[cfg(not(all(feature = "ebpf", target_os = "linux")))]
#[path = "decap_absent.rs"]
mod decap;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod forward;
#[cfg(not(all(feature = "ebpf", target_os = "linux")))]
#[path = "forward_absent.rs"]
mod forward;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod held;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod interfaces;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod layout;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod loader;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod mapped;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod pins;
#[cfg(not(all(feature = "ebpf", target_os = "linux")))]
#[path = "pins_absent.rs"]
mod pins;
pub mod probe;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod rings;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod sk_msg;
#[cfg(not(all(feature = "ebpf", target_os = "linux")))]
#[path = "sk_msg_absent.rs"]
mod sk_msg;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod sockmap;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
mod splice;
#[cfg(not(all(feature = "ebpf", target_os = "linux")))]
#[path = "splice_absent.rs"]
mod splice;

#[cfg(not(all(feature = "ebpf", target_os = "linux")))]
pub use absent::{Kernel, Sockmap, cleanup};
#[cfg(all(feature = "ebpf", target_os = "linux"))]
pub use cgroup::cleanup;
pub use decap::Decap;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
pub use forward::Timed;
pub use forward::{Forward, Found, Trial};
#[cfg(all(feature = "ebpf", target_os = "linux"))]
pub use loader::{Kernel, Verified};
pub use pins::{Pins, remove_all};
pub use sk_msg::SkMsg;
#[cfg(all(feature = "ebpf", target_os = "linux"))]
pub use sockmap::Sockmap;
pub use splice::{Legs, Seen, Splice};

/// Why there is nothing of Lemonade in the kernel, and what would change that.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{why}; {cure}")]
pub struct Unavailable {
    /// What is missing.
    pub why: String,
    /// What to do about it.
    pub cure: String,
}
