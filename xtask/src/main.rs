//! Automation of the workspace; `cargo xtask --help` lists what it does.

mod bench;
mod bpf;
mod cgroup;
mod dashboard;
mod demo;
mod generate;
mod package;
mod run;
mod set_up;
mod test;
mod tidy;
mod tools;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Runs, tests, checks and measures Lemonade.
#[derive(Parser)]
#[command(name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Find or install what building needs, the toolchain for kernel programs too, and build those
    Setup,
    /// Build a release and start it with config/lemonade.toml and the demo backends it names; arguments after `--` go to `lemonade run` instead
    Run(run::Args),
    /// Run every check and every test, and end with one line of counts
    Test(test::Args),
    /// Show what a relay in the kernel brings on this machine, against copy in the same run
    Demo(demo::Args),
    /// Measure Lemonade beside its peers
    Bench(bench::Args),
    /// Check the invariants of ARCHITECTURE.md
    Tidy,
    /// Build the page of the admin interface into lemonade/dashboard/dist
    Dashboard(dashboard::Args),
    /// Write the schemas that `lemonade schema` prints: config/schema.json and others
    Schema,
    /// Make the .deb, the static binary and the folder that the Containerfile is built in, below target/package
    Package(package::Args),
    /// Draw the pictures of the guides: strategies as they behave, and `lemonade top`
    Pictures,
    /// Write shell completions and the man page to target/assets
    Completions,
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run(args) => return report(run::main(&args)),
        Command::Test(args) => return report(test::main(&args)),
        Command::Setup => {
            set_up::install_for_build();
            if let Some(objects) = bpf::set_up() {
                println!("kernel programs: {}", objects.folder().display());
            }
            Ok(())
        }
        Command::Demo(args) => demo::main(&args),
        Command::Bench(args) => bench::main(args),
        Command::Dashboard(args) => dashboard::main(&args),
        Command::Tidy => return report(tidy::main()),
        Command::Package(args) => package::main(&args),
        Command::Schema => generate::write_schemas(),
        Command::Pictures => generate::draw_pictures(),
        Command::Completions => generate::write_completions(),
    };
    report(done.map(|()| ExitCode::SUCCESS))
}

fn report(done: anyhow::Result<ExitCode>) -> ExitCode {
    done.unwrap_or_else(|error| {
        eprintln!("xtask: {error:#}");
        ExitCode::FAILURE
    })
}
