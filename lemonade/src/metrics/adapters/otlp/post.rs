//! One request of OTLP over HTTP, its body protobuf.

use std::error::Error as _;
use std::time::Duration;

use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1;
use hyper::header::{CONNECTION, CONTENT_TYPE, HOST, HeaderMap, USER_AGENT};
use hyper::{Request, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Time for one request, the connect included.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// Bytes of an answer that are read at most.
const ANSWER: usize = 64 * 1024;

/// Port of a URL that names none.
const PORT: u16 = 80;

/// Why something was not delivered.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Failure {
    /// It may be taken later.
    Later(String),
    /// It will never be taken.
    Never(String),
}

/// Sends `body` to `path` below `endpoint` and returns the answer.
pub(super) async fn post(
    endpoint: &Uri,
    path: &str,
    headers: &HeaderMap,
    body: Bytes,
) -> Result<Bytes, Failure> {
    let exchange = tokio::time::timeout(TIMEOUT, exchange(endpoint, path, headers, body)).await;
    exchange.unwrap_or_else(|_| Err(Failure::Later(format!("no answer within {} s", TIMEOUT.as_secs()))))
}

async fn exchange(endpoint: &Uri, path: &str, headers: &HeaderMap, body: Bytes) -> Result<Bytes, Failure> {
    let host = endpoint.host().unwrap_or_default();
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let connecting = TcpStream::connect((bare, endpoint.port_u16().unwrap_or(PORT)));
    let stream = connecting.await.map_err(|error| Failure::Later(error.to_string()))?;
    let mut request = Request::post(format!("{}{path}", endpoint.path().trim_end_matches('/')))
        .header(HOST, endpoint.authority().map_or(host, |authority| authority.as_str()))
        .header(USER_AGENT, concat!("lemonade/", env!("CARGO_PKG_VERSION")))
        .header(CONTENT_TYPE, "application/x-protobuf")
        .header(CONNECTION, "close")
        .body(Full::new(body))
        .map_err(|error| Failure::Never(error.to_string()))?;
    request.headers_mut().extend(headers.clone());
    let shaken = http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = shaken.map_err(|error| later(&error))?;
    let answer = async {
        let response = sender.send_request(request).await.map_err(|error| later(&error))?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER).collect().await;
        judge(status, body.map(|body| body.to_bytes()).unwrap_or_default())
    };
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = answer.as_mut() => answer,
        // The connection ends when its peer is done; what it has read by then is still to be taken.
        _ = connection => answer.await,
    }
}

/// By the rules of OTLP/HTTP: these four may be tried again, others not.
fn judge(status: StatusCode, body: Bytes) -> Result<Bytes, Failure> {
    match status.as_u16() {
        200..=299 => Ok(body),
        429 | 502 | 503 | 504 => Err(Failure::Later(format!("it answered {status}"))),
        _ => Err(Failure::Never(format!("it answered {status}"))),
    }
}

fn later(error: &hyper::Error) -> Failure {
    let cause = error.source().map(|cause| format!(": {cause}")).unwrap_or_default();
    Failure::Later(format!("{error}{cause}"))
}
