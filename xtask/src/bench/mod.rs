//! `cargo xtask bench`: Lemonade beside its peers, in namespaces of its own, in one table.

mod args;
mod figures;
mod goals;
mod install;
mod load;
mod net;
mod peers;
mod process;
mod publish;
mod results;
mod rows;
mod run;
mod svg;
mod table;
mod world;

pub use args::Args;

/// Runs the bench, or one process of its load side.
pub fn main(args: Args) -> anyhow::Result<()> {
    match args.load.clone() {
        Some(load) => load.run(),
        None => run::run(&args),
    }
}
