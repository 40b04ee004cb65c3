//! Conversations that last: a question every few milliseconds on each connection, whatever becomes of the balancer.

use std::net::SocketAddrV4;
use std::os::fd::OwnedFd;
use std::time::Duration;

use anyhow::Result;
use clap::Args;

use super::poll::{Poll, Ready};
use super::sample::{Silence, Talks};
use super::usage::now_ns;
use super::wire::{CHUNK, Moved, dial, read, request, write};

/// Silences shorter than this, in nanoseconds, are not told.
const WORTH_TELLING_NS: u64 = 1_000_000;
/// Nanoseconds from a connection that broke to the one in its place.
const AGAIN_NS: u64 = 2_000_000;

/// How many conversations, how often a question, for how long.
#[derive(Clone, Debug, Args)]
pub struct Plan {
    /// Addresses to connect to, in turn.
    #[arg(long, value_delimiter = ',', required = true)]
    target: Vec<SocketAddrV4>,
    /// Conversations at a time.
    #[arg(long)]
    conns: usize,
    /// Bytes of an answer.
    #[arg(long)]
    answer: u64,
    /// Milliseconds from an answer to the next question.
    #[arg(long)]
    pause: f64,
    /// Seconds in all.
    #[arg(long)]
    seconds: f64,
}

struct Conversation {
    sock: Option<OwnedFd>,
    /// An answer has come on this connection.
    settled: bool,
    asked: bool,
    got: u64,
    /// When to ask next, or to connect anew.
    due_ns: u64,
    /// Since when it has waited for an answer.
    since_ns: u64,
}

struct Client<'a> {
    plan: &'a Plan,
    poll: Poll,
    conversations: Vec<Conversation>,
    dialled: usize,
    request: Vec<u8>,
    buffer: Vec<u8>,
    sample: Talks,
}

/// Runs the load.
pub(super) fn run(plan: &Plan) -> Result<Talks> {
    let start = now_ns();
    let fresh =
        |_| Conversation { sock: None, settled: false, asked: false, got: 0, due_ns: start, since_ns: start };
    let mut client = Client {
        plan,
        poll: Poll::new()?,
        conversations: (0..plan.conns).map(fresh).collect(),
        dialled: 0,
        request: request(100, plan.answer),
        buffer: vec![0; CHUNK],
        sample: Talks::default(),
    };
    let end = start + (plan.seconds * 1e9) as u64;
    let mut ready: Vec<Ready> = Vec::new();
    while now_ns() < end {
        client.poll.wait(Some(Duration::from_millis(1)), &mut ready)?;
        for event in ready.drain(..) {
            client.advance(event);
        }
        let now = now_ns();
        for index in 0..client.conversations.len() {
            if client.conversations[index].due_ns <= now {
                client.go_on(index, now);
            }
        }
    }
    for conversation in &client.conversations {
        let silence = Silence { since_ns: conversation.since_ns, took_ns: now_ns() - conversation.since_ns };
        if conversation.asked && silence.took_ns > WORTH_TELLING_NS {
            client.sample.silences.push(silence);
        }
    }
    Ok(client.sample)
}

impl Client<'_> {
    /// Asks, or connects first where there is no connection.
    fn go_on(&mut self, index: usize, now: u64) {
        let conversation = &mut self.conversations[index];
        if conversation.asked {
            return;
        }
        if conversation.sock.is_none() {
            let target = self.plan.target[self.dialled % self.plan.target.len()];
            self.dialled += 1;
            let dialled = dial(target).ok().filter(|sock| self.poll.add(sock, index).is_ok());
            conversation.settled = false;
            conversation.due_ns = if dialled.is_some() { u64::MAX } else { now + AGAIN_NS };
            conversation.sock = dialled;
            // Its first event says that it can be written to.
            return;
        }
        conversation.since_ns = if conversation.settled { now } else { conversation.since_ns };
        self.ask(index);
    }

    fn ask(&mut self, index: usize) {
        let conversation = &mut self.conversations[index];
        let Some(sock) = &conversation.sock else { return };
        match write(sock, &self.request) {
            Moved::Bytes(n) if n == self.request.len() => {
                conversation.asked = true;
                conversation.got = 0;
                conversation.due_ns = u64::MAX;
            }
            Moved::Later => {}
            Moved::Bytes(_) | Moved::Over => self.broke(index),
        }
    }

    fn advance(&mut self, event: Ready) {
        let conversation = &mut self.conversations[event.token];
        let Some(sock) = &conversation.sock else { return };
        if !conversation.asked {
            match (event.over, conversation.settled) {
                (true, _) => self.broke(event.token),
                (false, false) => self.ask(event.token),
                // Between an answer and the next question.
                (false, true) => {}
            }
            return;
        }
        loop {
            match read(sock, &mut self.buffer) {
                Moved::Bytes(n) => conversation.got += n as u64,
                Moved::Later => break,
                Moved::Over => return self.broke(event.token),
            }
        }
        if conversation.got < self.plan.answer {
            return;
        }
        let now = now_ns();
        let silence = Silence { since_ns: conversation.since_ns, took_ns: now - conversation.since_ns };
        conversation.settled = true;
        conversation.asked = false;
        conversation.due_ns = now + (self.plan.pause * 1e6) as u64;
        conversation.since_ns = now;
        self.sample.answers += 1;
        if silence.took_ns > WORTH_TELLING_NS {
            self.sample.silences.push(silence);
        }
    }

    /// Counts a conversation that had had an answer, and connects again in a moment.
    fn broke(&mut self, index: usize) {
        let conversation = &mut self.conversations[index];
        self.sample.broken += u64::from(conversation.settled);
        conversation.sock = None;
        conversation.settled = false;
        conversation.asked = false;
        conversation.due_ns = now_ns() + AGAIN_NS;
    }
}
