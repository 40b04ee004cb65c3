//! A cgroup of what xtask starts, for relays in the kernel that touch the sockets of one.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// A cgroup that this process and all it starts are in. Dropping it moves back and removes it.
#[derive(Debug)]
pub struct Cgroup {
    parent: PathBuf,
    own: PathBuf,
}

impl Cgroup {
    /// Makes one below the current and moves this process into it.
    pub fn enter(purpose: &str) -> Result<Self> {
        let mounts = fs::read_to_string("/proc/self/mounts")?;
        let mounts = mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>());
        let mount = mounts.into_iter().find(|fields| fields.get(2) == Some(&"cgroup2"));
        let mount = PathBuf::from(mount.context("cgroup v2 is not mounted")?[1]);
        let now = fs::read_to_string("/proc/self/cgroup")?;
        let now = now.lines().find_map(|line| line.strip_prefix("0::/")).unwrap_or_default();
        let parent = mount.join(now);
        let own = parent.join(format!("{purpose}-{}", std::process::id()));
        fs::create_dir(&own).with_context(|| format!("cannot make {}", own.display()))?;
        let cgroup = Self { parent, own };
        fs::write(cgroup.own.join("cgroup.procs"), std::process::id().to_string())?;
        Ok(cgroup)
    }

    /// Returns its folder.
    pub fn path(&self) -> &Path {
        &self.own
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let left = fs::write(self.parent.join("cgroup.procs"), std::process::id().to_string());
        // Lemonade was killed and has left its own behind.
        for entry in fs::read_dir(&self.own).into_iter().flatten().flatten() {
            let _ = fs::remove_dir(entry.path());
        }
        if let Err(error) = left.and_then(|()| fs::remove_dir(&self.own)) {
            eprintln!("the cgroup {} could not be removed: {error}", self.own.display());
        }
    }
}
