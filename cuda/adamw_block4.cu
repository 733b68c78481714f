// AdamW with both moments in 4 bits, one scale for each block of 128: m block(128)/de, v
// block(128)/linear (preset `adamw4-block`; the paper's fused variant).
//
//   m = level_m[c_m] s_m                v = level_v[c_v] s_v
//   m' = beta1 m + (1 - beta1) g        v' = beta2 v + (1 - beta2) g^2
//   p' = p - lr (m' / (1 - beta1^t)) / (sqrt(v' / (1 - beta2^t)) + eps) - lr wd p
//   s_m = max |m'|, s_v = max |v'| over the block; c_m, c_v = the nearest levels
//
// Bytes moved per element: parameter read and written, gradient read, codes read and written
// (4 x 1/2), scales read and written (4 x 4/128): 8.125 for bf16 parameters and gradients, 14.125
// for f32. Everything is read once and written once.
//
// Launch: 256 threads a thread block, one dimension, as many thread blocks as the device holds at
// once (or fewer, if there is less work); a thread block takes tasks of 64 blocks of 128, each warp a
// block at a time, four elements a lane. Shared memory for one tensor's description and scalars, and for
// what the next blocks need (pipeline.cuh).
//
// Rounding steps: R1 in `scale_gradient`, R2 to R4 in numerics.cuh, R5 to R7 in approx.cuh (and
// numerics.cuh), R8 in common.cuh; the rounding of the new parameter in `store` (dtypes.cuh); codes in
// nibbles.cuh.

#include "adamw.cuh"
#include "nibbles.cuh"

namespace lowbit {

struct Block4States {
  using Rule = AdamwOfFour;

  static constexpr int PARTS = 1;
  // Units on their way to shared memory while one is computed.
  static constexpr int MOST_AHEAD = 3;
  static constexpr int TABLES = 0;  // bytes of shared memory
  // The block's largest v says whether a gradient was not finite.
  static constexpr bool V_SHOWS_NON_FINITE = true;
  static constexpr bool GLOBAL = false;
  static constexpr bool DRAWS = false;

  // The low half of a warp has what decodes m, and its scale, the high half that of v.
  static constexpr int V_LANES = LANES / 2;
  __device__ static __forceinline__ bool of_v() { return lane_index() >= V_LANES; }

  struct Tables {
    SignedTable m;
    LinearTable v;
    float level;

    __device__ __forceinline__ void fill(const Launch& launch, const Tensor& t) {
      m.fill(*in_table<Codebook>(launch, t.state[0].codebook));
      v.fill(*in_table<Codebook>(launch, t.state[1].codebook));
      level = of_v() ? v.level : m.level;
    }
  };

  const Launch& launch;
  const Tensor& tensor;
  const Tables& tables;
  unsigned char* m_codes;
  unsigned char* v_codes;
  float* scales;  // of m or v

  __device__ __forceinline__ Block4States(const Launch& launch, const Shared& shared,
                                          const Tables& tables)
      : launch(launch),
        tensor(shared.tensor),
        tables(tables),
        m_codes(pointer<unsigned char>(launch, tensor, tensor.state[0].buffer)),
        v_codes(pointer<unsigned char>(launch, tensor, tensor.state[1].buffer)),
        scales(pointer<float>(launch, tensor, tensor.state[of_v() ? 1 : 0].buffer + 1)) {}

  // Units, and lanes, of a single row on.
  __device__ __forceinline__ void advance(long long units, int lanes) {
    const long long bytes = units * (BLOCK / 2) + lanes * (EACH / 2);
    m_codes += bytes;
    v_codes += bytes;
    scales += units;
  }

  __device__ __forceinline__ bool aligned() const {
    return ((reinterpret_cast<unsigned long long>(m_codes) |
             reinterpret_cast<unsigned long long>(v_codes)) & 3) == 0;
  }

  struct Fetched {
    unsigned m_codes, v_codes;
    float scale;
  };

  template <bool Wide>
  __device__ __forceinline__ Fetched fetch(const Place& place) const {
    return {load_nibbles<Wide>(m_codes + place.byte, place.count()),
            load_nibbles<Wide>(v_codes + place.byte, place.count()), scales[place.unit]};
  }

  // The same of a warp's block in shared memory: codes of m, of v, and both scales.
  static constexpr int SCALES = 2 * NIBBLES;
  static constexpr int STAGE = SCALES + 16;

  __device__ __forceinline__ void copy(SharedAddress to, const Place& place) const {
    copy_nibbles(to, m_codes + place.byte);
    copy_nibbles(to + NIBBLES, v_codes + place.byte);
    if (lane_index() % V_LANES == 0) {
      copy_async<4>(to + SCALES + (of_v() ? 4 : 0), scales + place.unit);
    }
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from) {
    Fetched fetched{own_nibbles(from), own_nibbles(from + NIBBLES), 0.0f};
    load_shared(from + SCALES + (of_v() ? 4 : 0), fetched.scale);
    return fetched;
  }

  __device__ __forceinline__ void decode(const Fetched& from, float (&m)[EACH],
                                         float (&v)[EACH]) const {
    const float levels = __fmul_rn(tables.level, from.scale);
    decode_nibbles_of<0>(from.m_codes, levels, m);
    decode_nibbles_of<V_LANES>(from.v_codes, levels, v);
  }

  using Scales = BlockScales;

  template <bool Wide, typename Draws>
  __device__ __forceinline__ void store(const Place& place, const Quad& x, const Scales& scale,
                                        bool usual, Draws) const {
    unsigned m_code = tables.m.encode(x.m, scale.m);
    unsigned v_code = tables.v.encode(x.v, scale.v);
    if (!is_usual_scale(scale.m)) {
      m_code = count_midpoints(x.m, scale.m, *in_table<Codebook>(launch, tensor.state[0].codebook));
    }
    // Decays beyond [0, 1], which nobody checks in device memory, may make v negative.
    if (!is_usual_scale(scale.v) || !usual) {
      v_code = count_midpoints(x.v, scale.v, *in_table<Codebook>(launch, tensor.state[1].codebook));
    }
    store_nibbles<Wide>(m_codes + place.byte, place.count(), m_code);
    store_nibbles<Wide>(v_codes + place.byte, place.count(), v_code);
  }

  __device__ __forceinline__ void store_scales(const Place& place, const Scales& scale) const {
    if (lane_index() % V_LANES == 0) {
      scales[place.unit] = of_v() ? scale.v : scale.m;
    }
  }
};

}  // namespace lowbit

LOWBIT_COMMON_KERNELS(adamw, block4, step_tensors, lowbit::Block4States, 3, 2)
