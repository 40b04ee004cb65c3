//! What counts at backends, the choice by it, and the flows that stop counting because they are forgotten.

use aya::maps::{Array, HashMap, MapData, MapError};
use aya::programs::{SchedClassifier, TestRun as _, TestRunOptions};
use lemonade_common::FlowKey;
use lemonade_common::forward::{Carried, FORGOTTEN, Forgotten, opened_key};
use lemonade_common::least::{Choices, Load};

use super::{Forward, table};
use crate::proxy::adapters::bpf::Unavailable;
use crate::proxy::adapters::bpf::loader::{corrupt, refused};

/// Bytes of an entry of the map `LOADS`.
type Bytes = [u8; size_of::<Load>()];

/// `linux/bpf.h`
const BPF_NOEXIST: u64 = 1;

/// Takes an entry for made that was there already.
fn there(inserted: Result<(), MapError>) -> Result<(), Unavailable> {
    match inserted {
        Err(MapError::SyscallError(error)) if error.io_error.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other.map_err(|error| refused(&error)),
    }
}

impl Forward {
    /// Says which backends a ring has, where a service goes by what each of them has or may have.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn put_choices(&mut self, ring: u32, choices: &Choices) -> Result<(), Unavailable> {
        let mut map: Array<_, [u8; size_of::<Choices>()]> = table(&mut self.ebpf, "CHOICES")?;
        // Whose turn it is goes on.
        let turn = map.get(&ring, 0).ok().and_then(|bytes| bytes.first_chunk().copied());
        let choices = Choices { turn: turn.map_or(0, u64::from_ne_bytes), ..*choices };
        map.set(ring, choices.to_bytes(), 0).map_err(|error| refused(&error))
    }

    /// Has the kernel count at a backend, if it does not yet.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn count_live(&mut self, backend: u32) -> Result<(), Unavailable> {
        let mut map: HashMap<_, u32, Bytes> = table(&mut self.ebpf, "LOADS")?;
        there(map.insert(backend, [0; size_of::<Load>()], BPF_NOEXIST))
    }

    /// Has the kernel count the flows of a frontend, if it does not yet.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn count_frontend(&mut self, frontend: u32) -> Result<(), Unavailable> {
        let mut map: HashMap<_, u32, u64> = table(&mut self.ebpf, "FRONTENDS")?;
        there(map.insert(frontend, 0, BPF_NOEXIST))
    }

    /// Live flows of a frontend, since [`Self::count_frontend`].
    pub fn live_of_frontend(&self, frontend: u32) -> Option<u64> {
        let map = HashMap::<&MapData, u32, u64>::try_from(self.ebpf.map("FRONTENDS")?).ok()?;
        map.get(&frontend, 0).ok()
    }

    /// Counts the flows of a frontend no longer.
    pub fn forget_frontend(&mut self, frontend: u32) {
        let map: Result<HashMap<_, u32, u64>, _> = table(&mut self.ebpf, "FRONTENDS");
        // What is not there needs no removal.
        let _ = map.map(|mut map| map.remove(&frontend));
    }

    /// Has the kernel add up what flows of a frontend and a backend carried whose entries are gone, if it does not yet.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn count_gone(&mut self, frontend: u32, backend: u32) -> Result<(), Unavailable> {
        let mut map: HashMap<_, u64, [u8; size_of::<Carried>()]> = table(&mut self.ebpf, "GONE")?;
        there(map.insert(opened_key(frontend, backend), [0; size_of::<Carried>()], BPF_NOEXIST))
    }

    /// What flows of a frontend and a backend carried whose entries are gone, since [`Self::count_gone`].
    pub fn gone(&self, frontend: u32, backend: u32) -> Carried {
        let map = self.ebpf.map("GONE").map(HashMap::<&MapData, u64, [u8; size_of::<Carried>()]>::try_from);
        let Some(Ok(map)) = map else { return Carried::default() };
        map.get(&opened_key(frontend, backend), 0)
            .map_or_else(|_| Carried::default(), |bytes| Carried::from_bytes(&bytes))
    }

    /// Takes that away.
    pub fn forget_gone(&mut self, frontend: u32, backend: u32) {
        let map: Result<HashMap<_, u64, [u8; size_of::<Carried>()]>, _> = table(&mut self.ebpf, "GONE");
        // What is not there needs no removal.
        let _ = map.map(|mut map| map.remove(&opened_key(frontend, backend)));
    }

    /// Says how many connections of a backend or a frontend are not the kernel's, where there is a limit on all of them;
    /// `whose` is [`of_backend`](lemonade_common::place::of_backend) or
    /// [`of_frontend`](lemonade_common::place::of_frontend) of its index.
    ///
    /// # Errors
    /// As bpf(2), in words.
    pub fn put_elsewhere(&mut self, whose: u64, count: u32) -> Result<(), Unavailable> {
        let mut map: HashMap<_, u64, u32> = table(&mut self.ebpf, "ELSEWHERE")?;
        map.insert(whose, count, 0).map_err(|error| refused(&error))
    }

    /// Says that there is no limit any more.
    pub fn forget_elsewhere(&mut self, whose: u64) {
        let map: Result<HashMap<_, u64, u32>, _> = table(&mut self.ebpf, "ELSEWHERE");
        // What is not there needs no removal.
        let _ = map.map(|mut map| map.remove(&whose));
    }

    /// What counts at a backend, since [`Self::count_live`].
    pub fn load_of(&self, backend: u32) -> Option<Load> {
        let map = HashMap::<&MapData, u32, Bytes>::try_from(self.ebpf.map("LOADS")?).ok()?;
        map.get(&backend, 0).ok().map(|bytes| Load::from_bytes(&bytes))
    }

    /// Counts at a backend no longer.
    pub fn forget_live(&mut self, backend: u32) {
        let map: Result<HashMap<_, u32, Bytes>, _> = table(&mut self.ebpf, "LOADS");
        // What is not there needs no removal.
        let _ = map.map(|mut map| map.remove(&backend));
    }

    /// Takes entries out of the connection table, and what they count with them.
    pub fn forget(&mut self, keys: &[FlowKey]) {
        let asked: Vec<Forgotten> = keys.iter().map(|key| Forgotten { key: *key, seen: 0 }).collect();
        self.forget_unless_seen(&asked);
    }

    /// As [`Self::forget`], but for those whose last packet came at another time; says of each whether it was taken out.
    pub fn forget_unless_seen(&mut self, asked: &[Forgotten]) -> Vec<bool> {
        let mut gone = Vec::with_capacity(asked.len());
        for some in asked.chunks(FORGOTTEN) {
            let bits = self.forget_some(some).unwrap_or_else(|error| {
                tracing::error!("flows cannot be forgotten: {error}");
                0
            });
            gone.extend((0..some.len()).map(|at| bits & 1 << at != 0));
        }
        gone
    }

    fn forget_some(&mut self, asked: &[Forgotten]) -> Result<u32, Unavailable> {
        let list: Vec<u8> = asked.iter().flat_map(|own| own.to_bytes()).collect();
        let options = TestRunOptions { data_in: Some(&list), repeat: 1, ..TestRunOptions::default() };
        let result = self.forgetting()?.test_run(options).map_err(|error| refused(&error))?;
        Ok(result.return_value)
    }

    /// The program that forgets flows, which goes through the verifier when it is first asked for.
    pub(super) fn forgetting(&mut self) -> Result<&mut SchedClassifier, Unavailable> {
        let program =
            self.ebpf.program_mut("forward_forget").ok_or_else(|| corrupt("no program forward_forget"))?;
        let program: &mut SchedClassifier =
            program.try_into().map_err(|error: aya::programs::ProgramError| corrupt(&error.to_string()))?;
        if program.fd().is_err() {
            program.load().map_err(|error| refused(&error))?;
        }
        Ok(program)
    }
}
