//! `numpy.random.default_rng(seed).standard_normal()`, bit for bit: SeedSequence, PCG64 (XSL-RR 128/64), and the
//! ziggurat of 256 layers. The reference models' weights are drawn from it.

/// NumPy's default generator.
pub struct Rng {
    state: u128,
    increment: u128,
    tables: Ziggurat,
}

impl Rng {
    /// `default_rng(entropy)`, for a list of integers below 2^32.
    pub fn new(entropy: &[u32]) -> Rng {
        let s = seed_words(entropy);
        let wide = |hi: u64, lo: u64| u128::from(hi) << 64 | u128::from(lo);
        let mut rng = Rng { state: 0, increment: wide(s[2], s[3]) << 1 | 1, tables: Ziggurat::new() };
        rng.step();
        rng.state = rng.state.wrapping_add(wide(s[0], s[1]));
        rng.step();
        rng
    }

    fn step(&mut self) {
        const MULTIPLIER: u128 = 0x2360_ed05_1fc6_5da4_4385_df64_9fcc_f645;
        self.state = self.state.wrapping_mul(MULTIPLIER).wrapping_add(self.increment);
    }

    fn next_u64(&mut self) -> u64 {
        self.step();
        let folded = (self.state >> 64) as u64 ^ self.state as u64;
        folded.rotate_right((self.state >> 122) as u32)
    }

    /// Uniform in [0, 1), with 53 bits.
    pub fn random(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
    }

    /// One draw of the standard normal distribution.
    pub fn standard_normal(&mut self) -> f64 {
        loop {
            let bits = self.next_u64();
            let layer = (bits & 0xff) as usize;
            let magnitude = bits >> 9 & 0x000f_ffff_ffff_ffff;
            let unsigned = magnitude as f64 * self.tables.width[layer];
            let x = if bits >> 8 & 1 == 1 { -unsigned } else { unsigned };
            if magnitude < self.tables.inside[layer] {
                return x;
            }
            if layer == 0 {
                return self.tail(magnitude);
            }
            let (above, below) = (self.tables.density[layer - 1], self.tables.density[layer]);
            if (above - below) * self.random() + below < (-0.5 * x * x).exp() {
                return x;
            }
        }
    }

    /// Beyond the outermost layer; the sign is taken from a bit of the rejected magnitude.
    fn tail(&mut self, magnitude: u64) -> f64 {
        const INVERSE_R: f64 = 0.273_661_237_329_758_3;
        loop {
            let x = -INVERSE_R * (-self.random()).ln_1p();
            let y = -(-self.random()).ln_1p();
            if y + y > x * x {
                return if magnitude >> 8 & 1 == 1 { -(R + x) } else { R + x };
            }
        }
    }
}

/// Where the ziggurat's tail begins.
const R: f64 = 3.654_152_885_361_009;

/// The tables of 256 layers of equal area, the innermost being 1 and the tail 0.
struct Ziggurat {
    /// 52-bit magnitudes below this are inside the curve without a further look.
    inside: [u64; 256],
    /// Edge of the layer over 2^52.
    width: [f64; 256],
    /// exp(-x²/2) at the edge.
    density: [f64; 256],
}

impl Ziggurat {
    /// Computes what NumPy has as literals: `ki_double`, `wi_double`, `fi_double`, equal to the last bit.
    ///
    /// Two things had to be found by comparing. Their area is 7 units in the last place below the exact one (which
    /// moves x₁ by 129), and their libm gave one `exp` a last bit that glibc's today does not.
    fn new() -> Ziggurat {
        const AREA: f64 = 0.004_928_673_233_974_652;
        const SCALE: f64 = (1u64 << 52) as f64;
        let mut z = Ziggurat { inside: [0; 256], width: [0.0; 256], density: [0.0; 256] };
        let mut x = R;
        z.width[255] = x / SCALE;
        z.density[255] = (-0.5 * x * x).exp();
        let base = AREA / z.density[255];
        z.inside[0] = (R / base * SCALE) as u64;
        z.width[0] = base / SCALE;
        z.density[0] = 1.0;
        for i in (1..255).rev() {
            let outer = x;
            x = (-2.0 * (AREA / outer + z.density[i + 1]).ln()).sqrt();
            z.inside[i + 1] = (x / outer * SCALE).round_ties_even() as u64;
            z.width[i] = x / SCALE;
            z.density[i] = (-0.5 * x * x).exp();
            if i == 38 {
                z.density[i] = f64::from_bits(NUMPY_DENSITY_38);
            }
        }
        z
    }
}

/// The one literal that glibc's `exp` misses, by a unit in the last place.
const NUMPY_DENSITY_38: u64 = 0x3fe5_ad29_acc8_5c89;

/// `SeedSequence(entropy).generate_state(4, uint64)`.
fn seed_words(entropy: &[u32]) -> [u64; 4] {
    let mut constant = 0x43b0_d7e5_u32;
    let mut hash = |value: u32| {
        let v = value ^ constant;
        constant = constant.wrapping_mul(0x931e_8875);
        let v = v.wrapping_mul(constant);
        v ^ v >> 16
    };
    let mix = |x: u32, y: u32| {
        let v = x.wrapping_mul(0xca01_f9dd).wrapping_sub(y.wrapping_mul(0x4973_f715));
        v ^ v >> 16
    };
    let mut pool: [u32; 4] = std::array::from_fn(|i| hash(entropy.get(i).copied().unwrap_or(0)));
    for from in 0..4 {
        for to in (0..4).filter(|&to| to != from) {
            pool[to] = mix(pool[to], hash(pool[from]));
        }
    }
    for &word in entropy.iter().skip(4) {
        for slot in &mut pool {
            *slot = mix(*slot, hash(word));
        }
    }
    let mut constant = 0x8b51_f9dd_u32;
    let mut word = |i: usize| {
        let v = pool[i % 4] ^ constant;
        constant = constant.wrapping_mul(0x58f3_8ded);
        let v = v.wrapping_mul(constant);
        u64::from(v ^ v >> 16)
    };
    std::array::from_fn(|i| word(2 * i) | word(2 * i + 1) << 32)
}

/// `numpy.exp` of an f32 of moderate size, as the builds for CPUs with fused multiply-add compute it: reduced to the
/// neighbourhood of 0 in two steps, then a quotient of polynomials.
pub fn numpy_exp(x: f32) -> f32 {
    const NUMERATOR: [f32; 6] = [5.082_763e-4, 6.757_897e-3, 5.114_512e-2, 0.247_361_54, 0.725_766_5, 1.0];
    const DENOMINATOR: [f32; 3] = [2.159_509_4e-2, -0.274_233_55, 1.0];
    let n = (x * std::f32::consts::LOG2_E).round_ties_even();
    let x = n.mul_add(-1.428_606_8e-6, n.mul_add(-0.693_145_75, x));
    let value = |coefficients: &[f32]| coefficients.iter().fold(0.0f32, |sum, &c| sum.mul_add(x, c));
    value(&NUMERATOR) / value(&DENOMINATOR) * n.exp2()
}
