//! The admin interface through real sockets.

use std::collections::BTreeSet;
use std::io;
use std::net::SocketAddr;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, SystemTime};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::client::{ClientError, fetch};
use super::status::Status;
use super::{AdminError, bind};
use crate::control::order::{Refused, RefusedKind};
use crate::control::overrides::Change;
use crate::control::{ControlState, Refusal};
use crate::model::config::Admin;
use crate::shutdown::Phase;

mod fixture;

use fixture::Served;

const SOON: Duration = Duration::from_secs(10);

struct Client {
    socket: PathBuf,
    address: SocketAddr,
}

impl Client {
    fn of(served: &Served) -> Self {
        let sockets = served.sockets.as_ref().expect("not yet served");
        Self { socket: sockets.socket().to_owned(), address: sockets.address().expect("a TCP address") }
    }

    async fn unix(&self, method: &str, path: &str, body: &str) -> (u16, String) {
        let (code, body) = fetch(&self.socket, method, path, body.into(), SOON).await.unwrap();
        (code, String::from_utf8(body).unwrap())
    }

    async fn tcp(&self, request: &str) -> (u16, String) {
        self.try_tcp(request).await.unwrap()
    }

    async fn try_tcp(&self, request: &str) -> io::Result<(u16, String)> {
        let exchange = async {
            let mut stream = TcpStream::connect(self.address).await?;
            stream.write_all(request.as_bytes()).await?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await?;
            io::Result::Ok(answer)
        };
        let answer = tokio::time::timeout(SOON, exchange).await.expect("an answer in time")?;
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok()).unwrap_or(0);
        Ok((code, body.to_owned()))
    }

    async fn read(&self, path: &str) -> (u16, String) {
        let address = self.address;
        self.tcp(&format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n")).await
    }
}

#[tokio::test]
async fn readiness_follows_the_phase_and_liveness_does_not() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    assert_eq!(client.read("/readyz").await, (200, "ready\n".to_owned()));
    for phase in [Phase::Starting, Phase::LameDuck, Phase::Draining, Phase::Forced] {
        served.phase.send_replace(phase);
        let (code, why) = client.unix("GET", "/readyz", "").await;
        assert_eq!(code, 503);
        assert!(why.starts_with("not ready: "), "{why}");
        assert_eq!(client.unix("GET", "/healthz", "").await.0, 200);
    }
    served.phase.send_replace(Phase::Running);
    served.control.send_modify(|state| {
        let mut empty = ControlState::clone(state);
        empty.table = Arc::default();
        *state = Arc::new(empty);
    });
    assert_eq!(client.read("/readyz").await, (503, "not ready: no table applied yet\n".to_owned()));
}

#[tokio::test]
async fn a_scrape_shows_the_counters_through_both_doors() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    served.process.events_dropped.store(6, Ordering::Relaxed);
    for (code, text) in [client.read("/metrics").await, client.unix("GET", "/metrics", "").await] {
        assert_eq!(code, 200);
        assert!(text.contains("\nlemonade_events_dropped_total 6\n"), "{text}");
        assert!(text.contains("\nlemonade_frontend_connections_live{frontend=\"web\"} 5\n"));
        assert!(text.contains("\nlemonade_phase 1\n"));
        assert!(text.ends_with('\n') && !text.contains("# EOF"), "the text format that every scraper reads");
    }
}

#[tokio::test]
async fn status_tells_real_addresses_counters_and_why_a_backend_is_down() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    served.control.send_modify(|state| {
        let mut refused = ControlState::clone(state);
        let errors = "lemonade.toml:1:1: one\nlemonade.toml:2:1: two".to_owned();
        refused.refused =
            Some(Refusal { at: SystemTime::UNIX_EPOCH, cause: "file changed".to_owned(), errors });
        *state = Arc::new(refused);
    });
    let (code, text) = client.unix("GET", "/api/v1/status", "").await;
    assert_eq!(code, 200);
    let status: Status = serde_json::from_str(&text).unwrap();
    assert_eq!((status.pid, status.phase, status.workers), (std::process::id(), Phase::Running, 2));
    assert_eq!(
        (status.config.version, status.config.table_version, status.config.cause.as_str()),
        (3, 7, "start")
    );
    assert_eq!(status.config.refused.unwrap().errors, ["lemonade.toml:1:1: one", "lemonade.toml:2:1: two"]);

    let web = &status.frontends[0];
    assert_eq!(web.configured, ["127.0.0.1:0".parse().unwrap()]);
    assert_eq!(web.listening, ["127.0.0.1:4711".parse().unwrap()]);
    assert_eq!((web.plane.as_str(), web.relay.as_str()), ("proxy", "copy"));
    assert_eq!((web.live, web.opened, web.closed, web.refused["no_backend_up"]), (5, 9, 4, 2));
    assert!((web.last_10s.unwrap().opened_per_second - 9.0).abs() < f64::EPSILON);

    let [a, b] = &status.pools[0].backends[..] else { panic!("two backends") };
    assert_eq!((a.why.as_str(), a.since.as_ref()), ("not probed yet: its pool's initial state", None));
    assert_eq!(b.why, "8 failed in a row: probe: connection refused");
    assert_eq!((b.outcomes.len(), b.outcomes[4].at.as_str()), (5, "1970-01-01T00:00:08.000Z"));
    assert!((b.outcomes[0].took_ms - 1.5).abs() < f64::EPSILON);
}

