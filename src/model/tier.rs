//! The experts that a device holds, and what is computed with them there while the CPU computes the others.
//!
//! Must not know: who chooses them.

use crate::{
    Result,
    backend::{Backend, Rows},
    gpu::{Buffer, Ffns, Job, LANES, Place, Shape},
    quant::{FfnMats, QMat, interleaved},
};

/// Bytes of one allocation of slots: drivers limit how large one is, and how many there are.
const ALLOCATION: u64 = 1 << 30;

/// Events after which it is asked whether the device is worth it.
const EVENTS: u64 = 1024;

/// The slots of a MoE layer.
struct Slots {
    shape: Shape,
    /// Slots of an allocation.
    each: u64,
    buffers: Vec<Buffer>,
}

/// What decoding cost on the device, and what it would have cost on the CPU, since the last look. Nanoseconds.
#[derive(Default)]
struct Measured {
    events: u64,
    device: u64,
    /// Of the experts that the device computed.
    cpu: f64,
    /// One expert's row on the CPU; 0 before the first.
    cpu_expert: f64,
    /// The first look is not judged: slots fill then.
    looked: bool,
}

/// See the module.
pub struct Tier {
    ffns: Ffns,
    layers: Vec<Slots>,
    staging: Vec<Buffer>,
    /// An expert's matrices on their way there, row after row.
    plain: [Vec<u8>; 3],
    /// The layer that each lane copies for.
    lanes: [Option<u16>; LANES],
    next_lane: usize,
    uploaded_bytes: u64,
    measured: Measured,
    /// Whether it stays on where it is slower than the CPU.
    stays: bool,
    /// Why it is off, if so.
    off: Option<String>,
}

impl Tier {
    /// Allocates `slots[i]` slots for the experts of MoE layer `i`.
    ///
    /// # Errors
    /// The device's refusal, and the rest of it to try again with fewer: all that was allocated is given back.
    pub fn new(
        mut ffns: Ffns,
        shapes: &[Shape],
        slots: &[usize],
        stays: bool,
    ) -> Result<Self, Box<(crate::Error, Ffns)>> {
        let mut layers: Vec<Slots> = Vec::with_capacity(shapes.len());
        let mut staging = Vec::with_capacity(LANES);
        let largest = shapes.iter().map(Shape::slot_bytes).max().unwrap_or(1);
        let allocated = (|| {
            for _ in 0..LANES {
                staging.push(ffns.device().allocate(largest, Place::Staging)?);
            }
            for (shape, &n) in shapes.iter().zip(slots) {
                let each = (ALLOCATION / shape.slot_bytes()).max(1);
                layers.push(Slots { shape: *shape, each, buffers: Vec::new() });
                let mut left = n as u64;
                while left > 0 {
                    let n = left.min(each);
                    let buffer = ffns.device().allocate(n * shape.slot_bytes(), Place::Device)?;
                    layers.last_mut().expect("just pushed").buffers.push(buffer);
                    left -= n;
                }
            }
            Ok(())
        })();
        if let Err(e) = allocated {
            let slots = layers.into_iter().flat_map(|layer| layer.buffers);
            staging.into_iter().chain(slots).for_each(|buffer| ffns.device().free(buffer));
            return Err(Box::new((e, ffns)));
        }
        Ok(Self {
            ffns,
            layers,
            staging,
            plain: [const { Vec::new() }; 3],
            lanes: [None; LANES],
            next_lane: 0,
            uploaded_bytes: 0,
            measured: Measured::default(),
            stays,
            off: None,
        })
    }

    /// Bytes of RAM that experts of these shapes are copied from.
    pub fn staging_bytes(shapes: &[Shape]) -> u64 {
        (LANES as u64 + 1) * shapes.iter().map(Shape::slot_bytes).max().unwrap_or(0)
    }

    /// The device, for people.
    pub fn describe(&self) -> String {
        self.ffns.describe()
    }

    /// Bytes of the device's memory that the process has taken, where the driver tells.
    pub fn used_bytes(&mut self) -> Option<u64> {
        self.ffns.device().used_bytes()
    }

    /// Bytes of all slots.
    pub fn slots_bytes(&self) -> u64 {
        self.layers.iter().flat_map(|layer| &layer.buffers).map(|buffer| buffer.bytes).sum()
    }

    /// Bytes that were copied to the device.
    pub fn uploaded_bytes(&self) -> u64 {
        self.uploaded_bytes
    }

    /// Why it is no longer used, if so: a sentence.
    pub fn off(&self) -> Option<&str> {
        self.off.as_deref()
    }

    /// It is not used any more.
    pub(super) fn turn_off(&mut self, why: String) {
        self.off = Some(why);
    }

