//! Every program of the object goes through the verifier.

use lemonade::proxy::adapters::bpf::Kernel;

#[test]
fn every_program_passes_the_verifier() {
    let mut kernel = Kernel::load().expect("the object is loaded");
    let programs = kernel.verify().expect("every program passes");
    assert!(!programs.is_empty(), "the object has no program");
    for program in programs {
        println!("{}: {} instructions verified", program.name, program.verified);
        assert!(program.verified > 0, "{} was not verified", program.name);
    }
}
