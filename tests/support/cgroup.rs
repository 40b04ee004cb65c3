//! A cgroup v2 of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

/// What their names begin with; the process id follows.
const TAG: &str = "skmsg-test-";

/// Folder of a cgroup that holds this process and what it starts from now on.
pub fn own() -> &'static Path {
    static OWN: LazyLock<PathBuf> = LazyLock::new(enter);
    &OWN
}

fn enter() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("a mount table");
    let root =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|line| line[2] == "cgroup2");
    let root = PathBuf::from(root.expect("cgroup v2 is mounted")[1]);
    // What earlier tests left: only empty ones can be removed.
    for entry in fs::read_dir(&root).expect("a folder").flatten() {
        if entry.file_name().to_string_lossy().starts_with(TAG) {
            let _ = fs::remove_dir(entry.path());
        }
    }
    let own = root.join(format!("{TAG}{}", std::process::id()));
    fs::create_dir(&own).expect("a cgroup");
    fs::write(own.join("cgroup.procs"), std::process::id().to_string()).expect("the move");
    own
}
