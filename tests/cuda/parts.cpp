// How `src/backend/cuda/emulation.rs` launches kernels under the host shim, and parts of kernels that it
// calls alone. It links this with the kernels, of which each file is compiled apart.

#include "shim.hpp"

#include <cstddef>

#include "bytes.cuh"
#include "common.cuh"
#include "exact_sum.cuh"
#include "nibbles.cuh"

using namespace lowbit;

extern "C" void shim_launch(void (*kernel)(const Launch&), unsigned grid, unsigned threads,
                            const Launch* launch, uint64_t seed) {
  // Thread blocks that wait for each other run at once.
  const bool together = (launch->flags & FUSED) != 0;
  shim::launch(kernel, grid, threads, *launch, seed, together);
}

// Sizes and offsets of what Rust mirrors, in the order of its fields.
#define AT(STRUCT, FIELD) offsetof(STRUCT, FIELD)
extern "C" const size_t shim_layout[] = {
    sizeof(Codebook), AT(Codebook, midpoints), AT(Codebook, levels),
    sizeof(State), AT(State, kind), AT(State, per_byte), AT(State, scaling), AT(State, block),
    AT(State, rounding), AT(State, option), AT(State, spacing), AT(State, buffer),
    AT(State, codebook), AT(State, word),
    sizeof(Factor), AT(Factor, word), AT(Factor, sum), AT(Factor, fresh), AT(Factor, count),
    AT(Factor, axes),
    sizeof(Tensor), AT(Tensor, rows), AT(Tensor, cols), AT(Tensor, units), AT(Tensor, first_col),
    AT(Tensor, param_max), AT(Tensor, param_sum), AT(Tensor, update_max), AT(Tensor, update_sum),
    AT(Tensor, block), AT(Tensor, param_dtype), AT(Tensor, grad_dtype), AT(Tensor, weights),
    AT(Tensor, group), AT(Tensor, scalars), AT(Tensor, index), AT(Tensor, global),
    AT(Tensor, states), AT(Tensor, axes), AT(Tensor, lead), AT(Tensor, hash), AT(Tensor, words),
    AT(Tensor, first_row), AT(Tensor, tile_rows), AT(Tensor, shape), AT(Tensor, offset),
    AT(Tensor, global_shape), AT(Tensor, state),
    sizeof(Segment), AT(Segment, first), AT(Segment, tensor), AT(Segment, kind),
    sizeof(Scalars), AT(Scalars, beta1), AT(Scalars, one_minus_beta1), AT(Scalars, beta2),
    AT(Scalars, one_minus_beta2), AT(Scalars, eps), AT(Scalars, lr_bc1), AT(Scalars, lr_wd),
    AT(Scalars, inv_sqrt_bc2), AT(Scalars, grad_scale), AT(Scalars, skip), AT(Scalars, l2),
    AT(Scalars, inv_bc2),
    sizeof(Launch), AT(Launch, table), AT(Launch, tensors), AT(Launch, segments),
    AT(Launch, tasks), AT(Launch, hyper), AT(Launch, step_number), AT(Launch, skipped),
    AT(Launch, statistics), AT(Launch, ticket), AT(Launch, done), AT(Launch, sums), AT(Launch, fresh),
    AT(Launch, update_maxima), AT(Launch, update_sums), AT(Launch, keys),
    AT(Launch, step),
    AT(Launch, flags), AT(Launch, groups), AT(Launch, tensor_count), AT(Launch, state),
    AT(Launch, decay), AT(Launch, weight), AT(Launch, dampening), AT(Launch, decay_rate),
    AT(Launch, eps2), AT(Launch, clip_threshold), AT(Launch, grad_scale), AT(Launch, max_norm),
    AT(Launch, norm), AT(Launch, clip_factor), AT(Launch, words),
};

// ---- parts of kernels --------------------------------------------------------------------------

// The codes alone: 128 values for each scale, coded; and the 16 levels of each scale.
struct CodesParams {
  const Codebook* m_book;
  const Codebook* v_book;
  const float* values;  // [scales][128]
  const float* scales;
  unsigned char* codes;  // [2][scales][128]: m, v
  float* levels;         // [2][scales][16]
  size_t count;          // of scales
};

