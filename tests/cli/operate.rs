//! A stranger asks and steers a running Lemonade with its own commands.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output};

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, binary, run};
use lemonade_tests::load::calls;
use lemonade_tests::setup::Setup;
use lemonade_tests::skip::skip;
use lemonade_tests::socket::{connect, refusing_address};
use lemonade_tests::wait;
use serde_json::Value;

/// Runs `lemonade` with `arguments` on the instance: exit code, stdout and stderr.
pub(crate) fn ask(lemonade: &Lemonade, arguments: &[&str]) -> (i32, String, String) {
    let socket = lemonade.socket();
    let mut all = arguments.to_vec();
    all.extend(["--admin", socket.to_str().expect("UTF-8")]);
    let Output { status, stdout, stderr } = run(&all);
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    (status.code().expect("an exit code"), text(&stdout), text(&stderr))
}

/// As [`ask`], where it has to succeed.
pub(crate) fn told(lemonade: &Lemonade, arguments: &[&str]) -> String {
    let (code, out, err) = ask(lemonade, arguments);
    assert_eq!(code, 0, "{arguments:?}: {out}{err}");
    out
}

/// As [`ask`], where it has to fail with `code`; returns what it complains about.
pub(crate) fn refused(lemonade: &Lemonade, code: i32, arguments: &[&str]) -> String {
    let (found, out, err) = ask(lemonade, arguments);
    assert_eq!(found, code, "{arguments:?}: {out}{err}");
    assert_eq!(out, "", "a complaint goes to stderr");
    err
}

pub(crate) fn two() -> (Vec<Backend>, Lemonade) {
    let backends = Backend::several(2);
    let addresses: Vec<SocketAddr> = backends.iter().map(|backend| backend.address).collect();
    let lemonade = Lemonade::start(&Setup::single(&addresses));
    (backends, lemonade)
}

/// A connection that lives, established through to its backend.
pub(crate) fn hold(lemonade: &Lemonade) -> TcpStream {
    let before = ids(lemonade).len();
    let stream = connect(lemonade.address("web")).expect("it accepts");
    wait::until("the connection is established", wait::SOON, || {
        let page = told(lemonade, &["connections", "--json"]);
        page.matches("\"established\"").count() > before
    });
    stream
}

pub(crate) fn ids(lemonade: &Lemonade) -> Vec<u64> {
    let page: Value = serde_json::from_str(&told(lemonade, &["connections", "--json"])).expect("JSON");
    let rows = page["connections"].as_array().expect("rows");
    rows.iter().map(|row| row["id"].as_u64().expect("an id")).collect()
}

#[test]
fn a_drained_backend_gets_nothing_new_keeps_what_it_has_and_comes_back() {
    let (_backends, lemonade) = two();
    let mut held = hold(&lemonade);
    let on = told(&lemonade, &["why", &held.local_addr().expect("an address").to_string()]);
    let name = if on.contains("web/a") { "a" } else { "b" };

    let drained = told(&lemonade, &["backend", "drain", &format!("web/{name}")]);
    for words in
        ["weight 1 -> 0", "1 live ones go on", "1 of 2 backends may be picked", "until the next start"]
    {
        assert!(drained.contains(words), "{words} is missing in\n{drained}");
    }
    let picks = lemonade.metrics().picks(name);
    calls(lemonade.address("web"), 10);
    assert_eq!(lemonade.metrics().picks(name), picks, "a drained backend was picked");
    assert!(told(&lemonade, &["status"]).contains("drained at run time"));
    held.write_all(&[2]).expect("the held connection lives on");

    // A reload that says nothing of it leaves it drained.
    let same = fs::read_to_string(lemonade.config()).expect("the file");
    lemonade.write(&format!("{same}\n# a comment\n"));
    told(&lemonade, &["reload"]);
    assert!(told(&lemonade, &["status"]).contains("drained at run time"));

    told(&lemonade, &["backend", "enable", name]);
    calls(lemonade.address("web"), 10);
    assert!(lemonade.metrics().picks(name) > picks);
    let weighed = told(&lemonade, &["backend", "weight", name, "7"]);
    assert!(weighed.contains("weight 1 -> 7"), "{weighed}");
    assert!(
        weighed.contains("no effect on shares: pool web: round_robin does not go by weight"),
        "{weighed}"
    );
    let plan = told(&lemonade, &["plan", lemonade.config().to_str().expect("UTF-8")]);
    assert!(plan.contains("note: pool web: round_robin does not go by weight"), "{plan}");
    let disabled = told(&lemonade, &["backend", "disable", name]);
    assert!(disabled.contains("enabled true -> false"), "{disabled}");
}

