//! The rules, as a table.

use std::fmt;

use regex::Regex;

use super::source::Source;

/// A rule that was broken.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Violation {
    path: String,
    line: usize,
    pub rule: &'static str,
    instead: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}: {}: {}", self.path, self.line, self.rule, self.instead)
    }
}

/// Whether a rule is about a file.
type Applies = fn(&Source) -> bool;

/// What must hold.
pub struct Rule {
    pub name: &'static str,
    applies: Applies,
    must: Must,
    instead: &'static str,
}

enum Must {
    /// No line of code matches.
    NotHold(Regex),
    /// No line matches, comments included.
    NotSay(Regex),
    /// At most one line of code matches in all files together.
    HoldOnce(Regex),
    /// A file whose code matches the first matches the second too.
    HoldWith(Regex, Regex),
    /// Some line of code matches.
    Hold(Regex),
    /// At most so many lines.
    FitLines(usize),
}

impl Rule {
    /// Every violation in `sources`.
    pub fn check(&self, sources: &[Source]) -> Vec<Violation> {
        let sources = sources.iter().filter(|source| (self.applies)(source));
        match &self.must {
            Must::NotHold(pattern) => sources.flat_map(|s| self.matches(s, &s.code, pattern)).collect(),
            Must::NotSay(pattern) => sources.flat_map(|s| self.matches(s, &s.lines, pattern)).collect(),
            Must::HoldOnce(pattern) => {
                sources.flat_map(|s| self.matches(s, &s.code, pattern)).skip(1).collect()
            }
            Must::HoldWith(pattern, with) => sources
                .filter(|source| !source.code.iter().any(|line| with.is_match(line)))
                .flat_map(|source| self.matches(source, &source.code, pattern))
                .collect(),
            Must::Hold(pattern) => sources
                .filter(|source| !source.code.iter().any(|line| pattern.is_match(line)))
                .map(|source| self.violation(source, 1))
                .collect(),
            Must::FitLines(most) => sources
                .filter(|source| source.lines.len() > *most)
                .map(|source| self.violation(source, most + 1))
                .collect(),
        }
    }

    fn matches(&self, source: &Source, lines: &[String], pattern: &Regex) -> Vec<Violation> {
        let hits = lines.iter().enumerate().filter(|(_, line)| pattern.is_match(line));
        hits.map(|(i, _)| self.violation(source, i + 1)).collect()
    }

    fn violation(&self, source: &Source, line: usize) -> Violation {
        Violation { path: source.path.clone(), line, rule: self.name, instead: self.instead.to_owned() }
    }
}

