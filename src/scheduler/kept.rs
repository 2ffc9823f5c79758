//! What sequences keep of texts that have ended, and where a new prompt goes: to the kept sequence that begins alike, or to the
//! least valuable one.
//!
//! A state that cannot be rewound (recurrent memories, windows) is reused from checkpoints. A sequence has two, see [`Stop`].

use super::task::Task;
use crate::{
    backend::Backend,
    engine::Engine,
    model::{Checkpoint, Sequence},
};

/// What a checkpoint is for. A sequence has one of each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// Another prompt was found to part here.
    Parted,
    /// Near the end of a prompt, where the next prompt of the conversation goes on.
    Turn,
}

/// Checkpoints of a sequence.
pub(super) const CHECKPOINTS: usize = 2;

/// Tokens before the end of a prompt at which its checkpoint is: the next prompt of a conversation may lack what a template puts
/// before an answer, which are fewer.
const TAIL: usize = 16;

/// A prefix of fewer tokens is computed anew rather than waited for, and gets no checkpoint.
const WORTH: usize = 32;

/// See the module.
pub(super) struct Kept {
    /// (parallel)
    places: Vec<Place>,
    /// Whether the model has parts that cannot be rewound.
    needs_checkpoints: bool,
}

#[derive(Default)]
struct Place {
    busy: bool,
    /// Number of the text that used it last.
    used: u64,
    /// By [`Stop`].
    checkpoints: [Option<Checkpoint>; CHECKPOINTS],
}

/// Where a text goes on.
pub(super) struct Placed {
    pub seq: usize,
    /// Tokens of the prompt that are there.
    pub reused: usize,
    /// Lengths at which the sequence is to be kept as it is.
    pub stops: Vec<(usize, Stop)>,
    /// Why not more.
    pub why: Option<String>,
}

/// What a sequence has of a prompt.
#[derive(Clone, Copy)]
struct Found {
    seq: usize,
    /// Tokens that are the same.
    common: usize,
    /// Those of them that can be gone on from.
    usable: usize,
    /// The checkpoint that is needed for that.
    checkpoint: Option<usize>,
}

/// Tokens at the beginning of a prompt that are the same, without its last: that one's logits are wanted.
fn common(tokens: &[u32], prompt: &[u32]) -> usize {
    let same = tokens.iter().zip(prompt).take_while(|(a, b)| a == b).count();
    same.min(prompt.len().saturating_sub(1))
}

impl Kept {
    pub fn new<B: Backend>(engine: &Engine<B>) -> Self {
        let (m, plan) = (engine.blueprint(), engine.plan());
        let ty = engine.sequences()[0].ty();
        let bytes = Sequence::checkpoint_bytes(m, ty, plan.n_ctx, plan.n_batch).unwrap_or(0);
        let places = engine.sequences().iter().map(|_| Place::default()).collect();
        Self { places, needs_checkpoints: bytes > 0 }
    }

    /// Sequences.
    pub fn len(&self) -> usize {
        self.places.len()
    }

    pub fn needs_checkpoints(&self) -> bool {
        self.needs_checkpoints
    }

    /// What each sequence has of the prompt.
    fn found<B: Backend>(&self, engine: &Engine<B>, prompt: &[u32]) -> Vec<Found> {
        let of = |(seq, sequence): (usize, &Sequence)| {
            let common = common(sequence.tokens(), prompt);
            if sequence.check_rewind(common).is_ok() {
                return Found { seq, common, usable: common, checkpoint: None };
            }
            let usable = |(i, checkpoint): (usize, &Option<Checkpoint>)| {
                let checkpoint = checkpoint.as_ref()?;
                let n = checkpoint.tokens().len();
                (n <= common && sequence.check_restore(checkpoint).is_ok()).then_some((n, i))
            };
            let best = self.places[seq].checkpoints.iter().enumerate().filter_map(usable).max();
            let (usable, checkpoint) = best.map_or((0, None), |(n, i)| (n, Some(i)));
            Found { seq, common, usable, checkpoint }
        };
        engine.sequences().iter().enumerate().map(of).collect()
    }

    /// The running text whose prompt, which is not through, has more in common with this one than anything that was computed; and
    /// how much.
    pub fn leader<B: Backend>(&self, engine: &Engine<B>, tasks: &[Task], prompt: &[u32]) -> Option<(u64, usize)> {
        let there = self.found(engine, prompt).iter().map(|found| found.usable).max().unwrap_or(0);
        let running = tasks.iter().filter(|task| task.in_prompt() && !task.ended);
        let shared = running.map(|task| (common(&task.prompt, prompt), task.id));
        // Of equals the first, which is the furthest.
        let best = shared.rev().max_by_key(|(n, _)| *n);
        best.filter(|(n, _)| *n >= there + WORTH).map(|(n, id)| (id, n))
    }

