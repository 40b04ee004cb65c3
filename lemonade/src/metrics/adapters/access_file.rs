//! A file that somebody else rotates.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file that is appended to, and made anew when its path no longer leads to it.
#[derive(Debug)]
pub(super) struct RotatedFile {
    path: PathBuf,
    file: File,
}

impl RotatedFile {
    /// Opens `path`, made if absent.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let open = OpenOptions::new().create(true).append(true).mode(0o640).open(path);
        let file =
            open.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), file })
    }

    /// Follows the path to a new file; on an error the old one stays.
    pub(super) fn reopen_if_rotated(&mut self) -> io::Result<()> {
        let own = self.file.metadata()?;
        let same =
            std::fs::metadata(&self.path).is_ok_and(|now| (now.dev(), now.ino()) == (own.dev(), own.ino()));
        if !same {
            *self = Self::open(&self.path)?;
        }
        Ok(())
    }

    /// Appends `bytes`.
    pub(super) fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.file.write_all(bytes)
    }
}
