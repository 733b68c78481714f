// The kernels under the host shim, as a shared library for `src/backend/cuda/emulation.rs`.

#include "shim.hpp"

#include <cstddef>

#include "adamw_block4.cu"
#include "adamw_f32.cu"

using lowbit::AdamwParams;

extern "C" void shim_adamw(void (*kernel)(AdamwParams), unsigned grid, unsigned threads,
                           const AdamwParams* params, uint64_t seed) {
  shim::launch(kernel, grid, threads, *params, seed);
}

// Sizes and offsets of what Rust mirrors, in the order of its fields.
extern "C" const size_t shim_adamw_layout[] = {
    sizeof(AdamwParams),
    offsetof(AdamwParams, param),
    offsetof(AdamwParams, grad),
    offsetof(AdamwParams, update),
    offsetof(AdamwParams, m),
    offsetof(AdamwParams, v),
    offsetof(AdamwParams, m_scales),
    offsetof(AdamwParams, v_scales),
    offsetof(AdamwParams, hyper),
    offsetof(AdamwParams, step),
    offsetof(AdamwParams, skipped),
    offsetof(AdamwParams, rows),
    offsetof(AdamwParams, cols),
    offsetof(AdamwParams, blocks),
    offsetof(AdamwParams, scalars.beta1),
    offsetof(AdamwParams, scalars.one_minus_beta1),
    offsetof(AdamwParams, scalars.beta2),
    offsetof(AdamwParams, scalars.one_minus_beta2),
    offsetof(AdamwParams, scalars.eps),
    offsetof(AdamwParams, scalars.lr_bc1),
    offsetof(AdamwParams, scalars.lr_wd),
    offsetof(AdamwParams, scalars.inv_sqrt_bc2),
    offsetof(AdamwParams, scalars.grad_scale),
    offsetof(AdamwParams, scalars.skip),
    offsetof(AdamwParams, skip_blocks),
    offsetof(AdamwParams, wide),
};

// The codes alone: 128 values for each scale, coded; and the 16 levels of each scale.
struct CodesParams {
  const float* values;  // [scales][128]
  const float* scales;
  unsigned char* codes;  // [2][scales][128]: m, v
  float* levels;         // [2][scales][16]
  size_t count;          // of scales
};

static void code_values(CodesParams a) {
  const lowbit::LaneTable m{lowbit::DE_SIGNED};
  const lowbit::Linear v{};
  const size_t lane = threadIdx.x;
  for (size_t block = 0; block < a.count; ++block) {
    const float scale = a.scales[block];
    float values[4];
    std::memcpy(values, a.values + 128 * block + 4 * lane, sizeof values);
    unsigned m_codes[4], v_codes[4];
    m.encode(values, scale, m_codes);
    v.encode(values, scale, v_codes);
    for (size_t i = 0; i < 4; ++i) {
      const size_t at = 128 * block + 4 * lane + i;
      a.codes[at] = static_cast<unsigned char>(m_codes[i]);
      a.codes[128 * a.count + at] = static_cast<unsigned char>(v_codes[i]);
    }
    const unsigned code = lane % 16;
    const float m_level = m.decode(code, scale);
    if (lane < 16) {
      a.levels[16 * block + code] = m_level;
      a.levels[16 * (a.count + block) + code] = v.decode(code, scale);
    }
  }
}

extern "C" void shim_codes(const CodesParams* params) {
  shim::launch(code_values, 1, shim::LANES, *params, 0);
}
