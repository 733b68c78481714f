//! The few inner loops that a compiler does not find the instructions for: table lookups and the
//! search for a code. Everything else in `portable/` becomes vectors by itself.
//!
//! One implementation per instruction set, all with the same bits; `portable` is plain Rust and does
//! the ends of the others' loops.

#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
mod portable;

#[cfg(target_arch = "x86_64")]
pub(super) use avx2::Avx2;
#[cfg(target_arch = "x86_64")]
pub(super) use avx512::Avx512;
pub(super) use portable::Portable;

use crate::quant::Table;

/// See the module's page. Slices of one call have one length.
///
/// # Safety
/// Every function needs a processor with the implementation's instructions.
pub(super) trait Lanes {
    /// `out[i] = values[code of column col + i]` for two codes a byte, the even one in the low
    /// nibble.
    ///
    /// # Safety
    /// `row` holds the columns.
    unsafe fn lookup(row: *const u8, col: usize, values: &[f32; 16], out: &mut [f32]);

    /// `out[i] = #{k : values[i] > thresholds[k]}` for thresholds that do not decrease; those that
    /// a short table does not have are infinite.
    unsafe fn count(values: &[f32], thresholds: &[f32; 16], out: &mut [u8]);

    /// `out[i] = #{k : values[i] > RN(midpoints[k] scales[i])}`.
    unsafe fn count_scaled(values: &[f32], scales: &[f32], midpoints: &[f32; 16], out: &mut [u8]);

    /// As [`Lanes::count`] for 256 thresholds.
    unsafe fn count_many(values: &[f32], thresholds: &[f32; 256], out: &mut [u8]);

    /// Packs codes two a byte from `row` on, the even one in the low nibble; the high nibble of an
    /// odd count's last byte becomes 0.
    ///
    /// # Safety
    /// `row` has room.
    unsafe fn pack(codes: &[u8], row: *mut u8);
}

/// The midpoints of a table with at most 16 levels times a scale, and infinity behind them.
#[inline(always)]
pub(super) fn thresholds(table: &Table, scale: f32) -> [f32; 16] {
    let mut thresholds = [f32::INFINITY; 16];
    for (threshold, mid) in thresholds.iter_mut().zip(&table.midpoints) {
        *threshold = mid * scale;
    }
    thresholds
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::Mapping;

    /// Values around every threshold, signed zeros, infinities, NaN, subnormals.
    fn values(thresholds: &[f32]) -> Vec<f32> {
        let near = thresholds
            .iter()
            .flat_map(|x| [x.next_down(), *x, x.next_up()]);
        let special = [
            0.0,
            -0.0,
            f32::NAN,
            -f32::NAN,
            f32::INFINITY,
            -f32::INFINITY,
            1e-45,
        ];
        near.chain(special).collect()
    }

    fn check<L: Lanes>(name: &str) {
        for (mapping, bits, signed) in [
            (Mapping::De, 4, true),
            (Mapping::Linear, 4, false),
            (Mapping::De0, 4, false),
            (Mapping::Linear, 3, true),
        ] {
            let table = Table::of(mapping, bits, signed, &[]).unwrap();
            for scale in [1.0, 0.3, 3e38, 1e-40, 0.0, f32::NAN] {
                let values = values(&thresholds(&table, scale));
                for start in 0..3 {
                    let values = &values[start..];
                    let want = |x: &f32| {
                        table
                            .midpoints
                            .iter()
                            .filter(|mid| *x > *mid * scale)
                            .count() as u8
                    };
                    let want: Vec<u8> = values.iter().map(want).collect();
                    let mut out = vec![99; values.len()];
                    // SAFETY: the caller's processor has the instructions.
                    unsafe { L::count(values, &thresholds(&table, scale), &mut out) };
                    assert_eq!(out, want, "{name} {mapping:?} {scale:e}");
                    let scales = vec![scale; values.len()];
                    // SAFETY: as above.
                    unsafe {
                        L::count_scaled(values, &scales, &thresholds(&table, 1.0), &mut out);
                    }
                    assert_eq!(out, want, "{name} scaled {mapping:?} {scale:e}");
                }
            }
        }
        let table = Table::of(Mapping::De, 8, true, &[]).unwrap();
        let mut many = [f32::INFINITY; 256];
        many[..255].copy_from_slice(&table.midpoints);
        let list = values(&many);
        let want = |x: &f32| many.iter().filter(|threshold| x > threshold).count() as u8;
        let want: Vec<u8> = list.iter().map(want).collect();
        let mut out = vec![0; list.len()];
        // SAFETY: as above.
        unsafe { L::count_many(&list, &many, &mut out) };
        assert_eq!(out, want, "{name}");

        let bytes: Vec<u8> = (0..100).map(|i: u8| i.wrapping_mul(37)).collect();
        let levels = std::array::from_fn(|i| i as f32 * 1.5 - 3.0);
        for col in 0..5 {
            for len in [0, 1, 2, 15, 16, 31, 32, 33, 64, 100, 190] {
                let mut out = vec![0.0; len];
                // SAFETY: as above; 200 columns.
                unsafe { L::lookup(bytes.as_ptr(), col, &levels, &mut out) };
                for (i, out) in out.iter().enumerate() {
                    let code = bytes[(col + i) / 2] >> (4 * ((col + i) % 2)) & 15;
                    assert_eq!(*out, levels[usize::from(code)], "{name} {col} {i}");
                }
                let codes: Vec<u8> = (0..len).map(|i| (i * 7 % 16) as u8).collect();
                let mut packed = vec![0xff; len.div_ceil(2) + 1];
                // SAFETY: as above.
                unsafe { L::pack(&codes, packed.as_mut_ptr()) };
                for (i, pair) in codes.chunks(2).enumerate() {
                    let high = pair.get(1).copied().unwrap_or(0);
                    assert_eq!(packed[i], pair[0] | high << 4, "{name} {len} {i}");
                }
                assert_eq!(
                    packed[len.div_ceil(2)],
                    0xff,
                    "{name}: written beyond its end"
                );
            }
        }
    }

    #[test]
    fn every_implementation_gives_the_same_codes() {
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
}
