//! A cgroup of Lemonade's own, so that programs attached to it see the sockets of this process and no others.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};

use super::Unavailable;

/// What the names of Lemonade's cgroups begin with; the process id follows.
const TAG: &str = "lemonade-";

/// Tries to remove a cgroup that is not empty yet, 10 ms apart.
const GOODBYE: u32 = 50;

/// Membership in a child of the cgroup that the process was started in. Dropping it moves back and removes the child.
#[derive(Debug)]
pub(super) struct OwnCgroup {
    parent: PathBuf,
    child: PathBuf,
}

impl OwnCgroup {
    /// Removes what killed processes left, makes the child and moves this process, with all its threads, into it.
    ///
    /// # Errors
    /// There is no cgroup v2 here, or it may not be changed.
    pub(super) fn join() -> Result<Self, Unavailable> {
        let parent = own()?;
        for left in sweep(&parent) {
            tracing::info!(cgroup = %left.display(), "removed what a killed process left");
        }
        let child = parent.join(format!("{TAG}{}", std::process::id()));
        match fs::create_dir(&child) {
            Ok(()) => {}
            // Of a killed process that had the same id, as happens in containers.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(refused(&child, &error)),
        }
        // Made before the move, so that a failed move removes the child too.
        let own = Self { parent, child };
        enter(&own.child).map_err(|error| refused(&own.child, &error))?;
        Ok(own)
    }

    /// Its folder, opened for an attachment.
    ///
    /// # Errors
    /// As open(2).
    pub(super) fn open(&self) -> io::Result<File> {
        File::open(&self.child)
    }

    /// Where it is.
    pub(super) fn path(&self) -> &Path {
        &self.child
    }
}

impl Drop for OwnCgroup {
    fn drop(&mut self) {
        let left = enter(&self.parent).and_then(|()| remove_once_empty(&self.child));
        if let Err(error) = left {
            tracing::warn!(%error, cgroup = %self.child.display(), "the cgroup could not be removed; the next start does it");
        }
    }
}

/// Removes a cgroup that threads may still be leaving: those that end are in it until they are gone, as after a start
/// that failed.
fn remove_once_empty(cgroup: &Path) -> io::Result<()> {
    for _ in 0..GOODBYE {
        match fs::remove_dir(cgroup) {
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {
                std::thread::sleep(std::time::Duration::from_millis(10));
            }
            done => return done,
        }
    }
    fs::remove_dir(cgroup)
}

fn enter(cgroup: &Path) -> io::Result<()> {
    fs::write(cgroup.join("cgroup.procs"), std::process::id().to_string())
}

fn refused(cgroup: &Path, error: &io::Error) -> Unavailable {
    Unavailable {
        why: format!("the cgroup {} cannot be made or entered: {error}", cgroup.display()),
        cure: "run as root, or let the service manager delegate a cgroup (systemd: Delegate=yes)".to_owned(),
    }
}

/// The cgroup that this process is in.
pub(super) fn own() -> Result<PathBuf, Unavailable> {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    current(&read("/proc/self/mountinfo"), &read("/proc/self/cgroup")).ok_or_else(|| {
        let why = "cgroup v2 is not mounted where this process sees it".to_owned();
        Unavailable { why, cure: "mount -t cgroup2 cgroup2 /sys/fs/cgroup/unified".to_owned() }
    })
}

/// Removes the cgroups that killed processes left below the one that this process is in, and what of the forward plane
/// outlived them; tells which.
///
/// # Errors
/// There is no cgroup v2 here.
pub fn cleanup() -> Result<Vec<PathBuf>, Unavailable> {
    let mut removed = super::pins::sweep();
    removed.extend(sweep(&own()?));
    Ok(removed)
}

/// Removes the cgroups of processes that are gone, and those inside them: a process that joins twice leaves one in the
/// other. The kernel removes none that still has a process in it.
fn sweep(parent: &Path) -> Vec<PathBuf> {
    let mut removed = Vec::new();
    let Ok(entries) = fs::read_dir(parent) else { return removed };
    for entry in entries.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.strip_prefix(TAG)).and_then(|id| id.parse::<u32>().ok());
        let Some(pid) = pid else { continue };
        if Path::new("/proc").join(pid.to_string()).exists() {
            continue;
        }
        removed.extend(sweep(&entry.path()));
        if fs::remove_dir(entry.path()).is_ok() {
            removed.push(entry.path());
        }
    }
    removed
}

/// Folder of the cgroup v2 that the process is in, of the texts of `/proc/self/mountinfo` and `/proc/self/cgroup`.
fn current(mountinfo: &str, cgroup: &str) -> Option<PathBuf> {
    let path = cgroup.lines().find_map(|line| line.strip_prefix("0::"))?;
    mountinfo.lines().find_map(|line| {
        let (mount, filesystem) = line.split_once(" - ")?;
        let mut fields = mount.split(' ').skip(3);
        let (root, place) = (fields.next()?, fields.next()?);
        // A container sees a part of the tree, or another part than the one it is in.
        let below = Path::new(path).strip_prefix(root).ok()?;
        filesystem.starts_with("cgroup2 ").then(|| Path::new(place).join(below))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &str = "\
40 31 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,name=systemd
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime shared:9 - cgroup2 cgroup2 rw
";

    #[test]
    fn the_current_cgroup_is_found_in_the_mount_table() {
        let find = |cgroup| current(HYBRID, cgroup);
        assert_eq!(find("1:cpu:/\n0::/\n"), Some("/sys/fs/cgroup/unified/".into()));
        assert_eq!(
            find("0::/system.slice/web.service\n"),
            Some("/sys/fs/cgroup/unified/system.slice/web.service".into())
        );
        assert_eq!(find("1:cpu:/a\n"), None, "no cgroup v2");
        let container = "41 31 0:38 /pod /sys/fs/cgroup rw - cgroup2 cgroup2 rw";
        assert_eq!(current(container, "0::/pod/web\n"), Some("/sys/fs/cgroup/web".into()));
        assert_eq!(current(container, "0::/elsewhere\n"), None, "not visible from here");
    }

    #[test]
    fn only_tagged_folders_of_processes_that_are_gone_are_swept() {
        let parent = tempfile::tempdir().unwrap();
        let alive = format!("{TAG}{}", std::process::id());
        // Above the largest process id that Linux gives out.
        for name in [&*alive, "lemonade-4194305", "lemonade-x", "other-4194305"] {
            fs::create_dir(parent.path().join(name)).unwrap();
        }
        fs::create_dir(parent.path().join("lemonade-4194305/lemonade-4194305")).unwrap();
        sweep(parent.path());
        let mut left: Vec<_> = fs::read_dir(parent.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, [&*alive, "lemonade-x", "other-4194305"]);
    }
}
