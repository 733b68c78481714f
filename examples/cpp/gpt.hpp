// A byte-level GPT on the CPU, with its forward and backward passes written out by hand.
//
// In order: threads, the one matrix product everything is built on, each layer as one forward and
// one backward function, then `gpt::model`, which chains them. The model is the usual pre-LayerNorm
// transformer (GPT-2, with a separate output matrix):
//
//   x = wte[token] + wpe[position]
//   x = x + proj(attention(qkv(ln1(x))))     } for each
//   x = x + proj(gelu(fc(ln2(x))))           } of the layers
//   loss = cross_entropy(lm_head(lnf(x)), target)
//
// In the comments: T positions a sequence, N rows (batch x T), C the width, D = C / heads. Arrays
// are row-major. A gradient has the name of its value with a `d` in front.
//
// A run gives the same bits whatever the number of threads: work is cut into the same pieces
// however many threads there are, and no two pieces write the same number.
//
// `T` is float for training; gpt_check.cpp uses double to check the gradients.
// Where to read next: gpt.cpp, which trains the model; text.hpp, where its batches come from.

#pragma once

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstdint>
#include <functional>
#include <numeric>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "splitmix64.hpp"

namespace gpt {

using std::int64_t;

template <class T>
using array = std::vector<T>;

using bytes = std::vector<std::uint8_t>;

// What an optimizer needs to know about one parameter.
template <class T>
struct tensor {
  std::string name;
  std::vector<int64_t> shape;
  array<T> value, grad;
};

struct config {
  int vocab = 256;
  int context = 64;  // T
  int layers = 4;
  int heads = 4;
  int width = 128;  // C
  std::uint64_t seed = 1;
};

// ---- threads ----

// Calls work(begin, end) on [0, size) in pieces of `grain`, and returns when all are done. A new
// thread costs some 20 us, little beside the milliseconds of a layer, and needs no pool to keep.
template <class F>
void parallel(int threads, int64_t size, int64_t grain, const F& work) {
  std::atomic<int64_t> next{0};
  const auto take_pieces = [&] {
    for (int64_t begin; (begin = next.fetch_add(grain)) < size;) {
      work(begin, std::min(begin + grain, size));
    }
  };
  std::vector<std::thread> others;
  for (int i = 1; i < threads; ++i) {
    others.emplace_back(take_pieces);
  }
  take_pieces();
  for (std::thread& other : others) {
    other.join();
  }
}

constexpr int64_t row_grain = 64, column_grain = 32, element_grain = 8192;

// ---- matrix product: c (m, n) += a (m, k) b (k, n), for even m and k a multiple of 4 ----
// `a` is read as a[i * a_row + p * a_col], so swapping its strides transposes it; the rows of b and
// c are contiguous, b_row and c_row apart.
//
// The inner loop runs over columns, which a compiler can vectorise without reordering any sum. Two
// rows by four steps of k at once fit in 16 vector registers; a block of b (32 x 512 floats =
// 64 KiB) stays in the second-level cache while the rows of `a` go by.

template <class T>
[[gnu::always_inline]] inline void matmul_add_body(int64_t m, int64_t n, int64_t k, const T* a,
                                                   int64_t a_row, int64_t a_col, const T* b,
                                                   int64_t b_row, T* c, int64_t c_row) {
  constexpr int64_t k_block = 32, n_block = 512;
  for (int64_t j0 = 0; j0 < n; j0 += n_block) {
    const int64_t width = std::min(n_block, n - j0);
    for (int64_t p0 = 0; p0 < k; p0 += k_block) {
      for (int64_t i = 0; i < m; i += 2) {
        T* __restrict c0 = c + i * c_row + j0;
        T* __restrict c1 = c0 + c_row;
        for (int64_t p = p0; p < std::min(p0 + k_block, k); p += 4) {
          const T* x = a + i * a_row + p * a_col;
          const T* y = x + a_row;
          const T x0 = x[0], x1 = x[a_col], x2 = x[2 * a_col], x3 = x[3 * a_col];
          const T y0 = y[0], y1 = y[a_col], y2 = y[2 * a_col], y3 = y[3 * a_col];
          const T* __restrict b0 = b + p * b_row + j0;
          const T* __restrict b1 = b0 + b_row;
          const T* __restrict b2 = b1 + b_row;
          const T* __restrict b3 = b2 + b_row;
          for (int64_t j = 0; j < width; ++j) {
            c0[j] = c0[j] + x0 * b0[j] + x1 * b1[j] + x2 * b2[j] + x3 * b3[j];
            c1[j] = c1[j] + y0 * b0[j] + y1 * b1[j] + y2 * b2[j] + y3 * b3[j];
          }
        }
      }
    }
  }
}

// On x86-64 it is compiled twice, as a portable build may not assume vectors of 8 floats. They are
// up to twice as fast and give the same bits: no fused multiply-add, so every sum rounds the same.
#if defined(__GNUC__) && defined(__x86_64__)
template <class... A>
[[gnu::target("avx2")]] void matmul_add_avx2(A... arguments) {
  matmul_add_body(arguments...);
}
#endif

template <class... A>
void matmul_add(A... arguments) {
#if defined(__GNUC__) && defined(__x86_64__)
  static const bool avx2 = __builtin_cpu_supports("avx2");
  if (avx2) {
    return matmul_add_avx2(arguments...);
  }
#endif
  matmul_add_body(arguments...);
}

// out (columns, rows) = in (rows, columns) transposed; the rows of `in` are in_row apart.
template <class T>
void transpose(int64_t rows, int64_t columns, const T* in, int64_t in_row, T* out) {
  for (int64_t j = 0; j < columns; ++j) {
    for (int64_t i = 0; i < rows; ++i) {
      out[j * rows + i] = in[i * in_row + j];
    }
  }
}

// ---- linear: out = x Wᵀ + bias (+ skip), W (outputs, inputs) ----

template <class T>
struct linear {
  tensor<T>* weight = nullptr;
  tensor<T>* bias = nullptr;        // may be null
  array<T> transposed_weight = {};  // (inputs, outputs), the order `matmul_add` reads

