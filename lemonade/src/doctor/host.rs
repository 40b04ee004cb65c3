//! What the host is, read from `/proc` and `/sys`; nothing is changed.

use std::fs;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use super::report::Line;
use crate::limits;

/// Capabilities by number, from `linux/capability.h`.
const NET_BIND_SERVICE: u32 = 10;
const NET_ADMIN: u32 = 12;
const SYS_ADMIN: u32 = 21;
const PERFMON: u32 = 38;
const BPF: u32 = 39;

const PRIVILEGES: &str =
    "run as root, or `setcap cap_bpf,cap_net_admin,cap_perfmon+ep` on the lemonade binary";

/// What was read. `None` is a file that could not be read or understood.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Host {
    /// System and release.
    pub kernel: String,
    /// Architecture of the machine.
    pub architecture: String,
    /// Effective user and effective capabilities.
    pub privileges: Option<Privileges>,
    /// Whether the kernel tells its types.
    pub btf: bool,
    /// What is mounted.
    pub mounts: Option<Vec<Mount>>,
    /// Own path in the cgroup v2 hierarchy.
    pub cgroup: Option<String>,
    /// `kernel.unprivileged_bpf_disabled`.
    pub unprivileged_bpf_disabled: Option<String>,
    /// Most descriptors that the process may have.
    pub descriptors: Option<u64>,
    /// First port that anybody may listen on.
    pub first_open_port: Option<u16>,
}

/// What the process may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Privileges {
    /// Effective user id.
    pub user: u32,
    /// Effective capabilities, a bit each.
    pub effective: u64,
}

/// One mount.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is.
    pub point: String,
    /// Type of the file system.
    pub kind: String,
}

impl Host {
    /// Reads what there is.
    pub fn read() -> Self {
        let name = rustix::system::uname();
        let text = |path: &str| fs::read_to_string(path).ok();
        Self {
            kernel: format!("{} {}", name.sysname().to_string_lossy(), name.release().to_string_lossy()),
            architecture: name.machine().to_string_lossy().into_owned(),
            privileges: text("/proc/self/status").and_then(|status| privileges(&status)),
            btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
            mounts: text("/proc/self/mountinfo").map(|table| mounts(&table)),
            cgroup: text("/proc/self/cgroup").and_then(|table| own_cgroup(&table)),
            unprivileged_bpf_disabled: text("/proc/sys/kernel/unprivileged_bpf_disabled")
                .map(|value| value.trim().to_owned()),
            descriptors: getrlimit(Resource::Nofile).maximum,
            first_open_port: text("/proc/sys/net/ipv4/ip_unprivileged_port_start")
                .and_then(|port| port.trim().parse().ok()),
        }
    }

    /// Whether programs can be loaded with the privileges there are.
    pub fn may_load(&self) -> bool {
        self.holds(BPF) && self.holds(NET_ADMIN)
    }

    /// Whether the process may listen on `port`.
    pub fn may_listen(&self, port: u16) -> bool {
        // What the kernel takes where the file is missing (ip(7)).
        let first = self.first_open_port.unwrap_or(1024);
        port == 0 || port >= first || self.holds(NET_BIND_SERVICE)
    }

    /// CAP_SYS_ADMIN stands for CAP_BPF and CAP_PERFMON (capabilities(7)).
    fn holds(&self, capability: u32) -> bool {
        let Some(Privileges { effective, .. }) = self.privileges else { return false };
        let has = |capability: u32| effective & (1 << capability) != 0;
        has(capability) || (matches!(capability, BPF | PERFMON) && has(SYS_ADMIN))
    }

    /// One line for each fact.
    pub fn lines(&self) -> Vec<Line> {
        let mut lines = vec![if self.kernel.starts_with("Linux ") {
            Line::pass("kernel", format!("{}, {}", self.kernel, self.architecture))
        } else {
            Line::fail("kernel", self.kernel.clone(), "kernel programs need Linux")
        }];
        lines.extend(self.privilege_lines());
        lines.push(self.btf_line());
        lines.push(self.cgroup_line());
        lines.push(self.bpffs_line());
        lines.push(self.unprivileged_line());
        lines.push(self.descriptor_line());
        lines
    }

