//! Reads a configuration file; everything that may be wrong with a file is an error in words.

use std::fs::File;
use std::io::{ErrorKind, Read as _};
use std::path::Path;

use super::error::{ConfigError, Diagnostic};

/// Bytes of a file at most.
pub(super) const LARGEST: u64 = 16 * 1024 * 1024;

/// Reads the text of a file.
pub(super) fn text(path: &Path) -> Result<String, ConfigError> {
    let wrong = |position, message: String, hint: &str| ConfigError {
        file: path.to_owned(),
        diagnostics: vec![Diagnostic { position, field: String::new(), message, hint: hint.to_owned() }],
    };
    let cannot = |error: std::io::Error| {
        let hint = if error.kind() == ErrorKind::NotFound {
            "check the path; it is relative to the working directory"
        } else if error.kind() == ErrorKind::PermissionDenied {
            "make it readable for the user that runs lemonade"
        } else {
            ""
        };
        wrong(None, format!("cannot be read: {error}"), hint)
    };
    let metadata = std::fs::metadata(path).map_err(cannot)?;
    if metadata.is_dir() {
        return Err(wrong(None, "is a directory".to_owned(), "name a file in it, such as lemonade.toml"));
    }
    let too_large = || wrong(None, "is larger than 16 MiB".to_owned(), "name a TOML file");
    if metadata.len() > LARGEST {
        return Err(too_large());
    }
    let mut bytes = Vec::new();
    // A pipe or a device has no length before it is read.
    File::open(path).and_then(|file| file.take(LARGEST + 1).read_to_end(&mut bytes)).map_err(cannot)?;
    if bytes.len() as u64 > LARGEST {
        return Err(too_large());
    }
    String::from_utf8(bytes).map_err(|error| {
        let offset = error.utf8_error().valid_up_to();
        let before = &error.as_bytes()[..offset];
        let line = 1 + before.iter().filter(|byte| **byte == b'\n').count();
        let line_start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
        let column = 1 + String::from_utf8_lossy(&before[line_start..]).chars().count();
        wrong(
            Some((line, column)),
            format!("byte {offset} is not valid UTF-8"),
            "save the file as UTF-8 text",
        )
    })
}
