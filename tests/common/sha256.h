/*
 * SHA-256 (FIPS 180-4), for C99 and C++11: conformance lines are hashes, and a test should not need
 * a library for that. Not for secrets: no attention is paid to timing.
 */

#ifndef LOWBIT_TESTS_SHA256_H
#define LOWBIT_TESTS_SHA256_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct sha256_t {
  uint32_t state[8];
  uint64_t bytes;          /* hashed so far, with those waiting in block */
  unsigned char block[64]; /* the last bytes % 64 */
} sha256_t;

static inline void sha256_begin(sha256_t *hash) {
  /* First 32 bits of the fractional parts of the square roots of the first 8 primes. */
  static const uint32_t start[8] = {0x6a09e667u, 0xbb67ae85u, 0x3c6ef372u, 0xa54ff53au,
                                    0x510e527fu, 0x9b05688cu, 0x1f83d9abu, 0x5be0cd19u};
  for (int i = 0; i < 8; i++) hash->state[i] = start[i];
  hash->bytes = 0;
}

static inline uint32_t sha256_rotate(uint32_t x, unsigned count) {
  return (x >> count) | (x << (32 - count));
}

static inline void sha256_compress(uint32_t state[8], const unsigned char block[64]) {
  /* First 32 bits of the fractional parts of the cube roots of the first 64 primes. */
  static const uint32_t k[64] = {
      0x428a2f98u, 0x71374491u, 0xb5c0fbcfu, 0xe9b5dba5u, 0x3956c25bu, 0x59f111f1u, 0x923f82a4u,
      0xab1c5ed5u, 0xd807aa98u, 0x12835b01u, 0x243185beu, 0x550c7dc3u, 0x72be5d74u, 0x80deb1feu,
      0x9bdc06a7u, 0xc19bf174u, 0xe49b69c1u, 0xefbe4786u, 0x0fc19dc6u, 0x240ca1ccu, 0x2de92c6fu,
      0x4a7484aau, 0x5cb0a9dcu, 0x76f988dau, 0x983e5152u, 0xa831c66du, 0xb00327c8u, 0xbf597fc7u,
      0xc6e00bf3u, 0xd5a79147u, 0x06ca6351u, 0x14292967u, 0x27b70a85u, 0x2e1b2138u, 0x4d2c6dfcu,
      0x53380d13u, 0x650a7354u, 0x766a0abbu, 0x81c2c92eu, 0x92722c85u, 0xa2bfe8a1u, 0xa81a664bu,
      0xc24b8b70u, 0xc76c51a3u, 0xd192e819u, 0xd6990624u, 0xf40e3585u, 0x106aa070u, 0x19a4c116u,
      0x1e376c08u, 0x2748774cu, 0x34b0bcb5u, 0x391c0cb3u, 0x4ed8aa4au, 0x5b9cca4fu, 0x682e6ff3u,
      0x748f82eeu, 0x78a5636fu, 0x84c87814u, 0x8cc70208u, 0x90befffau, 0xa4506cebu, 0xbef9a3f7u,
      0xc67178f2u};
  uint32_t w[64];
  for (int i = 0; i < 16; i++) {
    w[i] = (uint32_t)block[4 * i] << 24 | (uint32_t)block[4 * i + 1] << 16 |
           (uint32_t)block[4 * i + 2] << 8 | (uint32_t)block[4 * i + 3];
  }
  for (int i = 16; i < 64; i++) {
    const uint32_t x = w[i - 15];
    const uint32_t y = w[i - 2];
    const uint32_t s0 = sha256_rotate(x, 7) ^ sha256_rotate(x, 18) ^ (x >> 3);
    const uint32_t s1 = sha256_rotate(y, 17) ^ sha256_rotate(y, 19) ^ (y >> 10);
    w[i] = w[i - 16] + s0 + w[i - 7] + s1;
  }
  uint32_t v[8]; /* a b c d e f g h */
  for (int i = 0; i < 8; i++) v[i] = state[i];
  for (int i = 0; i < 64; i++) {
    const uint32_t s1 = sha256_rotate(v[4], 6) ^ sha256_rotate(v[4], 11) ^ sha256_rotate(v[4], 25);
    const uint32_t choice = (v[4] & v[5]) ^ (~v[4] & v[6]);
    const uint32_t t1 = v[7] + s1 + choice + k[i] + w[i];
    const uint32_t s0 = sha256_rotate(v[0], 2) ^ sha256_rotate(v[0], 13) ^ sha256_rotate(v[0], 22);
    const uint32_t majority = (v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]);
    for (int j = 7; j > 0; j--) v[j] = v[j - 1];
    v[4] += t1;
    v[0] = t1 + s0 + majority;
  }
  for (int i = 0; i < 8; i++) state[i] += v[i];
}

static inline void sha256_add(sha256_t *hash, const void *data, size_t bytes) {
  const unsigned char *from = (const unsigned char *)data;
  while (bytes > 0) {
    const size_t held = (size_t)(hash->bytes % 64);
    const size_t part = bytes < 64 - held ? bytes : 64 - held;
    memcpy(hash->block + held, from, part);
    hash->bytes += part;
    from += part;
    bytes -= part;
    if (held + part == 64) sha256_compress(hash->state, hash->block);
  }
}

/* Ends the hash and writes 64 digits and a NUL. */
static inline void sha256_end(sha256_t *hash, char hex[65]) {
  static const unsigned char one = 0x80;
  static const unsigned char zero = 0;
  const uint64_t bits = hash->bytes * 8;
  unsigned char length[8];
  for (int i = 0; i < 8; i++) length[i] = (unsigned char)(bits >> (56 - 8 * i));
  sha256_add(hash, &one, 1);
  while (hash->bytes % 64 != 56) sha256_add(hash, &zero, 1);
  sha256_add(hash, length, sizeof length);
  for (int i = 0; i < 64; i++) {
    hex[i] = "0123456789abcdef"[(hash->state[i / 8] >> (28 - 4 * (i % 8))) & 15];
  }
  hex[64] = '\0';
}

#endif
