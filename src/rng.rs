//! Counter-based random numbers: Philox4x32-10 (Salmon et al., SC 2011). A draw depends on the seed,
//! the global element, the step and the purpose alone, never on threads, order or sharding.

/// What a draw is for; draws for different purposes are independent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Rounding the parameter.
    Weight,
    /// Rounding the state with this index.
    State(usize),
    /// Dithering the state with this index.
    Dither(usize),
}

impl Purpose {
    fn bits(self) -> u32 {
        let number = match self {
            Self::Weight => 0,
            Self::State(state) => 1 + state,
            Self::Dither(state) => 8 + state,
        };
        // At most three states.
        (number as u32) << 28
    }
}

/// The random numbers of one tensor in one step.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Stream {
    keys: RoundKeys,
    /// 28 bits of a hash of the tensor's name, so that the order of tensors does not matter.
    tensor: u32,
    step: u32,
}

impl Stream {
    pub(crate) fn new(seed: u64, tensor: u32, step: i32) -> Self {
        Self {
            keys: round_keys(seed),
            tensor: tensor & 0x0fff_ffff,
            step: step.cast_unsigned(),
        }
    }

    #[inline(always)]
    fn counter(&self, purpose: Purpose, row: usize, group: usize) -> [u32; 4] {
        let last = self.tensor | purpose.bits();
        [group as u32, row as u32, self.step, last]
    }

    /// The eight draws of columns `8 group ..` of a row: bits 0-15 of the first word, 16-31, then
    /// the second word.
    #[inline(always)]
    pub(crate) fn eight(&self, purpose: Purpose, row: usize, group: usize) -> [u16; 8] {
        let words = philox4x32(self.counter(purpose, row, group), &self.keys);
        let mut draws = [0; 8];
        for (pair, word) in draws.chunks_mut(2).zip(words) {
            pair[0] = word as u16;
            pair[1] = (word >> 16) as u16;
        }
        draws
    }

    /// The draw of one column.
    pub(crate) fn draw(&self, purpose: Purpose, row: usize, col: usize) -> u16 {
        self.eight(purpose, row, col / 8)[col % 8]
    }

    /// The draw of a block for subtractive dither. Instead of the step it is keyed by the bits of
    /// the block's scale, which are stored with the codes: so a block decodes rightly whenever it
    /// was coded, skipped steps included.
    pub(crate) fn dither(&self, state: usize, row: usize, block: usize, scale: f32) -> u16 {
        let keyed = Self {
            step: scale.to_bits(),
            ..*self
        };
        keyed.eight(Purpose::Dither(state), row, block)[0]
    }
}

/// The draws of a chunk of elements.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Draws<'a> {
    pub(crate) stream: &'a Stream,
    pub(crate) purpose: Purpose,
    pub(crate) row: usize,
    /// The first of 16 groups of eight columns.
    pub(crate) group: usize,
}

impl Draws<'_> {
    /// The counter of the first group; those that follow are one more each in the first word.
    #[inline(always)]
    pub(crate) fn counter(&self) -> [u32; 4] {
        self.stream.counter(self.purpose, self.row, self.group)
    }

    /// The key of each round.
    #[inline(always)]
    pub(crate) fn keys(&self) -> &RoundKeys {
        &self.stream.keys
    }

    /// [`Stream::eight`] of each group, 16 at a time, so that every loop is one of vectors.
    #[inline(always)]
    pub(crate) fn chunk(&self, draws: &mut [u16; 128]) {
        // Words in 64 bits, of which the lower 32 count: products need no widening.
        let word = |x: u64| x & 0xffff_ffff;
        let [group, row, step, last] = self.counter().map(u64::from);
        let mut a = [0; 16];
        for (lane, first) in a.iter_mut().enumerate() {
            *first = group + lane as u64;
        }
        let (mut b, mut c, mut d) = ([row; 16], [step; 16], [last; 16]);
        for key in self.keys() {
            for i in 0..16 {
                let first = word(a[i]) * u64::from(MULTIPLIERS[0]);
                let second = word(c[i]) * u64::from(MULTIPLIERS[1]);
                a[i] = (second >> 32) ^ b[i] ^ u64::from(key[0]);
                b[i] = second;
                c[i] = (first >> 32) ^ d[i] ^ u64::from(key[1]);
                d[i] = first;
            }
        }
        for (lane, draws) in draws.as_chunks_mut::<8>().0.iter_mut().enumerate() {
            let low = word(a[lane]) | b[lane] << 32;
            let high = word(c[lane]) | d[lane] << 32;
            for (i, draw) in draws.iter_mut().enumerate() {
                let four = if i < 4 { low } else { high };
                *draw = (four >> (16 * (i % 4))) as u16;
            }
        }
    }
}

/// FNV-1a, 32 bits, of a tensor's name.
pub(crate) fn name_hash(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| {
        (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193)
    })
}

const ROUNDS: usize = 10;

/// Philox4x32's constants (Salmon et al., table 2 and section 4).
pub(crate) const MULTIPLIERS: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
const WEYL: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];

/// The key of each round.
pub(crate) type RoundKeys = [[u32; 2]; ROUNDS];

pub(crate) fn round_keys(seed: u64) -> RoundKeys {
    let mut key = [seed as u32, (seed >> 32) as u32];
    std::array::from_fn(|_| {
        let of_round = key;
        key = [key[0].wrapping_add(WEYL[0]), key[1].wrapping_add(WEYL[1])];
        of_round
    })
}

/// Ten rounds of Philox4x32.
#[inline(always)]
fn philox4x32(mut counter: [u32; 4], keys: &RoundKeys) -> [u32; 4] {
    for key in keys {
        let first = u64::from(counter[0]) * u64::from(MULTIPLIERS[0]);
        let second = u64::from(counter[2]) * u64::from(MULTIPLIERS[1]);
        counter = [
            (second >> 32) as u32 ^ counter[1] ^ key[0],
            second as u32,
            (first >> 32) as u32 ^ counter[3] ^ key[1],
            first as u32,
        ];
    }
    counter
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sixteen_groups_at_a_time_are_the_same_draws() {
        let stream = Stream::new(0x1234_5678_9abc_def0, 77, 5);
        for (row, group) in [
            (0, 0),
            (3, 16),
            (70_000, 1 << 20),
            (1, u32::MAX as usize - 3),
        ] {
            let mut draws = [0; 128];
            let chunk = Draws {
                stream: &stream,
                purpose: Purpose::State(1),
                row,
                group,
            };
            chunk.chunk(&mut draws);
            for (i, eight) in draws.chunks(8).enumerate() {
                assert_eq!(eight, stream.eight(Purpose::State(1), row, group + i));
            }
        }
    }

    /// The known answers of Random123 (`kat_vectors`, philox4x32 with 10 rounds).
    #[test]
    fn philox_gives_the_published_vectors() {
        for (counter, key, answer) in [
            (
                [0; 4],
                0,
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                u64::MAX,
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                0x299f_31d0_a409_3822,
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox4x32(counter, &round_keys(key)), answer);
        }
    }

    #[test]
    fn fnv_gives_the_published_values() {
        assert_eq!(name_hash(""), 0x811c_9dc5);
        assert_eq!(name_hash("a"), 0xe40c_292c);
        assert_eq!(name_hash("foobar"), 0xbf9c_f968);
    }
}
