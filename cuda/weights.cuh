// Weight forms, `src/weights.rs`: what is kept beside a 16-bit parameter so that small updates are
// not lost. theta is the f32 value that a step updates, b the parameter.

#pragma once

#include "dtypes.cuh"
#include "random.cuh"

namespace lowbit {

// The distance of bf16 values in the binade of b.
__device__ __forceinline__ float last_place(unsigned b) {
  const unsigned biased = b >> 7 & 0xff;
  const unsigned exponent = biased == 0 ? 1 : biased;
  return __uint_as_float(exponent > 7 ? (exponent - 7) << 23 : 1u << (exponent + 15));
}

__device__ __forceinline__ bool is_finite_bf16(unsigned b) { return (b & 0x7f80) != 0x7f80; }

// theta of b and the lower half. A b that was set to zero by others counts as it is.
__device__ __forceinline__ float join_remainder(unsigned b, unsigned low) {
  const unsigned bits = b << 16;
  if ((low >= 0x8000 && (bits & 0x7fff0000) == 0) || (bits & 0x7fffffff) > INF_BITS) {
    return canonical(__uint_as_float(bits));
  }
  return __uint_as_float(bits - (low >> 15 << 16) + low);
}

// RN(U / 254). U is a power of two, so where the quotient is normal it is a product.
__device__ __forceinline__ float correction_step(unsigned b) {
  const float place = last_place(b);
  return place >= 0x1p-110f ? __fmul_rn(place, 1.0f / 254.0f) : __fdiv_rn(place, 254.0f);
}

// RN(b + RN(correction RN(U / 254))), where U is the last place of b.
__device__ __forceinline__ float join_correction(unsigned b, int correction) {
  const float value = __uint_as_float(b << 16);
  if (!is_finite_bf16(b)) {
    return canonical(value);
  }
  return __fadd_rn(value, __fmul_rn(static_cast<float>(correction), correction_step(b)));
}

// RNE(254 (theta - b) / U)
__device__ __forceinline__ int split_correction(float theta, unsigned b) {
  if (!is_finite_bf16(b)) {
    return 0;
  }
  const float error = __fadd_rn(theta, -__uint_as_float(b << 16));
  const float place = last_place(b);
  // The reciprocal of a power of two is one, if it is a normal number.
  const float parts = place >= 0x1p-110f
                          ? __fmul_rn(error, __uint_as_float(0x7f000000 - __float_as_uint(place)))
                          : __fdiv_rn(error, place);
  return __float2int_rn(__fmul_rn(254.0f, parts));
}

// x rounded to bf16 by a draw: the mean over all draws is x.
__device__ __forceinline__ unsigned stochastic_bf16(float x, unsigned draw) {
  if (magnitude(x) >= INF_BITS) {
    return Bf16::encode(x);
  }
  return (__float_as_uint(x) + draw) >> 16;
}

__device__ __forceinline__ unsigned stochastic_f16(float x, unsigned draw) {
  const unsigned bits = __float_as_uint(x);
  if (magnitude(x) >= INF_BITS) {
    return F16::encode(x);
  }
  if (magnitude(x) >= 0x38800000) {  // a normal f16 keeps 10 of 23 bits
    return F16::encode(__uint_as_float((bits + (draw & 0x1fff)) & ~0x1fffu));
  }
  // A subnormal one is a multiple of 2^-24.
  const float multiple = __fmul_rn(__uint_as_float(magnitude(x)), 16777216.0f);
  const float whole = static_cast<float>(static_cast<int>(multiple));  // below 2^10
  const float up = uniform(draw) < __fadd_rn(multiple, -whole) ? 1.0f : 0.0f;
  const float rounded = __fmul_rn(__fadd_rn(whole, up), 1.0f / 16777216.0f);
  return F16::encode(__uint_as_float(__float_as_uint(rounded) | (bits & 0x80000000)));
}

// What memory holds of a parameter: its bits, and those beside it.
struct Stored {
  unsigned param;
  unsigned beside;
};

// Bytes beside a parameter.
__device__ __forceinline__ int beside_bytes(int form) {
  return form == MASTER ? 4 : form == REMAINDER16 ? 2 : form == CORRECTION8 ? 1 : 0;
}

// theta
__device__ __forceinline__ float join_weight(Stored from, int dtype, int form) {
  if (form == PLAIN || form == STOCHASTIC_WEIGHTS) {
    return decode_value(from.param, dtype);
  }
  if (form == REMAINDER16) {
    return join_remainder(from.param, from.beside);
  }
  if (form == CORRECTION8) {
    return join_correction(from.param, static_cast<signed char>(from.beside));
  }
  // The master, unless the parameter was changed by others (or the master never set): what it was
  // rounded to then differs, and the parameter counts.
  const float master = __uint_as_float(from.beside);
  const float now = decode_value(from.param, dtype);
  const float rounded = dtype == DTYPE_BF16 ? Bf16::decode(Bf16::encode(master))
                                            : F16::decode(F16::encode(master));
  return __float_as_uint(rounded) == __float_as_uint(now) ? master : now;
}

// The reverse; `draw` is for stochastic rounding.
__device__ __forceinline__ Stored split_weight(float theta, int dtype, int form, unsigned draw) {
  if (form == STOCHASTIC_WEIGHTS) {
    return {dtype == DTYPE_BF16 ? stochastic_bf16(theta, draw) : stochastic_f16(theta, draw), 0};
  }
  if (form == REMAINDER16) {
    // b is rounded half away from zero: on a tie, nearest even would not tell which of two values
    // it came from.
    const bool nan = magnitude(theta) > INF_BITS;
    const unsigned bits = __float_as_uint(theta);
    return {nan ? NAN_BITS >> 16 : (bits + 0x8000) >> 16, nan ? 0 : bits & 0xffff};
  }
  if (form == CORRECTION8) {
    const unsigned b = Bf16::encode(theta);
    return {b, static_cast<unsigned>(split_correction(theta, b)) & 0xff};
  }
  return {encode_value(theta, dtype), __float_as_uint(canonical(theta))};
}

// ---- parameters of common tensors, with the form known when the kernel is compiled -------------

struct Bf16Stochastic : Bf16 {
  static constexpr int FORM = STOCHASTIC_WEIGHTS;
};

struct Bf16Correction8 : Bf16 {
  static constexpr int FORM = CORRECTION8;
};

}  // namespace lowbit