#[test]
fn a_name_or_version_that_is_not_right_changes_nothing_and_says_what_is() {
    let (_backends, lemonade) = two();
    let version = lemonade.status().config_version();
    let why = refused(&lemonade, 2, &["backend", "drain", "web/x"]);
    assert!(why.contains("no backend `x` in pool `web`; it has: a, b"), "{why}");
    let why = refused(&lemonade, 2, &["backend", "drain", "x"]);
    assert!(why.contains("the pools are: web"), "{why}");
    let why = refused(&lemonade, 3, &["backend", "drain", "a", "--if-version", "99"]);
    assert!(why.contains(&format!("version {version}, not 99")), "{why}");
    for wrong in ["70000", "heavy", "-1"] {
        let why = refused(&lemonade, 2, &["backend", "weight", "a", wrong]);
        assert!(why.contains("write a whole number from 0 to 65535"), "{why}");
    }
    assert_eq!(lemonade.status().config_version(), version);
    told(&lemonade, &["backend", "drain", "a", "--if-version", &version.to_string()]);
    let why = refused(&lemonade, 3, &["backend", "enable", "a", "--if-version", &version.to_string()]);
    assert!(why.contains("lemonade history"), "{why}");
}

/// Whoever may not open the socket is told so, and changes nothing.
#[test]
fn a_user_without_rights_to_the_socket_is_told_so_and_changes_nothing() {
    let test = "a_user_without_rights_to_the_socket_is_told_so_and_changes_nothing";
    if !rustix::process::geteuid().is_root() {
        return skip(test, "needs root, to become another user");
    }
    let (_backends, lemonade) = two();
    let folder = lemonade.folder();
    let open = |path: &Path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).expect("ours");
    open(folder, 0o755);
    // The build may lie where another user cannot look.
    let copy = folder.join("lemonade");
    fs::copy(binary(), &copy).expect("a copy");
    open(&copy, 0o755);
    let version = lemonade.status().config_version();
    for arguments in [&["status"][..], &["backend", "drain", "a"], &["reload"]] {
        let mut command = Command::new(&copy);
        command.args(arguments).arg("--admin").arg(lemonade.socket()).uid(65_534).gid(65_534);
        let output = command.output().expect("it starts");
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {text}");
        assert!(
            text.contains("permission denied at") && text.contains("admin.sock") && text.contains("group"),
            "{arguments:?}: {text}"
        );
    }
    assert_eq!(lemonade.status().config_version(), version);
    assert_eq!(lemonade.status().backend("web", "a")["weight"], 1);
}

#[test]
fn why_tells_the_way_of_a_live_connection_and_of_one_that_ended() {
    let (_backends, lemonade) = two();
    let held = hold(&lemonade);
    let client = held.local_addr().expect("an address");
    let live = told(&lemonade, &["why", &client.to_string()]);
    for words in ["went to backend web/", "round_robin among 2 candidates: its turn", "lives for"] {
        assert!(live.contains(words), "{words} is missing in\n{live}");
    }
    let id = ids(&lemonade)[0].to_string();
    assert_eq!(told(&lemonade, &["why", &id]).lines().next(), live.lines().next());
    drop(held);
    wait::until("the connection has ended", wait::SOON, || ids(&lemonade).is_empty());
    let ended = told(&lemonade, &["why", &format!("{client} -> {}", lemonade.address("web"))]);
    assert!(ended.contains("ended after") && ended.contains("(closed)"), "{ended}");
    let why = refused(&lemonade, 2, &["why", "999999"]);
    assert!(why.contains("--ended"), "{why}");
    assert!(refused(&lemonade, 2, &["why", "nonsense"]).contains("CLIENT:PORT"));
}

