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
// once (or fewer, if there is less work); each warp takes blocks of 128 in turn, four elements a
// lane. 40 bytes of shared memory, for the step's scalars.
//
// Rounding steps: R1 in `scale_gradient`, R2 to R8 in `adamw` (numerics.cuh); the rounding of the
// new parameter to its dtype in `store` (dtypes.cuh); codes as said in codes.cuh.

#include "adamw.cuh"
#include "codes.cuh"

namespace lowbit {

struct Block4States {
  LaneTable m_table{DE_SIGNED};
  Linear v_table;

  template <bool Wide>
  __device__ __forceinline__ void load(const AdamwParams& a, const Place& place, float (&m)[4],
                                       float (&v)[4]) const {
    const unsigned m_codes = load_codes<Wide>(code_bytes(a.m, place), place.count);
    const unsigned v_codes = load_codes<Wide>(code_bytes(a.v, place), place.count);
    const float m_scale = a.m_scales[place.unit];
    const float v_scale = a.v_scales[place.unit];
    for (int i = 0; i < 4; ++i) {
      m[i] = m_table.decode(m_codes >> 4 * i & 15, m_scale);
      v[i] = v_table.decode(v_codes >> 4 * i & 15, v_scale);
    }
  }

  template <bool Wide>
  __device__ __forceinline__ void store(const AdamwParams& a, const Place& place,
                                        const float (&m)[4], const float (&v)[4]) const {
    unsigned m_maximum = 0;
    unsigned v_maximum = 0;
    for (int i = 0; i < 4; ++i) {
      // What a lane computes beyond the end of a row has no part in the scale.
      if (Wide || i < place.count) {
        m_maximum = max(m_maximum, magnitude(m[i]));
        v_maximum = max(v_maximum, magnitude(v[i]));
      }
    }
    const float m_scale = block_scale(warp_max(m_maximum));
    const float v_scale = block_scale(warp_max(v_maximum));
    unsigned m_codes[4], v_codes[4];
    m_table.encode(m, m_scale, m_codes);
    v_table.encode(v, v_scale, v_codes);
    store_codes<Wide>(code_bytes(a.m, place), place.count, m_codes);
    store_codes<Wide>(code_bytes(a.v, place), place.count, v_codes);
    if (lane_index() == 0) {
      a.m_scales[place.unit] = m_scale;
      a.v_scales[place.unit] = v_scale;
    }
  }

  __device__ static __forceinline__ unsigned char* code_bytes(void* codes, const Place& place) {
    return static_cast<unsigned char*>(codes) + place.byte;
  }
};

}  // namespace lowbit

LOWBIT_ADAMW_KERNELS(block4, Block4States)
