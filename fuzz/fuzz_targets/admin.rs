//! Any bytes sent to the admin socket get an answer of HTTP or none, and the next request is answered.

#![no_main]

use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let socket = lemonade_tests::admin::inside();
    lemonade_tests::admin::send_to(socket, input);
    let alive = lemonade_tests::http::get_unix(socket, "/healthz").expect("it answers");
    assert_eq!(alive.status, 200);
});
