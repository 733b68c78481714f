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
// once (or fewer, if there is less work); a thread block takes consecutive tasks of 64 blocks of 128, each warp two
// blocks at a time, four elements of both a lane. Shared memory for one tensor's description and scalars, and for
// what the next blocks need (pipeline.cuh).
//
// Rounding steps: R1 in `scale_gradient`, R2 to R4 in numerics.cuh, R5 to R7 in approx.cuh (and
// numerics.cuh), R8 in common.cuh; the rounding of the new parameter in `store` (dtypes.cuh); codes in
// nibbles.cuh.

#include "adamw.cuh"
#include "nibbles.cuh"

namespace lowbit {

// The low half of a warp has what decodes m, and its scales, the high half that of v.
constexpr int V_LANES = LANES / 2;
__device__ __forceinline__ bool of_v() { return lane_index() >= V_LANES; }

struct Block4Tables {
  SignedTable m;
  LinearTable v;
  float level;

  __device__ __forceinline__ void fill(const Launch& launch, const Tensor& t) {
    m.fill(*in_table<Codebook>(launch, t.state[0].codebook));
    v.fill(*in_table<Codebook>(launch, t.state[1].codebook));
    level = of_v() ? v.level : m.level;
  }
};

template <int BLOCKS>
struct Block4States {
  using Rule = AdamwOfFour;
  using OfOneBlock = Block4States<1>;
  using Tables = Block4Tables;
  using Scales = BlockScales;

  static constexpr int PARTS = BLOCKS;
  static constexpr int SHARING = 1;
  // Units on their way to shared memory while one is computed.
  static constexpr int MOST_AHEAD = 3;
  static constexpr int TABLES = 0;  // bytes of shared memory
  // The block's largest v says whether a gradient was not finite.
  static constexpr bool V_SHOWS_NON_FINITE = true;
  static constexpr bool GLOBAL = false;
  static constexpr bool DRAWS = false;

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

  // Blocks, and lanes, of a single row on.
  __device__ __forceinline__ void advance(long long blocks, int lanes) {
    const long long bytes = blocks * (BLOCK / 2) + lanes * (EACH / 2);
    m_codes += bytes;
    v_codes += bytes;
    scales += blocks;
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
            load_nibbles<Wide>(v_codes + place.byte, place.count()), scales[place.block_at]};
  }

  // The same of a warp's unit in shared memory: codes of m, of v, and the scales of both.
  static constexpr int V_CODES = PARTS * NIBBLES;
  static constexpr int SCALES = 2 * V_CODES;
  static constexpr int V_SCALES = PARTS * sizeof(float);
  static constexpr int STAGE = SCALES + 16;

  __device__ __forceinline__ void copy(SharedAddress to, const Place& place) const {
    copy_nibbles<PARTS>(to, m_codes + place.byte);
    copy_nibbles<PARTS>(to + V_CODES, v_codes + place.byte);
    const int block = lane_index() % V_LANES;
    if (block < PARTS) {
      copy_async<4>(to + SCALES + (of_v() ? V_SCALES : 0) + 4 * block,
                    scales + place.block_at + block);
    }
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from, int part) {
    Fetched fetched{own_nibbles(from + part * NIBBLES), own_nibbles(from + V_CODES + part * NIBBLES),
                    0.0f};
    load_shared(from + SCALES + (of_v() ? V_SCALES : 0) + 4 * part, fetched.scale);
    return fetched;
  }

  __device__ __forceinline__ void decode(const Fetched& from, float (&m)[EACH],
                                         float (&v)[EACH]) const {
    const float levels = __fmul_rn(tables.level, from.scale);
    decode_nibbles_of<0>(from.m_codes, levels, m);
    decode_nibbles_of<V_LANES>(from.v_codes, levels, v);
  }

  template <bool Wide, typename Draws>
  __device__ __forceinline__ void store(const Place& place, const Quad (&all)[PARTS],
                                        const Scales (&scale)[PARTS], Staying staying, bool usual,
                                        Draws) const {
    unsigned m_code[PARTS], v_code[PARTS];
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      m_code[i] = tables.m.encode(all[i].m, scale[i].m);
      v_code[i] = tables.v.encode(all[i].v, scale[i].v);
      // Decays beyond [0, 1], which nobody checks in device memory, may make v negative.
      usual = usual & is_usual_scale(scale[i].m) & is_usual_scale(scale[i].v);
    }
    if (!usual) {
#pragma unroll
      for (int i = 0; i < PARTS; ++i) {
        m_code[i] = count_midpoints(all[i].m, scale[i].m, book(0));
        v_code[i] = count_midpoints(all[i].v, scale[i].v, book(1));
      }
    }
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      if (!staying.has(i)) {
        const Place part = place.part(i);
        store_nibbles<Wide>(m_codes + part.byte, part.count(), m_code[i]);
        store_nibbles<Wide>(v_codes + part.byte, part.count(), v_code[i]);
      }
    }
    const int block = lane_index() % V_LANES;
    const Scales own = block == 0 ? scale[0] : scale[PARTS - 1];
    if (block < PARTS && !staying.has(block)) {
      scales[place.block_at + block] = of_v() ? own.v : own.m;
    }
  }

  __device__ __forceinline__ const Codebook& book(int state) const {
    return *in_table<Codebook>(launch, tensor.state[state].codebook);
  }
};

}  // namespace lowbit

LOWBIT_COMMON_KERNELS(adamw, block4, step_tensors, lowbit::Block4States<2>, 2)
