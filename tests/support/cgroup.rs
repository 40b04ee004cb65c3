//! A cgroup v2 of the test's own.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

/// What their names begin with; the process id follows.
const TAG: &str = "skmsg-test-";

/// Folder of a cgroup that holds this process and what it starts from now on.
pub fn own() -> &'static Path {
    static OWN: LazyLock<PathBuf> = LazyLock::new(enter);
    &OWN
}

/// A cgroup for processes that a test puts there, removed when it is dropped.
pub struct Cgroup(PathBuf);

impl Cgroup {
    /// An empty one.
    ///
    /// # Panics
    /// When it cannot be made.
    pub fn make(name: &str) -> Self {
        let own = root().join(format!("lmtest-{}-{name}", std::process::id()));
        fs::create_dir(&own).expect("a cgroup");
        Self(own)
    }

    /// Its folder.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// A command that is run inside.
    pub fn command(&self, program: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new("sh");
        let script = r#"echo $$ > "$0/cgroup.procs" && exec "$@""#;
        command.args(["-c", script]).arg(&self.0).arg(program).args(arguments);
        command
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

fn root() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("a mount table");
    let root =
        mounts.lines().map(|line| line.split(' ').collect::<Vec<_>>()).find(|line| line[2] == "cgroup2");
    PathBuf::from(root.expect("cgroup v2 is mounted")[1])
}

fn enter() -> PathBuf {
    let root = root();
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
