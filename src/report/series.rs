//! What each decoded token took, in bounded space: when there are too many points, neighbours are added up two by two.
//!
//! Must not know: sessions, clocks, files.

use serde::{Deserialize, Serialize};

/// Points at most.
pub const MAX_POINTS: usize = 4096;

/// One token, or the sum over several.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Point {
    /// Wanted experts that were in a slot.
    pub hit: u64,
    /// Wanted experts whose read was in flight already.
    pub late: u64,
    /// Wanted experts that had to be read.
    pub miss: u64,
    /// Bytes of reads that were submitted, prefetches included.
    pub bytes: u64,
    /// Time in which decoding did nothing but wait for a read.
    pub stall_ns: u64,
    /// Time of the whole token.
    pub time_ns: u64,
}

impl Point {
    fn add(&mut self, other: &Point) {
        self.hit += other.hit;
        self.late += other.late;
        self.miss += other.miss;
        self.bytes += other.bytes;
        self.stall_ns += other.stall_ns;
        self.time_ns += other.time_ns;
    }
}

/// See the module. As JSON, a list for each of [`Point`]'s fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "Columns", try_from = "Columns")]
pub struct Series {
    each: u64,
    tokens: u64,
    points: Vec<Point>,
}

impl Default for Series {
    fn default() -> Self {
        Self { each: 1, tokens: 0, points: Vec::new() }
    }
}

impl Series {
    /// The next token.
    pub fn push(&mut self, token: Point) {
        if self.tokens == self.each * self.points.len() as u64 {
            if self.points.len() == MAX_POINTS {
                self.fold();
            }
            self.points.push(Point::default());
        }
        self.tokens += 1;
        self.points.last_mut().expect("a point was pushed or has room").add(&token);
    }

    fn fold(&mut self) {
        self.each *= 2;
        self.points = sums(&self.points, 2);
    }

    /// Tokens of each point; the last may have fewer.
    pub fn each(&self) -> u64 {
        self.each
    }
    /// Tokens in all.
    pub fn tokens(&self) -> u64 {
        self.tokens
    }
    /// In order.
    pub fn points(&self) -> &[Point] {
        &self.points
    }
    /// Of all tokens.
    pub fn total(&self) -> Point {
        sums(&self.points, self.points.len().max(1)).pop().unwrap_or_default()
    }

    /// At most `most` sums, each with its number of tokens.
    pub fn coarse(&self, most: usize) -> Vec<(u64, Point)> {
        let group = self.points.len().div_ceil(most.max(1)).max(1);
        let each = self.each * group as u64;
        let tokens = |i: usize| each.min(self.tokens - i as u64 * each);
        sums(&self.points, group).into_iter().enumerate().map(|(i, p)| (tokens(i), p)).collect()
    }
}

fn sums(points: &[Point], group: usize) -> Vec<Point> {
    let sum = |group: &[Point]| {
        let mut sum = Point::default();
        group.iter().for_each(|p| sum.add(p));
        sum
    };
    points.chunks(group).map(sum).collect()
}

/// The series as a file has it.
#[derive(Serialize, Deserialize)]
struct Columns {
    /// [`Series::each`].
    each: u64,
    /// [`Series::tokens`].
    count: u64,
    hit: Vec<u64>,
    late: Vec<u64>,
    miss: Vec<u64>,
    bytes: Vec<u64>,
    stall_ns: Vec<u64>,
    time_ns: Vec<u64>,
}

impl From<Series> for Columns {
    fn from(series: Series) -> Self {
        let column = |of: fn(&Point) -> u64| series.points.iter().map(of).collect();
        Self {
            each: series.each,
            count: series.tokens,
            hit: column(|p| p.hit),
            late: column(|p| p.late),
            miss: column(|p| p.miss),
            bytes: column(|p| p.bytes),
            stall_ns: column(|p| p.stall_ns),
            time_ns: column(|p| p.time_ns),
        }
    }
}

impl TryFrom<Columns> for Series {
    type Error = String;

    fn try_from(c: Columns) -> Result<Self, String> {
        let n = c.hit.len();
        let lists = [&c.hit, &c.late, &c.miss, &c.bytes, &c.stall_ns, &c.time_ns];
        if let Some(odd) = lists.iter().find(|l| l.len() != n) {
            return Err(format!("lists of one length: expected {n} numbers, got {}", odd.len()));
        }
        if n > MAX_POINTS || c.each == 0 || c.each > 1 << 40 || c.count.div_ceil(c.each) != n as u64 {
            return Err(format!("{} tokens, {} a point: expected so many points, got {n}", c.count, c.each));
        }
        // Sums of sane numbers do not overflow: 2^48 ns are three days, 2^48 bytes 256 TiB a token.
        if let Some(large) = lists.iter().flat_map(|l| l.iter()).find(|v| **v > 1 << 48) {
            return Err(format!("numbers of at most 2^48, got {large}"));
        }
        let point = |i: usize| Point {
            hit: c.hit[i],
            late: c.late[i],
            miss: c.miss[i],
            bytes: c.bytes[i],
            stall_ns: c.stall_ns[i],
            time_ns: c.time_ns[i],
        };
        Ok(Self { each: c.each, tokens: c.count, points: (0..n).map(point).collect() })
    }
}
