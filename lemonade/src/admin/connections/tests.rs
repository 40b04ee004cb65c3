use lemonade_common::Reason;

use super::*;
use crate::metrics::fixture::{name, record};
use crate::metrics::port::End;
use crate::proxy::port::Decision;
use crate::strategy::port::Basis;

fn connection(id: u64, bytes: u64) -> Connection {
    Connection {
        id,
        client: SocketAddr::from(([192, 0, 2, 9], 5_000 + id as u16)),
        local: "127.0.0.1:8080".parse().unwrap(),
        started: Moment(id * 1_000_000),
        frontend: name("web"),
        pool: name("web"),
        plane: "proxy",
        relay: "copy",
        route: record(id).route,
        decision: Some(Decision { basis: Basis::Turn(id), rival: None }),
        failed: Box::default(),
        bytes_up: bytes,
        bytes_down: 1,
        idle_seconds: 0,
        end: None,
    }
}

fn ids(query: &Query) -> Vec<u64> {
    let connections = [(1, 30), (2, 10), (3, 20)].map(|(id, bytes)| connection(id, bytes));
    let page = page(connections.into(), query, Moment(9_000_000), &Clock::new()).unwrap();
    assert_eq!(page.total, 3);
    page.connections.iter().map(|row| row.id).collect()
}

fn sorted(by: &str) -> Query {
    Query { sort: Some(by.to_owned()), ..Query::default() }
}

#[test]
fn a_page_is_sorted_filtered_and_bounded() {
    assert_eq!(ids(&Query::default()), [3, 2, 1], "the newest first");
    assert_eq!(ids(&sorted("bytes")), [2, 3, 1]);
    assert_eq!(ids(&sorted("-bytes")), [1, 3, 2]);
    assert_eq!(ids(&sorted("-age")), [1, 2, 3], "the oldest first");
    assert_eq!(ids(&Query { offset: Some(1), limit: Some(1), ..sorted("id") }), [2]);
    assert_eq!(ids(&Query { filter: Some(":5003".to_owned()), ..Query::default() }), [3]);
    assert_eq!(ids(&Query { backend: Some("web/a".to_owned()), ..sorted("id") }), [1, 2, 3]);
    assert!(ids(&Query { backend: Some("db/a".to_owned()), ..sorted("id") }).is_empty());
    let refused = page(Vec::new(), &sorted("speed"), Moment(0), &Clock::new()).unwrap_err();
    assert!(refused.contains("`speed`") && refused.contains("bytes"), "{refused}");
    let many: Vec<_> = (0..3_000).map(|id| connection(id, 1)).collect();
    let all = Query { limit: Some(usize::MAX), ..Query::default() };
    assert_eq!(page(many, &all, Moment(0), &Clock::new()).unwrap().connections.len(), MAX_PAGE);
}

#[test]
fn a_row_says_why_it_went_there_and_how_it_ended() {
    let row = Row::of(&connection(2, 10), Moment(5_000_000), &Clock::new());
    let route = row.route.as_ref().unwrap();
    assert_eq!((route.backend.as_str(), route.why.as_str()), ("a", "its turn (number 2)"));
    assert_eq!((row.state.as_str(), row.end), ("established", None));
    assert!((row.age_seconds - 3.0).abs() < 1e-9);

    let mut refused = connection(2, 0);
    (refused.route, refused.decision) = (None, None);
    refused.end = Some((End::Refused(Reason::QueueFull), Moment(2_500_000)));
    let row = Row::of(&refused, Moment(99_000_000), &Clock::new());
    assert_eq!((row.state.as_str(), row.end.as_deref()), ("ended", Some("queue_full")));
    assert!(row.end_why.unwrap().contains("queue"));
    assert!((row.age_seconds - 0.5).abs() < 1e-9, "its age stands still at its end");
}

#[test]
fn a_connection_is_named_by_number_or_addresses() {
    let own = connection(2, 0);
    for text in [
        "2",
        "192.0.2.9:5002",
        "192.0.2.9:5002->127.0.0.1:8080",
        " 192.0.2.9:5002 -> 127.0.0.1:8080",
        "192.0.2.9",
    ] {
        assert!(Named::parse(text).unwrap().means(&own), "{text}");
    }
    for text in ["3", "192.0.2.9:5001", "192.0.2.9:5002->127.0.0.1:81", "192.0.2.8"] {
        assert!(!Named::parse(text).unwrap().means(&own), "{text}");
    }
    for text in ["", "-1", "web", "192.0.2.9:x", "1->2"] {
        assert!(Named::parse(text).unwrap_err().contains("CLIENT:PORT"), "{text}");
    }
}
