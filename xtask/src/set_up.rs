//! What building and testing need from the host.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};

use crate::test::Tally;
use crate::{tools, workspace};

/// Programs that the build calls, with the Debian package that brings each: the allocator is C, built by make.
const BUILD: [(&str, &str); 2] = [("cc", "gcc"), ("make", "make")];

/// Programs of the namespace tests.
const NAMESPACES: [(&str, &str); 3] = [("ip", "iproute2"), ("nft", "nftables"), ("ethtool", "ethtool")];

/// Programs that build the page.
const DASHBOARD: [(&str, &str); 2] = [("node", "nodejs"), ("npm", "npm")];

/// The browser that tests of the page drive, and its driver.
const BROWSER: [(&str, &str); 2] = [("chromium", "chromium"), ("chromedriver", "chromium-driver")];

/// Programs that tests call to see what they say about Lemonade, and the one that brings others.
const TOOLS: [(&str, &str); 4] =
    [("systemd-analyze", "systemd"), ("python3", "python3-venv"), ("strace", "strace"), ("curl", "curl")];

/// Installs what building and testing lack, where that needs no password; what stays missing shows up as skipped tests.
pub fn install() -> anyhow::Result<Tally> {
    install_missing(&[&BUILD[..], &NAMESPACES, &TOOLS, &DASHBOARD, &BROWSER].concat());
    tools::install();
    Ok(Tally::default())
}

/// Installs what building lacks, where that needs no password; otherwise says what to install.
pub fn install_for_build() {
    install_missing(&BUILD);
}

/// As [`install_for_build`], for building the page.
pub fn install_for_dashboard() {
    install_missing(&DASHBOARD);
}

/// As [`install_for_build`], for looking at the page.
pub fn install_for_page() {
    install_missing(&BROWSER);
}

/// Whether pages can be tested here.
///
/// # Errors
/// The reason why not, for people.
pub fn probe_browser() -> Result<(), String> {
    let missing = BROWSER.iter().find(|(program, _)| !on_path(program));
    missing.map_or(Ok(()), |(program, package)| {
        Err(format!("needs a browser: `{program}` is not installed (Debian package {package})"))
    })
}

fn install_missing(tools: &[(&str, &str)]) {
    let packages: Vec<_> =
        tools.iter().filter(|(tool, _)| !on_path(tool)).map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return;
    }
    if !may_install() {
        println!("missing, and not installed for want of root or apt: {}", packages.join(", "));
        return;
    }
    if let Err(error) = apt(&packages) {
        println!("{error:#}");
    }
}

/// Whether packages can be installed without a password.
pub fn may_install() -> bool {
    is_root() && on_path("apt-get")
}

/// Installs Debian packages.
///
/// # Errors
/// apt cannot be started, or cannot install one of them.
pub fn apt(packages: &[&str]) -> anyhow::Result<()> {
    let install = ["install", "--yes", "--no-install-recommends"];
    let apt = |args: &[&str]| {
        let mut apt = Command::new("apt-get");
        apt.args(args).env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null()).stdout(Stdio::null());
        workspace::run(&mut apt)
    };
    // Stale lists may still name what is wanted: only the installation decides.
    if let Err(error) = apt(&["update"]) {
        println!("{error:#}");
    }
    apt(&[&install[..], packages].concat())
}

/// Whether network namespaces can be made here.
///
/// # Errors
/// The reason why not, for people.
pub fn probe_namespaces() -> Result<(), String> {
    let name = format!("lemonade-probe-{}", std::process::id());
    let ip = |args: &[&str]| {
        let output = Command::new("ip").args(args).stdin(Stdio::null()).output();
        let output = output.map_err(|error| format!("`ip` (iproute2) cannot be started: {error}"))?;
        let said = String::from_utf8_lossy(&output.stderr);
        let why = said.lines().next().unwrap_or("failed");
        if output.status.success() {
            Ok(())
        } else {
            Err(format!("needs root: `ip {}`: {why}", args.join(" ")))
        }
    };
    ip(&["netns", "add", &name])?;
    let up = ip(&["-n", &name, "link", "set", "lo", "up"]);
    ip(&["netns", "delete", &name])?;
    up
}

/// Whether a program is on PATH or where Debian keeps those of root.
pub fn on_path(program: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].into_iter().map(|folder| Path::new(folder).to_path_buf());
    env::split_paths(&path).chain(sbin).any(|folder| folder.join(program).is_file())
}

#[cfg(unix)]
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;

    std::fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

#[cfg(not(unix))]
fn is_root() -> bool {
    false
}