  int64_t outputs() const { return weight->shape[0]; }
  int64_t inputs() const { return weight->shape[1]; }
};

template <class T>
void linear_forward(int threads, linear<T>& layer, const array<T>& x, const array<T>* skip,
                    array<T>& out) {
  const int64_t in = layer.inputs(), outs = layer.outputs(), rows = x.size() / in;
  out.resize(rows * outs);
  layer.transposed_weight.resize(in * outs);
  T* wt = layer.transposed_weight.data();
  parallel(threads, in, column_grain, [&](int64_t begin, int64_t end) {
    transpose(outs, end - begin, layer.weight->value.data() + begin, in, wt + begin * outs);
  });
  parallel(threads, rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T* row = out.data() + i * outs;
      for (int64_t j = 0; j < outs; ++j) {
        row[j] = (layer.bias ? layer.bias->value[j] : T(0)) + (skip ? (*skip)[i * outs + j] : T(0));
      }
    }
    matmul_add(end - begin, outs, in, x.data() + begin * in, in, 1, wt, outs,
               out.data() + begin * outs, outs);
  });
}

// dx = dout W; dW += doutᵀ x; dbias += the sum of the rows of dout.
template <class T>
void linear_backward(int threads, linear<T>& layer, const array<T>& x, const array<T>& dout,
                     array<T>& dx) {
  const int64_t in = layer.inputs(), outs = layer.outputs(), rows = x.size() / in;
  dx.assign(rows * in, T(0));
  parallel(threads, rows, row_grain, [&](int64_t begin, int64_t end) {
    matmul_add(end - begin, in, outs, dout.data() + begin * outs, outs, 1,
               layer.weight->value.data(), in, dx.data() + begin * in, in);
  });
  parallel(threads, outs, column_grain, [&](int64_t begin, int64_t end) {
    matmul_add(end - begin, in, rows, dout.data() + begin, 1, outs, x.data(), in,
               layer.weight->grad.data() + begin * in, in);
    T* dbias = layer.bias ? layer.bias->grad.data() : nullptr;
    for (int64_t i = 0; dbias && i < rows; ++i) {
      for (int64_t j = begin; j < end; ++j) {
        dbias[j] += dout[i * outs + j];
      }
    }
  });
}

// ---- layer norm: out = x̂ weight + bias, x̂ = (x - mean(x)) / sqrt(variance(x) + 1e-5) ----

template <class T>
struct layernorm {
  tensor<T>* weight = nullptr;
  tensor<T>* bias = nullptr;
  array<T> xhat = {}, rstd = {};  // x̂ (N, C) and 1 / sqrt(...) (N), kept for the backward pass
};