#[test]
fn why_and_trace_tell_the_reason_of_a_refusal() {
    let setup = Setup::single(&[refusing_address()]).pool(&["when_all_down = \"try_all\""]);
    let lemonade = Lemonade::start(&setup);
    let web = lemonade.address("web");
    let traced = std::thread::scope(|scope| {
        let trace = scope.spawn(|| told(&lemonade, &["trace", "-n", "1", "--kind", "refusal"]));
        // The reader may come a moment late; a client comes again until it has its line.
        while !trace.is_finished() {
            refused_by(web);
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        trace.join().expect("no panic")
    });
    let words = "REFUSED connect_failed: each backend that was tried failed; in vain: a (refused)";
    assert!(traced.contains(words), "{traced}");
    let client = refused_by(web);
    let why = told(&lemonade, &["why", &client.to_string()]);
    let tried = "tried in vain: web/a: it refused the connect (refused)";
    for words in ["got no backend", "each backend that was tried failed", "(connect_failed)", tried] {
        assert!(why.contains(words), "{words} is missing in\n{why}");
    }
    let ended = told(&lemonade, &["connections", "--ended"]);
    assert!(ended.contains("connect_failed"), "{ended}");
}

/// A retry costs the client nothing, so only the record tells of it.
#[test]
fn a_backend_that_was_tried_in_vain_is_named() {
    let good = Backend::start("b");
    let setup = Setup::single(&[refusing_address(), good.address]).health(&["kind = \"off\""]);
    let lemonade = Lemonade::start(&setup);
    let web = lemonade.address("web");
    assert_eq!(calls(web, 2), ["b"; 2]);
    let page = told(&lemonade, &["connections", "--ended", "--json"]);
    let page: Value = serde_json::from_str(&page).expect("JSON");
    let rows = page["connections"].as_array().expect("rows");
    let row = rows.iter().find(|row| row["failed"] != Value::Array(Vec::new())).expect("one met it");
    assert_eq!((&row["failed"][0]["backend"], &row["failed"][0]["fault"]), (&"a".into(), &"refused".into()));
    let why = told(&lemonade, &["why", &row["id"].to_string()]);
    assert!(why.contains("went to backend web/b") && why.contains("tried in vain: web/a"), "{why}");
    let fault = r#""failed":[{"backend":"a","fault":"refused"}]"#;
    wait::until("its access record names it", wait::SOON, || lemonade.output().contains(fault));
}

#[test]
fn an_end_is_told_with_the_time_of_the_end() {
    let (_backends, lemonade) = two();
    let held = hold(&lemonade);
    let line = std::thread::scope(|scope| {
        let trace = scope.spawn(|| told(&lemonade, &["trace", "-n", "1", "--kind", "end"]));
        std::thread::sleep(std::time::Duration::from_millis(1_100));
        drop(held);
        trace.join().expect("no panic")
    });
    let page = told(&lemonade, &["connections", "--ended", "--json"]);
    let page: Value = serde_json::from_str(&page).expect("JSON");
    let row = &page["connections"][0];
    let (started, ended) = (row["started"].as_str().expect("a time"), row["ended"].as_str().expect("a time"));
    assert!(started < ended && line.starts_with(ended), "{started} to {ended}, but: {line}");
}

#[test]
fn what_changes_nothing_makes_no_version_and_no_line_of_history() {
    let (_backends, lemonade) = two();
    let history = || told(&lemonade, &["history"]).lines().count();
    told(&lemonade, &["backend", "drain", "a"]);
    let (version, lines) = (lemonade.status().config_version(), history());
    let again = told(&lemonade, &["backend", "drain", "a"]);
    assert!(again.contains("as it was"), "{again}");
    let text = told(&lemonade, &["reload"]);
    assert!(text.contains("nothing changed"), "{text}");
    told(&lemonade, &["backend", "enable", "b"]);
    assert_eq!((lemonade.status().config_version(), history()), (version, lines));

    let weighed = told(&lemonade, &["backend", "weight", "a", "5"]);
    assert!(weighed.contains("kept for when it gets new connections again"), "{weighed}");
    assert!(!weighed.contains("as it was"), "{weighed}");
    let enabled = told(&lemonade, &["backend", "enable", "a"]);
    assert!(enabled.contains("weight 0 -> 5"), "{enabled}");
}

/// A client that is refused; its address.
pub(crate) fn refused_by(web: SocketAddr) -> SocketAddr {
    let mut stream = connect(web).expect("it accepts");
    let client = stream.local_addr().expect("an address");
    // Ends when Lemonade gives up.
    let _ = stream.read(&mut [0]);
    client
}

#[test]
fn trace_filters_and_lets_nobody_wait() {
    let (_backends, lemonade) = two();
    let web = lemonade.address("web");
    for (filter, value, advice) in [
        ("--reason", "luck", "queue_full"),
        ("--frontend", "wbe", "no frontend `wbe`; there are: web"),
        ("--backend", "web/c", "no backend `c` in pool `web`; it has: a, b"),
        ("--backend", "c", "the pools are: web"),
        ("--client", "me", "192.0.2.7:5000"),
    ] {
        let why = refused(&lemonade, 2, &["trace", filter, value]);
        assert!(why.contains(advice), "{why}");
    }
    let lines = std::thread::scope(|scope| {
        let trace = scope.spawn(|| {
            told(&lemonade, &["trace", "-n", "3", "--backend", "web/b", "--kind", "decision", "--json"])
        });
        while !trace.is_finished() {
            calls(web, 4);
        }
        trace.join().expect("no panic")
    });
    assert_eq!(lines.lines().count(), 3);
    for line in lines.lines() {
        let line: Value = serde_json::from_str(line).expect("JSON");
        assert_eq!(
            (&line["event"], &line["connection"]["route"]["backend"]),
            (&"decision".into(), &"b".into())
        );
    }
}

#[test]
fn history_tells_who_changed_what_and_a_reload_its_outcome() {
    let (_backends, lemonade) = two();
    told(&lemonade, &["backend", "drain", "a"]);
    told(&lemonade, &["log-level", "debug"]);
    assert_eq!(told(&lemonade, &["log-level"]).trim(), "debug");
    let uid = rustix::process::geteuid().as_raw();
    let history = told(&lemonade, &["history", "--since", "5m", "--what", "admin"]);
    for words in [
        "log filter: info -> debug",
        "backend web/a: drain (weight 1 -> 0)",
        &format!("by admin (uid {uid})"),
    ] {
        assert!(history.contains(words), "{words} is missing in\n{history}");
    }
    assert!(!history.contains("by start"));
    assert!(told(&lemonade, &["history", "--until", "10m"]).contains("nothing happened"));

    let text = fs::read_to_string(lemonade.config()).expect("the file");
    fs::write(lemonade.config(), text.replace("pool = \"web\"", "pool = \"wbe\"")).expect("writable");
    let why = refused(&lemonade, 2, &["reload"]);
    assert!(why.contains("wbe") && why.contains("lemonade.toml:"), "{why}");
    fs::write(
        lemonade.config(),
        text.replace("name = \"b\"", "name = \"b\"\nweight = 4")
            .replace("level = \"info\"", "level = \"warn\""),
    )
    .expect("writable");
    let done = told(&lemonade, &["reload"]);
    assert!(done.contains("in force as version"), "{done}");
    // The watch on the file may have been quicker than the command.
    let history = told(&lemonade, &["history", "--what", "config"]);
    for words in ["web/b: weight 1 -> 4", "log.level info -> warn", "refused"] {
        assert!(history.contains(words), "{words} is missing in\n{history}");
    }
    assert_eq!(lemonade.status().backend("web", "b")["weight"], 4);
    refused(&lemonade, 2, &["history", "--since", "noon"]);
    let why = refused(&lemonade, 2, &["history", "--what", "weather"]);
    assert!(why.contains("what: `weather` is not known; write one of: config, health, admin"), "{why}");
    refused(&lemonade, 2, &["log-level", "debgu"]);
}

#[test]
fn dump_writes_a_file_and_every_command_says_when_nobody_answers() {
    let (_backends, lemonade) = two();
    let file = lemonade.folder().join("dump.json");
    told(&lemonade, &["dump", "--output", file.to_str().expect("UTF-8")]);
    let dump: Value = serde_json::from_slice(&fs::read(&file).expect("a file")).expect("JSON");
    assert_eq!(dump["table"]["pools"][0]["name"], "web");
    assert_eq!(dump["config"]["pool"]["web"]["strategy"], "round_robin", "as the page has it");
    for arguments in [
        &["connections"][..],
        &["why", "1"],
        &["trace"],
        &["history"],
        &["backend", "drain", "a"],
        &["reload"],
        &["log-level"],
        &["dump"],
        &["status", "--watch"],
    ] {
        let mut all = arguments.to_vec();
        all.extend(["--admin", "/nowhere/admin.sock"]);
        let output = run(&all);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("is Lemonade running?"), "{arguments:?}: {text}");
    }
}

