//! The `lemonade` command.

fn main() {}
