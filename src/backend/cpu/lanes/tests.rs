//! Every implementation against the trait's words, one element at a time.

use half::{bf16, f16};

use super::*;
use crate::numerics::{Exponent, NAN_BITS, canonical, magnitude};
use crate::quant::{Cells, Lines, Mapping, Preconditioner, Rounding, Table, stochastic, uniform};
use crate::rng::{Purpose, Stream};

/// A list as long as the implementations want, with more zeros behind it.
fn padded<T: Copy + Default>(mut list: Vec<T>) -> Vec<T> {
    list.resize(list.len().next_multiple_of(STEP), T::default());
    list
}

/// Values around every threshold up to two last places away, signed zeros, infinities, NaN,
/// subnormals.
fn values(thresholds: &[f32]) -> Vec<f32> {
    let near = thresholds.iter().flat_map(|x| {
        let (below, above) = (x.next_down(), x.next_up());
        [below.next_down(), below, *x, above, above.next_up()]
    });
    let special = [
        0.0,
        -0.0,
        f32::NAN,
        -f32::NAN,
        f32::INFINITY,
        -f32::INFINITY,
        1e-45,
    ];
    padded(near.chain(special).collect())
}

fn counts(values: &[f32], above: impl Fn(f32) -> usize) -> Vec<u8> {
    values.iter().map(|x| above(*x) as u8).collect()
}

const SCALES: [f32; 12] = [
    1.0,
    0.3,
    1.999_999_9,
    3e38,
    1.3e-38,
    f32::MIN_POSITIVE,
    1e-40,
    1e-45,
    0.0,
    f32::INFINITY,
    f32::NAN,
    7.7e-12,
];

fn check_counts<L: Lanes>(name: &str) {
    for (mapping, bits, signed) in [
        (Mapping::De, 4, true),
        (Mapping::Linear, 4, false),
        (Mapping::De0, 4, false),
        (Mapping::Linear, 3, true),
        (Mapping::Linear, 2, false),
        (Mapping::Linear, 8, false),
        (Mapping::De, 8, true),
        (Mapping::Nf4, 4, true),
    ] {
        let table = Table::of(mapping, bits, signed, &[]).unwrap();
        for scale in SCALES {
            let thresholds: Vec<f32> = table.midpoints.iter().map(|mid| mid * scale).collect();
            let values = values(&thresholds);
            let want = counts(&values, |x| thresholds.iter().filter(|t| x > **t).count());
            let context = format!("{name} {mapping:?} {bits} {scale:e}");
            let mut out = vec![99; values.len()];
            let scales = vec![scale; values.len()];
            let pad = |list: &[f32], i: usize| list.get(i).copied().unwrap_or(f32::INFINITY);
            // SAFETY: the caller's processor has the instructions.
            unsafe {
                if thresholds.len() <= 15 {
                    let first: [f32; 16] = std::array::from_fn(|i| pad(&thresholds, i));
                    L::count(&values, &first, &mut out);
                    assert_eq!(out, want, "{context}");
                    let first: [f32; 16] = std::array::from_fn(|i| pad(&table.midpoints, i));
                    L::count_scaled::<false>(&values, &scales, &first, &mut out);
                    assert_eq!(out, want, "{context}, scaled");
                    if scale.is_finite() {
                        let want =
                            counts(&values, |x| thresholds.iter().filter(|t| x >= **t).count());
                        let first = first.map(|t| if t.is_finite() { t } else { f32::NAN });
                        L::count_scaled::<true>(&values, &scales, &first, &mut out);
                        assert_eq!(out, want, "{context}, or equal");
                    }
                } else {
                    let all: [f32; 256] = std::array::from_fn(|i| pad(&thresholds, i));
                    L::count_of_256(&values, &all, &mut out);
                    assert_eq!(out, want, "{context}");
                }
                if let Some(levels) = table.linear
                    && !scale.is_subnormal()
                {
                    L::count_linear(&values, &scales, levels, &mut out);
                    assert_eq!(out, want, "{context}, linear");
                    L::count_linear_block(&values, scale, levels, &mut out);
                    assert_eq!(out, want, "{context}, linear block");
                }
            }
        }
    }
}

/// All values of a linear table's range, in steps of about 2^-13 of it.
fn check_linear_everywhere<L: Lanes>(name: &str) {
    for levels in [4.0, 16.0, 256.0] {
        let thresholds: Vec<f32> = (0..levels as u16 - 1)
            .map(|k| (f32::from(k) + 1.5) / levels)
            .collect();
        for scale in [1.0_f32, 1.7e-20, 3.3e38, f32::MIN_POSITIVE] {
            let values: Vec<f32> = (0..8192_u16)
                .map(|i| scale * (f32::from(i) / 8191.0))
                .collect();
            let want = counts(&values, |x| {
                thresholds.iter().filter(|t| x > **t * scale).count()
            });
            let mut out = vec![0; values.len()];
            // SAFETY: the caller's processor has the instructions.
            unsafe { L::count_linear_block(&values, scale, levels, &mut out) };
            assert_eq!(out, want, "{name} {levels} {scale:e}");
        }
    }
}

