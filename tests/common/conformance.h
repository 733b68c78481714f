/*
 * The numbers and cases of tests/common/README.md, for C99 and C++11. Needs nothing of the library.
 */

#ifndef LOWBIT_TESTS_CONFORMANCE_H
#define LOWBIT_TESTS_CONFORMANCE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* --- numbers --- */

static inline uint64_t conformance_mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

static inline uint64_t conformance_word(uint64_t stream, uint64_t i) {
  return conformance_mix((stream << 40) + i);
}

/* The signed 24-bit integer that both kinds of numbers are made from. */
static inline float conformance_integer(uint64_t word) {
  return (float)((int32_t)(word >> 40) - 8388608);
}

/* Element i of a parameter: n 2^-27. */
static inline float conformance_param(uint64_t stream, uint64_t i) {
  return conformance_integer(conformance_word(stream, i)) / 134217728.0f;
}

/* Element i of a gradient: n 2^-23 2^-(h & 15), whole blocks of it zero. */
static inline float conformance_grad(uint64_t stream, uint64_t i) {
  const uint64_t word = conformance_word(stream, i);
  if (i / 512 % 5 == 4) return 0.0f;
  return conformance_integer(word) / 8388608.0f / (float)(1u << (word & 15));
}

/* Stores element i as f32, or as bf16 by truncation. */
static inline void conformance_store(void *data, int is_bf16, size_t i, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (is_bf16) {
    const uint16_t upper = (uint16_t)(bits >> 16);
    memcpy((unsigned char *)data + i * sizeof upper, &upper, sizeof upper);
  } else {
    memcpy((unsigned char *)data + i * sizeof bits, &bits, sizeof bits);
  }
}

/* Fills a parameter. */
static inline void conformance_params(void *data, int is_bf16, uint64_t stream, size_t count) {
  for (size_t i = 0; i < count; i++) {
    conformance_store(data, is_bf16, i, conformance_param(stream, i));
  }
}

/* Fills a gradient. */
static inline void conformance_grads(void *data, int is_bf16, uint64_t stream, size_t count) {
  for (size_t i = 0; i < count; i++) {
    conformance_store(data, is_bf16, i, conformance_grad(stream, i));
  }
}

/* The gradient's stream of tensor i in step t, from 1. */
static inline uint64_t conformance_grad_stream(uint64_t t, uint64_t i) { return 1000 * t + i; }

/* --- cases --- */

enum {
  CONFORMANCE_TENSORS = 7,
  CONFORMANCE_AXES = 5,
  CONFORMANCE_PRESETS = 3,
  CONFORMANCE_DTYPES = 3,
  CONFORMANCE_STEPS = 10
};

typedef struct conformance_tensor_t {
  const char *name;
  int32_t ndim;
  int64_t shape[CONFORMANCE_AXES];
} conformance_tensor_t;

typedef struct conformance_dtype_t {
  const char *name;
  int param_is_bf16;
  int grad_is_bf16;
} conformance_dtype_t;

static inline const conformance_tensor_t *conformance_tensors(void) {
  static const conformance_tensor_t tensors[CONFORMANCE_TENSORS] = {
      {"t0", 1, {1, 0, 0, 0, 0}},       {"t1", 1, {4096, 0, 0, 0, 0}},
      {"t2", 1, {4097, 0, 0, 0, 0}},    {"t3", 2, {300, 257, 0, 0, 0}},
      {"t4", 4, {64, 3, 3, 3, 0}},      {"t5", 2, {512, 1024, 0, 0, 0}},
      {"t6", 5, {2, 3, 5, 7, 11}},
  };
  return tensors;
}

static inline const char *conformance_preset(int i) {
  static const char *const presets[CONFORMANCE_PRESETS] = {"adamw32", "adamw4", "adamw4-block"};
  return presets[i];
}

static inline const conformance_dtype_t *conformance_dtypes(void) {
  static const conformance_dtype_t dtypes[CONFORMANCE_DTYPES] = {
      {"f32", 0, 0}, {"bf16", 1, 1}, {"mixed", 1, 0}};
  return dtypes;
}

static inline size_t conformance_numel(const conformance_tensor_t *tensor) {
  size_t numel = 1;
  for (int32_t axis = 0; axis < tensor->ndim; axis++) numel *= (size_t)tensor->shape[axis];
  return numel;
}

#define CONFORMANCE_LR 0.0009765625f
#define CONFORMANCE_BETA1 0.9f
#define CONFORMANCE_BETA2 0.999f
#define CONFORMANCE_EPS 1e-8f
#define CONFORMANCE_WEIGHT_DECAY 0.01f

#endif
