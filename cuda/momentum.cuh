// The rule of any.cuh of an optimizer whose one state is m, on the four elements of a lane: what the kernels for
// common tensors take (momentum4.cuh, momentum8.cuh).

#pragma once

#include "any.cuh"
#include "common.cuh"

namespace lowbit {

// Four elements by the rule of one.
template <typename One>
struct OfFour {
  __device__ static Scalars scalars(const Launch& launch, const float* hyper, int step) {
    return One::scalars(launch, hyper, step);
  }

  __device__ static __forceinline__ void complete(const Launch&, const Tensor&, Shared&) {}

  __device__ static __forceinline__ bool in_range(const Scalars&) { return true; }

  // The rule does it.
  __device__ static __forceinline__ void couple(Quad&, const Scalars&) {}

  __device__ static __forceinline__ bool moments(Quad& x, const Shared& shared, int flags) {
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
      Input input{};
      input.p = x.p[i];
      input.g = x.g[i];
      input.old[0] = x.m[i];
      const Element e = One::element(input, shared, flags);
      x.g[i] = e.update;
      x.m[i] = e.next[0];
    }
    return true;
  }

  // `moments` has put it there.
  template <int PARTS>
  __device__ static __forceinline__ void updates(Quad (&)[PARTS], bool, bool, const Scalars&) {}
};

// Where codes and scales of m are; Tables: what decodes and codes.
template <typename Tables, typename Code>
struct CodedM {
  const Launch& launch;
  const Tensor& tensor;
  const Tables& tables;
  Code* codes;
  float* scales;

  __device__ __forceinline__ CodedM(const Launch& launch, const Shared& shared, const Tables& tables)
      : launch(launch),
        tensor(shared.tensor),
        tables(tables),
        codes(pointer<Code>(launch, tensor, tensor.state[0].buffer)),
        scales(pointer<float>(launch, tensor, tensor.state[0].buffer + 1)) {}

  __device__ __forceinline__ const Codebook& book() const {
    return *in_table<Codebook>(launch, tensor.state[0].codebook);
  }
};

// The new scale of a block, of its largest m in each lane.
struct ScaleOfM {
  float m;

  __device__ static __forceinline__ ScaleOfM of(float largest, unsigned) {
    return {block_scale(warp_max(__float_as_uint(largest)))};
  }
};

}  // namespace lowbit
