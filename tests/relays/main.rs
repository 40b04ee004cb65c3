//! The conformance suite on relays in the kernel, with proof that bytes went that way.

#![cfg(target_os = "linux")]

#[path = "../conformance/early_bytes.rs"]
mod early_bytes;
#[path = "../conformance/half_close.rs"]
mod half_close;
mod killed;
#[path = "../conformance/reset.rs"]
mod reset;
#[path = "../conformance/slow_reader.rs"]
mod slow_reader;
#[path = "../conformance/stages.rs"]
mod stages;
#[path = "../conformance/transfer.rs"]
mod transfer;
#[path = "../conformance/urgent.rs"]
mod urgent;

macro_rules! on_sockmap {
    ($($module:ident :: $case:ident),* $(,)?) => {
        mod sockmap {
            $(#[test] fn $case() {
                let case = || super::$module::$case(&lemonade_tests::plane::Sockmap);
                lemonade_tests::kernel_log::quietly_but_for(&lemonade_tests::kernel_log::MISCOUNTED, case);
            })*
        }
    };
}

on_sockmap! {
    transfer::streams_of_every_size_arrive_exact_in_both_directions,
    early_bytes::bytes_sent_before_anything_else_arrive,
    early_bytes::a_server_that_speaks_first_is_heard,
    half_close::client_closes_first_without_a_byte_and_backend_is_silent,
    half_close::client_closes_first_without_a_byte_and_backend_goes_on,
    half_close::client_closes_first_behind_data_and_backend_is_silent,
    half_close::client_closes_first_behind_data_and_backend_goes_on,
    half_close::backend_closes_first_without_a_byte_and_client_is_silent,
    half_close::backend_closes_first_without_a_byte_and_client_goes_on,
    half_close::backend_closes_first_behind_data_and_client_is_silent,
    half_close::backend_closes_first_behind_data_and_client_goes_on,
    half_close::both_close_at_once_behind_data,
    reset::client_resets_before_the_first_byte,
    reset::client_resets_while_it_sends,
    reset::client_resets_while_it_receives,
    reset::client_resets_after_its_fin,
    reset::client_resets_after_the_backends_fin,
    reset::client_resets_while_its_data_is_blocked,
    reset::client_resets_while_the_backends_data_is_blocked,
    reset::backend_resets_before_the_first_byte,
    reset::backend_resets_while_it_sends,
    reset::backend_resets_while_it_receives,
    reset::backend_resets_after_its_fin,
    reset::backend_resets_after_the_clients_fin,
    reset::backend_resets_while_its_data_is_blocked,
    reset::backend_resets_while_the_clients_data_is_blocked,
    slow_reader::a_stopped_reader_presses_back,
    slow_reader::stopped_readers_press_back_and_cost_bounded_memory,
    slow_reader::a_trickling_reader_gets_every_byte,
    urgent::an_urgent_byte_from_the_client_is_one_of_the_stream,
    urgent::an_urgent_byte_from_the_backend_is_one_of_the_stream,
}

#[test]
fn a_relay_that_is_not_proven_carries_nothing_and_says_why() {
    let backend = lemonade_tests::backend::Backend::start("a");
    let setup = lemonade_tests::setup::Setup::single(&[backend.address]).frontend(&["relay = \"sockmap\""]);
    let lemonade = lemonade_tests::lemonade::Lemonade::start(&setup);
    assert_eq!(lemonade_tests::load::calls(lemonade.address("web"), 20), ["a"; 20]);
    lemonade_tests::wait::until("the reason is told", lemonade_tests::wait::SOON, || {
        let web = lemonade.status().0["frontends"][0].clone();
        web["relay"] == "copy" && web["relay_why"].as_str().is_some_and(|why| why.contains("stood still"))
    });
    assert!(lemonade.output().contains("stood still"), "{}", lemonade.output());
}
