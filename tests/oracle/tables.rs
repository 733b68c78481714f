//! Code tables against the papers' printed values, closed forms and the construction that
//! bitsandbytes publishes.

use std::sync::Arc;

use lowbit::quant::{Mapping, Table};

fn table(mapping: Mapping, bits: u32, signed: bool) -> Arc<Table> {
    Table::of(mapping, bits, signed, &[]).unwrap()
}

/// Levels and midpoints are the f64 values rounded once.
fn check(mapping: Mapping, bits: u32, signed: bool, levels: &[f64]) {
    let table = table(mapping, bits, signed);
    let name = format!("{mapping:?}, {bits} bits, signed {signed}");
    assert_eq!(table.levels.len(), levels.len(), "{name}");
    for (i, (found, want)) in table.levels.iter().zip(levels).enumerate() {
        let want = *want as f32;
        assert_eq!(
            found.to_bits(),
            want.to_bits(),
            "{name}: level {i} is {found:e}"
        );
    }
    assert_eq!(table.midpoints.len(), levels.len() - 1, "{name}");
    for (i, mid) in table.midpoints.iter().enumerate() {
        let exact = (f64::from(table.levels[i]) + f64::from(table.levels[i + 1])) / 2.0;
        assert_eq!(
            mid.to_bits(),
            (exact as f32).to_bits(),
            "{name}: midpoint {i}"
        );
    }
    assert_eq!(table.has_zero(), levels.contains(&0.0), "{name}");
}

/// The negatives of the positive levels, and these, sorted.
fn mirrored(positive: &[f64]) -> Vec<f64> {
    let negative = positive.iter().rev().map(|x| -x);
    negative.chain(positive.iter().copied()).collect()
}

#[test]
fn four_bit_tables_are_those_printed_in_the_paper() {
    // Appendix E.2 and section 4.1 of the 4-bit paper.
    let signed_de = [
        -0.8875, -0.6625, -0.4375, -0.2125, -0.0775, -0.0325, -0.0055, 0.0, 0.0055, 0.0325, 0.0775,
        0.2125, 0.4375, 0.6625, 0.8875, 1.0,
    ];
    check(Mapping::De, 4, true, &signed_de);
    let de = [
        0.0, 0.00325, 0.00775, 0.02125, 0.04375, 0.06625, 0.08875, 0.15625, 0.26875, 0.38125,
        0.49375, 0.60625, 0.71875, 0.83125, 0.94375, 1.0,
    ];
    check(Mapping::De, 4, false, &de);
    check(Mapping::De0, 4, false, &de[1..]);
    let linear = [
        0.0625, 0.125, 0.1875, 0.25, 0.3125, 0.375, 0.4375, 0.5, 0.5625, 0.625, 0.6875, 0.75,
        0.8125, 0.875, 0.9375, 1.0,
    ];
    check(Mapping::Linear, 4, false, &linear);
    let with_zero: Vec<_> = (0..16).map(|i| f64::from(i) / 15.0).collect();
    check(Mapping::LinearWithZero, 4, false, &with_zero);
}

/// `create_dynamic_map(signed, max_exponent_bits = total_bits - 1, total_bits)` of bitsandbytes,
/// from its description: for every exponent the means of neighbours among equally spaced boundaries
/// from 0.1 to 1, times a power of ten, of both signs if signed; then 0 and 1, sorted.
///
/// It is the 4-bit paper's table at every size. bitsandbytes evaluates the boundaries in f32, which
/// moves levels by up to an f32 ulp, and fills tables of fewer than 8 bits up with zeros to 256.
fn bitsandbytes_dynamic_map(signed: bool, total_bits: i32) -> Vec<f64> {
    let exponent_bits = total_bits - 1;
    let mut data = vec![0.0, 1.0];
    for i in 0..exponent_bits {
        let intervals = if signed { 1 << i } else { 2 << i };
        let boundary = |j: i32| 0.1 + (1.0 - 0.1) * f64::from(j) / f64::from(intervals);
        for j in 0..intervals {
            let mean = (boundary(j) + boundary(j + 1)) / 2.0;
            let level = 10_f64.powi(i - (exponent_bits - 1)) * mean;
            data.push(level);
            if signed {
                data.push(-level);
            }
        }
    }
    data.sort_by(f64::total_cmp);
    data
}