/// Every name of a field in `value`; names given by the configuration or by a reason are not fields.
fn fields(value: &serde_json::Value, found: &mut BTreeSet<String>) {
    match value {
        serde_json::Value::Object(object) => {
            for (name, inner) in object {
                found.insert(name.clone());
                if name != "refused" || inner.get("errors").is_some() {
                    fields(inner, found);
                }
            }
        }
        serde_json::Value::Array(items) => items.iter().for_each(|item| fields(item, found)),
        serde_json::Value::Null
        | serde_json::Value::Bool(_)
        | serde_json::Value::Number(_)
        | serde_json::Value::String(_) => {}
    }
}

#[test]
fn the_guide_names_each_field_of_the_status() {
    let served = Served::bind();
    let status = Status::read(&served.wiring, SystemTime::now());
    let mut found = BTreeSet::new();
    fields(&serde_json::to_value(status).unwrap(), &mut found);
    assert!(found.contains("took_ms") && found.contains("relay_why"));
    let guide = include_str!("../../../docs/guide/metrics.md");
    for field in found {
        assert!(guide.contains(&format!("`{field}`")), "the guide does not name {field}");
    }
}

#[tokio::test]
async fn a_dump_has_everything_but_the_secret() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    client.unix("PUT", "/api/v1/log-filter", "debug").await;
    let (code, text) = client.read("/api/v1/dump").await;
    assert_eq!(code, 200);
    assert!(!text.contains("a secret seed"));
    let dump: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!((&dump["table"]["version"], &dump["status"]["config"]["version"]), (&7.into(), &3.into()));
    assert_eq!(dump["table"]["pools"][0]["backends"][1]["ix"], "b1");
    assert_eq!(dump["health"]["b1"]["outcomes"].as_array().unwrap().len(), 8);
    assert_eq!(dump["journal"][0]["diff"][0], "log filter: info -> debug");
    assert_eq!(dump["config"]["runtime"]["hash_seed"], "(left out)");
}

#[tokio::test]
async fn changes_go_through_the_unix_socket_only_and_into_the_journal() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    let put = "Host: localhost\r\nConnection: close\r\nContent-Length: 5\r\n\r\ndebug";
    let (code, why) = client.tcp(&format!("PUT /api/v1/log-filter HTTP/1.1\r\n{put}")).await;
    assert_eq!(code, 403);
    assert!(why.contains("unix socket"), "{why}");
    let token = "Authorization: Bearer wrong\r\n";
    let (code, why) = client.tcp(&format!("POST /api/v1/reload HTTP/1.1\r\n{token}{put}")).await;
    assert_eq!(code, 403);
    assert!(why.contains("whatever token"), "{why}");
    assert_eq!(served.wiring.log.current(), "info");
    assert!(served.reloads.try_recv().is_err());

    assert_eq!(client.unix("PUT", "/api/v1/log-filter", "debug").await.0, 200);
    assert_eq!(served.wiring.log.current(), "debug");
    let (code, why) = client.unix("PUT", "/api/v1/log-filter", "debgu").await;
    assert_eq!(code, 400);
    assert!(why.contains("unknown log level `debgu`"), "{why}");

    let lines = served.wiring.journal.tail(9);
    let own = Some(super::place::user());
    assert_eq!(lines.iter().filter(|line| line.who == "admin" && line.uid == own).count(), 2);
    assert_eq!(lines.iter().filter(|line| line.result == "accepted").count(), 1);
}