/// Calls and constants that only Linux has, of those that a balancer would want.
const LINUX_ONLY: &str = r"(?x)
    \bstd::os::linux\b
    | \brustix::(mount|thread|event::(epoll|eventfd))\b
    | \bset_(tcp_user_timeout|tcp_quickack|tcp_cork|freebind(_ipv4|_ipv6)?|mark|cpu_affinity|incoming_cpu)\(
    | \bbind_device\(
    | \blibc::(accept4|epoll_\w+|eventfd|pidfd_\w+|prctl|splice|recvmmsg|sendmmsg)\b
    | \blibc::(IP_BIND_ADDRESS_NO_PORT|IP_FREEBIND|TCP_(USER_TIMEOUT|QUICKACK|CORK|INFO|DEFER_ACCEPT|CONGESTION))\b
    | \blibc::(SO_MARK|SO_BUSY_POLL|SO_INCOMING_CPU|SIOCOUTQ|TIOCOUTQ|MSG_ZEROCOPY|EPOLL\w*|PR_\w+|SYS_\w+)\b";

/// Paths that make a channel although they are not `app`, with the reason.
const CHANNEL_MAKERS: [(&str, &str); 4] = [
    ("lemonade/src/config/adapters/", "the file watcher's thread wakes its own task"),
    (
        "lemonade/src/metrics/adapters/access.rs",
        "the access log is one thread, reached only through its type",
    ),
    (
        "lemonade/src/metrics/adapters/otlp/",
        "the log leads into it, and there is a log before there is an app",
    ),
    (
        "lemonade/src/proxy/adapters/tokio_proxy.rs",
        "one channel for each worker thread, whose number the plane knows",
    ),
];

const TOP_LEVEL: [&str; 27] = [
    ".cargo",
    ".ci",
    ".git",
    ".gitattributes",
    ".gitignore",
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-MIT",
    "README.md",
    "clippy.toml",
    "config",
    "deny.toml",
    "deploy",
    "docs",
    "fuzz",
    "lemonade",
    "lemonade-common",
    "lemonade-ebpf",
    "rust-toolchain.toml",
    "rustfmt.toml",
    "target",
    "tests",
    "xtask",
];

/// A violation for each name at the top level that is not known.
pub fn unknown_at_top<'a>(names: impl Iterator<Item = &'a str>) -> Vec<Violation> {
    names
        .filter(|name| !TOP_LEVEL.contains(name))
        .map(|name| Violation {
            path: name.to_owned(),
            line: 1,
            rule: "top-level",
            instead: "move it into a folder, or add it to TOP_LEVEL in xtask/src/tidy/rules.rs".to_owned(),
        })
        .collect()
}

/// Every rule on the text of files.
pub fn rules() -> Vec<Rule> {
    let mut rules = vec![
        Rule {
            name: "I1 aya",
            applies: |s| s.is_rust() && ours(s) && !s.path.starts_with("lemonade/src/proxy/adapters/bpf/"),
            must: Must::NotHold(regex(r"\baya(_\w+)?::")),
            instead: "name `aya` only under lemonade/src/proxy/adapters/bpf and give the rest a port",
        },
        Rule {
            name: "I2 pure",
            applies: is_pure,
            must: Must::NotHold(regex(
                r"\btokio(_util)?\b|\bInstant::now|\bSystemTime::now|\.elapsed\(\)|\bfastrand\b|\brand::|\bstd::(net::Tcp|fs|thread)\b",
            )),
            instead: "take time, randomness and addresses as arguments and return a decision that a shell performs",
        },
        Rule {
            name: "I4 one ArcSwap",
            applies: |s| s.is_rust() && s.path.starts_with("lemonade/src/"),
            must: Must::HoldOnce(regex(r"\bArcSwap(Any|Option)?\s*<|=\s*(arc_swap::)?ArcSwap\b")),
            instead: "the dispatch table is the one value that is swapped: put this into it, or into a cell or a watch channel",
        },
        Rule {
            name: "I6 one table load",
            // Programs are loaded too, where no table is.
            applies: |s| {
                let bpf = s.path.starts_with("lemonade/src/proxy/adapters/bpf");
                s.is_rust() && !s.is_test() && s.path.starts_with("lemonade/src/proxy/") && !bpf
            },
            must: Must::HoldOnce(regex(r"\.load(_full)?\(\)|\barc_swap::(Guard|Cache)\b")),
            instead: "take the table once per connection and pass `&table` down",
        },
        Rule {
            name: "I7 channels",
            applies: |s| ours(s) && s.is_rust() && !s.is_test() && !makes_channels(s),
            must: Must::NotHold(regex(
                r"\b(mpsc|watch|broadcast)::(unbounded_|sync_)?channel\b|\bunbounded_channel\b",
            )),
            instead: "make the channel in app::build and move its ends in; a thread's own channel goes to CHANNEL_MAKERS with its reason",
        },
        Rule {
            name: "I8 no_std",
            applies: |s| s.path == "lemonade-common/src/lib.rs",
            must: Must::Hold(regex(r"^#!\[no_std\]|^#!\[cfg_attr\(not\(test\), no_std\)\]")),
            instead: "lemonade-common runs in the kernel: write #![no_std] at its top",
        },
        Rule {
            name: "I8 no alloc",
            applies: |s| s.is_rust() && !s.is_test() && s.path.starts_with("lemonade-common/src/"),
            must: Must::NotHold(regex(r"\balloc\b|\bstd::|\b(Vec|String|Box|Arc|Rc|HashMap|BTreeMap)\b[:<]")),
            instead: "use core and fixed-size arrays: nothing in lemonade-common allocates",
        },
        Rule {
            name: "linux behind cfg",
            applies: |s| s.is_rust() && s.path.starts_with("lemonade/src/"),
            must: Must::HoldWith(
                // What POSIX has (locks, limits, user ids, error numbers) is on every Unix.
                regex(LINUX_ONLY),
                regex(r#"target_os = "linux""#),
            ),
            instead: r#"put it behind #[cfg(target_os = "linux")] in this file, with what other systems do beside it"#,
        },
        Rule {
            name: "file length",
            applies: Source::is_rust,
            must: Must::FitLines(500),
            instead: "split the file: 500 lines at most, 100 to 200 is usual",
        },
        Rule {
            name: "unfinished",
            applies: |s| !describes_rules(s),
            must: Must::NotSay(regex(r"\b(TODO|FIXME|XXX)\b|\b(todo|unimplemented)!")),
            instead: "finish it, or leave it out and say so in the documentation",
        },
        Rule {
            name: "ignored test",
            applies: |s| s.is_rust() && !describes_rules(s),
            must: Must::NotSay(regex(r"^\s*#\[ignore\]")),
            instead: r#"write #[ignore = "reason"]: a skip is never silent"#,
        },
        Rule {
            name: "type name",
            applies: |s| s.is_rust() && !describes_rules(s),
            must: Must::NotHold(regex(
                r"\b(struct|enum|trait|type|union)\s+\w*(Manager|Helper|Utils?|Info|Data|Handler)\b",
            )),
            instead: "name it after what it is; Manager, Helper, Util, Info, Data and Handler say nothing",
        },
        Rule {
            name: "get_",
            // In tests, `get_` may be the HTTP method.
            applies: |s| s.is_rust() && !s.is_test() && !describes_rules(s),
            must: Must::NotHold(regex(r"\bfn\s+get_")),
            instead: "name a getter after the thing: `fn weight`, not with get_ before it",
        },
    ];
    rules.extend(PORTS.iter().map(|port| port_rule(port)));
    rules
}

/// Ports, with the rule that keeps the adapters of the others out of theirs.
const PORTS: [(&str, Applies); 5] = [
    ("config", |s| s.path.starts_with("lemonade/src/config/")),
    ("health", |s| s.path.starts_with("lemonade/src/health/")),
    ("metrics", |s| s.path.starts_with("lemonade/src/metrics/")),
    ("strategy", |s| s.path.starts_with("lemonade/src/strategy/")),
    ("proxy", |s| s.path.starts_with("lemonade/src/proxy/")),
];

fn port_rule((port, applies): &(&'static str, Applies)) -> Rule {
    let others: Vec<_> = PORTS.iter().map(|(name, _)| *name).filter(|name| name != port).collect();
    Rule {
        name: "I3 adapters",
        applies: *applies,
        must: Must::NotHold(regex(&format!(r"\b({})::(\{{.*\b)?adapters\b", others.join("|")))),
        instead: "name the other port's trait; app alone names adapters",
    }
}

/// Packages that are built into the product.
fn ours(source: &Source) -> bool {
    source.path.starts_with("lemonade/src/") || source.path.starts_with("lemonade-common/src/")
}

fn is_pure(source: &Source) -> bool {
    const PURE: [&str; 11] = [
        "lemonade/src/model/",
        "lemonade/src/control/table",
        "lemonade/src/control/compile",
        "lemonade/src/control/plan",
        "lemonade/src/control/explain",
        "lemonade/src/control/image",
        "lemonade/src/control/lower",
        "lemonade/src/control/overrides",
        "lemonade/src/control/preview",
        "lemonade/src/strategy/",
        "lemonade/src/health/fsm",
    ];
    source.is_rust() && !source.is_test() && PURE.iter().any(|pure| source.path.starts_with(pure))
}

fn makes_channels(source: &Source) -> bool {
    source.path == "lemonade/src/app.rs"
        || source.path.starts_with("lemonade/src/app/")
        || CHANNEL_MAKERS.iter().any(|(path, _)| source.path.starts_with(path))
}

/// The rules and their tests say what they forbid.
fn describes_rules(source: &Source) -> bool {
    source.path.starts_with("xtask/src/tidy/")
}

fn regex(pattern: &str) -> Regex {
    Regex::new(pattern).expect("the patterns of the table are valid: a test builds them all")
}
