//! What the kernel has of what Lemonade's programs use or will use; nothing is attached.

use super::{Kernel, Unavailable};

/// Whether this build has kernel programs.
///
/// # Errors
/// It has none, and what would change that.
pub fn built() -> Result<(), Unavailable> {
    #[cfg(all(feature = "ebpf", target_os = "linux"))]
    return Ok(());
    #[cfg(not(all(feature = "ebpf", target_os = "linux")))]
    Kernel::load().map(drop)
}

/// Programs by name, each with the instructions that the verifier followed, or why it was refused.
pub type Verdicts = Vec<(String, Result<u32, Unavailable>)>;

/// Each embedded program with the instructions that the verifier followed, or why it was refused.
///
/// # Errors
/// There is none, or nothing can be loaded at all.
pub fn programs() -> Result<Verdicts, Unavailable> {
    #[cfg(all(feature = "ebpf", target_os = "linux"))]
    {
        let mut programs = Kernel::load()?.verify();
        programs.extend([super::Forward::verify(), super::Decap::verify()]);
        programs.extend(super::Forward::verify_xdp());
        programs.extend(super::Forward::verify_sockets());
        programs.extend(super::SkMsg::verify());
        programs.extend(super::Splice::verify());
        Ok(programs.into_iter().map(|own| (own.name, own.verdict)).collect())
    }
    #[cfg(not(all(feature = "ebpf", target_os = "linux")))]
    match Kernel::load()? {}
}

/// Whether the kernel has each type of program.
pub fn program_types() -> Vec<(&'static str, Result<bool, Unavailable>)> {
    ["sock_ops", "sk_skb", "sk_msg", "sched_cls", "xdp", "cgroup_sock_addr"]
        .map(|name| (name, program_type(name)))
        .into()
}

/// Whether the kernel has each type of map.
pub fn map_types() -> Vec<(&'static str, Result<bool, Unavailable>)> {
    ["hash", "lru hash", "array", "ring buffer", "sockhash", "array of maps", "hash of maps"]
        .map(|name| (name, map_type(name)))
        .into()
}

#[cfg(all(feature = "ebpf", target_os = "linux"))]
fn program_type(name: &str) -> Result<bool, Unavailable> {
    use aya::programs::ProgramType;

    let kind = match name {
        "sock_ops" => ProgramType::SockOps,
        "sk_skb" => ProgramType::SkSkb,
        "sk_msg" => ProgramType::SkMsg,
        "sched_cls" => ProgramType::SchedClassifier,
        "xdp" => ProgramType::Xdp,
        "cgroup_sock_addr" => ProgramType::CgroupSockAddr,
        _ => ProgramType::Unspecified,
    };
    aya::sys::is_program_supported(kind).map_err(|error| super::loader::refused(&error))
}

#[cfg(all(feature = "ebpf", target_os = "linux"))]
fn map_type(name: &str) -> Result<bool, Unavailable> {
    use aya::maps::MapType;

    let kind = match name {
        "hash" => MapType::Hash,
        "lru hash" => MapType::LruHash,
        "array" => MapType::Array,
        "ring buffer" => MapType::RingBuf,
        "sockhash" => MapType::SockHash,
        "array of maps" => MapType::ArrayOfMaps,
        "hash of maps" => MapType::HashOfMaps,
        _ => MapType::Unspecified,
    };
    aya::sys::is_map_supported(kind).map_err(|error| super::loader::refused(&error))
}

#[cfg(not(all(feature = "ebpf", target_os = "linux")))]
fn program_type(_: &str) -> Result<bool, Unavailable> {
    built().map(|()| false)
}

#[cfg(not(all(feature = "ebpf", target_os = "linux")))]
fn map_type(_: &str) -> Result<bool, Unavailable> {
    built().map(|()| false)
}