/// Sums in limbs against sums of whole terms, of any length, with as many of the largest terms as are added
/// before limbs are made.
fn check_sums<L: Lanes>(name: &str) {
    let whole = |limbs: Limbs| (i128::from(limbs.high) << Limbs::LOW) + i128::from(limbs.low);
    for largest in [1.999_999_9_f32, f32::MAX, 3e-39, 0.0] {
        let exponent = Exponent::above(magnitude(largest)).unwrap();
        for len in [0, 1, 7, 8, 63, 64, 65, 130, 512] {
            let row = |r: usize| -> Vec<f32> {
                let terms = (0..len).map(|i: usize| match i % 5 {
                    0 => largest,
                    // Down to what is rounded, to halves of a unit, and to less.
                    _ => largest * 2_f32.powi(-((i * 7 + r * 3) as i32 % 70)) * 0.718_281_8,
                });
                terms.collect()
            };
            let rows: Vec<_> = (0..Limbs::TERMS).map(row).collect();
            let want = |terms: &[f32]| -> i128 {
                let limbs = terms.iter().map(|x| exponent.limbs(f64::from(*x)));
                limbs.map(whole).sum()
            };
            for count in [1, 3, Limbs::TERMS] {
                let rows: Vec<&[f32]> = rows[..count].iter().map(Vec::as_slice).collect();
                let (mut high, mut low) = (vec![5; len], vec![-7; len]);
                // SAFETY: the caller's processor has the instructions.
                unsafe {
                    let sum = whole(L::sum::<false>(rows[0], exponent.unit()));
                    assert_eq!(sum, want(rows[0]), "{name}");
                    let signed: Vec<f32> = (1..)
                        .zip(rows[0])
                        .map(|(i, x)| if i % 3 == 0 { -x } else { *x })
                        .collect();
                    let squares = signed
                        .iter()
                        .map(|x| exponent.squared().limbs(f64::from(*x) * f64::from(*x)));
                    let sum = whole(L::sum::<true>(&signed, exponent.squared().unit()));
                    assert_eq!(sum, squares.map(whole).sum::<i128>(), "{name}");
                    L::add_rows(&rows, &vec![exponent.unit(); len], &mut high, &mut low);
                }
                for (i, (high, low)) in high.into_iter().zip(low).enumerate() {
                    let column: Vec<f32> = rows.iter().map(|row| row[i]).collect();
                    let sum = whole(Limbs { high, low }) - (5 << Limbs::LOW) + 7;
                    assert_eq!(sum, want(&column), "{name} {largest:e} {len} {i}");
                }
            }
        }
    }
}

/// Numbers that repeat against one at a time.
fn check_repeat<L: Lanes>(name: &str) {
    let bounds: [u32; 128] = std::array::from_fn(|i| (i as u32 * 7919) % 101);
    for len in [1, 2, 3, 15, 16, 17, 64, 127, 128, 500] {
        let numbers: Vec<u32> = (0..len).map(|i| (i * 31 + 5) % 97).collect();
        let len = numbers.len();
        for phase in [0, 1, len / 2, len - 1].map(|phase| phase.min(len - 1)) {
            for count in [1, 2, 100, 128] {
                let mut out = vec![0.0; count];
                let bounds = &bounds[..(phase + count).div_ceil(len)];
                // SAFETY: the caller's processor has the instructions.
                unsafe { L::repeat(&numbers, phase, bounds, &mut out) };
                for (i, out) in (phase..).zip(out) {
                    let want = numbers[i % len].min(bounds[i / len]);
                    assert_eq!(out.to_bits(), want, "{name} {len} {phase} {i}");
                }
            }
        }
    }
}

