// AdamW with both moments in 8 bits, one scale for each block of 256: m and v block(256)/de (preset
// `adamw8`; Dettmers et al. 2022, with today's block).
//
//   m = level_m[c_m] s_m                v = level_v[c_v] s_v
//   m', v', p', scales and codes as in adamw_block4.cu
//
// Bytes moved per element: parameter read and written, gradient read, codes read and written (4 x 1),
// scales read and written (4 x 4/256): 10.0625 for bf16 parameters and gradients, 16.0625 for f32.
// Everything is read once and written once.
//
// Launch and rounding steps are those of adamw_block4.cu, with a block of 256 in two parts; codes in
// bytes.cuh, whose tables take 10 kB of shared memory.

#include "adamw.cuh"
#include "bytes.cuh"

namespace lowbit {

struct Block8States {
  using Rule = AdamwOfFour;
  using OfOneBlock = Block8States;

  static constexpr int PARTS = 2;
  static constexpr int SHARING = 2;
  // Units on their way to shared memory while one is computed.
  static constexpr int MOST_AHEAD = 3;
  static constexpr int TABLES = 2 * sizeof(ByteTable);  // bytes of shared memory
  // The block's largest v says whether a gradient was not finite.
  static constexpr bool V_SHOWS_NON_FINITE = true;
  static constexpr bool GLOBAL = false;
  static constexpr bool DRAWS = false;

  struct Tables {
    const ByteTable* m;
    const ByteTable* v;

    __device__ __forceinline__ void fill(const Launch& launch, const Tensor& t) {
      __shared__ ByteTable tables[2];
      for (int i = 0; i < 2; ++i) {
        tables[i].fill(*in_table<Codebook>(launch, t.state[i].codebook));
      }
      m = &tables[0];
      v = &tables[1];
    }
  };

  const Launch& launch;
  const Tensor& tensor;
  const Tables& tables;
  signed char* m_codes;
  signed char* v_codes;
  float* m_scales;
  float* v_scales;

  __device__ __forceinline__ Block8States(const Launch& launch, const Shared& shared,
                                          const Tables& tables)
      : launch(launch),
        tensor(shared.tensor),
        tables(tables),
        m_codes(pointer<signed char>(launch, tensor, tensor.state[0].buffer)),
        v_codes(pointer<signed char>(launch, tensor, tensor.state[1].buffer)),
        m_scales(pointer<float>(launch, tensor, tensor.state[0].buffer + 1)),
        v_scales(pointer<float>(launch, tensor, tensor.state[1].buffer + 1)) {}

  // Blocks, and lanes, of a single row on.
  __device__ __forceinline__ void advance(long long blocks, int lanes) {
    const long long bytes = blocks * (PARTS * BLOCK) + lanes * EACH;
    m_codes += bytes;
    v_codes += bytes;
    m_scales += blocks;
    v_scales += blocks;
  }

  __device__ __forceinline__ bool aligned() const {
    return is_aligned(m_codes, EACH) && is_aligned(v_codes, EACH);
  }

  struct Fetched {
    unsigned m_codes, v_codes;
    float m_scale, v_scale;
  };

  template <bool Wide>
  __device__ __forceinline__ Fetched fetch(const Place& place) const {
    return {load_bytes<Wide>(m_codes + place.element, place.count()),
            load_bytes<Wide>(v_codes + place.element, place.count()), m_scales[place.block_at],
            v_scales[place.block_at]};
  }

  // The same of a warp's block in shared memory: codes of m, of v, and both scales.
  static constexpr int V_CODES = PARTS * BLOCK;
  static constexpr int SCALES = 2 * V_CODES;
  static constexpr int STAGE = SCALES + 16;

  __device__ __forceinline__ void copy(SharedAddress to, const Place& place) const {
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      const SharedAddress own = to + i * BLOCK + EACH * lane_index();
      copy_async<EACH>(own, m_codes + place.part(i).element);
      copy_async<EACH>(own + V_CODES, v_codes + place.part(i).element);
    }
    if (lane_index() < 2) {
      copy_async<4>(to + SCALES + 4 * lane_index(),
                    (lane_index() == 0 ? m_scales : v_scales) + place.block_at);
    }
  }

  __device__ static __forceinline__ Fetched fetch(SharedAddress from, int part) {
    Fetched fetched{};
    const SharedAddress own = from + part * BLOCK + EACH * lane_index();
    load_shared(own, fetched.m_codes);
    load_shared(own + V_CODES, fetched.v_codes);
    load_shared(from + SCALES, fetched.m_scale);
    load_shared(from + SCALES + 4, fetched.v_scale);
    return fetched;
  }

  __device__ __forceinline__ void decode(const Fetched& from, float (&m)[EACH],
                                         float (&v)[EACH]) const {
    tables.m->decode(from.m_codes, from.m_scale, m);
    tables.v->decode(from.v_codes, from.v_scale, v);
  }

  using Scales = BlockScales;

  template <bool Wide, typename Draws>
  __device__ __forceinline__ void store(const Place& place, const Quad (&all)[PARTS],
                                        const Scales (&scale)[1], Staying staying, bool,
                                        Draws) const {
    if (staying.has(0)) {
      return;
    }
#pragma unroll
    for (int i = 0; i < PARTS; ++i) {
      const Place part = place.part(i);
      store_bytes<Wide>(m_codes + part.element, part.count(),
                        tables.m->encode(all[i].m, scale[0].m, book(0)));
      store_bytes<Wide>(v_codes + part.element, part.count(),
                        tables.v->encode(all[i].v, scale[0].v, book(1)));
    }
    if (lane_index() == 0) {
      m_scales[place.block_at] = scale[0].m;
      v_scales[place.block_at] = scale[0].v;
    }
  }

  __device__ __forceinline__ const Codebook& book(int state) const {
    return *in_table<Codebook>(launch, tensor.state[state].codebook);
  }
};

}  // namespace lowbit

LOWBIT_COMMON_KERNELS(adamw, block8, step_tensors, lowbit::Block8States, 2)
