//! The `lemonade` command.

use std::process::ExitCode;

fn main() -> ExitCode {
    lemonade::cli::main()
}
