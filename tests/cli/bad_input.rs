//! Bad configurations at `check` and at `run`.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};

use lemonade_tests::lemonade::run;
use lemonade_tests::setup::Setup;
use lemonade_tests::socket;
use tempfile::TempDir;

struct Place {
    folder: TempDir,
    file: PathBuf,
}

fn place() -> Place {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("bad.toml");
    Place { folder, file }
}

fn path(file: &Path) -> &str {
    file.to_str().expect("UTF-8")
}

/// `check` and `run` both refuse `file` with exit code 2 and name it; returns what `check` said.
fn refused(file: &Path) -> String {
    let mut said = String::new();
    for arguments in [vec!["run", "--config", path(file)], vec!["check", path(file)]] {
        let output = run(&arguments);
        said =
            String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert_eq!(output.status.code(), Some(2), "{arguments:?} said: {said}");
        assert!(said.contains(path(file)), "{arguments:?} names the file: {said}");
        assert!(said.len() < 20_000, "{arguments:?} said {} bytes", said.len());
    }
    said
}

/// A good text with `from` replaced by `to` is refused; each of `words` is said, and the line of `to`.
fn refused_with(from: &str, to: &str, words: &[&str]) {
    let Place { folder, file } = place();
    let text = good(&folder);
    assert!(text.contains(from), "{from} is not in\n{text}");
    let bad = text.replacen(from, to, 1);
    fs::write(&file, &bad).expect("a folder");
    let said = refused(&file);
    for word in words {
        assert!(said.contains(word), "{word} is missing in: {said}");
    }
    let line = 1 + text[..text.find(from).expect("checked above")].matches('\n').count();
    let last = line + to.matches('\n').count();
    let named = (line..=last).any(|line| said.contains(&format!("bad.toml:{line}:")));
    assert!(named, "line {line} is missing in: {said}");
}

fn good(folder: &TempDir) -> String {
    let backends = [socket::refusing_address(), socket::refusing_address()];
    Setup::single(&backends).pool(&["strategy = \"round_robin\"", "retries = 2"]).text(folder.path())
}

#[test]
fn an_empty_file() {
    let Place { folder: _folder, file } = place();
    fs::write(&file, "").expect("a folder");
    assert!(refused(&file).contains("frontend"), "it says what is missing");
}

#[test]
fn a_file_of_100_mb() {
    let Place { folder, file } = place();
    let mut out = std::io::BufWriter::new(fs::File::create(&file).expect("a folder"));
    out.write_all(good(&folder).as_bytes()).expect("a file");
    for n in 0..1_600_000 {
        writeln!(out, "# {n:060}").expect("a file");
    }
    drop(out);
    assert!(fs::metadata(&file).expect("a file").len() > 100_000_000);
    refused(&file);
}

#[test]
fn a_file_that_is_not_there() {
    let Place { folder: _folder, file } = place();
    refused(&file);
}

#[test]
fn a_folder() {
    let Place { folder, .. } = place();
    refused(folder.path());
}

#[test]
fn a_file_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let Place { folder, file } = place();
    fs::write(&file, good(&folder)).expect("a folder");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o000)).expect("our file");
    if fs::read(&file).is_ok() {
        // Root reads everything; a loop of links is unreadable for root as well.
        fs::remove_file(&file).expect("our file");
        std::os::unix::fs::symlink(&file, &file).expect("a link");
    }
    refused(&file);
}

#[test]
fn a_device_that_never_ends() {
    refused(Path::new("/dev/zero"));
}

#[test]
fn text_that_is_not_utf8() {
    let Place { folder, file } = place();
    let mut bytes = good(&folder).into_bytes();
    bytes.extend_from_slice(b"# \xff\xfe\n");
    fs::write(&file, bytes).expect("a folder");
    assert!(refused(&file).to_lowercase().contains("utf-8"));
}

#[test]
fn broken_toml() {
    refused_with("[pool.web]", "[pool.web", &[]);
}

#[test]
fn wrong_types() {
    refused_with("retries = 2", "retries = \"two\"", &["retries"]);
    refused_with("retries = 2", "retries = -1", &["retries"]);
    refused_with("retries = 2", "retries = 99999999999999999999", &[]);
    refused_with("listen = [\"127.0.0.1:0\"]", "listen = 8080", &["listen"]);
}

#[test]
fn an_unknown_key_gets_a_suggestion() {
    refused_with("retries = 2", "retrys = 2", &["retrys", "retries"]);
}

#[test]
fn an_unknown_strategy_gets_a_suggestion() {
    refused_with("\"round_robin\"", "\"round_robbin\"", &["round_robbin", "round_robin"]);
}

#[test]
fn duplicate_names() {
    refused_with("name = \"b\"", "name = \"a\"", &["a"]);
    refused_with("[pool.web.health]", "[frontend.web]\n[pool.web.health]", &[]);
}

#[test]
fn duplicate_addresses() {
    let Place { folder, file } = place();
    let one = "listen = [\"127.0.0.1:0\"]";
    let twice = good(&folder).replace(one, "listen = [\"127.0.0.1:18080\", \"127.0.0.1:18080\"]");
    fs::write(&file, twice).expect("a folder");
    assert!(refused(&file).contains("127.0.0.1:18080"));
    let across = good(&folder).replace(one, "listen = [\"127.0.0.1:18080\"]")
        + "\n[frontend.other]\nlisten = [\"127.0.0.1:18080\"]\npool = \"web\"\n";
    fs::write(&file, across).expect("a folder");
    assert!(refused(&file).contains("127.0.0.1:18080"));
}

#[test]
fn a_pool_that_is_not_there() {
    refused_with("pool = \"web\"", "pool = \"wed\"", &["wed", "web"]);
}

#[test]
fn every_error_is_told_at_once() {
    let Place { folder, file } = place();
    let bad = good(&folder)
        .replace("\"round_robin\"", "\"sideways\"")
        .replace("pool = \"web\"", "pool = \"nowhere\"")
        .replace("drain_timeout = \"60s\"", "drain_timeout = \"soon\"");
    fs::write(&file, bad).expect("a folder");
    let said = refused(&file);
    for word in ["sideways", "nowhere", "soon"] {
        assert!(said.contains(word), "{word} is missing in: {said}");
    }
}

#[test]
fn an_address_in_use_is_a_failure_at_run_time_that_names_it() {
    let Place { folder, file } = place();
    let taken = socket::listener();
    let address = taken.local_addr().expect("a bound socket").to_string();
    fs::write(&file, good(&folder).replace("127.0.0.1:0\"]", &format!("{address}\"]"))).expect("a folder");
    let output = run(&["run", "--config", path(&file)]);
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&address) && said.contains("in use"), "{said}");
}

#[test]
fn an_address_of_another_host_is_a_failure_at_run_time_that_names_it() {
    let Place { folder, file } = place();
    // TEST-NET-1 (RFC 5737): no host has it.
    fs::write(&file, good(&folder).replace("127.0.0.1:0\"]", "192.0.2.1:18080\"]")).expect("a folder");
    let output = run(&["run", "--config", path(&file)]);
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("192.0.2.1:18080"), "{said}");
}

#[test]
fn an_admin_address_that_is_public_needs_a_word_of_consent() {
    refused_with("listen = \"127.0.0.1:0\"", "listen = \"0.0.0.0:0\"", &["allow_public"]);
}