static void code_values(const CodesParams& a) {
  SignedTable m;
  LinearTable v;
  m.fill(*a.m_book);
  v.fill(*a.v_book);
  const size_t lane = threadIdx.x;
  for (size_t block = 0; block < a.count; ++block) {
    const float scale = a.scales[block];
    float values[4];
    std::memcpy(values, a.values + 128 * block + 4 * lane, sizeof values);
    unsigned m_codes = m.encode(values, scale), v_codes = v.encode(values, scale);
    bool negative = false;
    for (float x : values) {
      negative = negative || x < 0.0f;
    }
    if (!is_usual_scale(scale)) {
      m_codes = count_midpoints(values, scale, *a.m_book);
    }
    if (!is_usual_scale(scale) || negative) {
      v_codes = count_midpoints(values, scale, *a.v_book);
    }
    for (size_t i = 0; i < 4; ++i) {
      const size_t at = 128 * block + 4 * lane + i;
      a.codes[at] = m_codes >> 4 * i & 15;
      a.codes[128 * a.count + at] = v_codes >> 4 * i & 15;
    }
    const unsigned code = lane % 16;
    const unsigned all = code * 0x1111;
    float m_levels[4], v_levels[4];
    decode_nibbles(all, m.scaled_levels(scale), m_levels);
    decode_nibbles_of<16>(all, __fmul_rn(v.level, scale), v_levels);
    if (lane < 16) {
      a.levels[16 * block + code] = m_levels[3];
      a.levels[16 * (a.count + block) + code] = v_levels[0];
    }
  }
}

extern "C" void shim_codes(const CodesParams* params) {
  shim::launch(code_values, 1, shim::LANES, *params, 0);
}

// Codes rounded at random: 128 values and draws for each scale.
struct DrawnCodesParams {
  const Codebook* book;
  const float* values;          // [scales][128]
  const unsigned short* draws;  // [scales][128]
  const float* scales;
  unsigned char* codes;  // [scales][128]
  size_t count;          // of scales
};

static void code_at_random(const DrawnCodesParams& a) {
  Nf4Table table;
  table.fill(*a.book);
  for (size_t block = 0; block < a.count; ++block) {
    const size_t at = 128 * block + 4 * threadIdx.x;
    float values[4];
    uint2 drawn;
    std::memcpy(values, a.values + at, sizeof values);
    std::memcpy(&drawn, a.draws + at, sizeof drawn);
    const unsigned codes = table.encode(values, a.scales[block], *a.book, [&] { return drawn; });
    for (size_t i = 0; i < 4; ++i) {
      a.codes[at + i] = codes >> 4 * i & 15;
    }
  }
}

extern "C" void shim_drawn_codes(const DrawnCodesParams* params) {
  shim::launch(code_at_random, 1, shim::LANES, *params, 0);
}

// Codes of values that have a scale each, which is no less than they are.
struct OwnScalesParams {
  const Codebook* linear;
  const Codebook* squares;
  const float* values;
  const float* scales;
  unsigned char* codes;  // [2][count]
  size_t count;          // whole 128
};

static void code_by_own_scales(const OwnScalesParams& a) {
  LinearTable linear;
  SquareTable squares;
  linear.fill(*a.linear);
  squares.fill(*a.squares);
  for (size_t at = 4 * threadIdx.x; at < a.count; at += 4 * shim::LANES) {
    float values[4];
    unsigned scales[4];
    std::memcpy(values, a.values + at, sizeof values);
    std::memcpy(scales, a.scales + at, sizeof scales);
    bool usual = true;
    for (size_t i = 0; i < 4; ++i) {
      usual = usual && values[i] >= LEAST_V && a.scales[at + i] <= 0x1p100f;
    }
    const unsigned codes[2] = {linear.encode(values, scales, usual, *a.linear),
                               squares.encode(values, scales, usual, *a.squares)};
    for (size_t i = 0; i < 4; ++i) {
      a.codes[at + i] = codes[0] >> 4 * i & 15;
      a.codes[a.count + at + i] = codes[1] >> 4 * i & 15;
    }
  }
}

extern "C" void shim_own_scales(const OwnScalesParams* params) {
  shim::launch(code_by_own_scales, 1, shim::LANES, *params, 0);
}

// The same of 8 bits: `each` values, whole 128, for each scale.
struct ByteCodesParams {
  const Codebook* book;
  const float* values;   // [scales][each]
  const float* scales;
  unsigned char* codes;  // [scales][each]
  float* levels;         // [scales][256]
  size_t each;
  size_t count;  // of scales
};

static void code_bytes(const ByteCodesParams& a) {
  __shared__ ByteTable table;
  table.fill(*a.book);
  for (size_t block = 0; block < a.count; ++block) {
    const float scale = a.scales[block];
    for (size_t at = 4 * threadIdx.x; at < a.each; at += 4 * shim::LANES) {
      float values[4];
      std::memcpy(values, a.values + a.each * block + at, sizeof values);
      const unsigned codes = table.encode(values, scale);
      std::memcpy(a.codes + a.each * block + at, &codes, 4);
    }
    for (unsigned code = 4 * threadIdx.x; code < 256; code += 4 * shim::LANES) {
      float levels[4];
      table.decode(code * 0x01010101 + 0x03020100, scale, levels);
      std::memcpy(a.levels + 256 * block + code, levels, sizeof levels);
    }
  }
}

