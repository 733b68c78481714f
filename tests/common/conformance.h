/*
 * The numbers and cases of tests/common/README.md, for C99 and C++11. Needs nothing of the library;
 * dtypes and weights are numbered as in lowbit.h.
 */

#ifndef LOWBIT_TESTS_CONFORMANCE_H
#define LOWBIT_TESTS_CONFORMANCE_H

#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
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

enum { CONFORMANCE_F32 = 1, CONFORMANCE_BF16 = 2, CONFORMANCE_F16 = 3 };

static inline size_t conformance_dtype_size(int32_t dtype) {
  return dtype == CONFORMANCE_F32 ? 4 : 2;
}

/* An f16 by truncation, 0 below 2^-14; the generator makes nothing near the largest. */
static inline uint16_t conformance_f16(uint32_t bits) {
  const uint32_t sign = bits >> 31 << 15;
  const uint32_t exponent = bits >> 23 & 0xff;
  return (uint16_t)(exponent < 113 ? sign : sign | (exponent - 112) << 10 | (bits >> 13 & 0x3ff));
}

/* Stores element i as an f32, or as a bf16 or f16 by truncation. */
static inline void conformance_store(void *data, int32_t dtype, size_t i, float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  if (dtype == CONFORMANCE_F32) {
    memcpy((unsigned char *)data + i * sizeof bits, &bits, sizeof bits);
  } else {
    const uint16_t half = dtype == CONFORMANCE_F16 ? conformance_f16(bits) : (uint16_t)(bits >> 16);
    memcpy((unsigned char *)data + i * sizeof half, &half, sizeof half);
  }
}

/* Fills a parameter. */
static inline void conformance_params(void *data, int32_t dtype, uint64_t stream, size_t count) {
  for (size_t i = 0; i < count; i++) {
    conformance_store(data, dtype, i, conformance_param(stream, i));
  }
}

/* Fills a gradient. */
static inline void conformance_grads(void *data, int32_t dtype, uint64_t stream, size_t count) {
  for (size_t i = 0; i < count; i++) {
    conformance_store(data, dtype, i, conformance_grad(stream, i));
  }
}

/* The gradient's stream of tensor i in step t, from 1. */
static inline uint64_t conformance_grad_stream(uint64_t t, uint64_t i) { return 1000 * t + i; }

/* --- cases --- */

enum { CONFORMANCE_TENSORS = 7, CONFORMANCE_AXES = 5 };

typedef struct conformance_tensor_t {
  const char *name;
  int32_t ndim;
  int64_t shape[CONFORMANCE_AXES];
} conformance_tensor_t;

/* A line of cases.txt. */
typedef struct conformance_case_t {
  char name[64];
  int32_t param_dtype;
  int32_t grad_dtype;
  int32_t weights;
  int32_t steps;
  char spec[1024];
} conformance_case_t;

static inline const conformance_tensor_t *conformance_tensors(void) {
  static const conformance_tensor_t tensors[CONFORMANCE_TENSORS] = {
      {"t0", 1, {1, 0, 0, 0, 0}},       {"t1", 1, {4096, 0, 0, 0, 0}},
      {"t2", 1, {4097, 0, 0, 0, 0}},    {"t3", 2, {300, 257, 0, 0, 0}},
      {"t4", 4, {64, 3, 3, 3, 0}},      {"t5", 2, {512, 1024, 0, 0, 0}},
      {"t6", 5, {2, 3, 5, 7, 11}},
  };
  return tensors;
}

/* The place of a word in a list; a word that is not there ends the program. */
static inline int32_t conformance_choose(const char *word, const char *const *list, int32_t count) {
  for (int32_t i = 0; i < count; i++) {
    if (strcmp(word, list[i]) == 0) return i;
  }
  fprintf(stderr, "cases.txt has %s, which is unknown here\n", word);
  exit(2);
}

/* Reads the next line of cases.txt; 0 at its end. */
static inline int conformance_next(FILE *file, conformance_case_t *line) {
  static const char *const dtypes[3] = {"f32", "bf16", "f16"};
  static const char *const weights[5] = {"plain", "stochastic", "master", "remainder16",
                                         "correction8"};
  char param[16];
  char grad[16];
  char form[16];
  const int fields = fscanf(file, "%63s %15s %15s %15s %d %1023[^\n]", line->name, param, grad,
                            form, &line->steps, line->spec);
  if (fields == EOF) return 0;
  if (fields != 6) {
    fprintf(stderr, "cases.txt has a line of %d fields\n", fields);
    exit(2);
  }
  line->param_dtype = CONFORMANCE_F32 + conformance_choose(param, dtypes, 3);
  line->grad_dtype = CONFORMANCE_F32 + conformance_choose(grad, dtypes, 3);
  line->weights = conformance_choose(form, weights, 5);
  return 1;
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