fn check_tables<L: Lanes>(name: &str) {
    let bytes: Vec<u8> = (0..=255).map(|i: u8| i.wrapping_mul(37)).collect();
    let levels: [f32; 16] = std::array::from_fn(|i| i as f32 * 1.5 - 3.0);
    let many: [f32; 256] = std::array::from_fn(|i| i as f32 * 0.5 - 3.0);
    for len in [0, 32, 64, 96, 128] {
        let codes: Vec<u8> = bytes[..len].iter().map(|byte| byte & 15).collect();
        let mut out = vec![0.0; len];
        let mut packed = vec![0; len / 2];
        // SAFETY: the caller's processor has the instructions.
        unsafe {
            L::lookup(&bytes[..len / 2], &levels, &mut out);
            for (i, out) in out.iter().enumerate() {
                let code = bytes[i / 2] >> (4 * (i % 2)) & 15;
                assert_eq!(*out, levels[usize::from(code)], "{name} {i}");
            }
            L::select(&codes, &levels, &mut out);
            let want: Vec<f32> = codes.iter().map(|c| levels[usize::from(*c)]).collect();
            assert_eq!(out, want, "{name}");
            L::select_of_256(&bytes[..len], &many, &mut out);
            let want: Vec<f32> = bytes[..len].iter().map(|c| many[usize::from(*c)]).collect();
            assert_eq!(out, want, "{name}");
            L::pack(&codes, &mut packed);
        }
        for (byte, pair) in packed.iter().zip(codes.chunks(2)) {
            assert_eq!(*byte, pair[0] | pair[1] << 4, "{name} {len}");
        }
    }
}

/// Codes of eight bits that are computed, at every midpoint and on the way from 0 to the scale.
fn check_bytes<L: Lanes>(name: &str) {
    for (mapping, signed) in [
        (Mapping::De, true),
        (Mapping::De, false),
        (Mapping::De0, false),
        (Mapping::Linear, false),
        (Mapping::LinearWithZero, true),
    ] {
        let table = Table::of(mapping, 8, signed, &[]).unwrap();
        let lines = table.lines.as_ref().unwrap();
        // SAFETY: the caller's processor has the instructions.
        let encoder = unsafe { Encoder::<L::Vector>::new(lines, &table.midpoints) };
        let scales = [1.0, 0.3, 1.999_999_9, 7.7e-12, 3.3e-31, 7.9e-31, 2.1e37];
        for scale in scales.into_iter().filter(|scale| Lines::cover(*scale)) {
            let thresholds: Vec<f32> = table.midpoints.iter().map(|mid| mid * scale).collect();
            let mut all = values(&thresholds);
            // From one value to the next by 2^-11 of it, and the ends.
            let mut x = scale;
            while x > scale * 1e-9 {
                all.extend([x, -x]);
                x *= 1.0 - 1.0 / 2048.0;
            }
            all.retain(|x| x.abs() <= scale);
            for values in all.chunks(CHUNK) {
                let mut chunk = Chunk::ZERO;
                chunk[..values.len()].copy_from_slice(values);
                let mut out = [99; CHUNK];
                // SAFETY: as above.
                unsafe {
                    let chunk = load::<L::Vector>(&chunk);
                    encoder.encode(chunk.as_ref(), scale, (), out.as_mut_ptr());
                }
                for (x, code) in values.iter().zip(out) {
                    let want = thresholds.iter().filter(|t| x > *t).count();
                    let context = format!("{name} {mapping:?} {signed} {scale:e} {x:e}");
                    assert_eq!(usize::from(code), want, "{context}");
                }
            }
        }
    }
    for signed in [true, false] {
        let table = Table::of(Mapping::De, 8, signed, &[]).unwrap();
        // SAFETY: as above; a register's codes follow each code that is asked for.
        unsafe {
            let decoder = Decoder::<L::Vector>::of(&table).unwrap();
            let codes: [u8; 256] = std::array::from_fn(|code| code as u8);
            let width = L::Vector::WIDTH;
            for codes in codes.chunks(width) {
                let mut levels = [0.0; CHUNK];
                decoder.decode(codes.as_ptr()).store(levels.as_mut_ptr());
                for (code, level) in codes.iter().zip(levels) {
                    let want = table.by_code[usize::from(*code)];
                    assert_eq!(level.to_bits(), want.to_bits(), "{name} {signed} {code}");
                }
            }
        }
    }
}

/// f16 against the crate's conversions: all f16, and f32 around each of them.
fn check_f16<L: Lanes>(name: &str) {
    let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
    let mut chunk = Chunk::ZERO;
    for halves in all.chunks(CHUNK) {
        // SAFETY: a chunk of f16; the caller's processor has the instructions.
        unsafe { L::load_f16(halves.as_ptr(), &mut chunk) };
        for (half, x) in halves.iter().zip(&*chunk) {
            assert!(
                half.is_nan() && x.is_nan() || half.to_f32().to_bits() == x.to_bits(),
                "{name} {half:?} {x:e}"
            );
        }
    }
    let ties = all.iter().filter(|half| half.is_finite()).flat_map(|half| {
        let (x, up) = (half.to_f32(), f16::from_bits(half.to_bits() + 1).to_f32());
        let tie = if up.is_finite() {
            (x + up) * 0.5
        } else {
            65520.0
        };
        [tie.next_down(), tie, tie.next_up(), x]
    });
    let special = [
        f32::INFINITY,
        f32::from_bits(NAN_BITS),
        f32::from_bits(0xffab_cdef),
        1e-45,
        3e38,
    ];
    let values: Vec<f32> = ties.chain(special).collect();
    for values in values.chunks(CHUNK) {
        chunk[..values.len()].copy_from_slice(values);
        let mut halves = [f16::ZERO; CHUNK];
        // SAFETY: as above.
        unsafe { L::store_f16(&chunk, halves.as_mut_ptr()) };
        for (half, x) in halves.iter().zip(values) {
            let want = f16::from_f32(canonical(*x));
            assert_eq!(half.to_bits(), want.to_bits(), "{name} {x:e}");
        }
    }
}

