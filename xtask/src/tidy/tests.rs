use std::collections::BTreeSet;

use super::*;

/// One file that breaks each rule; two for a rule on all files together.
const BROKEN: &[(&str, &[(&str, &str)])] = &[
    ("I1 aya", &[("lemonade/src/app.rs", "use aya::Ebpf;")]),
    ("I1 aya", &[("lemonade/src/proxy/adapters/tokio_proxy.rs", "let p = aya_obj::Object::parse(o);")]),
    ("I2 pure", &[("lemonade/src/model/cell.rs", "use tokio::sync::Notify;")]),
    ("I2 pure", &[("lemonade/src/control/compile.rs", "let now = Instant::now();")]),
    ("I2 pure", &[("lemonade/src/strategy/adapters/adaptive.rs", "let bits = fastrand::u64(..);")]),
    ("I2 pure", &[("lemonade/src/health/fsm.rs", "if began.elapsed() > limit {")]),
    ("I3 adapters", &[("lemonade/src/proxy/adapters/x.rs", "use crate::health::adapters::Backend;")]),
    ("I3 adapters", &[("lemonade/src/config/adapters/x.rs", "use crate::metrics::{port::A, adapters::B};")]),
    ("I3 adapters", &[("lemonade/src/strategy/adapters/x.rs", "use crate::proxy::adapters;")]),
    ("I3 adapters", &[("lemonade/src/health/adapters/x.rs", "use crate::config::adapters::Fixed;")]),
    ("I3 adapters", &[("lemonade/src/metrics/adapters/x.rs", "use crate::config::adapters::Fixed;")]),
    (
        "I4 one ArcSwap",
        &[
            ("lemonade/src/proxy/adapters/tokio_proxy.rs", "table: ArcSwap<DispatchTable>,"),
            ("lemonade/src/health/view.rs", "view: Arc<ArcSwap<HealthView>>,"),
        ],
    ),
    (
        "I6 one table load",
        &[
            ("lemonade/src/proxy/adapters/tokio_proxy.rs", "let table = self.table.load();"),
            ("lemonade/src/proxy/conn.rs", "let again = table.load_full();"),
        ],
    ),
    ("I7 channels", &[("lemonade/src/health/adapters/backend.rs", "let (a, b) = mpsc::channel(4);")]),
    ("I7 channels", &[("lemonade/src/control/mod.rs", "let (a, b) = tokio::sync::watch::channel::<u8>(0);")]),
    ("I7 channels", &[("lemonade/src/admin/mod.rs", "let (a, b) = mpsc::unbounded_channel();")]),
    ("I8 no_std", &[("lemonade-common/src/lib.rs", "//! #![no_std]\npub mod flow;")]),
    ("I8 no alloc", &[("lemonade-common/src/ring.rs", "extern crate alloc;")]),
    ("I8 no alloc", &[("lemonade-common/src/ring.rs", "slots: Vec<u32>,")]),
    ("linux behind cfg", &[("lemonade/src/proxy/socket.rs", "socket.set_tcp_user_timeout(t)?;")]),
    ("linux behind cfg", &[("lemonade/src/proxy/socket.rs", "let option = libc::TCP_USER_TIMEOUT;")]),
    ("linux behind cfg", &[("lemonade/src/app.rs", "libc::prctl(libc::PR_SET_DUMPABLE, 0);")]),
    ("linux behind cfg", &[("lemonade/src/proxy/socket.rs", "use std::os::linux::net::SocketAddrExt;")]),
    ("ignored test", &[("tests/reload.rs", "#[test]\n#[ignore]\nfn slow() {}")]),
    ("type name", &[("lemonade/src/control/mod.rs", "pub struct PoolManager {")]),
    ("type name", &[("tests/support/lib.rs", "enum ConfigInfo {")]),
    ("get_", &[("xtask/src/main.rs", "fn get_weight() {}")]),
    ("unfinished", &[("lemonade/src/app.rs", "// TODO: drain")]),
    ("unfinished", &[(".ci/run.sh", "# FIXME later")]),
    ("unfinished", &[("lemonade/src/app.rs", "unimplemented!()")]),
];