#[tokio::test]
async fn a_reload_answers_with_its_own_outcome() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    let (mut reloads, control) = (served.reloads, served.control);
    let decide = tokio::spawn(async move {
        for errors in [None, Some("lemonade.toml:1:1: no such key".to_owned())] {
            let cause: String = reloads.recv().await.unwrap();
            control.send_modify(|state| {
                let mut next = ControlState::clone(state);
                // The file changed at the same time: that outcome is somebody else's.
                next.decided = (next.decided.0 + 1, "file changed".to_owned());
                *state = Arc::new(next);
            });
            tokio::time::sleep(Duration::from_millis(20)).await;
            control.send_modify(|state| {
                let mut next = ControlState::clone(state);
                next.decided = (next.decided.0 + 1, cause.clone());
                next.refused = errors.map(|errors| Refusal { at: SystemTime::UNIX_EPOCH, cause, errors });
                *state = Arc::new(next);
            });
        }
        control
    });
    let (code, text) = client.unix("POST", "/api/v1/reload", "").await;
    assert_eq!(code, 200, "{text}");
    let (code, text) = client.unix("POST", "/api/v1/reload", "").await;
    assert_eq!(code, 422, "{text}");
    assert!(text.contains("no such key"), "{text}");
    drop(decide.await.unwrap());
}

#[tokio::test]
async fn a_change_of_a_backend_carries_the_callers_uid_and_its_answer() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    let mut orders = served.orders;
    let obey = tokio::spawn(async move {
        let order = orders.recv().await.unwrap();
        assert_eq!((order.target.as_str(), order.change), ("web/a", Change::Weight(3)));
        assert_eq!((order.if_version, order.uid), (Some(7), Some(super::place::user())));
        let refused = Refused { kind: RefusedKind::Stale, why: "at version 8".to_owned() };
        order.answer.send(Err(refused)).unwrap();
    });
    let asked = r#"{"backend": "web/a", "change": {"weight": 3}, "if_version": 7}"#;
    let (code, text) = client.unix("POST", "/api/v1/backend", asked).await;
    assert_eq!(code, 412);
    assert!(text.contains("at version 8"), "{text}");
    obey.await.unwrap();
    for wrong in [
        "",
        "{}",
        r#"{"backend": "a", "change": "explode"}"#,
        r#"{"backend": "a", "change": {"weight": 99999}}"#,
    ] {
        assert_eq!(client.unix("POST", "/api/v1/backend", wrong).await.0, 400, "{wrong}");
    }
    let over_tcp = format!(
        "POST /api/v1/backend HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{asked}",
        asked.len()
    );
    assert_eq!(client.tcp(&over_tcp).await.0, 403);
}

#[tokio::test]
async fn reads_with_a_query_answer_or_say_what_to_write() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    for good in [
        "connections?limit=5&sort=-bytes&filter=web",
        "connections?ended=true",
        "journal?limit=3&since=2026-01-01T00:00:00Z",
        "series?last=10",
        "series?frontend=web",
    ] {
        let (code, text) = client.read(&format!("/api/v1/{good}")).await;
        assert_eq!(code, 200, "{good}: {text}");
        serde_json::from_str::<serde_json::Value>(&text).unwrap();
    }
    for (bad, advice) in [
        ("connections?sort=speed", "bytes"),
        ("connections?limit=many", "limit"),
        ("connections?colour=red", "colour"),
        ("why?connection=nobody", "CLIENT:PORT"),
        ("journal?since=yesterday", "2026"),
        ("events?kind=party", "decision"),
        ("events?reason=luck", "queue_full"),
    ] {
        let (code, text) = client.read(&format!("/api/v1/{bad}")).await;
        assert_eq!(code, 400, "{bad}: {text}");
        assert!(text.contains(advice), "{bad}: {text}");
    }
    assert_eq!(client.read("/api/v1/why?connection=17").await.0, 404);
}

#[tokio::test]
async fn requests_out_of_bounds_are_refused() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    let (code, why) =
        client.tcp("GET /metrics HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n").await;
    assert_eq!(code, 403);
    assert!(why.contains("Host"), "{why}");
    assert_eq!(client.tcp("GET /metrics HTTP/1.0\r\n\r\n").await.0, 403);
    assert_eq!(client.read("/nowhere").await.0, 404);
    assert_eq!(client.unix("DELETE", "/metrics", "").await.0, 405);
    assert_eq!(client.unix("PUT", "/api/v1/log-filter", &"x".repeat(65 * 1024)).await.0, 413);
    let long = "x".repeat(1024 * 1024);
    let answer = client.try_tcp(&format!("GET / HTTP/1.1\r\nHost: localhost\r\nX: {long}\r\n\r\n")).await;
    // The connection may be reset before the answer is read.
    assert!(answer.as_ref().map_or(true, |(code, _)| *code == 431), "{answer:?}");
}

