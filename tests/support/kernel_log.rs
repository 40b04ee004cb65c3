//! The kernel's log: it must stay clean while programs of ours run.

use std::io::Write as _;
use std::process::Command;
use std::time::Duration;

/// What the kernel says when its own accounts do not add up.
const ALARMS: [&str; 5] = ["WARNING:", "BUG:", "refcount_t", "Call Trace", "inet_sock_destruct"];

/// Last line of a warning.
const END: &str = "---[ end trace";

/// A warning that is explained, and that nothing of ours can prevent.
#[derive(Debug)]
pub struct Known {
    /// What its first line says after the processor and the process.
    first: &'static str,
    /// What its stack names.
    stack: &'static str,
    /// What those of its lines say that are alarms.
    lines: [&'static str; 3],
    /// Where it is explained.
    told: &'static str,
}

/// Linux 6.18 miscounts the memory of a socket whose received bytes a verdict program leaves to userspace while others
/// wait to be sent on through it. The line is that of the check of `sk_forward_alloc`, and of no other.
pub const MISCOUNTED: Known = Known {
    first: " at net/ipv4/af_inet.c:157 inet_sock_destruct+",
    stack: " sk_psock_destroy+",
    lines: [
        " at net/ipv4/af_inet.c:157 inet_sock_destruct+",
        " RIP: 0010:inet_sock_destruct+",
        " Call Trace:",
    ],
    told: "docs/adr/0012-sockmap-relay-protocol.md",
};

/// The alarms of `log`, and the first lines of those warnings in it that are `known`.
fn alarms<'a>(log: &'a str, known: Option<&Known>) -> (Vec<&'a str>, Vec<&'a str>) {
    let (mut alarms, mut faults) = (Vec::new(), Vec::new());
    let mut lines = log.lines().peekable();
    while let Some(first) = lines.next() {
        let mut block = vec![first];
        if first.contains("WARNING:") {
            while lines.peek().is_some_and(|next| !next.contains("WARNING:")) {
                block.extend(lines.next());
                if block.last().is_some_and(|last| last.contains(END)) {
                    break;
                }
            }
        }
        let known = known.filter(|known| {
            first.contains(known.first) && block.iter().any(|line| line.contains(known.stack))
        });
        faults.extend(known.map(|_| first));
        let explained =
            |line: &str| known.is_some_and(|known| known.lines.iter().any(|own| line.contains(own)));
        alarms.extend(
            block
                .into_iter()
                .filter(|line| ALARMS.iter().any(|word| line.contains(word)) && !explained(line)),
        );
    }
    (alarms, faults)
}

