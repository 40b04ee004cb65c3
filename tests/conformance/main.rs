//! The conformance suite: what the peers of a connection see must be what a direct connection shows, on every plane.
//!
//! Each case takes a [`Plane`](lemonade_tests::plane::Plane) and runs on all of them. On `direct` it validates the
//! suite itself. `LEMONADE_FULL=1` runs the long version, `LEMONADE_SEED` another seed.

mod backend_failure;
mod early_bytes;
mod faulty;
mod half_close;
mod reset;
mod sessions;
mod slow_reader;
mod stages;
mod transfer;
mod unconnected;
mod urgent;

/// Makes one module of tests per plane out of the cases that take a plane.
macro_rules! on_every_plane {
    ($($module:ident :: $case:ident),* $(,)?) => {
        mod direct {
            $(#[test] fn $case() { super::$module::$case(&lemonade_tests::plane::Direct); })*
        }
        mod copy {
            $(#[test] fn $case() { super::$module::$case(&lemonade_tests::plane::Copy); })*
        }
    };
}

on_every_plane! {
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
    slow_reader::stopped_readers_press_back_and_cost_bounded_memory,
    slow_reader::a_trickling_reader_gets_every_byte,
    urgent::an_urgent_byte_from_the_client_is_one_of_the_stream,
    urgent::an_urgent_byte_from_the_backend_is_one_of_the_stream,
    sessions::scripted_sessions_look_as_they_do_directly,
    backend_failure::a_backend_killed_while_it_sends_ends_as_it_does_directly,
    backend_failure::a_backend_killed_with_bytes_unread_ends_as_it_does_directly,
}