    fn privilege_lines(&self) -> Vec<Line> {
        let Some(Privileges { user, effective }) = self.privileges else {
            return vec![Line::not_possible("privileges", "/proc/self/status cannot be read", "mount /proc")];
        };
        let who = if user == 0 { "root".to_owned() } else { format!("user {user}") };
        let mut lines = vec![Line::pass("user", who)];
        for (name, capability) in [("CAP_BPF", BPF), ("CAP_NET_ADMIN", NET_ADMIN), ("CAP_PERFMON", PERFMON)] {
            lines.push(if effective & (1 << capability) != 0 {
                Line::pass(name, "held")
            } else if self.holds(capability) {
                Line::pass(name, "CAP_SYS_ADMIN stands for it")
            } else {
                Line::fail(name, "not held, and kernel programs need it", PRIVILEGES)
            });
        }
        let held = effective & (1 << SYS_ADMIN) != 0;
        let detail = if held { "held" } else { "not held, and not needed beside CAP_BPF and CAP_PERFMON" };
        lines.push(Line::pass("CAP_SYS_ADMIN", detail));
        lines
    }

    fn btf_line(&self) -> Line {
        const PATH: &str = "/sys/kernel/btf/vmlinux";
        if self.btf {
            return Line::pass("BTF", PATH);
        }
        Line::fail("BTF", format!("there is no {PATH}"), "run a kernel with CONFIG_DEBUG_INFO_BTF")
    }

    fn cgroup_line(&self) -> Line {
        let Some(mounts) = &self.mounts else {
            return Line::not_possible("cgroup v2", "/proc/self/mountinfo cannot be read", "mount /proc");
        };
        let Some(mount) = mounts.iter().find(|mount| mount.kind == "cgroup2") else {
            let cure = "`mount -t cgroup2 cgroup2 FOLDER` as root, or boot with cgroup v2";
            return Line::fail("cgroup v2", "not mounted", cure);
        };
        match &self.cgroup {
            Some(own) => Line::pass("cgroup v2", format!("{}, own path {own}", mount.point)),
            None => Line::fail(
                "cgroup v2",
                format!("{}, but this process is in none", mount.point),
                "mount /proc",
            ),
        }
    }

    fn bpffs_line(&self) -> Line {
        let Some(mounts) = &self.mounts else {
            return Line::not_possible("bpffs", "/proc/self/mountinfo cannot be read", "mount /proc");
        };
        match mounts.iter().find(|mount| mount.kind == "bpf") {
            Some(mount) => Line::pass("bpffs", mount.point.clone()),
            None => Line::fail(
                "bpffs",
                "not mounted; `run` mounts it for forwarded frontends, which then go on if the process is killed",
                "`mount -t bpf bpf /sys/fs/bpf` as root",
            ),
        }
    }

    fn unprivileged_line(&self) -> Line {
        const NAME: &str = "unprivileged bpf";
        match self.unprivileged_bpf_disabled.as_deref() {
            Some("0") => {
                Line::pass(NAME, "allowed to ordinary users; Lemonade's programs need capabilities anyway")
            }
            Some(value) => {
                Line::pass(NAME, format!("disabled ({value}); Lemonade's programs need capabilities anyway"))
            }
            None => Line::not_possible(
                NAME,
                "/proc/sys/kernel/unprivileged_bpf_disabled cannot be read",
                "run a kernel with CONFIG_BPF_SYSCALL",
            ),
        }
    }

    fn descriptor_line(&self) -> Line {
        let detail = self.descriptors.map_or_else(
            || "no limit".to_owned(),
            |most| format!("{most}: up to {} connections", limits::connections(most, 1)),
        );
        Line::pass("descriptors", detail)
    }
}

/// Reads `/proc/PID/status`.
fn privileges(status: &str) -> Option<Privileges> {
    let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
    // Real, effective, saved and file-system id.
    let user = field("Uid:")?.split_whitespace().nth(1)?.parse().ok()?;
    let effective = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
    Some(Privileges { user, effective })
}