/// Numbers around those of bf16 and the middle between them, to nearest and by draws, against the definition.
fn check_bf16<L: Lanes>(name: &str) {
    let near = |upper: u32| {
        let lower = [0, 1, 0x7fff, 0x8000, 0x8001, 0xffff];
        lower.map(|lower| f32::from_bits(upper << 16 | lower))
    };
    let values: Vec<f32> = (0..=0xffff).flat_map(near).collect();
    for (i, values) in values.chunks(CHUNK).enumerate() {
        let mut chunk = Chunk::ZERO;
        chunk[..values.len()].copy_from_slice(values);
        let draws: [u16; CHUNK] = std::array::from_fn(|j| match j % 4 {
            0 => 0,
            1 => u16::MAX,
            _ => ((40_503 * (128 * i + j)) >> 4) as u16,
        });
        let mut got = [[bf16::ZERO; CHUNK]; 2];
        // SAFETY: chunks of bf16; the caller's processor has the instructions.
        unsafe {
            for at in (0..CHUNK).step_by(L::Vector::WIDTH) {
                let x = L::Vector::load(&raw const chunk[at]);
                x.store_bf16(&raw mut got[0][at], L::Vector::WIDTH);
                x.round_bf16(&raw const draws[at], &raw mut got[1][at], L::Vector::WIDTH);
            }
        }
        for (j, x) in values.iter().enumerate() {
            let nearest = bf16::from_f32(canonical(*x));
            assert_eq!(got[0][j].to_bits(), nearest.to_bits(), "{name} {x:e}");
            // Up where the draw carries.
            let bits = x.to_bits();
            let up = (bits & 0xffff) + u32::from(draws[j]) > 0xffff;
            let rounded = ((bits >> 16) + u32::from(up)) as u16;
            let want = if x.is_nan() { 0x7fff } else { rounded };
            assert_eq!(got[1][j].to_bits(), want, "{name} {x:e} {}", draws[j]);
        }
    }
}

/// The first lanes of bf16: what is behind them is read as zeros, and is not written.
fn check_first_bf16<L: Lanes>(name: &str) {
    let width = L::Vector::WIDTH;
    let from: [bf16; CHUNK] = std::array::from_fn(|i| bf16::from_f32(1.0 + i as f32));
    let kept = bf16::from_f32(-3.0);
    for count in 0..=width {
        let mut wide = Chunk([7.0; CHUNK]);
        let mut got = [[kept; CHUNK]; 2];
        // SAFETY: chunks of bf16; the caller's processor has the instructions.
        unsafe {
            let x = L::Vector::load_bf16(from.as_ptr(), count);
            x.store(wide.as_mut_ptr());
            x.store_bf16(got[0].as_mut_ptr(), count);
            x.round_bf16([0; CHUNK].as_ptr(), got[1].as_mut_ptr(), count);
        }
        for i in 0..CHUNK {
            let is_first = i < count;
            if i < width {
                let want = if is_first { from[i].to_f32() } else { 0.0 };
                assert_eq!(wide[i].to_bits(), want.to_bits(), "{name} {count} {i}");
            }
            let want = if is_first { from[i] } else { kept };
            assert_eq!(got.map(|got| got[i]), [want; 2], "{name} {count} {i}");
        }
    }
}

/// The codes that registers make of values, unpacked; `clean` as of [`Coder::CLEAN`].
///
/// # Safety
/// The processor has the instructions.
unsafe fn packed_codes<V: Vector>(
    values: &[f32],
    clean: bool,
    code: impl Fn(V) -> V::Codes,
) -> Vec<u8> {
    let group = PACKED * V::WIDTH;
    let mut padded = values.to_vec();
    padded.resize(values.len().next_multiple_of(group), 0.0);
    let mut bytes = vec![0xaa; padded.len() / 2];
    for (values, bytes) in padded.chunks(group).zip(bytes.chunks_mut(group / 2)) {
        // SAFETY: as many values and codes as in the registers.
        unsafe {
            let mut codes = [V::NO_CODES; PACKED];
            for (codes, values) in codes.iter_mut().zip(values.chunks(V::WIDTH)) {
                *codes = code(V::load(values.as_ptr()));
            }
            V::store_codes(codes, bytes.as_mut_ptr());
            if clean {
                let stored = bytes.to_vec();
                bytes.fill(0xaa);
                V::store_clean_codes(codes, bytes.as_mut_ptr());
                assert_eq!(bytes, stored);
            }
        }
    }
    let pairs = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
    pairs.take(values.len()).collect()
}

