//! Access records are what their schema says, and a rotator loses none.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::Lemonade;
use lemonade_tests::load::calls;
use lemonade_tests::setup::{Setup, lines};
use lemonade_tests::tools::root;
use lemonade_tests::wait;
use rustix::process::Signal;
use serde_json::Value;

const BOUND: Duration = Duration::from_secs(20);

fn schema() -> Value {
    let text = fs::read_to_string(root().join("config/access.schema.json")).expect("the schema");
    serde_json::from_str(&text).expect("JSON")
}

/// What is wrong with a record, whose lists are of records of one level.
fn fault(schema: &Value, record: &Value) -> Option<String> {
    let of_list = |rule: &Value, items: &Value| {
        let name = rule["items"]["$ref"].as_str().and_then(|path| path.rsplit('/').next()).expect("a name");
        let definition = &schema["definitions"][name];
        items.as_array().is_some_and(|items| items.iter().all(|item| fault(definition, item).is_none()))
    };
    let (properties, fields) = (schema["properties"].as_object()?, record.as_object()?);
    let required = schema["required"].as_array()?.iter().filter_map(Value::as_str);
    if let Some(missing) = required.into_iter().find(|key| !fields.contains_key(*key)) {
        return Some(format!("{missing} is missing"));
    }
    fields.iter().find_map(|(key, value)| {
        let Some(rule) = properties.get(key) else { return Some(format!("{key} is unknown")) };
        let typed = match rule["type"].as_str() {
            Some("string") => value.is_string(),
            Some("integer") => value.is_u64(),
            Some("number") => value.is_number(),
            Some("boolean") => value.is_boolean(),
            Some("array") => of_list(rule, value),
            Some(other) => panic!("the schema has a {other}"),
            None => true,
        };
        let listed = rule["enum"].as_array().is_none_or(|values| values.contains(value));
        let constant = rule.get("const").is_none_or(|only| only == value);
        (!(typed && listed && constant)).then(|| format!("{key} is {value}"))
    })
}

fn records(file: &Path) -> Vec<Value> {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("not JSON: {line}")))
        .collect()
}

fn logging_to(file: &Path, setup: Setup) -> Setup {
    Setup {
        log: lines(&["level = \"info\"", &format!("access = {:?}", file.display().to_string())]),
        ..setup
    }
}

#[test]
fn served_and_refused_connections_are_recorded_as_the_schema_says() {
    let schema = schema();
    let folder = tempfile::tempdir().expect("a temporary folder");
    let served = folder.path().join("served.jsonl");
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&logging_to(&served, Setup::single(&[backend.address])));
    calls(lemonade.address("web"), 5);
    wait::until("five records", BOUND, || records(&served).len() == 5);

    let refused = folder.path().join("refused.jsonl");
    let gone = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("a port");
    let lemonade = Lemonade::start(&logging_to(&refused, Setup::single(&[gone])));
    drop(std::net::TcpStream::connect(lemonade.address("web")).expect("it accepts"));
    wait::until("a record", BOUND, || records(&refused).len() == 1);

    for record in [records(&served), records(&refused)].concat() {
        assert_eq!(fault(&schema, &record), None, "{record}");
    }
    let mut wrong = records(&served).remove(0);
    wrong["end"] = "vanished".into();
    assert!(fault(&schema, &wrong).is_some_and(|fault| fault.contains("vanished")));
    let mut wrong = records(&refused).remove(0);
    assert_eq!(wrong["failed"][0]["fault"], "refused");
    wrong["failed"][0]["fault"] = "luck".into();
    assert!(fault(&schema, &wrong).is_some_and(|fault| fault.contains("luck")));
    let required = schema["required"].as_array().expect("a list").len();
    let fields = schema["properties"].as_object().expect("fields").len();
    assert_eq!(
        (required, fields),
        (10, 23),
        "the fields of a route, of datagrams and of tries may be absent"
    );
}

/// As logrotate does it: move the file away, ask for a reload, read the old one.
#[test]
fn rotation_under_load_loses_and_tears_no_record() {
    const ROUNDS: usize = 5;
    const CALLS: usize = 40;
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("access.jsonl");
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&logging_to(&file, Setup::single(&[backend.address])));
    let web = lemonade.address("web");
    std::thread::scope(|scope| {
        let load = scope.spawn(|| (0..ROUNDS).for_each(|_| drop(calls(web, CALLS))));
        for round in 0.. {
            if load.is_finished() {
                break;
            }
            wait::until("something to rotate", BOUND, || file.exists() || load.is_finished());
            if file.exists() {
                fs::rename(&file, folder.path().join(format!("access.jsonl.{round}")))
                    .expect("the folder is ours");
                lemonade.signal(Signal::HUP);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    });
    let all = || -> Vec<u64> {
        let files =
            fs::read_dir(folder.path()).expect("the folder").map(|entry| entry.expect("a file").path());
        files.flat_map(|file| records(&file)).map(|record| record["id"].as_u64().expect("a number")).collect()
    };
    wait::until("every record", BOUND, || all().len() == ROUNDS * CALLS);
    let mut ids = all();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), ROUNDS * CALLS, "each is there once");
    assert!(fs::read_dir(folder.path()).expect("the folder").count() > 1, "nothing was rotated");
    assert_eq!(lemonade.metrics().sum("lemonade_events_dropped_total", &[]), 0);
}
