//! The commands in the guides are run, or parsed by the program that they call.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use lemonade_tests::backend::Backend;
use lemonade_tests::lemonade::{Lemonade, binary};
use lemonade_tests::setup::Setup;
use lemonade_tests::tools::{program, root, said};

use crate::guide::{blocks, pages};

/// Programs of others whose lines change a host, or need one of another kind: the shell parses them, nothing runs.
const OTHERS: [&str; 7] = ["dpkg", "ip", "journalctl", "podman", "setcap", "ssh", "systemctl"];

/// Path of the automation, built once.
fn xtask() -> &'static Path {
    static XTASK: OnceLock<PathBuf> = OnceLock::new();
    XTASK.get_or_init(|| {
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package", "xtask"]).current_dir(root());
        assert!(cargo.status().expect("cargo runs").success(), "xtask cannot be built");
        let target =
            std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root().join("target"), PathBuf::from);
        target.join("debug/xtask")
    })
}

/// The first command of a line as its words, without `sudo`, a comment, and what follows it.
fn command(line: &str) -> Vec<String> {
    let ends = |word: &String| !(word.starts_with('#') || ["|", ">", "&&", "&"].contains(&word.as_str()));
    words(line.trim_start_matches("sudo ")).into_iter().take_while(ends).collect()
}

/// Words of a line; quotes keep theirs together.
fn words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), String::new(), None);
    for letter in line.chars().chain([' ']) {
        match quote {
            Some(open) if letter == open => quote = None,
            None if letter == '"' || letter == '\'' => quote = Some(letter),
            None if letter.is_whitespace() => {
                if !word.is_empty() {
                    words.push(std::mem::take(&mut word));
                }
            }
            Some(_) | None => word.push(letter),
        }
    }
    words
}

/// Lines of the shell blocks of a page; a continued line is one, and comments are gone.
fn lines(text: &str) -> Vec<String> {
    let blocks = blocks(text, "sh").join("\n").replace("\\\n", " ");
    let lines = blocks.lines().map(|line| line.trim().to_owned());
    lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect()
}

/// Commands within running text, without what is in brackets; of alternatives the first.
fn inline(text: &str) -> Vec<Vec<String>> {
    let outside: String = text.split("```").step_by(2).collect();
    let codes = outside.split('`').skip(1).step_by(2).map(str::to_owned);
    let ours = codes.filter(|code| code.starts_with("lemonade ") || code.starts_with("cargo xtask"));
    ours.map(|code| {
        let said = code.split('[').next().unwrap_or_default().split_whitespace();
        let first = said.map(|word| word.split(['\\', '|']).next().unwrap_or_default());
        first.map(|word| if word == "SHELL" { "bash" } else { word }.to_owned()).collect()
    })
    .collect()
}

/// Whether the program takes these arguments: what stands before `--` is parsed, and nothing is done.
fn parsed(words: &[String]) -> bool {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let (mut command, arguments) = match words.as_slice() {
        ["cargo", "xtask", arguments @ ..] => (Command::new(xtask()), arguments),
        [program, arguments @ ..] if Path::new(program).ends_with("lemonade") => {
            (Command::new(binary()), arguments)
        }
        _ => return false,
    };
    let end = arguments.iter().position(|word| *word == "--").unwrap_or(arguments.len());
    let output = command.args(&arguments[..end]).arg("--help").output().expect("it starts");
    output.status.success()
}

#[test]
fn each_command_in_the_guides_exists_with_its_arguments() {
    let mut checked = 0;
    for (page, text) in pages() {
        let lines = lines(&text).into_iter().map(|line| command(&line));
        let ours = lines.filter(|words| matches!(kind(words), Kind::Ours));
        for words in ours.chain(inline(&text)) {
            assert!(parsed(&words), "{}: {words:?}", page.display());
            checked += 1;
        }
    }
    assert!(checked >= 120, "{checked} commands");
    let wrong = ["lemonade", "status", "--wrong"].map(str::to_owned);
    assert!(!parsed(&wrong), "an argument that does not exist would not be seen");
}

