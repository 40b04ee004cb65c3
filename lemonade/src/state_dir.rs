//! The state folder: journal, hash seed and the lock that keeps a second instance out.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail};
use lemonade_common::hash::seed_from_text;
use rustix::fs::{FlockOperation, flock};

/// Mode of the seed.
const SECRET: u32 = 0o600;

/// The state folder of this process, locked while the value lives.
#[derive(Debug)]
pub struct StateDir {
    path: PathBuf,
    _lock: File,
}

impl StateDir {
    /// Makes and locks the folder; `None` is the platform's place.
    ///
    /// # Errors
    /// The folder cannot be made or written, or another instance holds it.
    pub fn open(configured: Option<&Path>) -> anyhow::Result<Self> {
        let path = configured.map_or_else(default_path, Path::to_owned);
        fs::create_dir_all(&path).with_context(|| {
            format!(
                "cannot make the state folder {}; set runtime.state_dir to one that can be written",
                path.display()
            )
        })?;
        let place = path.join("lock");
        let mut lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&place)
            .with_context(|| {
                format!(
                    "cannot write {}; set runtime.state_dir to a folder that can be written",
                    place.display()
                )
            })?;
        if flock(&lock, FlockOperation::NonBlockingLockExclusive).is_err() {
            let mut holder = String::new();
            let _ = lock.read_to_string(&mut holder);
            bail!(
                "another Lemonade (pid {}) uses the state folder {}; stop it, or give this one its own runtime.state_dir",
                holder.trim(),
                path.display()
            );
        }
        lock.set_len(0)?;
        lock.rewind()?;
        writeln!(lock, "{}", std::process::id())?;
        Ok(Self { path, _lock: lock })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Seed of the flow hash: of the configured text, else of one made once and kept here.
    ///
    /// # Errors
    /// The kept seed cannot be read or written.
    pub fn hash_seed(&self, configured: Option<&str>) -> anyhow::Result<u64> {
        if let Some(text) = configured {
            return Ok(seed_from_text(text));
        }
        let place = self.path.join("hash_seed");
        match fs::read_to_string(&place) {
            Ok(text) if !text.trim().is_empty() => {
                // A seed that others know lets them choose where they land; a former build left it open to all.
                let _ = fs::set_permissions(&place, fs::Permissions::from_mode(SECRET));
                Ok(seed_from_text(text.trim()))
            }
            Ok(_) => keep_new_seed(&place),
            Err(error) if error.kind() == io::ErrorKind::NotFound => keep_new_seed(&place),
            Err(error) => Err(error).with_context(|| format!("cannot read {}", place.display())),
        }
    }
}

fn keep_new_seed(place: &Path) -> anyhow::Result<u64> {
    let text = format!("{:032x}", fastrand::u128(..));
    // Renamed into place, so that a crash leaves a whole seed or none.
    let fresh = place.with_extension("new");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(true).mode(SECRET).open(&fresh);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .and_then(|()| fs::rename(&fresh, place))
        .with_context(|| format!("cannot write {}", place.display()))?;
    Ok(seed_from_text(&text))
}

fn default_path() -> PathBuf {
    if rustix::process::geteuid().is_root() {
        return PathBuf::from("/var/lib/lemonade");
    }
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
    let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).or_else(home);
    base.unwrap_or_else(std::env::temp_dir).join("lemonade")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_instance_is_told_who_holds_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        let first = StateDir::open(Some(folder.path())).unwrap();
        let error = StateDir::open(Some(folder.path())).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        assert!(error.contains("runtime.state_dir"), "{error}");
        drop(first);
        StateDir::open(Some(folder.path())).unwrap();
    }

    #[test]
    fn the_seed_is_made_once_and_a_configured_text_goes_before_it() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(Some(folder.path())).unwrap();
        let made = state.hash_seed(None).unwrap();
        let place = folder.path().join("hash_seed");
        let mode = || fs::metadata(&place).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(), 0o600, "who knows it can choose where connections land");
        fs::set_permissions(&place, fs::Permissions::from_mode(0o644)).unwrap();
        assert_eq!((state.hash_seed(None).unwrap(), mode()), (made, 0o600));
        assert_eq!(state.hash_seed(Some("fleet")).unwrap(), seed_from_text("fleet"));
    }
}
