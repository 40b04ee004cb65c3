//! The real prober: connects, and for HTTP makes one request.

use std::net::{IpAddr, SocketAddr};
use std::pin::pin;
use std::time::Duration;

use futures_util::FutureExt as _;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, HOST, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rustix::io::Errno;
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, timeout_at};

use crate::BoxFuture;
use crate::health::port::{ProbeError, Prober};
use crate::model::config::{HealthKind, HttpCheck};

#[cfg(test)]
mod tests;

/// Bytes of a response's head that are read at most.
pub const HEAD_LIMIT: usize = 16 * 1024;

/// Bytes of a response's body that are read at most.
pub const BODY_LIMIT: usize = 64 * 1024;

/// Probes over TCP.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpProber;

impl Prober for TcpProber {
    fn probe(
        &self,
        target: SocketAddr,
        source: Option<IpAddr>,
        kind: &HealthKind,
        timeout: Duration,
    ) -> BoxFuture<Result<String, ProbeError>> {
        let kind = kind.clone();
        let deadline = Instant::now() + timeout;
        Box::pin(async move {
            let late = |what: &str| {
                ProbeError::Backend(format!("{what} within {}", humantime::format_duration(timeout)))
            };
            let connecting = timeout_at(deadline, connect(target, source));
            let stream = connecting.await.map_err(|_| late("no connection"))??;
            match kind {
                HealthKind::Off | HealthKind::Tcp => Ok("connected".to_owned()),
                HealthKind::Http(check) => match timeout_at(deadline, exchange(stream, target, &check)).await
                {
                    Ok(Answer::Checked(result)) => result,
                    Ok(Answer::Unread(seen, rest)) => {
                        // Reading on spares the backend a reset; the verdict stands.
                        let _ = timeout_at(deadline, rest).await;
                        Ok(seen)
                    }
                    Err(_) => Err(late("no whole answer")),
                },
            }
        })
    }
}

enum Answer {
    Checked(Result<String, ProbeError>),
    /// The status decided; what is left is reading the body.
    Unread(String, BoxFuture<()>),
}

async fn connect(target: SocketAddr, source: Option<IpAddr>) -> Result<TcpStream, ProbeError> {
    let open = || {
        let socket = if target.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
        #[cfg(target_os = "linux")]
        mark(&socket);
        if let Some(source) = source.filter(|source| source.is_ipv4() == target.is_ipv4()) {
            // Otherwise each probe would take a port of its own for as long as its connection is in TIME_WAIT.
            socket.set_reuseaddr(true)?;
            socket.bind(SocketAddr::new(source, 0))?;
        }
        Ok(socket)
    };
    let socket = open().map_err(|error: std::io::Error| ProbeError::Local(in_words(&error)))?;
    let stream = socket.connect(target).await.map_err(|error| {
        let local = [Errno::MFILE, Errno::NFILE, Errno::NOBUFS, Errno::NOMEM, Errno::ADDRNOTAVAIL];
        let words = in_words(&error);
        if Errno::from_io_error(&error).is_some_and(|errno| local.contains(&errno)) {
            ProbeError::Local(words)
        } else {
            ProbeError::Backend(words)
        }
    })?;
    if connected_to_itself(&stream) {
        // A reset leaves the port free for the backend.
        let _ = stream.set_zero_linger();
        return Err(ProbeError::Backend("connection refused".to_owned()));
    }
    Ok(stream)
}

/// Tells the program that counts resets in the kernel that those of this socket are a probe's.
#[cfg(target_os = "linux")]
fn mark(socket: &TcpSocket) {
    use std::os::fd::AsRawFd as _;

    let value: libc::c_int = lemonade_common::abi::PROBE;
    // SAFETY: the option value is one int, valid for the call, and its size is passed with it. Refused, a reset shows as
    // one of the backend, and nothing more.
    unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_SYNCNT,
            (&raw const value).cast(),
            size_of_val(&value) as libc::socklen_t,
        )
    };
}

