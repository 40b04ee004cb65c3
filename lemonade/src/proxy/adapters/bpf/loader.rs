//! Loads the embedded object: maps are made, programs go through the verifier when they are asked for.

use std::io;
use std::net::{Ipv6Addr, SocketAddr};

use aya::maps::{Array, Map};
use aya::programs::{CgroupAttachMode, Program, SockOps};
use aya::{Ebpf, EbpfLoader};
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT, BackendSignals, Endpoint};

use super::Unavailable;
use super::batch;
use super::cgroup::OwnCgroup;

/// Bytes of a key of the map `BACKENDS`.
const KEY: usize = size_of::<Endpoint>();

/// Bytes of a value of the map `BACKENDS`.
const VALUE: usize = size_of::<BackendSignals>();

/// The programs beside the proxy plane.
static PROXY: &[u8] = aya::include_bytes_aligned!(env!("LEMONADE_BPF_PROXY"));

/// What the verifier said of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The program's name.
    pub name: String,
    /// Instructions that the verifier followed, a measure of the program's size, 0 where the kernel does not tell; or why
    /// it was refused.
    pub verdict: Result<u32, Unavailable>,
}

/// What this process has in the kernel. Dropping it takes everything away.
#[derive(Debug)]
pub struct Kernel {
    /// Left before the programs are gone.
    cgroup: Option<OwnCgroup>,
    /// Programs and maps by name.
    ebpf: Ebpf,
}

impl Kernel {
    /// Makes the maps; no program is loaded or attached yet.
    ///
    /// # Errors
    /// Why the kernel refuses, and what would change that.
    pub fn load() -> Result<Self, Unavailable> {
        Self::load_object(PROXY)
    }

    /// As [`Self::load`], from another build of the object.
    ///
    /// # Errors
    /// As [`Self::load`].
    pub fn load_object(object: &[u8]) -> Result<Self, Unavailable> {
        let mut ebpf = EbpfLoader::new().load(object).map_err(|error| refused(&error))?;
        let versions = ebpf.map_mut("ABI").ok_or_else(|| corrupt("no map ABI"))?;
        let mut versions =
            Array::<_, u32>::try_from(versions).map_err(|error| corrupt(&error.to_string()))?;
        versions.set(ABI_VERSION_AT, ABI_VERSION, 0).map_err(|error| corrupt(&error.to_string()))?;
        Ok(Self { cgroup: None, ebpf })
    }

    /// Sends every program through the verifier, those after a refused one too; attaches none.
    pub fn verify(&mut self) -> Vec<Verified> {
        verify_all(&mut self.ebpf)
    }

    /// Moves the process into a cgroup of its own and attaches the programs for it there.
    ///
    /// # Errors
    /// Why that is not possible; then the process is where it was.
    pub fn attach(&mut self) -> Result<(), Unavailable> {
        let program = self.ebpf.program_mut("sock_ops").ok_or_else(|| corrupt("no program sock_ops"))?;
        let program = <&mut SockOps>::try_from(program).map_err(|error| corrupt(&error.to_string()))?;
        program.load().map_err(|error| refused(&error))?;
        let cgroup = OwnCgroup::join()?;
        let folder = cgroup.open().map_err(|error| refused(&error))?;
        // A link, so that it ends with the process; others may attach beside it whatever the mode.
        program.attach(folder, CgroupAttachMode::Single).map_err(|error| refused(&error))?;
        self.cgroup = Some(cgroup);
        Ok(())
    }

    /// Programs and maps by name.
    pub(super) const fn ebpf(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Folder of the cgroup that the process moved into, if it did.
    pub fn cgroup(&self) -> Option<&std::path::Path> {
        self.cgroup.as_ref().map(OwnCgroup::path)
    }

    /// What is in the kernel, for people.
    pub fn words(&self) -> String {
        match &self.cgroup {
            Some(cgroup) => format!("sock_ops signals of backends, cgroup {}", cgroup.path().display()),
            None => "nothing is attached".to_owned(),
        }
    }

    /// What was counted of each address that the process connected to.
    ///
    /// # Errors
    /// As bpf(2).
    pub fn signals(&self) -> io::Result<Vec<(SocketAddr, BackendSignals)>> {
        let Some(Map::LruHashMap(backends)) = self.ebpf.map("BACKENDS") else { return Ok(Vec::new()) };
        let entries = batch::entries::<KEY, VALUE>(backends)?;
        let told = entries.iter().map(|(key, value)| {
            let key = Endpoint::from_bytes(key);
            let ip = Ipv6Addr::from(key.address).to_canonical();
            (SocketAddr::new(ip, u16::from_be_bytes(key.port)), BackendSignals::from_bytes(value))
        });
        Ok(told.collect())
    }

    /// Sends the programs' log records to tracing; call within a runtime.
    pub fn follow_log(&mut self) {
        // A build whose programs say nothing has no map for records.
        let Ok(logger) = aya_log::EbpfLogger::init_with_logger(&mut self.ebpf, tracing_log::LogTracer::new())
        else {
            return;
        };
        // SAFETY: the ring buffer keeps its descriptor for life and closes it only when dropped, after the registration.
        let registered = unsafe {
            tokio::io::unix::AsyncFd::register_with_interest(logger, tokio::io::Interest::READABLE)
        };
        let Ok(mut logger) = registered else { return };
        tokio::spawn(async move {
            while let Ok(mut ready) = logger.readable_mut().await {
                ready.get_inner_mut().flush();
                ready.clear_ready();
            }
        });
    }
}

/// Sends every program of an object through the verifier.
pub(super) fn verify_all(ebpf: &mut Ebpf) -> Vec<Verified> {
    let programs = ebpf.programs_mut();
    let mut verified: Vec<_> = programs
        .map(|(name, program)| Verified { name: name.to_owned(), verdict: verify(name, program) })
        .collect();
    verified.sort_by(|one, other| one.name.cmp(&other.name));
    verified
}

fn verify(name: &str, program: &mut Program) -> Result<u32, Unavailable> {
    #[expect(clippy::wildcard_enum_match_arm, reason = "a program of any other type is not ours")]
    let loaded = match program {
        Program::SockOps(program) => program.load(),
        Program::SkSkb(program) => program.load(),
        Program::SkMsg(program) => program.load(),
        other => return Err(corrupt(&format!("{name} is a program of type {:?}", other.prog_type()))),
    };
    loaded.map_err(|error| refused(&error))?;
    let info = program.info().map_err(|error| refused(&error))?;
    Ok(info.verified_instruction_count().unwrap_or(0))
}

/// The kernel's refusal in words.
pub(super) fn refused(error: &(dyn std::error::Error + 'static)) -> Unavailable {
    let mut cause = Some(error);
    let mut code = None;
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            code = io.raw_os_error();
        }
        cause = error.source();
    }
    let (why, cure) = match code {
        Some(libc::EPERM) => (
            "bpf(2) is not permitted".to_owned(),
            "run as root, or with CAP_BPF, CAP_NET_ADMIN and CAP_PERFMON".to_owned(),
        ),
        Some(libc::ENOSYS) => {
            ("this kernel has no bpf(2)".to_owned(), "run a kernel with CONFIG_BPF_SYSCALL".to_owned())
        }
        Some(_) | None => {
            (format!("the kernel refused the programs: {error}"), "run `lemonade doctor`".to_owned())
        }
    };
    Unavailable { why, cure }
}

pub(super) fn corrupt(what: &str) -> Unavailable {
    Unavailable {
        why: format!("the embedded kernel programs are not what this build expects: {what}"),
        cure: "build again with `cargo xtask setup` and `cargo xtask run`".to_owned(),
    }
}
