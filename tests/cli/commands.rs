//! What each command prints.

use std::process::Output;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, run};
use lemonade_tests::load::calls;
use lemonade_tests::setup::Setup;

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn good(output: &Output) -> String {
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    text(&output.stdout)
}

#[test]
fn check_accepts_a_good_file_and_starts_nothing() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("good.toml");
    let backend = lemonade_tests::socket::refusing_address();
    std::fs::write(&file, Setup::single(&[backend]).text(folder.path())).expect("a folder");
    let plain = good(&run(&["check", file.to_str().expect("UTF-8")]));
    assert!(!plain.contains("note:"), "{plain}");
    let other = lemonade_tests::socket::refusing_address();
    let weighed = Setup::single(&[backend, other]).backend(1, &["weight = 5"]);
    std::fs::write(&file, weighed.text(folder.path())).expect("a folder");
    let noted = good(&run(&["check", file.to_str().expect("UTF-8")]));
    assert!(noted.contains("note: pool web: round_robin does not go by weight"), "{noted}");
    assert!(!folder.path().join("state").exists(), "checking makes no state folder");
}

#[test]
fn status_prints_a_table_and_json() {
    let backends = Backend::several(2);
    let addresses: Vec<_> = backends.iter().map(|backend| backend.address).collect();
    let lemonade = Lemonade::start(&Setup::single(&addresses));
    let web = lemonade.address("web");
    calls(web, 6);
    let socket = lemonade.socket();
    let socket = socket.to_str().expect("UTF-8");

    let table = good(&run(&["status", "--admin", socket]));
    for word in ["web", &web.to_string(), &addresses[0].to_string(), "round_robin"] {
        assert!(table.contains(word), "{word} is missing in\n{table}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&good(&run(&["status", "--json", "--admin", socket]))).expect("JSON");
    assert_eq!(json["frontends"][0]["listening"][0], web.to_string());
}

#[test]
fn status_without_a_process_says_so() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let socket = folder.path().join("none.sock");
    let socket = socket.to_str().expect("UTF-8");
    let output = run(&["status", "--admin", socket]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(socket), "{}", text(&output.stderr));
}

#[test]
fn schema_is_json_and_knows_the_keys() {
    let schema: serde_json::Value = serde_json::from_str(&good(&run(&["schema"]))).expect("JSON");
    let whole = schema.to_string();
    for key in ["frontend", "pool", "relay_buffer", "when_all_down", "hedge_after", "fastest_response_time"] {
        assert!(whole.contains(&format!("\"{key}\"")), "{key} is missing in the schema");
    }
}

#[test]
fn completions_and_man_page_are_printed() {
    for shell in ["bash", "zsh", "fish"] {
        assert!(good(&run(&["completions", shell])).contains("lemonade"), "{shell}");
    }
    let page = good(&run(&["man"]));
    assert!(page.contains(".TH"), "{page}");
}

#[test]
fn help_and_version_are_printed_and_nonsense_is_refused() {
    assert!(good(&run(&["--help"])).contains("check"));
    assert!(good(&run(&["--version"])).starts_with("lemonade "));
    let output = run(&["fly"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("fly"));
}

#[test]
fn admin_answers_over_tcp_and_changes_nothing_there() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]));
    let address = lemonade.admin_address();
    for path in ["/healthz", "/readyz", "/metrics", "/api/v1/status", "/api/v1/dump"] {
        let answer = lemonade_tests::http::get(address, path).expect("it answers");
        assert_eq!(answer.status, 200, "{path}");
    }
}