template <class T>
void layernorm_forward(int threads, layernorm<T>& layer, const array<T>& x, array<T>& out) {
  const int64_t width = layer.weight->shape[0], rows = x.size() / width;
  const T *weight = layer.weight->value.data(), *bias = layer.bias->value.data();
  out.resize(x.size());
  layer.xhat.resize(x.size());
  layer.rstd.resize(rows);
  parallel(threads, rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T* xi = x.data() + i * width;
      T* xhat = layer.xhat.data() + i * width;
      T mean = 0, variance = 0;
      for (int64_t j = 0; j < width; ++j) {
        mean += xi[j];
      }
      mean /= T(width);
      for (int64_t j = 0; j < width; ++j) {
        variance += (xi[j] - mean) * (xi[j] - mean);
      }
      const T rstd = layer.rstd[i] = T(1) / std::sqrt(variance / T(width) + T(1e-5));
      for (int64_t j = 0; j < width; ++j) {
        xhat[j] = (xi[j] - mean) * rstd;
        out[i * width + j] = xhat[j] * weight[j] + bias[j];
      }
    }
  });
}

// With g = dout weight: dx += rstd (g - mean(g) - x̂ mean(g x̂)); dweight += Σ dout x̂; dbias += Σ
// dout. It adds to dx, as x also went around the layer on the residual stream.
template <class T>
void layernorm_backward(int threads, layernorm<T>& layer, const array<T>& dout, array<T>& dx) {
  const int64_t width = layer.weight->shape[0], rows = dout.size() / width;
  const T *weight = layer.weight->value.data(), *xhat = layer.xhat.data();
  parallel(threads, rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin * width; i < end * width; i += width) {
      T mean_g = 0, mean_gx = 0;
      for (int64_t j = 0; j < width; ++j) {
        mean_g += dout[i + j] * weight[j];
        mean_gx += dout[i + j] * weight[j] * xhat[i + j];
      }
      mean_g /= T(width);
      mean_gx /= T(width);
      const T rstd = layer.rstd[i / width];
      for (int64_t j = 0; j < width; ++j) {
        dx[i + j] += rstd * (dout[i + j] * weight[j] - mean_g - xhat[i + j] * mean_gx);
      }
    }
  });
  T *dweight = layer.weight->grad.data(), *dbias = layer.bias->grad.data();
  parallel(threads, width, column_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = 0; i < rows * width; i += width) {
      for (int64_t j = begin; j < end; ++j) {
        dweight[j] += dout[i + j] * xhat[i + j];
        dbias[j] += dout[i + j];
      }
    }
  });
}

// ---- gelu: out = x s, s = sigmoid(2 u), u = sqrt(2/π) (x + 0.044715 x³) ----
// The tanh form of GPT-2: (1 + tanh(u)) / 2 is sigmoid(2 u).

constexpr double gelu_scale = 0.7978845608028654, gelu_cubic = 0.044715;

template <class T>
T gelu_sigmoid(T x) {
  return T(1) / (T(1) + std::exp(T(-2 * gelu_scale) * (x + T(gelu_cubic) * x * x * x)));
}

template <class T>
void gelu_forward(int threads, const array<T>& x, array<T>& out) {
  out.resize(x.size());
  parallel(threads, x.size(), element_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      out[i] = x[i] * gelu_sigmoid(x[i]);
    }
  });
}

// dx = dout (s + x s (1 - s) 2 du/dx), written over dout.
template <class T>
void gelu_backward(int threads, const array<T>& x, array<T>& dout) {
  parallel(threads, x.size(), element_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const T s = gelu_sigmoid(x[i]);
      const T du = T(gelu_scale) * (T(1) + T(3 * gelu_cubic) * x[i] * x[i]);
      dout[i] *= s + x[i] * s * (T(1) - s) * T(2) * du;
    }
  });
}

// ---- attention: out = P V, P = softmax(Q Kᵀ / sqrt(D)) over the positions up to one's own ----
// qkv (N, 3C) holds Q, K and V side by side. One piece of work is one head of one sequence, where
// q, k, v are (T, D) with rows 3C apart and P is (T, T). Products take the whole of P, which is
// zero where masked: twice the arithmetic needed, but of a small part of the whole.

