//! The programs for the kernel: the toolchain that builds them, found or installed, and their objects.
//!
//! They need a compiler that knows the target `bpfel-unknown-none` and a linker for its objects, `bpf-linker`. Nothing
//! here fails a run: without them Lemonade is built without feature `ebpf`.

use std::env;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, bail};

use crate::{set_up, workspace};

/// Target of the programs.
const TARGET: &str = "bpfel-unknown-none";

/// Environment variable that names the folder of the objects to the build script of `lemonade`.
pub const FOLDER: &str = "LEMONADE_BPF_OBJECTS";

/// Debian packages of a compiler with a prebuilt `core` for the target, and of the LLVM it was built with.
const PACKAGES: [&str; 8] = [
    "rustc-web",
    "cargo-web",
    "libstd-rust-web-dev-bpf",
    "llvm-22-dev",
    "libpolly-22-dev",
    "libzstd-dev",
    "zlib1g-dev",
    "libxml2-dev",
];

/// Version of the linker that knows the LLVM of both compilers.
const LINKER: &str = "0.13.0";

/// A compiler for the programs.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Compiler {
    /// rustup's nightly, which builds `core` from its source, and where it is.
    Nightly { sysroot: PathBuf },
    /// A compiler whose sysroot holds `core` for the target, with its cargo.
    Prebuilt { rustc: PathBuf, cargo: PathBuf },
}

impl Compiler {
    /// Name of the folder of what is built for it.
    const fn name(&self) -> &'static str {
        match self {
            Self::Nightly { .. } => "nightly",
            Self::Prebuilt { .. } => "prebuilt",
        }
    }
}

/// Built objects.
#[derive(Debug, Clone)]
pub struct Objects {
    folder: PathBuf,
}

