//! Where the admin socket is when the configuration does not say.

use std::ffi::OsStr;
use std::path::PathBuf;

/// Platform's place of the admin socket for this user.
pub fn default_socket() -> PathBuf {
    place(user(), std::env::var_os("XDG_RUNTIME_DIR").as_deref())
}

/// Effective user of this process.
pub(super) fn user() -> u32 {
    rustix::process::geteuid().as_raw()
}

fn place(uid: u32, runtime_dir: Option<&OsStr>) -> PathBuf {
    let folder = match (uid, runtime_dir) {
        (0, _) => PathBuf::from("/run/lemonade"),
        (_, Some(folder)) if !folder.is_empty() => PathBuf::from(folder).join("lemonade"),
        (uid, _) => PathBuf::from(format!("/tmp/lemonade-{uid}")),
    };
    folder.join("admin.sock")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_user_has_a_place() {
        let run = OsStr::new("/run/user/7");
        assert_eq!(place(0, Some(run)), PathBuf::from("/run/lemonade/admin.sock"));
        assert_eq!(place(7, Some(run)), PathBuf::from("/run/user/7/lemonade/admin.sock"));
        assert_eq!(place(7, None), PathBuf::from("/tmp/lemonade-7/admin.sock"));
        assert_eq!(place(7, Some(OsStr::new(""))), PathBuf::from("/tmp/lemonade-7/admin.sock"));
    }
}