/// The log, with the last warning in it whole.
fn log() -> String {
    for _ in 0..20 {
        let log = read();
        let cut = log.rfind("WARNING:").is_some_and(|at| !log[at..].contains(END));
        // Lines of the kind that is no warning, as of the processor's faults at boot, have no end either.
        if !cut || !log.contains("cut here") {
            return log;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    read()
}

fn read() -> String {
    let log = Command::new("dmesg").output().expect("dmesg of util-linux");
    assert!(log.status.success(), "{}", String::from_utf8_lossy(&log.stderr));
    String::from_utf8_lossy(&log.stdout).into_owned()
}

/// Runs a case; the kernel must have nothing to complain of.
///
/// # Panics
/// When it has, or its log may not be read.
pub fn quietly<T>(case: impl FnOnce() -> T) -> T {
    judge(None, case)
}

/// Runs a case; the kernel must have nothing to complain of but `known`, which is told, never hidden.
///
/// # Panics
/// As [`quietly`], and when the fault cannot be noted in the file that `LEMONADE_KNOWN` names.
pub fn quietly_but_for<T>(known: &Known, case: impl FnOnce() -> T) -> T {
    judge(Some(known), case)
}

fn judge<T>(known: Option<&Known>, case: impl FnOnce() -> T) -> T {
    let before = log();
    let outcome = case();
    let after = log();
    let ((alarms_before, faults_before), (alarms, faults)) = (alarms(&before, known), alarms(&after, known));
    for fault in faults.iter().filter(|fault| !faults_before.contains(fault)) {
        tell(known.map_or("", |known| known.told), fault);
    }
    let new: Vec<_> = alarms.into_iter().filter(|line| !alarms_before.contains(line)).collect();
    assert!(new.is_empty(), "the kernel complains: {new:#?}");
    outcome
}

/// Says that the kernel showed a known fault: past what hides the output of tests that pass, and to who counts.
fn tell(told: &str, fault: &str) {
    let line = format!("a known fault of the kernel, see {told}: {fault}\n");
    // A closed standard error leaves the file.
    let _ = std::io::stderr().write_all(line.as_bytes());
    let Some(path) = std::env::var_os("LEMONADE_KNOWN") else { return };
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&path);
    let written = file.and_then(|mut file| file.write_all(line.as_bytes()));
    written.unwrap_or_else(|error| panic!("cannot note a fault in {}: {error}", path.display()));
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As Linux 6.18 wrote it, shortened.
    const LOG: &str = "\
[    0.250103] Speculative Return Stack Overflow: WARNING: See the documentation for mitigation options.
[ 2131.102690] ------------[ cut here ]------------
[ 2131.102693] WARNING: CPU: 1 PID: 21843 at net/ipv4/af_inet.c:157 inet_sock_destruct+0x174/0x1a0
[ 2131.102760] CPU: 1 UID: 0 PID: 21843 Comm: kworker/1:3 Not tainted 6.18.44 #1 PREEMPT(none)
[ 2131.102785] Workqueue: events sk_psock_destroy
[ 2131.102952] RIP: 0010:inet_sock_destruct+0x174/0x1a0
[ 2131.102985] Call Trace:
[ 2131.103153]  <TASK>
[ 2131.103172]  __sk_destruct+0x2b/0x1d0
[ 2131.103178]  sk_psock_destroy+0x316/0x380
[ 2131.103600] ---[ end trace 0000000000000000 ]---
";

    fn seen(log: &str, known: Option<&Known>) -> (usize, usize) {
        // The line of the boot is one that was there before.
        let (alarms, faults) = alarms(log, known);
        (alarms.len() - 1, faults.len())
    }

    #[test]
    fn the_known_fault_is_told_apart_and_only_where_it_may_be() {
        assert_eq!(seen(LOG, Some(&MISCOUNTED)), (0, 1));
        assert_eq!(seen(LOG, None), (3, 0), "an alarm for everybody else");
    }

    #[test]
    fn another_check_of_the_same_function_is_an_alarm() {
        assert_eq!(seen(&LOG.replace("af_inet.c:157", "af_inet.c:154"), Some(&MISCOUNTED)), (3, 0));
    }

    #[test]
    fn the_same_check_on_another_way_is_an_alarm() {
        assert_eq!(seen(&LOG.replace("sk_psock_destroy+", "tcp_v4_rcv+"), Some(&MISCOUNTED)), (3, 0));
    }

    #[test]
    fn what_comes_beside_and_behind_the_known_fault_is_an_alarm() {
        let bug = "[ 2131.103000] BUG: kernel NULL pointer dereference\n";
        let beside = LOG.replace("[ 2131.103153]", &format!("{bug}[ 2131.103153]"));
        assert_eq!(seen(&beside, Some(&MISCOUNTED)), (1, 1));
        assert_eq!(seen(&format!("{LOG}{bug}"), Some(&MISCOUNTED)), (1, 1));
        let more =
            "[ 2140.000000] WARNING: CPU: 0 PID: 1 at net/core/stream.c:217 sk_stream_kill_queues+0x1/0x2\n";
        assert_eq!(seen(&format!("{LOG}{more}"), Some(&MISCOUNTED)), (1, 1));
    }
}