fn check_search<V: Vector>(name: &str) {
    for (mapping, signed) in [
        (Mapping::De, true),
        (Mapping::Linear, false),
        (Mapping::Nf4, true),
    ] {
        let table = Table::of(mapping, 4, signed, &[]).unwrap();
        let mut midpoints = [f32::INFINITY; 16];
        midpoints[..table.midpoints.len()].copy_from_slice(&table.midpoints);
        for scale in SCALES {
            let passed: Vec<f32> = table.midpoints.iter().map(|mid| mid * scale).collect();
            let values = values(&passed);
            let want = counts(&values, |x| passed.iter().filter(|t| x > **t).count());
            // SAFETY: the caller's processor has the instructions.
            let got = unsafe {
                let thresholds = V::thresholds(&midpoints);
                let thresholds = V::scale_thresholds(thresholds, V::splat(scale));
                packed_codes::<V>(&values, true, |x| x.search::<false>(&thresholds))
            };
            assert_eq!(got, want, "{name} {mapping:?} {scale:e}");
        }
    }
}

/// Codes by cells, of numbers of at most their scale.
fn check_pick<V: Vector>(name: &str) {
    let mut checked = false;
    for (mapping, reached) in [
        (Mapping::De, false),
        (Mapping::Nf4, false),
        (Mapping::LinearWithZero, false),
        (Mapping::Nf4, true),
    ] {
        let table = Table::of(mapping, 4, true, &[]).unwrap();
        let (cells, thresholds) = if reached {
            (&table.level_cells, &table.levels[1..])
        } else {
            (&table.cells, &table.midpoints[..])
        };
        // SAFETY: the caller's processor has the instructions.
        let Some(cells) = (unsafe { V::Cells::new(cells.as_ref().unwrap()) }) else {
            continue;
        };
        checked = true;
        for scale in [1.0_f32, 0.3, 1.999_999_9, 7.7e-12, 3e38, 4.8e-38] {
            let passed: Vec<f32> = thresholds.iter().map(|t| t * scale).collect();
            let steps = (-4095..=4095).map(|i| scale * (i as f32 / 4095.0));
            let values = values(&passed).into_iter().chain(steps);
            let values: Vec<f32> = values.filter(|x| x.abs() <= scale).collect();
            let above = |x, t| if reached { x >= t } else { x > t };
            let want = counts(&values, |x| passed.iter().filter(|t| above(x, **t)).count());
            // SAFETY: as above.
            let got = unsafe {
                let scaled = cells.scale(V::splat(scale));
                let factor = V::splat(Cells::FACTOR * (1.0 / scale));
                packed_codes::<V>(&values, true, |x| {
                    if reached {
                        scaled.pick::<true>(x, factor)
                    } else {
                        scaled.pick::<false>(x, factor)
                    }
                })
            };
            assert_eq!(got, want, "{name} {mapping:?} {scale:e}");
        }
    }
    assert_eq!(checked, name == "avx512");
}

/// Codes of the linear table and of its squares up to their scale, by midpoints that are passed and by levels that
/// are reached.
fn check_decide<V: Vector>(name: &str) {
    for mapping in [Mapping::Linear, Mapping::Power2] {
        let table = Table::of(mapping, 4, false, &[]).unwrap();
        let mut below = [f32::NEG_INFINITY; 16];
        below[1..].copy_from_slice(&table.midpoints);
        check_decided::<V, false>(name, &table, &below);
        if table.linear.is_some() {
            check_decided::<V, true>(name, &table, &table.reached);
        }
    }
}

