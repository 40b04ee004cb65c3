//! What people install: the unit as systemd reads it, the package as dpkg handles it.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use lemonade_tests::lemonade::binary;
use lemonade_tests::skip::{full, skip};
use lemonade_tests::tools::{program, root, said};

/// Highest exposure that `systemd-analyze security` may find, in tenths of its points.
const EXPOSURE: &str = "26";

/// The unit with the built binary in it, in a folder that lasts as long as the test.
fn unit() -> (tempfile::TempDir, PathBuf) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let text = fs::read_to_string(root().join("deploy/systemd/lemonade.service")).expect("the unit");
    let text = text.replace("/usr/bin/lemonade", binary().to_str().expect("UTF-8"));
    let unit = folder.path().join("lemonade.service");
    fs::write(&unit, text).expect("a writable folder");
    (folder, unit)
}

#[test]
fn systemd_accepts_the_unit() {
    let Some(analyze) = program("systemd_accepts_the_unit", "systemd-analyze") else { return };
    let (_folder, unit) = unit();
    let output =
        Command::new(&analyze).args(["verify", "--man=no"]).arg(&unit).output().expect("systemd-analyze");
    assert!(output.status.success(), "{}", said(&output));
    // A systemd before 253 does not know this type and keeps the one above it.
    let complaints = String::from_utf8_lossy(&output.stderr);
    let others: Vec<_> = complaints
        .lines()
        .filter(|line| !line.contains("Failed to parse service type, ignoring: notify-reload"))
        .collect();
    assert!(others.is_empty(), "{others:?}");

    let bad = fs::read_to_string(&unit).expect("the unit").replace("ProtectHome=yes", "ProtectHome=perhaps");
    fs::write(&unit, bad).expect("a writable folder");
    let output = Command::new(&analyze).arg("verify").arg(&unit).output().expect("systemd-analyze");
    assert!(said(&output).contains("perhaps"), "{}", said(&output));
}

#[test]
fn the_service_is_confined() {
    let Some(analyze) = program("the_service_is_confined", "systemd-analyze") else { return };
    let (_folder, unit) = unit();
    let security = |threshold: &str| {
        let mut command = Command::new(&analyze);
        command.args(["security", "--offline=true", "--no-pager", "--threshold", threshold]).arg(&unit);
        command.output().expect("systemd-analyze")
    };
    let output = security(EXPOSURE);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!security("10").status.success(), "the threshold is not looked at");
}

#[test]
fn users_and_folders_are_declared_as_systemd_reads_them() {
    let test = "users_and_folders_are_declared_as_systemd_reads_them";
    let (Some(sysusers), Some(tmpfiles)) =
        (program(test, "systemd-sysusers"), program(test, "systemd-tmpfiles"))
    else {
        return;
    };
    if !rustix::process::geteuid().is_root() {
        return skip(test, "needs root");
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let into = format!("--root={}", folder.path().display());
    fs::create_dir(folder.path().join("etc")).expect("a writable folder");
    for (program, file, action) in
        [(sysusers, "lemonade.sysusers", None), (tmpfiles, "lemonade.tmpfiles", Some("--create"))]
    {
        let mut command = Command::new(program);
        command.arg(&into).args(action).arg(root().join("deploy/systemd").join(file));
        let output = command.output().expect("a tool of systemd");
        assert!(output.status.success(), "{file}: {}", said(&output));
    }
    let users = fs::read_to_string(folder.path().join("etc/passwd")).expect("users");
    assert!(users.contains("lemonade:") && users.contains(":/var/lib/lemonade:"), "{users}");
    for path in ["run/lemonade", "var/lib/lemonade", "var/log/lemonade"] {
        assert!(folder.path().join(path).is_dir(), "{path}");
    }
}

/// Packs the binary under test.
fn package(version: &str) -> PathBuf {
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--", "package", "--deb-version", version, "--binary"])
        .arg(binary())
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", said(&output));
    PathBuf::from(String::from_utf8(output.stdout).expect("a path").trim())
}

#[test]
fn the_package_is_installed_started_upgraded_and_purged() {
    let test = "the_package_is_installed_started_upgraded_and_purged";
    let needed = ["cargo-deb", "dpkg", "dpkg-shlibdeps", "unshare", "setpriv", "ip"];
    if needed.iter().any(|needed| program(test, needed).is_none()) {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip(test, "needs root, for a root folder of its own");
    }
    let debs = ["0.1.0-1", "0.1.1-1"].map(package);
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "sh"]);
    command.arg(root().join("tests/tools/package.sh")).arg(folder.path()).args(&debs);
    let output = command.output().expect("unshare");
    for deb in debs {
        fs::remove_file(deb).expect("the package is there");
    }
    if output.status.code() == Some(77) {
        return skip(test, "needs overlayfs over the root of this host");
    }
    let text = said(&output);
    assert!(output.status.success() && text.contains("== done"), "{text}");
}

/// The image as the Containerfile describes it, since no engine is needed for that.
#[test]
fn the_static_binary_runs_in_an_image_from_scratch() {
    let test = "the_static_binary_runs_in_an_image_from_scratch";
    if !full() {
        return skip(test, "builds everything twice; LEMONADE_FULL=1 runs it");
    }
    if ["cargo-deb", "unshare", "ip"].iter().any(|needed| program(test, needed).is_none()) {
        return;
    }
    if !rustix::process::geteuid().is_root() {
        return skip(test, "needs root, for a root folder of its own");
    }
    let output = Command::new(env!("CARGO"))
        .args(["run", "--quiet", "--package", "xtask", "--", "package", "--profile", "dev"])
        .current_dir(root())
        .output()
        .expect("cargo runs");
    assert!(output.status.success(), "{}", said(&output));
    let made = String::from_utf8(output.stdout).expect("paths");
    let context = PathBuf::from(made.lines().last().expect("a folder"));
    let folder = tempfile::tempdir().expect("a temporary folder");
    let mut command = Command::new("unshare");
    command.args(["--mount", "--net", "--pid", "--fork", "--kill-child", "sh"]);
    command.arg(root().join("tests/tools/image.sh")).arg(folder.path()).arg(context);
    let text = said(&command.output().expect("unshare"));
    assert!(text.contains("== done"), "{text}");
}
