use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use super::*;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Serves one connection: reads a request's head, writes `answer`, closes. Gives the head.
async fn serve(answer: impl Into<Vec<u8>>) -> (SocketAddr, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("is bound");
    let answer = answer.into();
    let task = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.expect("a probe");
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                break;
            }
        }
        // The prober may have seen enough before all is written.
        let _ = stream.write_all(&answer).await;
        String::from_utf8(head).expect("ASCII")
    });
    (address, task)
}

fn check(body: &str) -> HttpCheck {
    HttpCheck {
        method: "GET".to_owned(),
        path: "/health?x=1".to_owned(),
        host: String::new(),
        expect: vec![200..=299, 404..=404],
        body: body.to_owned(),
    }
}

async fn http(answer: impl Into<Vec<u8>>, check: HttpCheck) -> Result<String, String> {
    let (address, server) = serve(answer).await;
    let result = TcpProber.probe(address, None, &HealthKind::Http(check), TIMEOUT).await;
    server.abort();
    result.map_err(|error| match error {
        ProbeError::Backend(why) => why,
        ProbeError::Local(why) => panic!("blamed on this host: {why}"),
    })
}

#[tokio::test]
async fn tcp_connects_and_closes() {
    let (address, server) = serve("").await;
    let result = TcpProber.probe(address, None, &HealthKind::Tcp, TIMEOUT).await;
    assert_eq!(result, Ok("connected".to_owned()));
    assert_eq!(server.await.expect("saw a close in order"), "");
}

#[tokio::test]
async fn refused_connect_is_told_in_words() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("is bound");
    drop(listener);
    let result = TcpProber.probe(address, None, &HealthKind::Tcp, TIMEOUT).await;
    assert_eq!(result, Err(ProbeError::Backend("connection refused".to_owned())));
}

#[tokio::test]
async fn a_connect_that_met_itself_is_no_backend() {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind("127.0.0.1:0".parse().expect("an address")).expect("loopback");
    let own = socket.local_addr().expect("is bound");
    let stream = socket.connect(own).await.expect("meets itself");
    assert!(connected_to_itself(&stream));
    stream.set_zero_linger().expect("is open");

    let (address, _server) = serve("").await;
    assert!(!connected_to_itself(&connect(address, None).await.expect("is served")));
}

#[tokio::test]
async fn own_address_is_used() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("is bound");
    let source = IpAddr::from([127, 0, 0, 77]);
    let (result, accepted) =
        tokio::join!(TcpProber.probe(address, Some(source), &HealthKind::Tcp, TIMEOUT), listener.accept());
    assert!(result.is_ok());
    assert_eq!(accepted.expect("a probe").1.ip(), source);
}

#[tokio::test]
async fn address_that_is_not_ours_is_not_blamed_on_the_backend() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("is bound");
    let source = Some(IpAddr::from([192, 0, 2, 1]));
    let result = TcpProber.probe(address, source, &HealthKind::Tcp, TIMEOUT).await;
    assert!(matches!(result, Err(ProbeError::Local(_))), "{result:?}");
}

#[tokio::test]
async fn request_is_what_was_configured() {
    let answer = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
    let (address, server) = serve(answer).await;
    let wanted = HttpCheck { method: "OPTIONS".to_owned(), host: "example.org".to_owned(), ..check("") };
    let result = TcpProber.probe(address, None, &HealthKind::Http(wanted), TIMEOUT).await;
    assert_eq!(result, Ok("HTTP 200".to_owned()));
    let head = server.await.expect("served").to_lowercase();
    assert!(head.starts_with("options /health?x=1 http/1.1\r\n"), "{head}");
    assert!(head.contains("\r\nhost: example.org\r\n"), "{head}");
    assert!(head.contains("\r\nconnection: close\r\n"), "{head}");

    let (address, server) = serve(answer).await;
    let _ = TcpProber.probe(address, None, &HealthKind::Http(check("")), TIMEOUT).await;
    let head = server.await.expect("served").to_lowercase();
    assert!(head.contains(&format!("\r\nhost: {address}\r\n")), "{head}");
}

#[tokio::test]
async fn status_decides() {
    assert_eq!(http("HTTP/1.1 404 Not Found\r\n\r\n", check("")).await, Ok("HTTP 404".to_owned()));
    assert_eq!(http("HTTP/1.0 204 No Content\r\n\r\n", check("")).await, Ok("HTTP 204".to_owned()));
    let continued = "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 200 OK\r\n\r\n";
    assert_eq!(http(continued, check("")).await, Ok("HTTP 200".to_owned()));
    assert_eq!(http("HTTP/1.1 503 Busy\r\n\r\n", check("")).await, Err("HTTP 503".to_owned()));
}

#[tokio::test]
async fn body_must_contain_the_text() {
    let chunked = "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nall\r\n5\r\n well\r\n0\r\n\r\n";
    assert_eq!(http(chunked, check("all well")).await, Ok("HTTP 200, body matches".to_owned()));
    assert_eq!(
        http("HTTP/1.1 200 OK\r\n\r\nup to the close", check("well")).await,
        Err("HTTP 200, but `well` is not in the body".to_owned())
    );
}

#[tokio::test]
async fn answers_are_bounded() {
    let mut late = format!("HTTP/1.1 200 OK\r\n\r\n{}", "x".repeat(BODY_LIMIT)).into_bytes();
    late.extend_from_slice(b"well");
    late.resize(1 << 20, b'y');
    assert!(http(late.clone(), check("well")).await.is_err());
    assert_eq!(http(late, check("")).await, Ok("HTTP 200".to_owned()));
    let head = format!("HTTP/1.1 200 OK\r\nx: {}\r\n\r\n", "y".repeat(2 * HEAD_LIMIT));
    assert!(http(head, check("")).await.is_err());
}

#[tokio::test]
async fn answers_that_are_not_http_fail() {
    assert_eq!(http("SSH-2.0-OpenSSH\r\n", check("")).await, Err("invalid HTTP version parsed".to_owned()));
    assert_eq!(http("", check("")).await, Err("connection closed before message completed".to_owned()));
    let cut = http("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nwel", check("well")).await;
    assert!(cut.as_ref().is_err_and(|why| why.starts_with("HTTP 200, then ")), "{cut:?}");
}

#[tokio::test]
async fn the_timeout_bounds_the_whole_probe() {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("loopback");
    let address = listener.local_addr().expect("is bound");
    let limit = Duration::from_millis(50);
    let silent = TcpProber.probe(address, None, &HealthKind::Http(check("")), limit).await;
    assert_eq!(silent, Err(ProbeError::Backend("no whole answer within 50ms".to_owned())));
    // A body that never ends does not undo a good status.
    let endless = tokio::spawn(async move {
        let mut held = Vec::new();
        loop {
            let (mut stream, _) = listener.accept().await.expect("a probe");
            let _ = stream.read(&mut [0; 1024]).await;
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n\r\n").await;
            held.push(stream);
        }
    });
    let result = TcpProber.probe(address, None, &HealthKind::Http(check("")), limit).await;
    assert_eq!(result, Ok("HTTP 200".to_owned()));
    endless.abort();
}