template <class T>
void attention_forward(int threads, const config& cfg, const array<T>& qkv, array<T>& probs,
                       array<T>& out) {
  const int64_t time = cfg.context, width = cfg.width, size = width / cfg.heads, stride = 3 * width;
  const int64_t pieces = qkv.size() / stride / time * cfg.heads;
  const T scale = T(1) / std::sqrt(T(size));
  probs.assign(pieces * time * time, T(0));
  out.assign(qkv.size() / 3, T(0));
  parallel(threads, pieces, 1, [&](int64_t piece, int64_t) {
    const int64_t row = piece / cfg.heads * time, column = piece % cfg.heads * size;
    const T* q = qkv.data() + row * stride + column;
    const T *k = q + width, *v = k + width;
    T* p = probs.data() + piece * time * time;
    array<T> kt(size * time);
    transpose(time, size, k, stride, kt.data());
    matmul_add(time, time, size, q, stride, 1, kt.data(), time, p, time);
    for (int64_t i = 0; i < time; ++i) {
      T *first = p + i * time, *last = first + i + 1, sum = 0;
      const T largest = *std::max_element(first, last);
      for (T* x = first; x < last; ++x) {
        sum += * x = std::exp(scale * (*x - largest));
      }
      std::transform(first, last, first, [&](T x) { return x / sum; });
      std::fill(last, first + time, T(0));
    }
    matmul_add(time, size, time, p, time, 1, v, stride, out.data() + row * width + column, width);
  });
}

// dP = dout Vᵀ; dS = P (dP - Σ P dP) / sqrt(D), S the scores; dQ = dS K; dK = dSᵀ Q; dV = Pᵀ dout.
template <class T>
void attention_backward(int threads, const config& cfg, const array<T>& qkv, const array<T>& probs,
                        const array<T>& dout, array<T>& dqkv) {
  const int64_t time = cfg.context, width = cfg.width, size = width / cfg.heads, stride = 3 * width;
  const T scale = T(1) / std::sqrt(T(size));
  dqkv.assign(qkv.size(), T(0));
  parallel(threads, probs.size() / (time * time), 1, [&](int64_t piece, int64_t) {
    const int64_t row = piece / cfg.heads * time, column = piece % cfg.heads * size;
    const T* q = qkv.data() + row * stride + column;
    const T *k = q + width, *v = k + width;
    const T* p = probs.data() + piece * time * time;
    const T* dy = dout.data() + row * width + column;
    T* dq = dqkv.data() + row * stride + column;
    T *dk = dq + width, *dv = dk + width;
    array<T> vt(size * time), scores(time * time);
    T* ds = scores.data();  // first dP, then dS
    transpose(time, size, v, stride, vt.data());
    matmul_add(time, time, size, dy, width, 1, vt.data(), time, ds, time);
    for (int64_t i = 0; i < time * time; i += time) {
      const T mean = std::inner_product(p + i, p + i + time, ds + i, T(0));
      for (int64_t j = i; j < i + time; ++j) {
        ds[j] = scale * p[j] * (ds[j] - mean);
      }
    }
    matmul_add(time, size, time, ds, time, 1, k, stride, dq, stride);
    matmul_add(time, size, time, ds, 1, time, q, stride, dk, stride);
    matmul_add(time, size, time, p, 1, time, dy, width, dv, stride);
  });
}

// ---- embedding: out = wte[token] + wpe[position] ----

template <class T>
void embedding_forward(const config& cfg, const bytes& tokens, const tensor<T>& wte,
                       const tensor<T>& wpe, array<T>& out) {
  const int64_t width = cfg.width, rows = tokens.size();
  out.resize(rows * width);
  for (int64_t i = 0; i < rows; ++i) {
    const T* token = wte.value.data() + tokens[i] * width;
    const T* position = wpe.value.data() + i % cfg.context * width;
    std::transform(token, token + width, position, out.data() + i * width, std::plus<T>());
  }
}

template <class T>
void embedding_backward(const config& cfg, const bytes& tokens, const array<T>& dout,
                        tensor<T>& wte, tensor<T>& wpe) {
  const int64_t width = cfg.width, rows = tokens.size();
  for (int64_t i = 0; i < rows; ++i) {
    T* dtoken = wte.grad.data() + tokens[i] * width;
    T* dposition = wpe.grad.data() + i % cfg.context * width;
    for (int64_t j = 0; j < width; ++j) {
      dtoken[j] += dout[i * width + j];
      dposition[j] += dout[i * width + j];
    }
  }
}

// ---- cross entropy: loss = mean over the rows of -log(softmax(logits)[target]), in nats ----