impl Objects {
    /// Folder of the objects, as the build script wants it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// Makes a cargo command build `lemonade` with what there is.
pub fn equip(cargo: &mut Command, objects: Option<&Objects>) {
    if let Some(objects) = objects {
        cargo.args(["--features", "lemonade/ebpf"]).env(FOLDER, objects.folder());
    }
}

/// Finds or installs the toolchain and builds the objects; says each step and how long it took.
///
/// `None` is said in one line for each toolchain that was tried, with the command that would help.
pub fn set_up() -> Option<Objects> {
    if !cfg!(target_os = "linux") {
        println!("kernel programs: they need Linux; building for userspace only");
        return None;
    }
    // What is there goes before what has to be fetched; packages are of one version, a nightly is that of the day.
    let ways: [fn() -> anyhow::Result<Option<Compiler>>; 4] = [
        || Ok(prebuilt()),
        || Ok(nightly()),
        || install_packages().map(Some),
        || install_nightly().map(Some),
    ];
    let mut tried = Vec::new();
    for way in ways {
        let built = match way() {
            Ok(Some(compiler)) if !tried.contains(&compiler) => {
                let built = linker(&compiler).and_then(|linker| build(&compiler, &linker));
                tried.push(compiler);
                built
            }
            Ok(_) => continue,
            Err(error) => Err(error),
        };
        match built {
            Ok(objects) => return Some(objects),
            Err(error) => println!("kernel programs: {error:#}"),
        }
    }
    println!("kernel programs: none, so Lemonade runs in userspace");
    None
}

/// Whether programs can be loaded here.
///
/// # Errors
/// The reason why not, for people.
pub fn probe(objects: Option<&Objects>) -> Result<(), String> {
    if objects.is_none() {
        return Err(
            "needs a toolchain for kernel programs; `cargo xtask setup` says what is missing".to_owned()
        );
    }
    set_up::probe_namespaces()?;
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let effective = effective.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    // CAP_BPF is 39, CAP_NET_ADMIN 12 and CAP_SYS_ADMIN 21 (linux/capability.h); the last stands for the first.
    let has = |capability: u32| effective & (1 << capability) != 0;
    if (has(39) || has(21)) && has(12) {
        Ok(())
    } else {
        Err("needs root, or CAP_BPF and CAP_NET_ADMIN".to_owned())
    }
}

/// A compiler of a distribution, if there is one.
fn prebuilt() -> Option<Compiler> {
    let rustc = ["/usr/bin/rustc", "/usr/local/bin/rustc"].map(PathBuf::from);
    rustc.into_iter().find_map(|rustc| {
        let cargo = rustc.with_file_name("cargo");
        let sysroot = quiet(Command::new(&rustc).args(["--print", "sysroot"]))?;
        let core = Path::new(sysroot.trim()).join("lib/rustlib").join(TARGET);
        (core.is_dir() && cargo.is_file()).then_some(Compiler::Prebuilt { rustc, cargo })
    })
}

/// rustup's nightly, if it is there with the source of `core`.
fn nightly() -> Option<Compiler> {
    let sysroot = quiet(Command::new("rustup").args(["run", "nightly", "rustc", "--print", "sysroot"]))?;
    let sysroot = PathBuf::from(sysroot.trim());
    sysroot.join("lib/rustlib/src/rust/library/core").is_dir().then_some(Compiler::Nightly { sysroot })
}

fn install_packages() -> anyhow::Result<Compiler> {
    let line = format!("apt-get install --yes --no-install-recommends {}", PACKAGES.join(" "));
    if !set_up::may_install() {
        bail!("no Rust compiler for {TARGET}; as root on Debian `{line}` installs one");
    }
    step("install a compiler for kernel programs", || {
        set_up::apt(&PACKAGES)?;
        prebuilt().with_context(|| format!("`{line}` brought no compiler for {TARGET}"))
    })
}

fn install_nightly() -> anyhow::Result<Compiler> {
    let install = ["toolchain", "install", "nightly", "--profile", "minimal", "--component", "rust-src"];
    let line = format!("rustup {}", install.join(" "));
    if !set_up::on_path("rustup") {
        bail!("rustup is not installed; with it `{line}` brings a compiler for {TARGET}");
    }
    step("install a nightly compiler for kernel programs", || {
        quiet(Command::new("rustup").args(install))
            .and_then(|_| nightly())
            .with_context(|| format!("`{line}` brought no compiler for {TARGET}"))
    })
}

/// The linker that knows the compiler's LLVM: our own, that on the path, or a new one of our own.
fn linker(compiler: &Compiler) -> anyhow::Result<PathBuf> {
    let tools = workspace::target().join("tools").join(compiler.name());
    let own = tools.join("bin/bpf-linker");
    let path = env::var_os("PATH").unwrap_or_default();
    let known = env::split_paths(&path).map(|folder| folder.join("bpf-linker"));
    // One whose libraries are gone does not start.
    let runs = |linker: &PathBuf| linker.is_file() && quiet(Command::new(linker).arg("--version")).is_some();
    if let Some(linker) = std::iter::once(own.clone()).chain(known).find(runs) {
        return Ok(linker);
    }
    step("build bpf-linker", || install_linker(compiler, &tools))?;
    Ok(own)
}

fn install_linker(compiler: &Compiler, tools: &Path) -> anyhow::Result<()> {
    let (prefix, major) = match compiler {
        Compiler::Nightly { sysroot } => (llvm_of(sysroot, tools)?, llvm_version()?),
        Compiler::Prebuilt { .. } => {
            let prefix = workspace::output(Command::new("llvm-config-22").arg("--prefix"))
                .context("llvm-22-dev is not installed; run `cargo xtask setup` as root")?;
            (PathBuf::from(prefix.trim()), "22".to_owned())
        }
    };
    let mut cargo = workspace::cargo(&["install", "bpf-linker", "--version", LINKER, "--locked", "--quiet"]);
    cargo.args(["--force", "--no-default-features", "--features", &format!("llvm-{major}")]);
    cargo.arg("--root").arg(tools);
    // Its build must not land among the workspace's own.
    cargo.env("CARGO_TARGET_DIR", tools.join("build"));
    cargo.env("LLVM_PREFIX", &prefix).env(format!("LLVM_SYS_{major}1_PREFIX"), &prefix);
    cargo.env("RUSTFLAGS", format!("-L {}", prefix.join("lib").display()));
    workspace::run(&mut cargo)
}

/// Major version of the LLVM that rustup's nightly brings.
fn llvm_version() -> anyhow::Result<String> {
    let told = workspace::output(Command::new("rustup").args(["run", "nightly", "rustc", "-vV"]))?;
    let version = told.lines().find_map(|line| line.strip_prefix("LLVM version: "));
    let major = version.and_then(|version| version.split('.').next());
    major.map(str::to_owned).with_context(|| format!("no LLVM version in: {told}"))
}

/// A folder in which a linker finds the LLVM of a compiler under the name that it asks for.
fn llvm_of(sysroot: &Path, tools: &Path) -> anyhow::Result<PathBuf> {
    let prefix = tools.join("llvm");
    let folder = prefix.join("lib");
    let _ = std::fs::remove_dir_all(&prefix);
    std::fs::create_dir_all(&folder)?;
    let lib = sysroot.join("lib");
    for entry in std::fs::read_dir(&lib).with_context(|| lib.display().to_string())? {
        let (name, path) = entry.map(|entry| (entry.file_name(), entry.path()))?;
        if name.to_string_lossy().starts_with("libLLVM.so") {
            std::os::unix::fs::symlink(&path, folder.join(&name))?;
            std::os::unix::fs::symlink(&path, folder.join("libLLVM.so"))?;
        }
    }
    Ok(prefix)
}

/// Objects, and the features that they are built with: each has its own, since the maps of a module are in every object that
/// it is linked into. Those that time others or have faults are for tests; nothing embeds them.
const OBJECTS: [(&str, &str); 9] = [
    ("proxy", "proxy"),
    ("sk_msg", "sk_msg"),
    ("forward", "forward"),
    ("decap", "decap"),
    ("splice", "splice"),
    ("restore", "timing"),
    ("faulty", "proxy,faults"),
    ("faulty_sk_msg", "sk_msg,faults"),
    ("unruly", "faults"),
];

fn build(compiler: &Compiler, linker: &Path) -> anyhow::Result<Objects> {
    let target = workspace::target().join("bpf");
    step("build kernel programs", || {
        OBJECTS.iter().try_for_each(|object| workspace::run(&mut command(compiler, linker, &target, object)))
    })?;
    Ok(Objects { folder: target.join(TARGET).join("bpf") })
}

fn command(compiler: &Compiler, linker: &Path, target: &Path, (object, features): &(&str, &str)) -> Command {
    let mut cargo = match compiler {
        Compiler::Nightly { .. } => {
            let mut cargo = Command::new("rustup");
            cargo.args(["run", "nightly", "cargo"]);
            cargo
        }
        Compiler::Prebuilt { rustc, cargo } => {
            let mut cargo = Command::new(cargo);
            // aya-ebpf asks for features that a stable compiler has behind this switch.
            cargo.env("RUSTC", rustc).env("RUSTC_BOOTSTRAP", "1");
            cargo
        }
    };
    cargo.current_dir(workspace::root()).env_remove("RUSTFLAGS").env_remove("RUSTC_WORKSPACE_WRAPPER");
    cargo.args(["build", "--quiet", "--package", "lemonade-ebpf", "--bin", object, "--features", features]);
    cargo.args(["--profile", "bpf", "--target", TARGET, "--target-dir"]).arg(target);
    if let Compiler::Nightly { .. } = compiler {
        cargo.args(["-Z", "build-std=core"]);
        cargo.env_remove("RUSTUP_TOOLCHAIN");
    }
    let architecture = format!("--cfg=bpf_target_arch=\"{}\"", env::consts::ARCH);
    // The nightly of the day has warnings of its own.
    let lints = if let Compiler::Nightly { .. } = compiler { "-Awarnings" } else { "-Dwarnings" };
    let flags = [&*architecture, "-Cdebuginfo=2", "-Clink-arg=--btf", lints];
    cargo.env("CARGO_ENCODED_RUSTFLAGS", flags.join("\u{1f}"));
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = linker.parent().map(Path::to_path_buf).into_iter().chain(env::split_paths(&path));
    cargo.env("PATH", env::join_paths(folders).unwrap_or_else(|_| OsString::from(&path)));
    cargo
}

/// Runs one step of the set-up and says how long it took, if that is worth saying.
fn step<T>(what: &str, run: impl FnOnce() -> anyhow::Result<T>) -> anyhow::Result<T> {
    let began = Instant::now();
    let done = run();
    let took = began.elapsed().as_secs_f64();
    if done.is_err() || took > 1.0 {
        let outcome = if done.is_ok() { "done" } else { "failed" };
        println!("set-up: {what}: {outcome} in {took:.0} s");
    }
    done
}

/// Standard output of a command that may be missing or fail.
fn quiet(command: &mut Command) -> Option<String> {
    let output = command.stdin(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