extern "C" void shim_byte_codes(const ByteCodesParams* params) {
  shim::launch(code_bytes, 1, shim::LANES, *params, 0);
}

// How many roots, of every significand and both parities of the exponent, differ from the host's.
extern "C" size_t shim_wrong_roots() {
  size_t wrong = 0;
  for (uint32_t bits = 0x3f800000; bits < 0x40800000; ++bits) {
    const float x = shim::from_bits<float>(bits);
    wrong += root_in_range(x) != std::sqrt(x);
  }
  return wrong;
}

// The same for `count` random quotients.
extern "C" size_t shim_wrong_quotients(size_t count) {
  std::mt19937_64 random(3);
  size_t wrong = 0;
  for (size_t i = 0; i < count; ++i) {
    const uint64_t bits = random();
    const float n = shim::from_bits<float>(static_cast<uint32_t>(0x3f800000 | (bits & 0x7fffff)));
    const float d =
        shim::from_bits<float>(static_cast<uint32_t>(0x3f800000 | (bits >> 32 & 0x7fffff)));
    wrong += quotient_in_range(n, d) != n / d;
  }
  return wrong;
}

// A term's limbs by shifts.
static Limbs shifted_limbs(float x, uint32_t largest) {
  const Term term = term_of(x);
  const int places = term.exponent + places_below(static_cast<int>(largest));
  Words sum;
  add(sum, term, places);
  add_rounded(sum, term, places);
  return limbs_of(sum);
}

// How many terms have other limbs by shifts than in f64: with all exponents of the largest term and of the
// term, `count` random significands, and those that end in the half of a bit, or beside it.
extern "C" size_t shim_wrong_limbs(size_t count) {
  std::mt19937_64 random(4);
  std::vector<uint32_t> fractions(count);
  for (uint32_t& fraction : fractions) {
    fraction = static_cast<uint32_t>(random()) & 0x7fffff;
  }
  for (uint32_t half = 1; half < 0x800000; half *= 2) {
    for (const uint32_t tie : {half, half | half * 2}) {
      for (const uint32_t fraction : {tie - 1, tie, tie + 1}) {
        fractions.push_back(fraction & 0x7fffff);
      }
    }
  }
  fractions.push_back(0);
  size_t wrong = 0;
  for (uint32_t above = 0; above < 255; ++above) {
    for (uint32_t exponent = 0; exponent <= above; ++exponent) {
      for (const uint32_t fraction : fractions) {
        const uint32_t bits = exponent << 23 | fraction;
        const uint32_t largest =
            std::max(bits, above << 23 | (static_cast<uint32_t>(random()) & 0x7fffff));
        const float x = shim::from_bits<float>(bits);
        const Limbs got = shifted_limbs(x, largest);
        const double units = units_of_one(exponent_above(static_cast<int>(largest)));
        const Limbs want = limbs_of(static_cast<double>(x), units);
        wrong += got.high != want.high || got.low != want.low;
      }
    }
  }
  // Where a term is not finite nothing is added.
  for (const uint32_t bits : {0u, 1u, 0x3f800000u, 0x7f7fffffu, INF_BITS, NAN_BITS}) {
    for (const uint32_t largest : {INF_BITS, NAN_BITS}) {
      const Limbs got = shifted_limbs(shim::from_bits<float>(bits), largest);
      wrong += got.high != 0 || got.low != 0;
    }
  }
  return wrong;
}

// Whether the sums of a warp's lanes are those of their words, up to the most that 128 terms add up to.
static void add_words(size_t* const& wrong) {
  std::mt19937_64 random(threadIdx.x + 5);
  const unsigned long long most[] = {128ull * 0x1fffffff, 128ull * 0xffffffff};
  for (size_t i = 0; i < 1000; ++i) {
    const auto any = [&](unsigned long long bound) {
      return i == 0 ? bound : random() % (bound + 1);
    };
    const Words words{any(most[0]), any(most[1])};
    const Words got = words_of(warp_sum(words));
    const auto sum = [](unsigned long long x) {
      return static_cast<unsigned long long>(warp_sum(static_cast<long long>(x)));
    };
    const bool same = got.high == sum(words.high) && got.low == sum(words.low);
    *wrong += same ? 0 : 1;
  }
}

extern "C" size_t shim_wrong_warp_sums() {
  size_t wrong = 0;
  size_t* const to = &wrong;
  shim::launch(add_words, 1, shim::LANES, to, 0);
  return wrong;
}