    /// Gives a prompt a sequence that holds as much of it as can be had.
    ///
    /// # Panics
    /// If all sequences are busy.
    pub fn place<B: Backend>(&mut self, engine: &mut Engine<B>, prompt: &[u32], text: u64) -> Placed {
        let found = self.found(engine, prompt);
        let best = *found.iter().max_by_key(|f| (f.usable, !self.places[f.seq].busy)).expect("there is a sequence");
        let alike = found.iter().max_by_key(|f| f.common).expect("there is a sequence");
        let why = self.why(engine, prompt, alike, best.usable);
        let seq = self.target(engine, &best);
        let reused = self.bring(engine, &best, seq);
        let stops = if self.needs_checkpoints { stops(prompt.len(), reused, alike.common) } else { Vec::new() };
        let place = &mut self.places[seq];
        (place.busy, place.used) = (true, text);
        self.reached(engine, seq, &stops);
        Placed { seq, reused, stops, why }
    }

    /// Where the prompt is to go: to what was found, unless that is busy, or has more to lose than another sequence.
    fn target<B: Backend>(&self, engine: &Engine<B>, best: &Found) -> usize {
        let now = self.places.iter().map(|place| place.used).max().unwrap_or(0);
        // Of tokens that would be lost: they count less the longer nobody asked for them.
        let value = |seq: usize, tokens: usize| tokens as f64 / (1 + now - self.places[seq].used) as f64;
        let len = |seq: usize| engine.sequences()[seq].len();
        let free = (0..self.places.len()).filter(|seq| !self.places[*seq].busy);
        let least = free.min_by(|a, b| value(*a, len(*a)).total_cmp(&value(*b, len(*b)))).expect("a sequence is free");
        if best.usable == 0 || self.places[best.seq].busy {
            return least;
        }
        let lost = len(best.seq) - best.usable;
        let here = lost <= best.usable || value(best.seq, lost) <= value(least, len(least));
        if here { best.seq } else { least }
    }

    /// Brings the sequence `to` to what was found; the tokens that it has then.
    fn bring<B: Backend>(&mut self, engine: &mut Engine<B>, best: &Found, to: usize) -> usize {
        let brought = match (best.seq == to, best.checkpoint) {
            (true, None) => engine.sequence_mut(to).rewind(best.usable),
            (true, Some(i)) => engine.sequence_mut(to).restore(self.checkpoint(to, i)),
            (false, None) => {
                let (from, sequence) = engine.sequence_pair(best.seq, to);
                sequence.copy_from(from, best.usable)
            }
            (false, Some(i)) => {
                let (from, sequence) = engine.sequence_pair(best.seq, to);
                sequence.copy_checkpoint(from, self.checkpoint(best.seq, i))
            }
        };
        if brought.is_err() {
            // Checked when it was found; an empty sequence is right whatever happens.
            engine.sequence_mut(to).clear();
        }
        let sequence = &engine.sequences()[to];
        let holds = |checkpoint: &Checkpoint| sequence.tokens().starts_with(checkpoint.tokens());
        for checkpoint in &mut self.places[to].checkpoints {
            checkpoint.take_if(|checkpoint| !holds(checkpoint));
        }
        sequence.len()
    }

    fn checkpoint(&self, seq: usize, i: usize) -> &Checkpoint {
        self.places[seq].checkpoints[i].as_ref().expect("it was found there")
    }

    /// Why no more of the prompt is there, where that is worth a word.
    fn why<B: Backend>(&self, engine: &Engine<B>, prompt: &[u32], alike: &Found, usable: usize) -> Option<String> {
        if alike.common > usable {
            let why = engine.sequences()[alike.seq].check_rewind(alike.common).err()?;
            return Some(format!("{} tokens are kept, but {why}", alike.common));
        }
        let any = engine.sequences().iter().any(|sequence| !sequence.is_empty());
        (any && usable < prompt.len() / 2).then(|| format!("kept prompts differ after {usable} tokens"))
    }

    /// The text has ended; what it computed stays.
    pub fn release(&mut self, seq: usize) {
        self.places[seq].busy = false;
    }

    /// Takes a checkpoint where one is wanted at the length that the sequence has now.
    pub fn reached<B: Backend>(&mut self, engine: &mut Engine<B>, seq: usize, stops: &[(usize, Stop)]) {
        let len = engine.sequences()[seq].len();
        for (_, stop) in stops.iter().filter(|(at, _)| *at == len) {
            let checkpoint = &mut self.places[seq].checkpoints[*stop as usize];
            if checkpoint.as_ref().is_none_or(|checkpoint| checkpoint.tokens().len() != len) {
                // Given back first: the budget has room for one. Without memory for another, the prefix is not reused, and nothing
                // else is lost.
                *checkpoint = None;
                *checkpoint = engine.sequence_mut(seq).checkpoint().ok();
            }
        }
    }
}

/// Where a prompt of `len` tokens is to be kept as it is, if it cannot be rewound: near its end, or where it begins to be computed
/// if that is nearer; and where another one parted from it.
fn stops(len: usize, reused: usize, parted: usize) -> Vec<(usize, Stop)> {
    let mut stops = vec![(len.saturating_sub(TAIL).max(reused), Stop::Turn)];
    if parted >= reused + WORTH {
        stops.push((parted, Stop::Parted));
    }
    stops.retain(|(at, _)| *at > 0);
    stops
}
