//! A second instance must not take half of the traffic in silence.

use std::process::Command;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, binary};
use lemonade_tests::load::{Load, calls};
use lemonade_tests::setup::{Frontend, Setup};
use lemonade_tests::wait;

#[test]
fn a_second_instance_on_the_same_address_is_refused_with_a_clear_error() {
    let (first, second) = (Backend::start("first"), Backend::start("second"));
    let lemonade = Lemonade::start(&Setup::single(&[first.address]));
    let web = lemonade.address("web");
    let load = Load::start(web, 100);

    let mut setup = Setup::single(&[second.address]);
    setup.frontends[0] = Frontend::on("web", &web.to_string(), "web");
    let mut other = Lemonade::spawn(Command::new(binary()), &setup, |_| {});
    let code = other.wait(wait::SOON).code();
    assert_eq!(code, Some(1), "{}", other.output());
    let said = other.output();
    assert!(said.contains(&web.to_string()), "the error names {web}: {said}");
    assert!(said.contains("in use"), "the error says why: {said}");

    assert!(calls(web, 40).iter().all(|name| name == "first"));
    assert_eq!(load.stop().failed, [""; 0]);
    assert_eq!(second.truth().served(), 0);
}

#[test]
fn a_second_instance_on_the_same_state_folder_is_refused_with_a_clear_error() {
    let backend = Backend::start("a");
    let lemonade = Lemonade::start(&Setup::single(&[backend.address]));
    let state = lemonade.folder().join("state");
    let config = lemonade.folder().join("other.toml");
    let text = Setup::single(&[backend.address]).text(lemonade.folder()).replace("admin.sock", "other.sock");
    std::fs::write(&config, text).expect("a folder");
    let output = lemonade_tests::lemonade::run(&["run", "--config", config.to_str().expect("UTF-8")]);
    let said =
        String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(state.to_str().expect("UTF-8")), "the error names the folder: {said}");
    assert_eq!(calls(lemonade.address("web"), 3), ["a"; 3]);
}
