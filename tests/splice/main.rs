//! Relay `splice` from its file to packets: client, balancer and backends in namespaces of their own.

#![cfg(target_os = "linux")]

mod auto;
#[path = "../conformance/backend_failure.rs"]
mod backend_failure;
mod bulk;
mod crowds;
mod demo;
#[path = "../conformance/early_bytes.rs"]
mod early_bytes;
mod ends;
mod examples;
mod full;
#[path = "../conformance/half_close.rs"]
mod half_close;
mod holes;
mod killed;
mod kills;
mod numbers;
mod options;
#[path = "../conformance/reset.rs"]
mod reset;
mod roads;
#[path = "../conformance/sessions.rs"]
mod sessions;
#[path = "../conformance/slow_reader.rs"]
mod slow_reader;
mod stage;
#[path = "../conformance/stages.rs"]
mod stages;
mod talk;
mod transfers;
#[path = "../conformance/urgent.rs"]
mod urgent;
mod window;

/// The conformance suite of the proxy; streams of a case begin when their connection is spliced, where it waits for that.
macro_rules! on_splice {
    ($($module:ident: $($case:ident),*;)*) => {
        mod conformance {
            $(#[test] fn $module() {
                lemonade_tests::between::run(
                    lemonade_tests::between::Way::Splice,
                    concat!("splice::", stringify!($module)),
                    &[$((stringify!($case), super::$module::$case)),*],
                );
            })*
        }
    };
}

on_splice! {
    half_close:
        client_closes_first_without_a_byte_and_backend_is_silent,
        client_closes_first_without_a_byte_and_backend_goes_on,
        client_closes_first_behind_data_and_backend_is_silent,
        client_closes_first_behind_data_and_backend_goes_on,
        backend_closes_first_without_a_byte_and_client_is_silent,
        backend_closes_first_without_a_byte_and_client_goes_on,
        backend_closes_first_behind_data_and_client_is_silent,
        backend_closes_first_behind_data_and_client_goes_on,
        both_close_at_once_behind_data;
    reset:
        client_resets_before_the_first_byte,
        client_resets_while_it_sends,
        client_resets_while_it_receives,
        client_resets_after_its_fin,
        client_resets_after_the_backends_fin,
        client_resets_while_its_data_is_blocked,
        client_resets_while_the_backends_data_is_blocked,
        backend_resets_before_the_first_byte,
        backend_resets_while_it_sends,
        backend_resets_while_it_receives,
        backend_resets_after_its_fin,
        backend_resets_after_the_clients_fin,
        backend_resets_while_its_data_is_blocked,
        backend_resets_while_the_clients_data_is_blocked;
    slow_reader:
        a_stopped_reader_presses_back,
        stopped_readers_press_back_and_cost_bounded_memory,
        a_trickling_reader_gets_every_byte;
    urgent:
        an_urgent_byte_from_the_client_is_one_of_the_stream,
        an_urgent_byte_from_the_backend_is_one_of_the_stream;
    sessions:
        scripted_sessions_look_as_they_do_directly;
    early_bytes:
        bytes_sent_before_anything_else_arrive,
        a_server_that_speaks_first_is_heard;
    backend_failure:
        a_backend_killed_while_it_sends_ends_as_it_does_directly,
        a_backend_killed_with_bytes_unread_ends_as_it_does_directly;
}