/// Reads `/proc/PID/mountinfo` (proc_pid_mountinfo(5)); lines of another shape are left out.
fn mounts(table: &str) -> Vec<Mount> {
    let mount = |line: &str| {
        let (before, after) = line.split_once(" - ")?;
        let point = unescape(before.split(' ').nth(4)?);
        Some(Mount { point, kind: after.split(' ').next()?.to_owned() })
    };
    table.lines().filter_map(mount).collect()
}

/// Own path in `/proc/PID/cgroup`: the line of hierarchy 0.
fn own_cgroup(table: &str) -> Option<String> {
    table.lines().find_map(|line| line.strip_prefix("0::")).map(str::to_owned)
}

/// Puts back what the kernel writes as three octal digits: space, tab, line feed, backslash.
fn unescape(text: &str) -> String {
    [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")]
        .iter()
        .fold(text.to_owned(), |text, (code, letter)| text.replace(code, letter))
}

#[cfg(test)]
mod tests {
    use super::super::report::Verdict;
    use super::*;

    const STATUS: &str =
        "Name:\tlemonade\nUid:\t1000\t1001\t1000\t1000\nCapPrm:\t0\nCapEff:\t000000c000001000\n";

    #[test]
    fn effective_user_and_capabilities_are_read() {
        let read = privileges(STATUS).unwrap();
        assert_eq!(read, Privileges { user: 1001, effective: 1 << 39 | 1 << 38 | 1 << 12 });
        assert_eq!(privileges("Uid:\t0\t0\t0\t0\n"), None);
        assert_eq!(privileges("Uid:\t0\t0\t0\t0\nCapEff:\tsome\n"), None);
    }

    #[test]
    fn mounts_are_read_with_and_without_optional_fields() {
        let table = "30 23 0:26 / /sys/fs/cgroup/a\\040b rw,nosuid shared:4 master:1 - cgroup2 cgroup2 rw\n\
                     41 31 0:38 /sub /bpf rw - bpf none rw\n\
                     nonsense\n";
        let mount = |point: &str, kind: &str| Mount { point: point.to_owned(), kind: kind.to_owned() };
        assert_eq!(mounts(table), [mount("/sys/fs/cgroup/a b", "cgroup2"), mount("/bpf", "bpf")]);
    }

    #[test]
    fn the_own_cgroup_is_that_of_version_2() {
        assert_eq!(own_cgroup("8:pids:/x\n0::/user.slice/a\n").as_deref(), Some("/user.slice/a"));
        assert_eq!(own_cgroup("8:pids:/x\n"), None);
    }

    fn host(effective: u64) -> Host {
        let privileges = Some(Privileges { user: 1000, effective });
        Host { kernel: "Linux 6.18".to_owned(), privileges, mounts: Some(Vec::new()), ..Host::default() }
    }

    #[test]
    fn loading_needs_two_capabilities() {
        for (effective, may) in [
            (0, false),
            (1 << BPF, false),
            (1 << NET_ADMIN, false),
            (1 << BPF | 1 << NET_ADMIN, true),
            (1 << SYS_ADMIN | 1 << NET_ADMIN, true),
        ] {
            assert_eq!(host(effective).may_load(), may, "{effective:x}");
        }
        assert!(!Host::default().may_load());
    }

    #[test]
    fn a_low_port_needs_a_capability() {
        assert!(host(0).may_listen(1024) && host(0).may_listen(0));
        assert!(!host(0).may_listen(80));
        assert!(host(1 << NET_BIND_SERVICE).may_listen(80));
        assert!(Host { first_open_port: Some(80), ..host(0) }.may_listen(80));
    }

    #[test]
    fn what_is_missing_fails_with_a_cure_and_what_cannot_be_read_is_not_possible() {
        let lines = host(0).lines();
        for name in ["CAP_BPF", "CAP_NET_ADMIN", "CAP_PERFMON", "BTF", "cgroup v2", "bpffs"] {
            let line = lines.iter().find(|line| line.name == name).unwrap();
            assert_eq!(line.verdict, Verdict::Fail, "{name}");
            assert!(!line.cure.is_empty(), "{name}");
        }
        let blind = Host::default().lines();
        for name in ["privileges", "cgroup v2", "bpffs", "unprivileged bpf"] {
            let line = blind.iter().find(|line| line.name == name).unwrap();
            assert_eq!(line.verdict, Verdict::NotPossible, "{name}");
        }
    }
}