// Turns the logits into probabilities.
template <class T>
T cross_entropy_forward(int threads, const bytes& targets, array<T>& logits) {
  const int64_t rows = targets.size(), vocab = logits.size() / rows;
  array<T> losses(rows);
  parallel(threads, rows, row_grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      T *first = logits.data() + i * vocab, *last = first + vocab, sum = 0;
      const T largest = *std::max_element(first, last), target = first[targets[i]] - largest;
      for (T* x = first; x < last; ++x) {
        sum += * x = std::exp(*x - largest);
      }
      std::transform(first, last, first, [&](T x) { return x / sum; });
      losses[i] = std::log(sum) - target;
    }
  });
  return T(std::accumulate(losses.begin(), losses.end(), 0.0) / static_cast<double>(rows));
}

// dlogits = (probabilities - onehot(target)) / N, written over the probabilities.
template <class T>
void cross_entropy_backward(const bytes& targets, array<T>& probs) {
  const int64_t rows = targets.size(), vocab = probs.size() / rows;
  for (int64_t i = 0; i < rows; ++i) {
    probs[i * vocab + targets[i]] -= T(1);
  }
  for (T& x : probs) {
    x /= T(rows);
  }
}

// ---- model ----

template <class T>
class model {
 public:
  explicit model(const config& cfg, int threads = 2)
      : cfg_(cfg), threads_(threads), random_(cfg.seed) {
    const auto multiple = [](int n, int of) { return n > 0 && n % of == 0; };
    if (cfg.layers < 1 || cfg.heads < 1 || !multiple(cfg.width, 4 * cfg.heads) ||
        !multiple(cfg.context, 4) || !multiple(cfg.vocab, 4) || cfg.vocab > 256) {
      throw std::invalid_argument(
          "gpt: width / heads, context and vocab must be multiples of 4, vocab at most 256");
    }
    const int64_t width = cfg.width;
    tensors_.reserve(5 + 12 * cfg.layers);  // the layers point into it
    // Of the scales tried, these learn fastest in the first few hundred steps.
    wte_ = add("wte", {cfg.vocab, width}, 0.2);
    wpe_ = add("wpe", {cfg.context, width}, 0.2);
    // 2 L branches add to the residual stream; this keeps its variance from growing with L.
    const double branch = 1 / std::sqrt(2.0 * cfg.layers);
    for (int l = 0; l < cfg.layers; ++l) {
      const std::string name = "h" + std::to_string(l);
      block& b = blocks_.emplace_back();
      b.ln1 = add_layernorm(name + ".ln1");
      b.qkv = add_linear(name + ".attn.qkv", 3 * width, width, 1);
      b.attn_proj = add_linear(name + ".attn.proj", width, width, branch);
      b.ln2 = add_layernorm(name + ".ln2");
      b.fc = add_linear(name + ".mlp.fc", 4 * width, width, 1);
      b.mlp_proj = add_linear(name + ".mlp.proj", width, 4 * width, branch);
    }
    lnf_ = add_layernorm("lnf");
    lm_head_ = {add("lm_head.weight", {cfg.vocab, width}, 1 / std::sqrt(width))};
  }

  model(const model&) = delete;
  model& operator=(const model&) = delete;

  // All parameters, in a fixed order. Their number, shapes and addresses never change.
  std::vector<tensor<T>>& tensors() { return tensors_; }

  // The mean loss, in nats per byte, of `batch` sequences of `context` tokens; targets[i] is the
  // token to predict after tokens[i].
  T evaluate(const bytes& tokens, const bytes& targets, int batch) {
    const auto valid = [&](const bytes& b) {
      return b.size() == static_cast<std::size_t>(batch) * cfg_.context &&
             std::all_of(b.begin(), b.end(), [&](int token) { return token < cfg_.vocab; });
    };
    if (batch < 1 || !valid(tokens) || !valid(targets)) {
      throw std::invalid_argument("gpt: tokens and targets must be batch x context, within vocab");
    }
    return forward(tokens, targets);
  }

  // The same, and the gradient of it in every tensor's `grad`.
  T forward_backward(const bytes& tokens, const bytes& targets, int batch) {
    const T loss = evaluate(tokens, targets, batch);
    for (tensor<T>& t : tensors_) {
      std::fill(t.grad.begin(), t.grad.end(), T(0));
    }
    backward(tokens, targets);
    return loss;
  }

