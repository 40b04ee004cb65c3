//! `cargo xtask demo splice`.

use std::process::Command;
use std::sync::PoisonError;

use lemonade_tests::lemonade::binary;
use lemonade_tests::netns::Network;
use lemonade_tests::tools::root;

use crate::killed::TURN;

#[test]
fn the_demo_shows_a_download_that_goes_on_without_a_balancer() {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let test = "the_demo_shows_a_download_that_goes_on_without_a_balancer";
    // It makes its own; this says whether that is possible.
    if Network::start(test).is_none() {
        return;
    }
    if Command::new("curl").arg("--version").output().is_err() {
        return lemonade_tests::skip::skip(test, "needs curl");
    }
    let mut demo = Command::new(env!("CARGO"));
    demo.args(["run", "--quiet", "--package", "xtask", "--", "demo", "splice"]).current_dir(root());
    let shown = demo.env("LEMONADE_BIN", binary()).output().expect("cargo runs");
    let (said, wrong) = (String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr));
    assert!(shown.status.success(), "{said}\n{wrong}");
    for line in ["a second later, without a balancer: ", "the download is whole: 60000000 bytes"] {
        assert!(said.contains(line), "{said}\n{wrong}");
    }
}