/// Lines that look like a violation and are none.
const FINE: &[(&str, &str)] = &[
    ("lemonade/src/proxy/adapters/bpf/loader.rs", "use aya::Ebpf;"),
    ("lemonade/src/proxy/adapters/bpf/loader.rs", "first.load();\nsecond.load();"),
    ("lemonade/src/control/mod.rs", "use tokio::sync::watch;"),
    ("lemonade/src/model/time.rs", "/// Unlike tokio's `Instant::now()`, plain."),
    ("lemonade/src/strategy/adaptive.rs", "fn f() {}\n#[cfg(test)]\nmod tests {\n    use tokio::test;\n}"),
    ("lemonade/src/strategy/tests.rs", "let bits = fastrand::u64(..);"),
    ("lemonade/src/app.rs", "let (a, b) = mpsc::channel(4);\nuse crate::health::adapters::Backend;"),
    ("lemonade/src/health/adapters/backend.rs", "use super::super::port::Prober;"),
    ("lemonade/src/metrics/adapters/prom.rs", "use crate::metrics::adapters::Aggregating;"),
    ("lemonade/src/proxy/conn.rs", "cell.live.load(Ordering::Relaxed);"),
    ("lemonade/src/demo.rs", "let (a, b) = oneshot::channel();"),
    ("lemonade-common/src/lib.rs", "#![no_std]\n// nothing allocates with alloc"),
    ("lemonade/src/proxy/socket.rs", "#[cfg(target_os = \"linux\")]\nrustix::net::x();"),
    ("tests/reload.rs", "#[ignore = \"needs an hour\"]"),
    ("tests/reload.rs", "struct Database;\nfn get_metrics() {}"),
    ("lemonade/src/health/adapters/probe.rs", "use rustix::io::Errno;\nlet gone = libc::ECONNRESET;"),
    ("lemonade/src/state_dir.rs", "use rustix::fs::{FlockOperation, flock};"),
    ("lemonade/src/metrics/adapters/access.rs", "let (a, b) = mpsc::channel(4);"),
];

fn sources(files: &[(&str, &str)]) -> Vec<Source> {
    files.iter().map(|(path, text)| Source::new(path, text)).collect()
}

#[test]
fn each_rule_catches_its_violation_and_names_the_place() {
    for (rule, files) in BROKEN {
        let violations = check_sources(&sources(files));
        assert!(violations.iter().any(|violation| violation.rule == *rule), "{rule}: missed in {files:?}");
        let said = violations[0].to_string();
        assert!(files.iter().any(|(path, _)| said.starts_with(&format!("{path}:"))), "{said}");
    }
}

#[test]
fn a_file_that_is_too_long_is_caught_where_it_becomes_so() {
    let long = "fn f() {}\n".repeat(501);
    let [violation] = &check_sources(&[Source::new("lemonade/src/app.rs", &long)])[..] else {
        panic!("one violation");
    };
    assert!(violation.to_string().starts_with("lemonade/src/app.rs:501: file length"), "{violation}");
    let fitting = "fn f() {}\n".repeat(500);
    assert_eq!(check_sources(&[Source::new("lemonade/src/app.rs", &fitting)]), []);
}

#[test]
fn no_rule_is_without_a_violation_that_it_catches() {
    let mut tried: BTreeSet<_> = BROKEN.iter().map(|(rule, _)| *rule).collect();
    tried.insert("file length");
    let all: BTreeSet<_> = rules::rules().iter().map(|rule| rule.name).collect();
    assert_eq!(tried, all);
}

#[test]
fn what_only_looks_like_a_violation_passes() {
    for file in FINE {
        assert_eq!(check_sources(&sources(&[*file])), [], "{file:?}");
    }
}

#[test]
fn a_new_name_at_the_top_is_caught() {
    let names = ["README.md", "lemonade", "notes.txt"];
    let [violation] = &rules::unknown_at_top(names.into_iter())[..] else { panic!("one violation") };
    assert!(violation.to_string().starts_with("notes.txt:1: top-level: move it"), "{violation}");
}

#[test]
fn the_sources_of_the_workspace_are_found() {
    let sources = source::read_all(workspace::root()).unwrap();
    for path in ["lemonade/src/lib.rs", "lemonade-common/src/lib.rs", "xtask/src/tidy/tests.rs", "Cargo.toml"]
    {
        assert!(sources.iter().any(|source| source.path == path), "{path}");
    }
    assert!(!sources.iter().any(|source| source.path.starts_with("target/")));
}