/// By the exact quotient (linear alone) and by the estimated one.
fn check_decided<V: Vector, const OR_EQUAL: bool>(name: &str, table: &Table, below: &[f32; 16]) {
    for scale in [
        1.0_f32,
        0.3,
        1.999_999_9,
        7.7e-12,
        4e37,
        3e38,
        2e-37,
        f32::MIN_POSITIVE,
        0.0,
    ] {
        let thresholds = below[1..].iter().map(|x| x * scale);
        let thresholds = thresholds.collect::<Vec<_>>();
        // Evenly, and evenly in the logarithm, down to subnormal numbers.
        let steps = (0..4096).map(|i| scale * (i as f32 / 4095.0));
        let halves = (0..300).map(|i| scale * 0.75_f32.powi(i));
        let values: Vec<f32> = values(&thresholds)
            .into_iter()
            .chain(steps)
            .chain(halves)
            .filter(|x| x.to_bits() <= scale.to_bits())
            .collect();
        // Under a scale of 0 the quotient is NaN.
        let above = |x: f32, t: f32| x > t || OR_EQUAL && x == t && scale > 0.0;
        let want = counts(&values, |x| {
            thresholds.iter().filter(|t| above(x, **t)).count()
        });
        // SAFETY: the caller's processor has the instructions.
        unsafe {
            let (below, all) = (V::Even::new(below), V::splat(scale));
            let factor = SHORT_OF_16 / scale;
            if table.linear.is_some() && factor.is_finite() {
                let (scaled, factor) = (below.scale(all), V::splat(factor));
                let got = packed_codes::<V>(&values, false, |x| {
                    scaled.decide::<OR_EQUAL, false>(x, x, factor, None)
                });
                assert_eq!(got, want, "{name} {OR_EQUAL} {scale:e}");
            }
            if scale < 2_f32.powi(125) {
                let squares = table.square.is_some();
                let got = packed_codes::<V>(&values, false, |x| {
                    let q = x.mul(all.reciprocal());
                    let factor = V::splat(SHORT_OF_16);
                    if squares {
                        below.decide::<OR_EQUAL, true>(x, q.near_sqrt(), factor, Some(all))
                    } else {
                        below.decide::<OR_EQUAL, false>(x, q, factor, Some(all))
                    }
                });
                assert_eq!(
                    got, want,
                    "{name} {OR_EQUAL} {squares} {scale:e}, estimated"
                );
            }
        }
    }
}

/// The first numbers of a register, and the first bytes of a chunk: nothing else is read or written, as all
/// begins and ends with its memory.
fn check_first<L: Lanes>(name: &str) {
    let numbers: Vec<f32> = (1..=L::Vector::WIDTH).map(|i| i as f32).collect();
    for count in 0..=L::Vector::WIDTH {
        let first = &numbers[..count].to_vec();
        let mut want = vec![0.0; L::Vector::WIDTH];
        want[..count].copy_from_slice(first);
        let (mut kept, mut loaded) = (want.clone(), want.clone());
        let mut stored = vec![0.0; count];
        // SAFETY: a register's numbers, or so many; the caller's processor has the instructions.
        unsafe {
            let all = L::Vector::load(numbers.as_ptr());
            all.keep(count).store(kept.as_mut_ptr());
            L::Vector::load_first(first.as_ptr(), count).store(loaded.as_mut_ptr());
            all.store_first(stored.as_mut_ptr(), count);
        }
        assert_eq!(kept, want, "{name} {count}");
        assert_eq!(loaded, want, "{name} {count}");
        assert_eq!(&stored, first, "{name} {count}");
    }
    const N: usize = 4 * CHUNK;
    let bytes: [u8; N] = std::array::from_fn(|i| (i % 251) as u8 + 1);
    for len in 0..=N {
        let from = bytes[..len].to_vec();
        let (mut read, mut written) = ([0xaa; N], vec![0xaa; len]);
        // SAFETY: so many bytes, or N.
        unsafe {
            L::read::<N>(from.as_ptr(), len, read.as_mut_ptr());
            L::write::<N>(bytes.as_ptr(), written.as_mut_ptr(), len);
        }
        assert_eq!(read[..len], from, "{name} {len}");
        assert!(read[len..].iter().all(|byte| *byte == 0), "{name} {len}");
        assert_eq!(written, from, "{name} {len}");
    }
}

