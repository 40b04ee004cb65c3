//! A small HTTP client for the admin socket, used by the command line.

use std::io;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::body::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::Request;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use super::default_socket;

/// Time for the whole exchange, where nothing else is said.
pub const TIMEOUT: Duration = Duration::from_secs(5);

/// Why the admin socket gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nothing is there, or nobody serves it.
    #[error("nobody answers at {}: is Lemonade running? Name its admin socket with --admin PATH or LEMONADE_ADMIN", .0.display())]
    NotRunning(PathBuf),
    /// What was named cannot be the socket.
    #[error(
        "{} is {what}, not a unix socket: give the path of the admin socket ([admin] socket of the configuration; `lemonade run` \
         logs it), such as --admin {}", .path.display(), default_socket().display()
    )]
    NoSocket {
        /// What was named.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// The socket's mode forbids it.
    #[error(
        "permission denied at {}: run as the user of Lemonade, as a member of the group that owns the socket \
         (that of the package is `lemonade`), or as root", .0.display()
    )]
    Forbidden(PathBuf),
    /// It took too long.
    #[error("no answer from {} within {}", .0.display(), humantime::format_duration(*.1))]
    TimedOut(PathBuf, Duration),
    /// Anything else.
    #[error("cannot talk to {}: {cause}", .path.display())]
    Other {
        /// Socket.
        path: PathBuf,
        /// Cause in words.
        cause: String,
    },
}

impl ClientError {
    /// What a connect to `socket` that failed with `error` means.
    pub fn of(socket: &Path, error: &io::Error) -> Self {
        let path = socket.to_owned();
        let kind = error.kind();
        if let Some(what) = other_than_a_socket(socket) {
            return Self::NoSocket { path, what };
        }
        if matches!(kind, io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) {
            Self::NotRunning(path)
        } else if kind == io::ErrorKind::PermissionDenied {
            Self::Forbidden(path)
        } else {
            Self::Other { path, cause: error.to_string() }
        }
    }
}

/// What `named` is, if it is plainly no socket.
fn other_than_a_socket(named: &Path) -> Option<&'static str> {
    match std::fs::metadata(named).map(|meta| meta.file_type()) {
        Ok(kind) if kind.is_socket() => None,
        Ok(kind) if kind.is_dir() => Some("a folder"),
        Ok(kind) if kind.is_file() => Some("a regular file"),
        Ok(_) => Some("a device or a pipe"),
        Err(_) => {
            let text = named.to_str()?;
            let port =
                |text: &str| text.rsplit_once(':').is_some_and(|(_, port)| port.parse::<u16>().is_ok());
            match text {
                _ if text.contains("://") => Some("a URL"),
                _ if !text.contains('/') && port(text) => Some("an address"),
                _ => None,
            }
        }
    }
}

/// Sends one request and reads its whole answer: status code and body.
///
/// # Errors
/// Nobody answers, may answer, or answered in time; a status such as 403 is an answer.
pub async fn fetch(
    socket: &Path,
    method: &str,
    path: &str,
    body: Vec<u8>,
    limit: Duration,
) -> Result<(u16, Vec<u8>), ClientError> {
    let exchange = tokio::time::timeout(limit, exchange(socket, method, path, body)).await;
    exchange.unwrap_or_else(|_| Err(ClientError::TimedOut(socket.to_owned(), limit)))
}

async fn exchange(
    socket: &Path,
    method: &str,
    path: &str,
    body: Vec<u8>,
) -> Result<(u16, Vec<u8>), ClientError> {
    let other = |cause: String| ClientError::Other { path: socket.to_owned(), cause };
    let stream = UnixStream::connect(socket).await.map_err(|error| ClientError::of(socket, &error))?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", "lemonade")
        .body(Full::new(Bytes::from(body)))
        .map_err(|error| other(error.to_string()))?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| other(error.to_string()))?;
    let answer = async {
        let response = sender.send_request(request).await?;
        let code = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes().to_vec();
        Ok::<_, hyper::Error>((code, body))
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = answer.as_mut() => answer,
        // The connection ends when its peer is done; what it has read by then is still to be taken.
        _ = connection => answer.await,
    }
    .map_err(|error| other(error.to_string()))
}