/// Whether nobody listens but the kernel chose the target's port as our own, so that the connect met itself: TCP's
/// simultaneous open, which happens on loopback now and then.
fn connected_to_itself(stream: &TcpStream) -> bool {
    matches!((stream.local_addr(), stream.peer_addr()), (Ok(own), Ok(peer)) if own == peer)
}

async fn exchange(stream: TcpStream, target: SocketAddr, check: &HttpCheck) -> Answer {
    let (response, connection) = match ask(stream, target, check).await {
        Ok(answer) => answer,
        Err(why) => return Answer::Checked(Err(ProbeError::Backend(why))),
    };
    let code = response.status().as_u16();
    let seen = format!("HTTP {code}");
    if !check.expect.iter().any(|range| range.contains(&code)) {
        return Answer::Checked(Err(ProbeError::Backend(seen)));
    }
    let text = check.body.clone();
    let body = read_body(response.into_body(), text.clone(), connection);
    if text.is_empty() {
        return Answer::Unread(seen, Box::pin(body.map(drop)));
    }
    Answer::Checked(match body.await {
        Ok(true) => Ok(format!("{seen}, body matches")),
        Ok(false) => Err(ProbeError::Backend(format!("{seen}, but `{text}` is not in the body"))),
        Err(why) => Err(ProbeError::Backend(format!("{seen}, then {why}"))),
    })
}

/// Sends the request and waits for the head of the response. The connection must be polled for the body to come.
async fn ask(
    stream: TcpStream,
    target: SocketAddr,
    check: &HttpCheck,
) -> Result<(Response<Incoming>, BoxFuture<()>), String> {
    let host = if check.host.is_empty() { target.to_string() } else { check.host.clone() };
    let request = Request::builder()
        .method(check.method.as_str())
        .uri(check.path.as_str())
        .header(HOST, host)
        .header(USER_AGENT, concat!("lemonade/", env!("CARGO_PKG_VERSION")))
        .header(CONNECTION, "close")
        .body(Empty::<Bytes>::new())
        .map_err(|error| format!("the request cannot be made: {error}"))?;
    let shaken = http1::Builder::new().max_buf_size(HEAD_LIMIT).handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| whole(&error))?;
    let mut connection = Box::pin(connection);
    let mut answer = pin!(sender.send_request(request));
    tokio::select! {
        biased;
        response = &mut answer => match response {
            Ok(response) => Ok((response, Box::pin(connection.map(drop)))),
            Err(error) => Err(whole(&error)),
        },
        // It may end with the answer already handed over; if not, it knows why better than the request does.
        ended = &mut connection => match (answer.await, ended) {
            (Ok(response), _) => Ok((response, Box::pin(std::future::ready(())))),
            (Err(_), Err(error)) | (Err(error), Ok(())) => Err(whole(&error)),
        }
    }
}

/// Reads the body up to the limit; whether `text` is in it.
async fn read_body(mut body: Incoming, text: String, connection: BoxFuture<()>) -> Result<bool, String> {
    let mut connection = connection.fuse();
    let mut read = Vec::new();
    while read.len() < BODY_LIMIT {
        let frame = tokio::select! {
            biased;
            frame = body.frame() => frame,
            () = &mut connection => body.frame().await,
        };
        let Some(frame) = frame else { break };
        let frame = frame.map_err(|error| whole(&error))?;
        if let Some(data) = frame.data_ref() {
            let room = BODY_LIMIT - read.len();
            read.extend_from_slice(&data[..data.len().min(room)]);
        }
    }
    Ok(text.is_empty() || read.windows(text.len()).any(|window| window == text.as_bytes()))
}

/// What an I/O error says, without its number.
fn in_words(error: &std::io::Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or_default();
    let mut letters = text.chars();
    letters.next().map(|first| first.to_lowercase().chain(letters).collect()).unwrap_or_default()
}

/// An error and its causes, the innermost I/O error in words.
fn whole(error: &hyper::Error) -> String {
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        if let Some(io) = cause.downcast_ref::<std::io::Error>() {
            return in_words(io);
        }
        source = cause.source();
    }
    error.to_string()
}