    /// Where an expert's slot is.
    fn place(&self, layer: u16, slot: u32) -> (Buffer, u64) {
        let Slots { shape, each, buffers } = &self.layers[usize::from(layer)];
        let slot = u64::from(slot);
        (buffers[(slot / each) as usize], slot % each * shape.slot_bytes())
    }

    /// Its address, as kernels know it.
    pub(super) fn address(&self, layer: u16, slot: u32) -> u64 {
        let (buffer, at) = self.place(layer, slot);
        buffer.address + at
    }

    /// Starts a layer's experts on the device, once what was copied for it is there.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn start(&mut self, layer: u16, rows: &Rows, jobs: &[Job<'_>]) -> Result<()> {
        for (lane, busy) in self.lanes.iter_mut().enumerate() {
            if *busy == Some(layer) {
                self.ffns.device().wait_copy(lane)?;
                *busy = None;
            }
        }
        self.ffns.start(&self.layers[usize::from(layer)].shape, rows, jobs)
    }

    /// Waits for them and writes their rows.
    ///
    /// # Errors
    /// If the device fails; `out` is as before then.
    pub(super) fn finish(&mut self, out: &mut [f32]) -> Result<()> {
        self.ffns.finish(out)
    }

    /// Begins to copy an expert to its slot.
    ///
    /// # Errors
    /// If the device fails.
    pub(super) fn upload<B: Backend>(
        &mut self,
        b: &mut B,
        (layer, slot): (u16, u32),
        mats: &FfnMats<'_>,
        bias: [&[f32]; 3],
    ) -> Result<()> {
        let (lane, (to, at)) = (self.next_lane, self.place(layer, slot));
        self.next_lane = (lane + 1) % LANES;
        let (device, shape, from) = (self.ffns.device(), &self.layers[usize::from(layer)].shape, self.staging[lane]);
        device.wait_copy(lane)?;
        let gate = mats.gate.as_ref().expect("a tier's experts have gates");
        let [plain_gate, plain_up, plain_down] = &mut self.plain;
        let plain = FfnMats {
            gate: Some(in_rows(b, gate, plain_gate)),
            up: in_rows(b, &mats.up, plain_up),
            down: in_rows(b, &mats.down, plain_down),
        };
        shape.lay_out(&plain, bias, |at, bytes| device.write(from, at, bytes));
        device.copy(lane, from, to, at, shape.slot_bytes())?;
        self.lanes[lane] = Some(layer);
        self.uploaded_bytes += shape.slot_bytes();
        Ok(())
    }

    /// Takes note of what a row of an expert takes on the CPU.
    pub(super) fn cpu_took(&mut self, experts: usize, ns: u64) {
        let each = ns as f64 / experts as f64;
        let mean = &mut self.measured.cpu_expert;
        *mean = if *mean == 0.0 { each } else { *mean + (each - *mean) / 256.0 };
    }

    /// Takes note of what an event's experts took on the device: time in which the CPU did nothing else. Says whether it should
    /// be used any longer.
    pub(super) fn device_took(&mut self, experts: usize, ns: u64) -> bool {
        let measured = &mut self.measured;
        measured.events += 1;
        measured.device += ns;
        measured.cpu += experts as f64 * measured.cpu_expert;
        if measured.events < EVENTS || measured.cpu_expert == 0.0 {
            return true;
        }
        let (device, cpu) = (measured.device as f64, measured.cpu);
        let worth_it = !std::mem::replace(&mut measured.looked, true) || device <= cpu || self.stays;
        self.measured = Measured { cpu_expert: measured.cpu_expert, looked: true, ..Measured::default() };
        if !worth_it {
            let name = self.ffns.describe();
            let percent = 100.0 * (device / cpu - 1.0);
            self.off = Some(format!(
                "experts took {percent:.0} % longer on {name} than on the CPU: --vram is off from now on"
            ));
        }
        worth_it
    }
}

/// The matrix with its rows one after another: as it is, or in `plain`.
fn in_rows<'a, B: Backend>(b: &mut B, w: &QMat<'a>, plain: &'a mut Vec<u8>) -> QMat<'a> {
    if !w.interleaved {
        return *w;
    }
    let tile = interleaved::TILE_ROWS * w.row_bytes();
    plain.resize(w.data.len(), 0);
    let whole = plain.len() / tile * tile;
    plain[whole..].copy_from_slice(&w.data[whole..]);
    b.each_row(&mut plain[..whole], tile, tile, |i, out| {
        interleaved::restore_tile(w.ty, &w.data[i * tile..(i + 1) * tile], out);
    });
    QMat::new(w.ty, w.rows, w.cols, plain)
}