/// What becomes of a line of a shell block.
enum Kind {
    /// Lemonade or its automation parses it.
    Ours,
    /// A request, which is run against a live process.
    Request,
    /// A variable, with which a configuration is checked.
    Variable,
    /// A setting of the kernel, which has to exist.
    Setting,
    /// The shell parses it.
    Other,
    /// Nobody knows it.
    Unknown,
}

fn kind(words: &[String]) -> Kind {
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["cargo", "xtask", ..] => Kind::Ours,
        ["sysctl", "-w", ..] => Kind::Setting,
        ["curl" | "for", ..] => Kind::Request,
        [variable, ..] if variable.starts_with("LEMONADE__") => Kind::Variable,
        [program, ..] if Path::new(program).ends_with("lemonade") => Kind::Ours,
        [program, ..] if OTHERS.contains(program) => Kind::Other,
        _ => Kind::Unknown,
    }
}

/// Runs `script` in a shell; `Err` is what it said.
fn shell(options: &str, script: &str) -> Result<(), String> {
    let output = Command::new("sh").args([options, script]).output().expect("a shell");
    output.status.success().then_some(()).ok_or_else(|| said(&output))
}

#[test]
fn each_line_of_a_shell_block_is_run_or_parsed() {
    if program("each_line_of_a_shell_block_is_run_or_parsed", "curl").is_none() {
        return;
    }
    let backends = [Backend::start("a"), Backend::start("b")];
    let lemonade = Lemonade::start(&Setup::single(&[backends[0].address, backends[1].address]));
    let (socket, admin) = (lemonade.socket().display().to_string(), lemonade.admin_address().to_string());
    let web = lemonade.address("web").to_string();
    let mut counts = [0; 4];
    for (page, line) in
        pages().iter().flat_map(|(page, text)| lines(text).into_iter().map(move |line| (page, line)))
    {
        let words = command(&line);
        let (which, outcome) = match kind(&words) {
            Kind::Ours => continue,
            Kind::Request => {
                let here =
                    line.replace("/run/lemonade/admin.sock", &socket).replace("127.0.0.1:9900", &admin);
                let here =
                    here.replace("127.0.0.1:8080", &web).replace("curl ", "curl --fail --max-time 10 ");
                (0, shell("-ec", &here))
            }
            Kind::Variable => (1, accepted(&line)),
            Kind::Setting => (2, exists(&words[2])),
            Kind::Other => (3, Ok(())),
            Kind::Unknown => (3, Err("no test knows this program".to_owned())),
        };
        let outcome = outcome.and_then(|()| shell("-nc", &line));
        outcome.unwrap_or_else(|error| panic!("{}: {line}: {error}", page.display()));
        counts[which] += 1;
    }
    assert!(counts.iter().zip([8, 3, 2, 8]).all(|(&count, least)| count >= least), "{counts:?}");
    let wrong = format!("curl --fail --unix-socket {socket} http://lemonade/api/v1/nothing");
    assert!(shell("-ec", &wrong).is_err(), "a request that is refused would not be seen");
    assert!(
        accepted("LEMONADE__POOL__WEB__STRATEGIE=adaptive").is_err(),
        "a wrong variable would not be seen"
    );
}

/// Whether a configuration is accepted under the variable that `line` sets.
fn accepted(line: &str) -> Result<(), String> {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let file = folder.path().join("lemonade.toml");
    let backends = Setup::single(&[([127, 0, 0, 1], 9001).into(), ([127, 0, 0, 1], 9002).into()]);
    fs::write(&file, backends.text(folder.path())).expect("a writable folder");
    shell("-aec", &format!("{line}\n{} check {}", binary().display(), file.display()))
}

/// Whether the kernel has the setting that `setting`, `key=value`, names.
fn exists(setting: &str) -> Result<(), String> {
    let key = setting.split('=').next().unwrap_or_default();
    let file = Path::new("/proc/sys").join(key.replace('.', "/"));
    file.exists().then_some(()).ok_or_else(|| format!("{} does not exist", file.display()))
}
