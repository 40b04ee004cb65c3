//! Every program of the proxy's, of the forward plane's and of relay splice's object goes through the verifier.

use std::collections::BTreeMap;

use lemonade::proxy::adapters::bpf::{Decap, Forward, Kernel, SkMsg, Splice};

/// Instructions that the verifier may follow at most, by program; docs/guide/kernel.md tells of it.
const BOUNDS: &str = include_str!("verified.txt");

/// One of the objects, to see who compiled it.
const OBJECT: &[u8] = include_bytes!(concat!(env!("LEMONADE_BPF_OBJECTS"), "/forward"));

/// Halves that a bound is multiplied by: what a nightly makes of the programs changes from day to day.
fn allowance() -> u32 {
    let nightly = b"-nightly (";
    if OBJECT.windows(nightly.len()).any(|window| window == nightly) { 3 } else { 2 }
}

#[test]
fn every_program_passes_the_verifier_within_its_bound() {
    let mut kernel = Kernel::load().expect("the object is loaded");
    let mut programs = kernel.verify();
    assert!(!programs.is_empty(), "the object has no program");
    programs.extend([Forward::verify(), Forward::verify_forget(), Decap::verify()]);
    programs.extend(Forward::verify_xdp());
    programs.extend(Forward::verify_sockets());
    programs.extend(SkMsg::verify());
    programs.extend(Splice::verify());
    let mut bounds: BTreeMap<&str, u32> = BOUNDS
        .lines()
        .filter(|line| !line.starts_with('#'))
        .map(|line| line.split_once(' ').expect("a name and a bound"))
        .map(|(name, bound)| (name, bound.parse::<u32>().expect("a number") * allowance() / 2))
        .collect();
    for program in programs {
        let followed = program.verdict.unwrap_or_else(|error| panic!("{}: {error}", program.name));
        println!("{}: {followed} instructions verified", program.name);
        assert!(followed > 0, "{} was not verified", program.name);
        let bound = bounds.remove(&*program.name).unwrap_or_else(|| {
            panic!("tests/bpf/verified.txt has no line for {}, which needs {followed}", program.name)
        });
        assert!(
            followed <= bound,
            "the verifier follows {followed} instructions of {}, {bound} are allowed: find out why, or raise the bound in tests/bpf/verified.txt",
            program.name
        );
    }
    assert!(bounds.is_empty(), "tests/bpf/verified.txt has bounds of programs that are gone: {bounds:?}");
}