#[test]
fn dynamic_exponent_is_the_map_of_bitsandbytes() {
    for bits in 2..=8 {
        for signed in [false, true] {
            let map = bitsandbytes_dynamic_map(signed, bits);
            assert_eq!(map.len(), 1 << bits);
            check(Mapping::De, bits.cast_unsigned(), signed, &map);
        }
        let map = bitsandbytes_dynamic_map(false, bits);
        check(Mapping::De0, bits.cast_unsigned(), false, &map[1..]);
    }
    // The ends that the 8-bit paper names: seven decades.
    let (signed, unsigned) = (table(Mapping::De, 8, true), table(Mapping::De, 8, false));
    assert_eq!(
        (signed.levels[0], signed.levels[127], signed.levels[255]),
        (-0.992_968_75, 0.0, 1.0)
    );
    assert_eq!((signed.levels[128], unsigned.levels[1]), (5.5e-7, 3.25e-7));
}

#[test]
fn nf4_is_the_published_table() {
    // QLoRA, appendix E, as printed to seven digits.
    let published = [
        -1.0, -0.6961928, -0.5250731, -0.3949175, -0.2844414, -0.1847734, -0.09105, 0.0, 0.0795803,
        0.1609302, 0.2461123, 0.3379152, 0.4407098, 0.562617, 0.7229568, 1.0,
    ];
    let found = table(Mapping::Nf4, 4, true);
    assert_eq!(found.levels.len(), 16);
    for (found, want) in found.levels.iter().zip(published) {
        assert!(
            (f64::from(*found) - want).abs() <= 0.5001e-7,
            "{found} {want}"
        );
    }
    for bits in [2, 3, 5, 8] {
        assert!(Table::of(Mapping::Nf4, bits, true, &[]).is_err());
    }
    assert!(Table::of(Mapping::Nf4, 4, false, &[]).is_err());
}

#[test]
fn other_tables_are_their_closed_forms() {
    for bits in 2..=8_u32 {
        let count = 1_i32 << bits;
        let steps = |n: i32| (1..=n).map(move |i| f64::from(i) / f64::from(n));
        for (mapping, power) in [
            (Mapping::Linear, 1),
            (Mapping::Power2, 2),
            (Mapping::Power3, 3),
        ] {
            let unsigned: Vec<_> = steps(count).map(|x| x.powi(power)).collect();
            check(mapping, bits, false, &unsigned);
            let positive: Vec<_> = steps(count / 2).map(|x| x.powi(power)).collect();
            check(mapping, bits, true, &mirrored(&positive));
        }
        let from_zero = |n: i32| std::iter::once(0.0).chain(steps(n)).collect::<Vec<_>>();
        check(Mapping::LinearWithZero, bits, false, &from_zero(count - 1));
        // One zero, so that a level is unused.
        let positive: Vec<_> = steps(count / 2 - 1).collect();
        let mut levels = mirrored(&positive);
        levels.insert(positive.len(), 0.0);
        check(Mapping::LinearWithZero, bits, true, &levels);
        let decades = (0..count)
            .rev()
            .map(|k| 10_f64.powf(-4.0 * f64::from(k) / f64::from(count - 1)));
        check(
            Mapping::Geometric,
            bits,
            false,
            &decades.collect::<Vec<_>>(),
        );
    }
    for mapping in [Mapping::De0, Mapping::Geometric] {
        assert!(Table::of(mapping, 4, true, &[]).is_err(), "{mapping:?}");
    }
}
