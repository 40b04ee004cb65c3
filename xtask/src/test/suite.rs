//! The test binaries of the workspace, by tier.

use std::fs;
use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::Stdio;

use anyhow::{Context, ensure};
use serde_json::Value;

use super::tally::Tally;
use crate::bpf::{self, Objects};
use crate::{dashboard, generate, set_up, workspace};

/// Feature that the test targets of the namespace tier require.
const NAMESPACES: &str = "netns";

/// The same, named from the workspace.
const FEATURE: &str = "lemonade-tests/netns";

/// Feature that the test targets of the kernel tier require.
const KERNEL: &str = "bpf";

/// Feature that the test targets of the page tier require.
const PAGE: &str = "page";

/// Most failures of a step that are looked at once more; beyond, the change is broken.
const SECOND_LOOKS: usize = 3;

/// The tests, and where they note what they skipped and which known faults of the kernel they met.
pub struct Suite {
    full: bool,
    skips: PathBuf,
    known: PathBuf,
    objects: Option<Objects>,
}

impl Suite {
    /// Makes the folder for notes.
    pub fn new(full: bool, objects: Option<Objects>) -> anyhow::Result<Self> {
        let folder = workspace::target().join("xtask");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self { full, skips: folder.join("skips"), known: folder.join("known"), objects })
    }

    /// What needs nothing: no root, no network.
    pub fn unit(&self) -> anyhow::Result<Tally> {
        let mut tally = self.run(&["--lib", "--bins"])?;
        tally.add(self.run(&["--doc"])?);
        Ok(tally)
    }

    /// What needs the built binary and loopback.
    pub fn process(&self) -> anyhow::Result<Tally> {
        let targets = targets(&metadata()?, None);
        ensure!(!targets.is_empty(), "the workspace has no process-level test");
        self.run(&named(&targets))
    }

    /// What needs network namespaces.
    pub fn namespace(&self) -> anyhow::Result<Tally> {
        let targets = targets(&metadata()?, Some(NAMESPACES));
        if targets.is_empty() {
            println!("no test target requires the feature `{NAMESPACES}`");
            return Ok(Tally::default());
        }
        if let Err(reason) = set_up::probe_namespaces() {
            let mut skipped = Tally::default();
            targets.iter().for_each(|target| skipped.add(Tally::skip(target, &reason)));
            return Ok(skipped);
        }
        self.run(&[&["--features", FEATURE][..], &named(&targets)].concat())
    }

    /// What needs programs in the kernel.
    pub fn kernel(&self) -> anyhow::Result<Tally> {
        let targets = targets(&metadata()?, Some(KERNEL));
        ensure!(!targets.is_empty(), "the workspace has no test of kernel programs");
        if let Err(reason) = bpf::probe(self.objects.as_ref()) {
            let mut skipped = Tally::default();
            targets.iter().for_each(|target| skipped.add(Tally::skip(target, &reason)));
            return Ok(skipped);
        }
        let tally = self.run(&[&["--features", "lemonade-tests/bpf"][..], &named(&targets)].concat())?;
        ensure!(tally.passed > 0, "programs run in this kernel, and yet no test of them ran");
        Ok(tally)
    }

    /// What needs a browser.
    pub fn page(&self) -> anyhow::Result<Tally> {
        let targets = targets(&metadata()?, Some(PAGE));
        ensure!(!targets.is_empty(), "the workspace has no test of the page");
        if let Err(reason) = set_up::probe_browser() {
            let mut skipped = Tally::default();
            targets.iter().for_each(|target| skipped.add(Tally::skip(target, &reason)));
            return Ok(skipped);
        }
        self.run(&[&["--features", "lemonade-tests/page"][..], &named(&targets)].concat())
    }

    /// Runs tests, then once more and one by one the few that failed.
    fn run(&self, args: &[&str]) -> anyhow::Result<Tally> {
        let mut tally = self.once(args, &[])?;
        let failures = tally.failures.clone();
        if (1..=SECOND_LOOKS).contains(&failures.len()) && tally.failed == failures.len() {
            println!("==> once more, one by one: {}", failures.join(", "));
            let names = failures.iter().map(String::as_str);
            let alone: Vec<&str> = ["--exact", "--test-threads=1"].into_iter().chain(names).collect();
            tally.look_again(self.once(args, &alone)?);
        }
        Ok(tally)
    }

    fn once(&self, args: &[&str], of_tests: &[&str]) -> anyhow::Result<Tally> {
        let lemonade = generate::build_with(self.objects.as_ref())?;
        for notes in [&self.skips, &self.known] {
            fs::write(notes, "").with_context(|| format!("cannot write {}", notes.display()))?;
        }
        let mut cargo = workspace::cargo(&["test", "--no-fail-fast"]);
        bpf::equip(&mut cargo, self.objects.as_ref());
        cargo.args(args).env("LEMONADE_BIN", &lemonade);
        cargo.env("LEMONADE_SKIPS", &self.skips).env("LEMONADE_KNOWN", &self.known);
        if let Some(checker) = dashboard::checker() {
            cargo.env("LEMONADE_AXE", checker);
        }
        if self.full {
            cargo.env("LEMONADE_FULL", "1");
        }
        cargo.arg("--").args(of_tests);
        let mut child = cargo.stdin(Stdio::null()).stdout(Stdio::piped()).spawn()?;
        let mut tally = Tally::default();
        let stdout = child.stdout.take().context("the output of cargo is a pipe")?;
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.read_line(&line);
        }
        let status = child.wait()?;
        tally.read_skips(&fs::read_to_string(&self.skips)?);
        tally.known.extend(fs::read_to_string(&self.known)?.lines().map(str::to_owned));
        if !status.success() && tally.failed == 0 {
            tally.add(Tally::failure(format!("cargo test {}: {status}", args.join(" "))));
        }
        Ok(tally)
    }
}

fn metadata() -> anyhow::Result<Value> {
    let text = workspace::output(&mut workspace::cargo(&["metadata", "--no-deps", "--format-version", "1"]))?;
    Ok(serde_json::from_str(&text)?)
}

fn named(targets: &[String]) -> Vec<&str> {
    targets.iter().flat_map(|target| ["--test", target]).collect()
}

/// Test targets that require `feature`; without one, those that require none.
fn targets(metadata: &Value, feature: Option<&str>) -> Vec<String> {
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    list(metadata, "packages")
        .into_iter()
        .flat_map(|package| list(&package, "targets"))
        .filter(|target| list(target, "kind").iter().any(|kind| kind == "test"))
        .filter(|target| {
            let required = list(target, "required-features");
            feature.map_or(required.is_empty(), |feature| required.iter().any(|one| one == feature))
        })
        .filter_map(|target| target["name"].as_str().map(str::to_owned))
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn targets_are_told_apart_by_the_feature_they_require() {
        let metadata = json!({"packages": [
            {"name": "lemonade", "targets": [{"kind": ["lib"], "name": "lemonade"}]},
            {"name": "lemonade-tests", "targets": [
                {"kind": ["lib"], "name": "support"},
                {"kind": ["test"], "name": "reload"},
                {"kind": ["test"], "name": "paths", "required-features": [NAMESPACES]},
            ]},
        ]});
        assert_eq!(targets(&metadata, None), ["reload"]);
        assert_eq!(targets(&metadata, Some(NAMESPACES)), ["paths"]);
    }
}
