//! Names the kernel programs that are embedded under feature `ebpf`; `cargo xtask` builds them.

use std::env;
use std::path::PathBuf;

/// Folder of the objects.
const FOLDER: &str = "LEMONADE_BPF_OBJECTS";

/// Objects with the variables that tell their places to the code.
const OBJECTS: [(&str, &str); 5] = [
    ("proxy", "LEMONADE_BPF_PROXY"),
    ("sk_msg", "LEMONADE_BPF_SK_MSG"),
    ("forward", "LEMONADE_BPF_FORWARD"),
    ("decap", "LEMONADE_BPF_DECAP"),
    ("splice", "LEMONADE_BPF_SPLICE"),
];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rerun-if-env-changed={FOLDER}");
    if env::var_os("CARGO_FEATURE_EBPF").is_none() {
        return;
    }
    let Some(folder) = env::var_os(FOLDER).map(PathBuf::from) else {
        println!(
            "cargo::error=feature `ebpf` embeds kernel programs from the folder that {FOLDER} names; \
             `cargo xtask setup` makes them and prints it, and `cargo xtask run` and `test` do both"
        );
        return;
    };
    for (name, variable) in OBJECTS {
        let object = folder.join(name);
        if !object.is_file() {
            println!("cargo::error={FOLDER}: there is no {}; run `cargo xtask setup`", object.display());
            return;
        }
        println!("cargo::rerun-if-changed={}", object.display());
        println!("cargo::rustc-env={variable}={}", object.display());
    }
}
