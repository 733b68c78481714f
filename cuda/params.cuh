// What a kernel is told: the mirror of `src/backend/cuda/params.rs`. A test compares the layouts.

#pragma once

namespace lowbit {

// The scalars of one step (`numerics::Scalars`).
struct Scalars {
  float beta1;
  float one_minus_beta1;
  float beta2;
  float one_minus_beta2;
  float eps;
  float lr_bc1;        // lr / (1 - beta1^t)
  float lr_wd;         // lr weight_decay
  float inv_sqrt_bc2;  // 1 / sqrt(1 - beta2^t)
  float grad_scale;
  int skip;  // non-zero: the step changes nothing
};

// One tensor of one step. Pointers are device addresses, sizes count elements.
struct AdamwParams {
  void* param;
  const void* grad;
  void* update;  // null: in place
  void* m;       // codes or f32 values
  void* v;
  float* m_scales;  // null for f32 states
  float* v_scales;
  const float* hyper;  // null: `scalars` holds; else 8 x f32 in the order of `numerics::Hyper`
  const int* step;
  unsigned long long* skipped;  // null, or two counters: blocks, tensors
  long long rows;
  long long cols;
  long long blocks;  // of a row; the last one may be short
  Scalars scalars;
  int skip_blocks;  // non-zero: a block with a non-finite gradient stays as it is
  int wide;         // non-zero: every full block may be accessed four elements at a time
};

static_assert(sizeof(Scalars) == 40, "differs from params.rs");
static_assert(sizeof(AdamwParams) == 152, "differs from params.rs");

}  // namespace lowbit