#[test]
fn explain_tells_the_next_pick_and_why_each_backend_is_in_or_out() {
    let (_backends, lemonade) = two();
    told(&lemonade, &["backend", "drain", "a"]);
    let text = told(&lemonade, &["explain", "192.0.2.7", "web"]);
    for words in ["goes to web/b", "round_robin", "out: drained, its weight is 0", "100%"] {
        assert!(text.contains(words), "{words} is missing in\n{text}");
    }
    let picks = lemonade.metrics().picks("b");
    told(&lemonade, &["explain", "192.0.2.7:5000"]);
    assert_eq!(lemonade.metrics().picks("b"), picks, "asking picks nothing");
    told(&lemonade, &["backend", "disable", "b"]);
    let text = told(&lemonade, &["explain", "192.0.2.7"]);
    assert!(text.contains("gets no backend now: it would be refused"), "{text}");
    assert!(refused(&lemonade, 2, &["explain", "192.0.2.7", "db"]).contains("there are: web"));
    assert!(refused(&lemonade, 2, &["explain", "nobody"]).contains("192.0.2.7:5000"));
}

/// What an edit of the file would do, before it is made, and then that it does so.
#[test]
fn plan_tells_what_an_edit_would_do_and_changes_nothing() {
    let (backends, lemonade) = two();
    let held = hold(&lemonade);
    let on = told(&lemonade, &["why", &held.local_addr().expect("an address").to_string()]);
    let (kept, gone) = if on.contains("web/a") { (1, "a") } else { (0, "b") };
    let version = lemonade.status().config_version();
    let edited = lemonade.folder().join("edited.toml");
    let edit = Setup::single(&[backends[kept].address]).frontend(&["max_connections = 5"]);
    let mut text = edit.text(lemonade.folder());
    if kept == 1 {
        text = text.replace("name = \"a\"", "name = \"b\"");
    }
    fs::write(&edited, &text).expect("writable");
    let file = edited.to_str().expect("UTF-8");
    let plan = told(&lemonade, &["plan", file]);
    for words in [
        &format!("backend {gone} removed"),
        "max_connections 0 -> 5",
        "50% -> 100%",
        "0 go on, 1 would be drained",
        &format!("1 of backend web/{gone}: reset after 60 s"),
    ] {
        assert!(plan.contains(words), "{words} is missing in\n{plan}");
    }
    assert_eq!(lemonade.status().config_version(), version, "a plan changes nothing");
    let same = lemonade.config();
    let nothing = told(&lemonade, &["plan", same.to_str().expect("UTF-8")]);
    assert!(nothing.contains("nothing would change") && nothing.contains("1 go on"), "{nothing}");

    fs::write(&edited, text.replace("pool = ", "pol = ")).expect("writable");
    let why = refused(&lemonade, 2, &["plan", file]);
    assert!(why.contains("edited.toml:") && why.contains("pol"), "{why}");
    assert!(refused(&lemonade, 2, &["plan", "/nowhere.toml"]).contains("cannot read /nowhere.toml"));
}
