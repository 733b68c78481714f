// The kernels under the host shim, as a shared library for `src/backend/cuda/emulation.rs`.

#include "shim.hpp"

#include <cstddef>

#include "adamw_any.cu"

using namespace lowbit;

extern "C" void shim_launch(void (*kernel)(const Launch&), unsigned grid, unsigned threads,
                            const Launch* launch, uint64_t seed) {
  shim::launch(kernel, grid, threads, *launch, seed);
}

// Sizes and offsets of what Rust mirrors, in the order of its fields.
#define AT(STRUCT, FIELD) offsetof(STRUCT, FIELD)
extern "C" const size_t shim_layout[] = {
    sizeof(Codebook), AT(Codebook, midpoints), AT(Codebook, levels),
    sizeof(State), AT(State, kind), AT(State, per_byte), AT(State, scaling), AT(State, block),
    AT(State, rounding), AT(State, dither), AT(State, spacing), AT(State, buffer),
    AT(State, codebook), AT(State, word),
    sizeof(Tensor), AT(Tensor, rows), AT(Tensor, cols), AT(Tensor, units), AT(Tensor, first_col),
    AT(Tensor, block), AT(Tensor, param_dtype), AT(Tensor, grad_dtype), AT(Tensor, weights),
    AT(Tensor, group), AT(Tensor, scalars), AT(Tensor, index), AT(Tensor, global),
    AT(Tensor, states), AT(Tensor, axes), AT(Tensor, lead), AT(Tensor, hash), AT(Tensor, words),
    AT(Tensor, shape), AT(Tensor, offset), AT(Tensor, global_shape), AT(Tensor, state),
    sizeof(Segment), AT(Segment, first), AT(Segment, tensor), AT(Segment, kind),
    sizeof(Scalars), AT(Scalars, beta1), AT(Scalars, one_minus_beta1), AT(Scalars, beta2),
    AT(Scalars, one_minus_beta2), AT(Scalars, eps), AT(Scalars, lr_bc1), AT(Scalars, lr_wd),
    AT(Scalars, inv_sqrt_bc2), AT(Scalars, grad_scale), AT(Scalars, skip), AT(Scalars, l2),
    AT(Scalars, inv_bc2),
    sizeof(Launch), AT(Launch, table), AT(Launch, tensors), AT(Launch, segments),
    AT(Launch, tasks), AT(Launch, hyper), AT(Launch, step_number), AT(Launch, skipped),
    AT(Launch, statistics), AT(Launch, tickets), AT(Launch, seed), AT(Launch, step),
    AT(Launch, flags), AT(Launch, groups), AT(Launch, tensor_count), AT(Launch, words),
};