/// Sockets that never finish a request must not keep the operator out, nor the process from stopping.
#[tokio::test]
async fn silent_clients_on_tcp_neither_block_the_unix_socket_nor_the_stop() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    let task = served.start();
    let mut silent = Vec::new();
    for _ in 0..100 {
        silent.push(TcpStream::connect(client.address).await.unwrap());
    }
    assert_eq!(client.unix("GET", "/healthz", "").await.0, 200);
    served.stop.cancel();
    tokio::time::timeout(SOON, task).await.expect("it stops").unwrap();
    assert!(!client.socket.exists(), "the socket's file is gone");
    drop(silent);
}

fn admin(socket: &Path) -> Admin {
    Admin { socket: Some(socket.to_owned()), listen: None }
}

#[tokio::test]
async fn the_socket_is_the_groups_and_a_live_one_is_not_stolen() {
    let mut served = Served::bind();
    let client = Client::of(&served);
    served.start();
    assert_eq!(std::fs::metadata(&client.socket).unwrap().permissions().mode() & 0o777, 0o660);
    let refused = bind(&admin(&client.socket)).unwrap_err().to_string();
    assert!(refused.contains("another Lemonade") && refused.contains("admin.sock"), "{refused}");
    assert_eq!(client.unix("GET", "/healthz", "").await.0, 200);
}

#[test]
fn the_socket_of_a_dead_process_is_replaced_and_nothing_else_is() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let before = std::fs::metadata(&path).unwrap().ino();
    let sockets = bind(&admin(&path)).unwrap();
    assert!(std::os::unix::net::UnixStream::connect(&path).is_ok());
    // A successor that took the path over keeps it when the predecessor goes.
    std::fs::remove_file(&path).unwrap();
    let successor = bind(&admin(&path)).unwrap();
    drop(sockets);
    assert!(path.exists(), "socket {before} was not the successor's");
    drop(successor);
    assert!(!path.exists());

    std::fs::write(&path, "precious").unwrap();
    let refused = bind(&admin(&path)).unwrap_err().to_string();
    assert!(refused.contains("not a socket"), "{refused}");
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");

    let long = bind(&admin(&folder.path().join("x".repeat(120)))).unwrap_err().to_string();
    assert!(long.contains("too long"), "{long}");
}

#[test]
fn a_stuck_process_is_alive_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
    socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _fills_the_queue = std::os::unix::net::UnixStream::connect(&path).unwrap();
    let refused = bind(&admin(&path)).unwrap_err().to_string();
    assert!(refused.contains("another Lemonade"), "{refused}");
}

#[test]
fn a_folder_that_is_not_there_is_not_made_for_a_socket_that_was_named() {
    let folder = tempfile::tempdir().unwrap();
    let missing = folder.path().join("rnu");
    let error = bind(&admin(&missing.join("admin.sock"))).unwrap_err().to_string();
    assert!(error.contains("there is no folder") && error.contains("mkdir"), "{error}");
    assert!(!missing.exists());
}

#[test]
fn a_folder_that_others_can_change_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let shared = folder.path().join("tmp");
    std::fs::create_dir_all(shared.join("open")).unwrap();
    for path in [shared.clone(), shared.join("open")] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
    }
    let refused = bind(&admin(&shared.join("open/admin.sock"))).unwrap_err().to_string();
    assert!(refused.contains("another user"), "{refused}");
    // As the default place may be, /tmp/lemonade-UID.
    let _socket = super::sockets::bind_unix(&shared.join("new/admin.sock"), true).unwrap();
    assert_eq!(std::fs::metadata(shared.join("new")).unwrap().permissions().mode() & 0o777, 0o700);
}

#[test]
fn a_taken_address_is_told_with_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = Some(taken.local_addr().unwrap());
    let path = folder.path().join("admin.sock");
    let refused = bind(&Admin { socket: Some(path.clone()), listen }).unwrap_err();
    assert!(matches!(refused, AdminError::Listen { .. }));
    assert!(refused.to_string().contains("admin.listen: cannot listen on 127.0.0.1:"), "{refused}");
    assert!(!path.exists(), "nothing is left behind");
}

#[tokio::test]
async fn the_client_says_what_to_do() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let absent = fetch(&path, "GET", "/", Vec::new(), SOON).await.unwrap_err();
    assert!(absent.to_string().contains("is Lemonade running?") && absent.to_string().contains("--admin"));
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    let dead = fetch(&path, "GET", "/", Vec::new(), SOON).await.unwrap_err();
    assert!(matches!(dead, ClientError::NotRunning(_)), "{dead}");
}

#[tokio::test(start_paused = true)]
async fn the_client_does_not_wait_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("admin.sock");
    let _silent = std::os::unix::net::UnixListener::bind(&path).unwrap();
    let error = fetch(&path, "GET", "/", Vec::new(), SOON).await.unwrap_err();
    assert_eq!(error.to_string(), format!("no answer from {} within 10s", path.display()));
}
