//! Measures Lemonade beside its peers.

/// Options of the bench.
#[derive(clap::Args)]
pub struct Args {}

/// Runs the bench.
pub fn main(_args: Args) -> anyhow::Result<()> {
    anyhow::bail!("the bench is not part of this build")
}
