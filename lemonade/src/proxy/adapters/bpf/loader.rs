//! Loads the embedded object: maps are made, programs go through the verifier when they are asked for.

use aya::maps::Array;
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use lemonade_common::abi::{ABI_VERSION, ABI_VERSION_AT};

use super::Unavailable;

/// The programs beside the proxy plane.
static PROXY: &[u8] = aya::include_bytes_aligned!(env!("LEMONADE_BPF_PROXY"));

/// A program that the verifier let pass.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// Its name.
    pub name: String,
    /// Instructions that the verifier followed, a measure of the program's size; 0 where the kernel does not tell.
    pub verified: u32,
}

/// What this process has in the kernel. Dropping it takes everything away.
#[derive(Debug)]
pub struct Kernel {
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
        Ok(Self { ebpf })
    }

    /// Sends every program through the verifier; attaches none.
    ///
    /// # Errors
    /// The programs that the verifier refused, with what it said.
    #[expect(
        clippy::wildcard_enum_match_arm,
        reason = "a type that this build has no program of is a mistake"
    )]
    pub fn verify(&mut self) -> Result<Vec<Verified>, Unavailable> {
        let mut verified = Vec::new();
        for (name, program) in self.ebpf.programs_mut() {
            let loaded = match program {
                Program::SockOps(program) => program.load(),
                Program::SkSkb(program) => program.load(),
                Program::SkMsg(program) => program.load(),
                other => {
                    return Err(corrupt(&format!("{name} is a program of type {:?}", other.prog_type())));
                }
            };
            loaded.map_err(|error| refused(&error))?;
            let info = program.info().map_err(|error| refused(&error))?;
            verified.push(Verified {
                name: name.to_owned(),
                verified: info.verified_instruction_count().unwrap_or(0),
            });
        }
        Ok(verified)
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

/// The kernel's refusal in words.
pub(super) fn refused(error: &(dyn std::error::Error + 'static)) -> Unavailable {
    let mut cause = Some(error);
    let mut code = None;
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            code = io.raw_os_error();
        }
        cause = error.source();
    }
    let (why, cure) = match code {
        Some(libc::EPERM | libc::EACCES) => (
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

fn corrupt(what: &str) -> Unavailable {
    Unavailable {
        why: format!("the embedded kernel programs are not what this build expects: {what}"),
        cure: "build again with `cargo xtask setup` and `cargo xtask run`".to_owned(),
    }
}
