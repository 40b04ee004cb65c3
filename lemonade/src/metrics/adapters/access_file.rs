//! A file that somebody else rotates.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A file that is appended to, and made anew when its path no longer leads to it.
///
/// Appending also survives a truncation in place (`copytruncate`): what follows begins at the new end.
#[derive(Debug)]
pub(super) struct RotatedFile {
    path: PathBuf,
    file: File,
    /// The last line in it is not whole: a write ended within.
    torn: bool,
}

impl RotatedFile {
    /// Opens `path`, made if absent.
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let open = OpenOptions::new().create(true).append(true).mode(0o640).open(path);
        let file =
            open.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
        Ok(Self { path: path.to_owned(), file, torn: false })
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

    /// Appends whole lines.
    ///
    /// # Errors
    /// Why the file takes no more, and how many lines are whole in it.
    pub(super) fn write_lines(&mut self, lines: &[u8]) -> Result<(), (u64, io::Error)> {
        append(&mut self.file, &mut self.torn, lines)
    }
}

/// Writes `lines` after what a write before left of a line; see [`RotatedFile::write_lines`].
fn append(out: &mut impl Write, torn: &mut bool, lines: &[u8]) -> Result<(), (u64, io::Error)> {
    if *torn {
        // A line that is not whole stays alone: the ones that follow can be read.
        out.write_all(b"\n").map_err(|error| (0, error))?;
        *torn = false;
    }
    let mut rest = lines;
    while !rest.is_empty() {
        let written = match out.write(rest) {
            Ok(0) => Err(io::ErrorKind::WriteZero.into()),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            written => written,
        };
        match written {
            Ok(written) => rest = &rest[written..],
            Err(error) => {
                let done = &lines[..lines.len() - rest.len()];
                *torn = done.last().is_some_and(|last| *last != b'\n');
                let whole = done.iter().filter(|byte| **byte == b'\n').count();
                return Err((whole as u64, error));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes so many bytes, then no more.
    struct Full {
        room: usize,
        text: Vec<u8>,
    }

    impl Write for Full {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let taken = bytes.len().min(self.room);
            if taken == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            self.room -= taken;
            self.text.extend_from_slice(&bytes[..taken]);
            Ok(taken)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_full_disk_tears_one_line_at_most_and_tells_how_many_are_whole() {
        let (mut disk, mut torn) = (Full { room: 10, text: Vec::new() }, false);
        let (whole, _) = append(&mut disk, &mut torn, b"one\ntwo\nthree\n").unwrap_err();
        assert_eq!((whole, torn), (2, true));
        assert_eq!(append(&mut disk, &mut torn, b"four\n").unwrap_err().0, 0);
        disk.room = 100;
        append(&mut disk, &mut torn, b"five\n").unwrap();
        assert_eq!(String::from_utf8(disk.text).unwrap(), "one\ntwo\nth\nfive\n");

        let (mut disk, mut torn) = (Full { room: 4, text: Vec::new() }, false);
        assert_eq!(append(&mut disk, &mut torn, b"one\ntwo\n").unwrap_err().0, 1);
        assert!(!torn, "it ended between two lines");
    }
}
