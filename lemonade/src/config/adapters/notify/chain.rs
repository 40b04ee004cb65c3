//! The directory entries that decide what a path leads to.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Links followed at most, as in the kernel.
const LINKS: usize = 40;

/// Every symlink on the way to a file and the file itself, each in a directory free of symlinks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    /// Entries whose change may change the file.
    pub(super) entries: BTreeSet<PathBuf>,
    /// The directories they are in.
    pub(super) folders: BTreeSet<PathBuf>,
}

impl Chain {
    /// Follows a path as far as it exists.
    pub(super) fn follow(path: &Path) -> Self {
        let mut chain = Self::default();
        let path = std::path::absolute(path).unwrap_or_else(|_no_working_folder| path.to_owned());
        let mut at = PathBuf::new();
        let mut left = steps(&path);
        let mut links = 0;
        while let Some(step) = left.pop_front() {
            if step == ".." {
                at.pop();
                continue;
            }
            let entry = at.join(&step);
            let kind = fs::symlink_metadata(&entry).map(|metadata| metadata.file_type());
            let target = match &kind {
                Ok(kind) if kind.is_symlink() && links < LINKS => fs::read_link(&entry).ok(),
                _ => None,
            };
            if target.is_some() || left.is_empty() || kind.is_err() {
                chain.folders.insert(at.clone());
                chain.entries.insert(entry.clone());
            }
            match target {
                Some(target) => {
                    links += 1;
                    if target.is_absolute() {
                        at = PathBuf::new();
                    }
                    let mut next = steps(&target);
                    next.append(&mut left);
                    left = next;
                }
                None if kind.is_err() => break,
                None => at = entry,
            }
        }
        chain
    }
}

fn steps(path: &Path) -> VecDeque<OsString> {
    let kept = path.components().filter(|component| *component != Component::CurDir);
    kept.map(|component| component.as_os_str().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn every_link_on_the_way_is_an_entry() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().canonicalize().expect("real");
        fs::create_dir(root.join("v1")).expect("made");
        fs::write(root.join("v1/a.toml"), "").expect("written");
        symlink("v1", root.join("..data")).expect("linked");
        symlink("..data/a.toml", root.join("a.toml")).expect("linked");
        let chain = Chain::follow(&root.join("a.toml"));
        let expected = [root.join("a.toml"), root.join("..data"), root.join("v1/a.toml")];
        assert_eq!(chain.entries, expected.into());
        assert_eq!(chain.folders, [root.clone(), root.join("v1")].into());
    }

    #[test]
    fn what_is_missing_is_awaited_where_it_would_appear() {
        let folder = tempfile::tempdir().expect("folder");
        let root = folder.path().canonicalize().expect("real");
        let chain = Chain::follow(&root.join("gone/deeper/a.toml"));
        assert_eq!(chain.entries, [root.join("gone")].into());
        assert_eq!(chain.folders, [root].into());
    }

    #[test]
    fn a_circle_of_links_ends() {
        let folder = tempfile::tempdir().expect("folder");
        symlink("b", folder.path().join("a")).expect("linked");
        symlink("a", folder.path().join("b")).expect("linked");
        assert!(!Chain::follow(&folder.path().join("a")).entries.is_empty());
    }
}
