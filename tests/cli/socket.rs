//! How an instance is named.

use std::path::Path;

use lemonade_tests::lemonade::{run, run_in};

use crate::operate::two;

/// Whoever names something else than the socket is told what it is, and a variable names the socket as the option does.
#[test]
fn what_is_not_the_admin_socket_is_called_what_it_is() {
    let (_backends, lemonade) = two();
    let folder = lemonade.folder().to_str().expect("UTF-8").to_owned();
    let config = lemonade.config().to_str().expect("UTF-8").to_owned();
    for (named, what) in [
        ("127.0.0.1:9900", "an address"),
        ("http://127.0.0.1:9900/", "a URL"),
        (&folder, "a folder"),
        (&config, "a regular file"),
    ] {
        for command in ["status", "trace"] {
            let output = run(&[command, "--admin", named]);
            let text = String::from_utf8_lossy(&output.stderr).into_owned();
            assert_eq!(output.status.code(), Some(1), "{text}");
            assert!(text.contains(&format!("{named} is {what}, not a unix socket")), "{text}");
            assert!(text.contains("admin.sock"), "it says what to give: {text}");
        }
    }
    let socket = lemonade.socket();
    let by_variable = |value: &Path, further: &[&str]| {
        let mut all = vec!["log-level"];
        all.extend(further);
        run_in(&all, |command| {
            command.env("LEMONADE_ADMIN", value).env_remove("XDG_RUNTIME_DIR");
        })
    };
    assert_eq!(by_variable(&socket, &[]).status.code(), Some(0));
    assert_eq!(
        by_variable(&socket, &["--admin", "/nowhere/admin.sock"]).status.code(),
        Some(1),
        "--admin wins"
    );
    let nowhere = Path::new("/nowhere/admin.sock");
    let named = socket.to_str().expect("UTF-8");
    assert_eq!(by_variable(nowhere, &["--admin", named]).status.code(), Some(0), "--admin wins");
    let empty = String::from_utf8_lossy(&by_variable(Path::new(""), &[]).stderr).into_owned();
    assert!(!empty.contains("value is required"), "{empty}");
    // Before or behind the verb, as one writes it.
    assert_eq!(run(&["--admin", named, "backend", "drain", "a"]).status.code(), Some(0));
    let before = run_in(&["--admin", named, "log-level"], |command| {
        command.env("LEMONADE_ADMIN", nowhere);
    });
    assert_eq!(before.status.code(), Some(0), "it goes before the variable there too");
    let misplaced = run(&["--admin", named, "check", &config]);
    assert_eq!(misplaced.status.code(), Some(2));
    assert!(
        String::from_utf8_lossy(&misplaced.stderr).contains("--admin goes with run and with commands for")
    );
    assert_eq!(run(&["backend", "--admin", named, "drain", "a"]).status.code(), Some(0));
    assert_eq!(run(&["backend", "enable", "a", "--admin", named]).status.code(), Some(0));
}
