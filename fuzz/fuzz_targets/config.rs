//! Any text is a configuration or a list of errors, never a panic.

#![no_main]

use std::path::Path;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    if let Err(error) = lemonade::config::parse_text(Path::new("fuzz.toml"), text, &[]) {
        assert!(!error.diagnostics.is_empty());
    }
});