/// Single operations: on every pair of notable numbers, and estimates over two octaves and at the ends.
fn check_operations<V: Vector>(name: &str) {
    let lane = |x: V| {
        let mut out = [0.0; 16];
        // SAFETY: no register is wider.
        unsafe { x.store(out.as_mut_ptr()) };
        out[0]
    };
    let (tiny, least) = (f32::MIN_POSITIVE, f32::from_bits(1));
    let notable = [0.0, least, tiny, 1.5, f32::MAX, f32::INFINITY, f32::NAN];
    for a in notable.into_iter().flat_map(|a| [a, -a]) {
        // SAFETY: the caller's processor has the instructions.
        unsafe {
            let x = V::splat(a);
            let canonical = crate::numerics::canonical(a);
            assert_eq!(
                lane(x.canonical()).to_bits(),
                canonical.to_bits(),
                "{name} {a}"
            );
            let sign = if a == 0.0 || a.is_nan() {
                a
            } else {
                1_f32.copysign(a)
            };
            assert_eq!(lane(x.sign()).to_bits(), sign.to_bits(), "{name} {a}");
            let usual = a.is_sign_positive() && a.is_finite();
            assert_eq!(x.all_usual(), usual, "{name} {a}");
            for b in notable.into_iter().flat_map(|b| [b, -b]) {
                let highest = lane(x.highest(V::splat(b))).to_bits();
                assert_eq!(highest, a.to_bits().max(b.to_bits()), "{name} {a} {b}");
            }
        }
    }
    for x in [0.0, least, 0.9 * tiny, tiny, 1.0, f32::INFINITY] {
        // One lane alone, among those of larger numbers.
        let mut lanes = [2.0_f32; 16];
        lanes[V::WIDTH - 1] = x;
        // SAFETY: as above.
        let is_subnormal = unsafe {
            let mut seen = Least::none();
            for x in [V::splat(0.0), V::load(lanes.as_ptr()), V::splat(1.5)] {
                seen.see(x);
            }
            seen.is_subnormal()
        };
        assert_eq!(is_subnormal, x.is_subnormal(), "{name} {x:e}");
    }
    let octaves = (0..1 << 14).map(|i| 0.75 + f32::from(i as u16) / 8192.0);
    let ends = [tiny, 1.9 * tiny, 2_f32.powi(125), 1.9 * 2_f32.powi(124)];
    for x in octaves.chain(ends) {
        // SAFETY: as above.
        let y = f64::from(lane(unsafe { V::splat(x).reciprocal() }));
        let error = (y * f64::from(x) - 1.0).abs();
        assert!(error < 2_f64.powi(-11), "{name} 1 / {x:e}: {error:e}");
        // SAFETY: as above.
        let y = f64::from(lane(unsafe { V::splat(x).near_sqrt() }));
        let error = (y / f64::from(x).sqrt() - 1.0).abs();
        assert!(error < 2_f64.powi(-11), "{name} sqrt {x:e}: {error:e}");
    }
    // SAFETY: as above.
    assert_eq!(lane(unsafe { V::splat(0.0).reciprocal() }), f32::INFINITY);
    for x in [0.0, f32::from_bits(1), 0.9 * tiny, f32::NAN] {
        // SAFETY: as above.
        let y = lane(unsafe { V::splat(x).near_sqrt() });
        assert!(
            (0.0..=2_f32.powi(-62)).contains(&y),
            "{name} sqrt {x:e}: {y:e}"
        );
    }

    let bytes: Vec<u8> = (0..=255).map(|i: u8| i.wrapping_mul(37)).collect();
    // Of numbers with 16 bits at most, and with more.
    for step in [1.5, 0.1] {
        let levels: [f32; 16] = std::array::from_fn(|i| i as f32 * step - 3.0);
        for scale in [None, Some(0.3)] {
            for bytes in bytes.chunks(few::<V>() * V::WIDTH / 2) {
                let mut out = vec![0.0; 2 * bytes.len()];
                // SAFETY: as above; two codes a byte.
                unsafe {
                    let mut levels = V::levels(&levels);
                    if let Some(scale) = scale {
                        levels = V::scale_levels(levels, V::splat(scale));
                    }
                    let values = V::decode(levels, bytes.as_ptr());
                    for (x, out) in values.as_ref().iter().zip(out.chunks_mut(V::WIDTH)) {
                        x.store(out.as_mut_ptr());
                    }
                }
                let codes = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
                let want = codes.map(|code| levels[usize::from(code)] * scale.unwrap_or(1.0));
                assert_eq!(out, want.collect::<Vec<f32>>(), "{name} {step} {scale:?}");
            }
        }
    }
}

/// The scale of a block in all lanes, wherever its largest magnitude is.
fn check_block_scale<V: Vector>(name: &str) {
    let least = f32::from_bits(1);
    for largest in [0.0, least, 1.0, 1.5, f32::MAX, f32::INFINITY, f32::NAN] {
        for at in 0..V::WIDTH {
            let mut lanes = [0.0; 16];
            for (i, lane) in lanes.iter_mut().enumerate() {
                *lane = if largest > 1.0 { i as f32 / 16.0 } else { 0.0 };
            }
            lanes[at] = largest;
            let want = if largest.is_finite() {
                largest.to_bits()
            } else {
                NAN_BITS
            };
            let mut got = [0.0; 16];
            // SAFETY: the caller's processor has the instructions; no register is wider.
            let first = unsafe {
                let scale = V::load(lanes.as_ptr()).block_scale();
                scale.store(got.as_mut_ptr());
                scale.first()
            };
            assert_eq!(first.to_bits(), want, "{name} {largest} {at}");
            for scale in &got[..V::WIDTH] {
                assert_eq!(scale.to_bits(), want, "{name} {largest} {at}");
            }
        }
    }
}

