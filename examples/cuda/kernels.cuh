// The model's kernels, but for matrix products: plain ones, with a thread for an element, or a warp
// for a row.
//
// Names, formulas and layouts are those of ../cpp/gpt.hpp: N rows (batch x time), C the width.
// Elements are T, float or bf16; arithmetic and sums are float. No kernel adds atomically, so a
// step has the same bits every time. Where to read next: model.cuh, which launches them.

#pragma once

#include <cstdint>

#include "../cpp/gpt.hpp"
#include "cuda.hpp"

namespace gpu {

// ---- elements ----

__host__ __device__ inline float to_float(float x) { return x; }
__host__ __device__ inline float to_float(__nv_bfloat16 x) { return __bfloat162float(x); }

template <class T>
__host__ __device__ T from_float(float x);
template <>
__host__ __device__ inline float from_float(float x) {
  return x;
}
template <>
__host__ __device__ inline __nv_bfloat16 from_float(float x) {
  return __float2bfloat16(x);
}

// ---- threads ----

// Which of all threads, warps or lanes is calling.
__device__ inline int64_t this_thread() {
  return static_cast<int64_t>(blockIdx.x) * block_threads + threadIdx.x;
}
__device__ inline int64_t this_warp() { return this_thread() / warp; }
__device__ inline int this_lane() { return static_cast<int>(threadIdx.x) % warp; }

// Over the lanes of a warp; all get the result.
__device__ inline float warp_sum(float x) {
  for (int lanes = warp / 2; lanes > 0; lanes /= 2) {
    x += __shfl_xor_sync(0xffffffff, x, lanes);
  }
  return x;
}
__device__ inline float warp_max(float x) {
  for (int lanes = warp / 2; lanes > 0; lanes /= 2) {
    x = fmaxf(x, __shfl_xor_sync(0xffffffff, x, lanes));
  }
  return x;
}

// The sum of term(i) for 0 <= i < rows over the warps of a block, for each lane on its own; warp 0
// gets the result.
template <class F>
__device__ float block_sum(int64_t rows, F term) {
  __shared__ float partial[block_warps][warp];
  const int lane = this_lane(), own = static_cast<int>(threadIdx.x) / warp;
  float sum = 0;
  for (int64_t i = own; i < rows; i += block_warps) {
    sum += term(i);
  }
  __syncthreads();  // an earlier sum has been read
  partial[own][lane] = sum;
  __syncthreads();
  for (int other = 1; own == 0 && other < block_warps; ++other) {
    sum += partial[other][lane];
  }
  return sum;
}

// ---- embedding: out = wte[token] + wpe[position]; a thread an element ----

template <class T>
__global__ void embedding_forward(int64_t size, int width, int context, const std::uint8_t* tokens,
                                  const T* wte, const T* wpe, T* out) {
  const int64_t at = this_thread();
  if (at < size) {
    const int64_t row = at / width, column = at % width;
    out[at] = from_float<T>(to_float(wte[tokens[row] * width + column]) +
                            to_float(wpe[row % context * width + column]));
  }
}

// dwte[token] = the sum of the rows of dout with that token. Each element looks through all rows,
// which keeps the order of the sum without sorting them.
template <class T>
__global__ void token_backward(int64_t size, int width, int64_t rows, const std::uint8_t* tokens,
                               const T* dout, T* dwte) {
  const int64_t at = this_thread();
  if (at < size) {
    float sum = 0;
    for (int64_t row = 0; row < rows; ++row) {
      if (tokens[row] == at / width) {
        sum += to_float(dout[row * width + at % width]);
      }
    }
    dwte[at] = from_float<T>(sum);
  }
}

// dwpe[position] = the sum of its rows of dout; `size` is context x width.
template <class T>
__global__ void position_backward(int64_t size, int batch, const T* dout, T* dwpe) {
  const int64_t at = this_thread();
  if (at < size) {
    float sum = 0;
    for (int64_t sequence = 0; sequence < batch; ++sequence) {
      sum += to_float(dout[sequence * size + at]);
    }
    dwpe[at] = from_float<T>(sum);
  }
}

// ---- linear: what a product adds to, and the gradient of the bias ----

// out = bias (+ skip), each row; either may be null. A thread an element.
template <class T>
__global__ void fill_rows(int64_t size, int columns, const T* bias, const T* skip, T* out) {
  const int64_t at = this_thread();
  if (at < size) {
    out[at] = from_float<T>((bias == nullptr ? 0.0f : to_float(bias[at % columns])) +
                            (skip == nullptr ? 0.0f : to_float(skip[at])));
  }
}

// sums = the sum of the rows. A block takes 32 columns, one for each lane.
template <class T>
__global__ void sum_rows(int64_t rows, int columns, const T* values, T* sums) {
  const int column = static_cast<int>(blockIdx.x) * warp + this_lane();
  const bool inside = column < columns;
  const float sum = block_sum(
      rows, [=](int64_t i) { return inside ? to_float(values[i * columns + column]) : 0.0f; });
  if (inside && threadIdx.x < warp) {
    sums[column] = from_float<T>(sum);
  }
}

// ---- layer norm: out = x̂ weight + bias, x̂ = (x - mean(x)) rstd; a warp a row ----

template <class T>
__global__ void layernorm_forward(int64_t rows, int width, const T* x, const T* weight,
                                  const T* bias, float* means, float* rstds, T* out) {
  const int64_t row = this_warp();
  if (row >= rows) {
    return;
  }
  const T* xi = x + row * width;
  float mean = 0, variance = 0;
  for (int j = this_lane(); j < width; j += warp) {
    mean += to_float(xi[j]);
  }
  mean = warp_sum(mean) / static_cast<float>(width);
  for (int j = this_lane(); j < width; j += warp) {
    const float off = to_float(xi[j]) - mean;
    variance += off * off;
  }
  variance = warp_sum(variance) / static_cast<float>(width);
  const float rstd = 1 / sqrtf(variance + 1e-5f);
  for (int j = this_lane(); j < width; j += warp) {
    const float xhat = (to_float(xi[j]) - mean) * rstd;
    out[row * width + j] = from_float<T>(xhat * to_float(weight[j]) + to_float(bias[j]));
  }
  if (this_lane() == 0) {
    means[row] = mean;
    rstds[row] = rstd;
  }
}

// With g = dout weight: dx += rstd (g - mean(g) - x̂ mean(g x̂)).
template <class T>
__global__ void layernorm_backward(int64_t rows, int width, const T* x, const T* weight,
                                   const float* means, const float* rstds, const T* dout, T* dx) {
  const int64_t row = this_warp();
  if (row >= rows) {
    return;
  }
  const float mean = means[row], rstd = rstds[row];
  const auto xhat = [&](int j) { return (to_float(x[row * width + j]) - mean) * rstd; };
  const auto g = [&](int j) { return to_float(dout[row * width + j]) * to_float(weight[j]); };
  float mean_g = 0, mean_gx = 0;
  for (int j = this_lane(); j < width; j += warp) {
    mean_g += g(j);
    mean_gx += g(j) * xhat(j);
  }
  mean_g = warp_sum(mean_g) / static_cast<float>(width);
  mean_gx = warp_sum(mean_gx) / static_cast<float>(width);
  for (int j = this_lane(); j < width; j += warp) {
    T& to = dx[row * width + j];
    to = from_float<T>(to_float(to) + rstd * (g(j) - mean_g - xhat(j) * mean_gx));
  }
}

// dweight = Σ dout x̂, dbias = Σ dout. A block takes 32 columns, one for each lane.
template <class T>
__global__ void layernorm_params(int64_t rows, int width, const T* x, const float* means,
                                 const float* rstds, const T* dout, T* dweight, T* dbias) {
  const int column = static_cast<int>(blockIdx.x) * warp + this_lane();
  const bool inside = column < width;
  const auto d = [=](int64_t i) { return inside ? to_float(dout[i * width + column]) : 0.0f; };
  const auto xhat = [=](int64_t i) {
    return inside ? (to_float(x[i * width + column]) - means[i]) * rstds[i] : 0.0f;
  };
  const float weight_sum = block_sum(rows, [=](int64_t i) { return d(i) * xhat(i); });
  const float bias_sum = block_sum(rows, d);
  if (inside && threadIdx.x < warp) {
    dweight[column] = from_float<T>(weight_sum);
    dbias[column] = from_float<T>(bias_sum);
  }
}

// ---- gelu: out = x s, s = sigmoid(2 u), u = sqrt(2/π) (x + 0.044715 x³); a thread an element ----

__device__ inline float gelu_sigmoid(float x) {
  constexpr auto scale = static_cast<float>(gpt::gelu_scale);
  constexpr auto cubic = static_cast<float>(gpt::gelu_cubic);
  return 1 / (1 + expf(-2 * scale * (x + cubic * x * x * x)));
}

template <class T>
__global__ void gelu_forward(int64_t size, const T* x, T* out) {
  const int64_t at = this_thread();
  if (at < size) {
    const float value = to_float(x[at]);
    out[at] = from_float<T>(value * gelu_sigmoid(value));
  }
}

// dx = dout (s + x s (1 - s) 2 du/dx), written over dout.
template <class T>
__global__ void gelu_backward(int64_t size, const T* x, T* dout) {
  constexpr auto scale = static_cast<float>(gpt::gelu_scale);
  constexpr auto cubic = static_cast<float>(gpt::gelu_cubic);
  const int64_t at = this_thread();
  if (at < size) {
    const float value = to_float(x[at]), s = gelu_sigmoid(value);
    const float du = scale * (1 + 3 * cubic * value * value);
    dout[at] = from_float<T>(to_float(dout[at]) * (s + value * s * (1 - s) * 2 * du));
  }
}

// ---- attention: the softmax between its products; a warp a row of scores ----
// A row is one position's scores with all `time` positions, of which those behind it are masked.

// probs = softmax(scale scores), zero where masked.
template <class T>
__global__ void softmax_forward(int64_t rows, int time, float scale, const float* scores,
                                T* probs) {
  const int64_t row = this_warp();
  if (row >= rows) {
    return;
  }
  const float* s = scores + row * time;
  const int own = static_cast<int>(row % time);
  float largest = s[0], sum = 0;
  for (int j = this_lane(); j <= own; j += warp) {
    largest = fmaxf(largest, s[j]);
  }
  largest = warp_max(largest);
  for (int j = this_lane(); j <= own; j += warp) {
    sum += expf(scale * (s[j] - largest));
  }
  sum = warp_sum(sum);
  for (int j = this_lane(); j < time; j += warp) {
    probs[row * time + j] = from_float<T>(j <= own ? expf(scale * (s[j] - largest)) / sum : 0.0f);
  }
}

// dscores = scale probs (dprobs - Σ probs dprobs).
template <class T>
__global__ void softmax_backward(int64_t rows, int time, float scale, const T* probs,
                                 const float* dprobs, T* dscores) {
  const int64_t row = this_warp();
  if (row >= rows) {
    return;
  }
  const T* p = probs + row * time;
  const float* dp = dprobs + row * time;
  const int own = static_cast<int>(row % time);
  float mean = 0;
  for (int j = this_lane(); j <= own; j += warp) {
    mean += to_float(p[j]) * dp[j];
  }
  mean = warp_sum(mean);
  for (int j = this_lane(); j < time; j += warp) {
    dscores[row * time + j] =
        from_float<T>(j <= own ? scale * to_float(p[j]) * (dp[j] - mean) : 0.0f);
  }
}

// ---- cross entropy: -log(softmax(logits)[target]), in nats, of each row; a warp a row ----

// dlogits = (softmax(logits) - onehot(target)) / rows, the gradient of the mean.
template <class T>
__global__ void cross_entropy(int64_t rows, int vocab, const std::uint8_t* targets,
                              const float* logits, float* losses, T* dlogits) {
  const int64_t row = this_warp();
  if (row >= rows) {
    return;
  }
  const float* x = logits + row * vocab;
  float largest = x[0], sum = 0;
  for (int j = this_lane(); j < vocab; j += warp) {
    largest = fmaxf(largest, x[j]);
  }
  largest = warp_max(largest);
  for (int j = this_lane(); j < vocab; j += warp) {
    sum += expf(x[j] - largest);
  }
  sum = warp_sum(sum);
  const int target = targets[row];
  for (int j = this_lane(); j < vocab; j += warp) {
    const float probability = expf(x[j] - largest) / sum;
    dlogits[row * vocab + j] =
        from_float<T>((probability - (j == target ? 1.0f : 0.0f)) / static_cast<float>(rows));
  }
  if (this_lane() == 0) {
    losses[row] = logf(sum) - (x[target] - largest);
  }
}

// By one block.
static __global__ void mean_loss(int64_t rows, const float* losses, float* mean) {
  const int64_t lane = this_lane();
  const float sum = warp_sum(block_sum((rows + warp - 1) / warp, [=](int64_t i) {
    return i * warp + lane < rows ? losses[i * warp + lane] : 0.0f;
  }));
  if (threadIdx.x == 0) {
    *mean = sum / static_cast<float>(rows);
  }
}

}  // namespace gpu
