//! The sockets of the admin interface, bound before anything is served.

use std::fs::{self, DirBuilder, Permissions};
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use socket2::{Domain, SockAddr, Socket, Type};

use crate::model::config::Admin;

use super::place::{default_socket, user};

/// Why the admin interface could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The unix socket.
    #[error("admin.socket: cannot open {}: {cause}", .path.display())]
    Socket {
        /// Where it should be.
        path: PathBuf,
        /// Cause in words, with what to do.
        cause: String,
    },
    /// The TCP address.
    #[error("admin.listen: cannot listen on {address}: {cause}; write another address or \"off\"")]
    Listen {
        /// Address.
        address: SocketAddr,
        /// Cause.
        cause: io::Error,
    },
}

/// Sockets that are bound and not yet served. The unix socket's file is removed with them.
#[derive(Debug)]
pub struct AdminSockets {
    pub(super) unix: UnixListener,
    pub(super) tcp: Option<TcpListener>,
    pub(super) file: SocketFile,
    configured: Option<SocketAddr>,
}

impl AdminSockets {
    /// Path of the unix socket.
    pub fn socket(&self) -> &Path {
        &self.file.path
    }

    /// TCP address with its real port; `None` when it is off.
    pub fn address(&self) -> Option<SocketAddr> {
        self.tcp.as_ref().and_then(|tcp| tcp.local_addr().ok()).or(self.configured)
    }
}

/// Opens the sockets that `admin` names.
///
/// The file of a dead process is replaced; one that a live process serves is refused.
///
/// # Errors
/// Which socket, why, and what to do.
pub fn bind(admin: &Admin) -> Result<AdminSockets, AdminError> {
    let path = admin.socket.clone().unwrap_or_else(default_socket);
    let (unix, file) =
        bind_unix(&path, path == default_socket()).map_err(|cause| AdminError::Socket { path, cause })?;
    let listen = |address: SocketAddr| {
        let listener = TcpListener::bind(address).and_then(|tcp| tcp.set_nonblocking(true).map(|()| tcp));
        listener.map_err(|cause| AdminError::Listen { address, cause })
    };
    let tcp = admin.listen.map(listen).transpose()?;
    Ok(AdminSockets { unix, tcp, file, configured: admin.listen })
}

pub(super) fn bind_unix(path: &Path, is_default: bool) -> Result<(UnixListener, SocketFile), String> {
    let words = |error: io::Error| match error.kind() == io::ErrorKind::PermissionDenied {
        true => "permission denied; set [admin] socket to a path this user may write".to_owned(),
        false => error.to_string(),
    };
    make_folder(path, is_default)?;
    make_way(path)?;
    let address = SockAddr::unix(path).map_err(|_| {
        "the path is too long for a socket (107 bytes at most); set [admin] socket".to_owned()
    })?;
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).map_err(words)?;
    socket.bind(&address).map_err(words)?;
    let file = SocketFile::of(path).map_err(words)?;
    // Between bind and listen nobody can connect, so the mode holds from the first moment.
    fs::set_permissions(path, Permissions::from_mode(0o660)).map_err(words)?;
    socket.listen(128).map_err(words)?;
    socket.set_nonblocking(true).map_err(words)?;
    Ok((socket.into(), file))
}

/// Makes the folder of the default place; in one that everybody may write to (`/tmp`) it has to be this user's own.
fn make_folder(path: &Path, is_default: bool) -> Result<(), String> {
    let Some(folder) = path.parent().filter(|folder| !folder.as_os_str().is_empty()) else { return Ok(()) };
    let shown = folder.display();
    let shared = folder
        .parent()
        .and_then(|above| fs::metadata(above).ok())
        .is_some_and(|meta| meta.mode() & 0o002 != 0);
    let mode = if shared { 0o700 } else { 0o755 };
    if is_default {
        DirBuilder::new().recursive(true).mode(mode).create(folder).map_err(|error| {
            format!("cannot make the folder {shown}: {error}; set [admin] socket to another place")
        })?;
    } else if fs::metadata(folder).is_err_and(|error| error.kind() == io::ErrorKind::NotFound) {
        // A folder made for a slip of the pen would hide it.
        return Err(format!(
            "there is no folder {shown}; make it (mkdir -m 755 -p {shown}), or set [admin] socket to a path in a folder that exists"
        ));
    }
    if shared {
        let meta =
            fs::symlink_metadata(folder).map_err(|error| format!("cannot look at {shown}: {error}"))?;
        let own = meta.is_dir() && meta.uid() == user() && meta.mode() & 0o022 == 0;
        if !own {
            return Err(format!(
                "the folder {shown} can be changed by another user; remove it or set [admin] socket"
            ));
        }
    }
    Ok(())
}

/// Removes the socket of a dead process.
fn make_way(path: &Path) -> Result<(), String> {
    let Ok(meta) = fs::symlink_metadata(path) else { return Ok(()) };
    if !meta.file_type().is_socket() {
        return Err("something that is not a socket is there; move it away or set [admin] socket".to_owned());
    }
    let asked = Socket::new(Domain::UNIX, Type::STREAM, None).and_then(|socket| {
        // A live process may be stuck with a full queue; it must not hold this one up.
        socket.set_nonblocking(true)?;
        socket.connect(&SockAddr::unix(path)?)
    });
    let alive = "another Lemonade serves it; stop that one first, or set [admin] socket to another path";
    match asked {
        Ok(()) => Err(alive.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Err(alive.to_owned()),
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => fs::remove_file(path)
            .map_err(|error| format!("cannot remove the socket of a dead process: {error}")),
        Err(error) => Err(format!("cannot find out who serves it: {error}")),
    }
}

/// The socket's file; removed on drop, unless it has become somebody else's.
#[derive(Debug)]
pub(super) struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl SocketFile {
    fn of(path: &Path) -> io::Result<Self> {
        Ok(Self { path: path.to_owned(), identity: identity(path)? })
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if identity(&self.path).is_ok_and(|now| now == self.identity) {
            // Nothing depends on it: the next start replaces a socket that nobody serves.
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()))
}