/// Chunks rounded at random, under one scale and under one each, against the definition.
fn check_random<L: Lanes>(name: &str) {
    let stream = Stream::new(0x1234_5678_9abc_def0, 77, 5);
    for (mapping, signed) in [
        (Mapping::De, true),
        (Mapping::De0, false),
        (Mapping::Linear, false),
        (Mapping::Nf4, true),
    ] {
        let table = Table::of(mapping, 4, signed, &[]).unwrap();
        for scale in SCALES.into_iter().chain([f32::MIN_POSITIVE]) {
            if scale.is_nan() || scale <= 0.0 || scale.is_infinite() {
                continue;
            }
            let levels: Vec<f32> = table.levels.iter().map(|level| level * scale).collect();
            let inside = |x: &f32| x.abs() <= scale;
            let steps = (0..512).map(|i| scale * (i as f32 / 511.0));
            let values: Vec<f32> = values(&levels)
                .into_iter()
                .chain(steps)
                .filter(inside)
                .collect();
            for (row, values) in values.chunks(CHUNK).enumerate() {
                let draws = Draws {
                    stream: &stream,
                    purpose: Purpose::State(1),
                    row,
                    group: 48,
                };
                let mut chunk = Chunk::ZERO;
                chunk[..values.len()].copy_from_slice(values);
                let want: Vec<u8> = values
                    .iter()
                    .enumerate()
                    .map(|(i, x)| {
                        let u = uniform(stream.draw(Purpose::State(1), row, 48 * 8 + i));
                        stochastic(*x, scale, &table, Rounding::Stochastic, PRECONDITIONER, u)
                    })
                    .collect();
                let check = |bytes: &[u8], usual| {
                    let codes = bytes.iter().flat_map(|byte| [byte & 15, byte >> 4]);
                    let codes: Vec<u8> = codes.take(values.len()).collect();
                    assert_eq!(codes, want, "{name} {mapping:?} {scale:e} {usual}");
                };
                let mut bytes = [0xaa; CHUNK / 2];
                let positive = values.iter().all(|x| x.is_sign_positive());
                for usual in [false, positive] {
                    // SAFETY: a chunk's codes; the caller's processor has the instructions.
                    unsafe {
                        L::round_block(&chunk, scale, usual, &table, &draws, bytes.as_mut_ptr());
                    }
                    check(&bytes, usual);
                }
                let usual = positive && !scale.is_subnormal() && scale < 2_f32.powi(125);
                if usual && table.linear.is_some() {
                    let scales = Chunk([scale; CHUNK]);
                    // SAFETY: as above.
                    unsafe {
                        L::round_linear(&chunk, &scales, &table, &draws, bytes.as_mut_ptr());
                    }
                    check(&bytes, usual);
                }
            }
        }
    }
}

/// Which this rounding has no use for.
const PRECONDITIONER: Preconditioner = Preconditioner {
    inv_bc2: 1.0,
    eps: 1.0,
};

/// The draws of a chunk against those of its elements.
fn check_draws<L: Lanes>(name: &str) {
    let stream = Stream::new(0x1234_5678_9abc_def0, 77, 5);
    for (row, group) in [
        (0, 0),
        (3, 16),
        (70_000, 1 << 20),
        (1, u32::MAX as usize - 3),
    ] {
        let draws = Draws {
            stream: &stream,
            purpose: Purpose::State(1),
            row,
            group,
        };
        let mut got = [0; CHUNK];
        // SAFETY: the caller's processor has the instructions.
        unsafe { L::draw(&draws, &mut got) };
        let want: Vec<u16> = (0..CHUNK)
            .map(|i| stream.draw(Purpose::State(1), row, 8 * group + i))
            .collect();
        assert_eq!(got.as_slice(), want, "{name} {row} {group}");
    }
}

fn check<L: Lanes>(name: &str) {
    check_counts::<L>(name);
    check_linear_everywhere::<L>(name);
    check_sums::<L>(name);
    check_repeat::<L>(name);
    check_tables::<L>(name);
    check_bytes::<L>(name);
    check_f16::<L>(name);
    check_bf16::<L>(name);
    check_first_bf16::<L>(name);
    check_search::<L::Vector>(name);
    check_pick::<L::Vector>(name);
    check_decide::<L::Vector>(name);
    check_draws::<L>(name);
    check_random::<L>(name);
    check_operations::<L::Vector>(name);
    check_first::<L>(name);
    check_block_scale::<L::Vector>(name);
}

#[test]
fn every_implementation_gives_the_same_values() {
    check::<Portable>("portable");
    #[cfg(target_arch = "x86_64")]
    {
        if std::arch::is_x86_feature_detected!("avx2") {
            check::<Avx2>("avx2");
        } else {
            println!("not run here: this processor lacks AVX2");
        }
        if std::arch::is_x86_feature_detected!("avx512bw") {
            check::<Avx512>("avx512");
        } else {
            println!("not run here: this processor lacks AVX-512");
        }
    }
}