 private:
  // One transformer block: its layers, and the activations kept for the backward pass.
  struct block {
    layernorm<T> ln1, ln2;
    linear<T> qkv, attn_proj, fc, mlp_proj;
    array<T> ln1_out, qkv_out, probs, attn_out, middle;  // middle: x between the two branches
    array<T> ln2_out, fc_out, gelu_out, out;
  };

  // A tensor of independent random values of that standard deviation around a mean.
  tensor<T>* add(std::string name, std::vector<int64_t> shape, double deviation, double mean = 0) {
    const int64_t size =
        std::accumulate(shape.begin(), shape.end(), int64_t{1}, std::multiplies<int64_t>());
    tensors_.push_back(
        {std::move(name), std::move(shape), array<T>(size, T(mean)), array<T>(size)});
    for (T& v : tensors_.back().value) {
      v += T(deviation * random_.normal());
    }
    return &tensors_.back();
  }

  layernorm<T> add_layernorm(const std::string& name) {
    tensor<T>* weight = add(name + ".weight", {cfg_.width}, 0, 1);
    return {weight, add(name + ".bias", {cfg_.width}, 0)};
  }

  linear<T> add_linear(const std::string& name, int64_t outputs, int64_t inputs, double gain) {
    const double deviation = gain / std::sqrt(static_cast<double>(inputs));
    tensor<T>* weight = add(name + ".weight", {outputs, inputs}, deviation);
    return {weight, add(name + ".bias", {outputs}, 0)};
  }

  T forward(const bytes& tokens, const bytes& targets) {
    embedding_forward(cfg_, tokens, *wte_, *wpe_, embedded_);
    const array<T>* x = &embedded_;
    for (block& b : blocks_) {
      layernorm_forward(threads_, b.ln1, *x, b.ln1_out);
      linear_forward<T>(threads_, b.qkv, b.ln1_out, nullptr, b.qkv_out);
      attention_forward(threads_, cfg_, b.qkv_out, b.probs, b.attn_out);
      linear_forward(threads_, b.attn_proj, b.attn_out, x, b.middle);

      layernorm_forward(threads_, b.ln2, b.middle, b.ln2_out);
      linear_forward<T>(threads_, b.fc, b.ln2_out, nullptr, b.fc_out);
      gelu_forward(threads_, b.fc_out, b.gelu_out);
      linear_forward<T>(threads_, b.mlp_proj, b.gelu_out, &b.middle, b.out);
      x = &b.out;
    }
    layernorm_forward(threads_, lnf_, *x, lnf_out_);
    linear_forward<T>(threads_, lm_head_, lnf_out_, nullptr, logits_);
    return cross_entropy_forward(threads_, targets, logits_);
  }

  // `dx_` is the gradient of the residual stream: each branch adds its part on the way back.
  void backward(const bytes& tokens, const bytes& targets) {
    cross_entropy_backward(targets, logits_);
    linear_backward(threads_, lm_head_, lnf_out_, logits_, narrow_);
    dx_.assign(narrow_.size(), T(0));
    layernorm_backward(threads_, lnf_, narrow_, dx_);
    for (auto b = blocks_.rbegin(); b != blocks_.rend(); ++b) {
      linear_backward(threads_, b->mlp_proj, b->gelu_out, dx_, wide_);
      gelu_backward(threads_, b->fc_out, wide_);
      linear_backward(threads_, b->fc, b->ln2_out, wide_, narrow_);
      layernorm_backward(threads_, b->ln2, narrow_, dx_);

      linear_backward(threads_, b->attn_proj, b->attn_out, dx_, narrow_);
      attention_backward(threads_, cfg_, b->qkv_out, b->probs, narrow_, wide_);
      linear_backward(threads_, b->qkv, b->ln1_out, wide_, narrow_);
      layernorm_backward(threads_, b->ln1, narrow_, dx_);
    }
    embedding_backward(cfg_, tokens, dx_, *wte_, *wpe_);
  }

  const config cfg_;
  const int threads_;
  splitmix64 random_;
  std::vector<tensor<T>> tensors_;
  tensor<T>*wte_ = nullptr, *wpe_ = nullptr;
  std::vector<block> blocks_;
  layernorm<T> lnf_;
  linear<T> lm_head_;
  array<T> embedded_, lnf_out_, logits_;  // activations outside the blocks
  array<T> dx_, narrow_, wide_;           // gradients of activations, (N, C), (N, C), (N, 3C or 4C)
};

}  // namespace gpt
