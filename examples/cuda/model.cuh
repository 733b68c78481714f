// The model of ../cpp/gpt.hpp on a GPU: its tensors' addresses, its activations, and the order of
// kernels and products that is its forward and backward pass.
//
// The names are those of gpt.hpp, which also has the formulas. All work is enqueued on one stream;
// nothing is allocated, copied or waited for after the constructor.
// Where to read next: trainer.cuh, which steps the tensors.

#pragma once

#include <cmath>
#include <stdexcept>
#include <type_traits>
#include <vector>

#include "../cpp/gpt.hpp"
#include "cublas.hpp"
#include "cuda.hpp"
#include "kernels.cuh"

namespace gpu {

// Consecutive tensors whose gradients are ready at the same time.
struct bucket {
  int first, last;  // [first, last)
};

template <class T>
class model {
 public:
  // `params` and `grads`: each tensor's address in device memory, in the order of gpt::model.
  model(const gpt::config& cfg, int batch, const std::vector<T*>& params,
        const std::vector<T*>& grads, const stream& s)
      : cfg_(cfg),
        batch_(batch),
        rows_(static_cast<int64_t>(batch) * cfg.context),
        stream_(s.get()),
        params_(params),
        grads_(grads),
        activations_(place::device, lay_out(nullptr)),
        workspace_(place::device, int64_t{32} << 20),  // what cuBLAS asks for on recent GPUs
        cublas_(stream_, workspace_) {
    if (width() / cfg.heads * sizeof(T) % 16 != 0) {
      throw std::invalid_argument(
          "cuBLAS reads heads in pieces of 16 bytes: width / heads must be a multiple of 8 in "
          "bf16");
    }
    lay_out(activations_.data());
    upload_pointers();
  }

  // In the order in which the backward pass is done with them.
  static std::vector<bucket> buckets(const gpt::config& cfg) {
    std::vector<bucket> order;
    const int head = 2 + block_tensors * cfg.layers;
    order.push_back({head, head + 3});
    for (int l = cfg.layers - 1; l >= 0; --l) {
      order.push_back({2 + block_tensors * l, 2 + block_tensors * (l + 1)});
    }
    order.push_back({0, 2});
    return order;
  }

  // Device memory besides parameters and gradients.
  int64_t activation_bytes() const { return activations_.bytes(); }
  int64_t workspace_bytes() const { return workspace_.bytes(); }

  // Tokens and targets (N bytes each) and the loss are in device memory.
  void forward(const std::uint8_t* tokens, const std::uint8_t* targets, float* loss) {
    run(blocks(size(width()), block_threads), embedding_forward<T>, size(width()), width(),
        cfg_.context, tokens, params_[0], params_[1], embedded_);
    const T* x = embedded_;
    for (block& b : blocks_) {
      forward(b.ln1, x, b.ln1_out);
      forward(b.qkv, b.ln1_out, nullptr, b.qkv_out);
      attention_forward(b);
      forward(b.attn_proj, b.attn_out, x, b.middle);

      forward(b.ln2, b.middle, b.ln2_out);
      forward(b.fc, b.ln2_out, nullptr, b.fc_out);
      run(blocks(size(4 * width()), block_threads), gelu_forward<T>, size(4 * width()), b.fc_out,
          b.gelu_out);
      forward(b.mlp_proj, b.gelu_out, b.middle, b.out);
      x = b.out;
    }
    forward(lnf_, x, lnf_out_);
    const linear& head = lm_head_;
    cublas_.multiply<T, float>(rows(), head.outputs, head.inputs, {lnf_out_, head.inputs},
                               {head.weight, head.inputs, true}, logits_, head.outputs);
    run(blocks(rows_, block_warps), cross_entropy<T>, rows_, cfg_.vocab, targets, logits_, losses_,
        dlogits_);
    run(1, mean_loss, rows_, losses_, loss);
  }

  // After `forward`. Calls ready(i) when what makes the gradients of buckets()[i] is enqueued, and
  // what needs its parameters, too.
  template <class F>
  void backward(const std::uint8_t* tokens, F ready) {
    int done = 0;
    backward(lm_head_, lnf_out_, dlogits_, narrow_);
    check(cudaMemsetAsync(dx_, 0, static_cast<std::size_t>(size(width())) * sizeof(T), stream_),
          "cudaMemsetAsync");
    backward(lnf_, blocks_.back().out, narrow_, dx_);
    ready(done++);
    for (auto l = blocks_.size(); l-- > 0;) {
      block& b = blocks_[l];
      const T* x = l > 0 ? blocks_[l - 1].out : embedded_;
      backward(b.mlp_proj, b.gelu_out, dx_, wide_);
      run(blocks(size(4 * width()), block_threads), gelu_backward<T>, size(4 * width()), b.fc_out,
          wide_);
      backward(b.fc, b.ln2_out, wide_, narrow_);
      backward(b.ln2, b.middle, narrow_, dx_);

      backward(b.attn_proj, b.attn_out, dx_, narrow_);
      attention_backward(b);
      backward(b.qkv, b.ln1_out, wide_, narrow_);
      backward(b.ln1, x, narrow_, dx_);
      ready(done++);
    }
    const int64_t token_size = int64_t{cfg_.vocab} * width();
    const int64_t position_size = int64_t{cfg_.context} * width();
    run(blocks(token_size, block_threads), token_backward<T>, token_size, width(), rows_, tokens,
        dx_, grads_[0]);
    run(blocks(position_size, block_threads), position_backward<T>, position_size, batch_, dx_,
        grads_[1]);
    ready(done++);
  }

 private:
  static constexpr int block_tensors = 12;

  struct layernorm {
    const T *weight, *bias;
    T *dweight, *dbias;
    float *mean, *rstd;  // (N)
  };

  struct linear {
    int outputs, inputs;
    const T *weight, *bias;  // bias may be null
    T *dweight, *dbias;
  };

  // Device memory with the address of one (T, D) or (T, T) matrix of each head of each sequence.
  template <class Element>
  using heads = Element* const*;

  // One transformer block: its layers, and the activations kept for the backward pass.
  struct block {
    layernorm ln1, ln2;
    linear qkv, attn_proj, fc, mlp_proj;
    T *ln1_out, *qkv_out, *probs, *attn_out, *middle;
    T *ln2_out, *fc_out, *gelu_out, *out;
    heads<T> q, k, v, p, y;  // in qkv_out, probs and attn_out
  };

  int width() const { return cfg_.width; }
  int rows() const { return static_cast<int>(rows_); }
  int64_t size(int columns) const { return rows_ * columns; }
  int pieces() const { return batch_ * cfg_.heads; }
  int64_t score_rows() const { return rows_ * cfg_.heads; }
  float scale() const { return 1 / std::sqrt(static_cast<float>(width() / cfg_.heads)); }

  template <class... P, class... A>
  void run(unsigned grid, void (*kernel)(P...), A... arguments) const {
    launch(stream_, grid, kernel, arguments...);
  }

  // ---- layers ----

  void forward(const linear& layer, const T* x, const T* skip, T* out) const {
    run(blocks(size(layer.outputs), block_threads), fill_rows<T>, size(layer.outputs),
        layer.outputs, layer.bias, skip, out);
    cublas_.multiply<T, T>(rows(), layer.outputs, layer.inputs, {x, layer.inputs},
                           {layer.weight, layer.inputs, true}, out, layer.outputs, true);
  }

  void backward(const linear& layer, const T* x, const T* dout, T* dx) const {
    cublas_.multiply<T, T>(rows(), layer.inputs, layer.outputs, {dout, layer.outputs},
                           {layer.weight, layer.inputs}, dx, layer.inputs);
    cublas_.multiply<T, T>(layer.outputs, layer.inputs, rows(), {dout, layer.outputs, true},
                           {x, layer.inputs}, layer.dweight, layer.inputs);
    if (layer.bias != nullptr) {
      run(blocks(layer.outputs, warp), sum_rows<T>, rows_, layer.outputs, dout, layer.dbias);
    }
  }

  void forward(const layernorm& layer, const T* x, T* out) const {
    run(blocks(rows_, block_warps), layernorm_forward<T>, rows_, width(), x, layer.weight,
        layer.bias, layer.mean, layer.rstd, out);
  }

  // Adds to dx.
  void backward(const layernorm& layer, const T* x, const T* dout, T* dx) const {
    run(blocks(rows_, block_warps), layernorm_backward<T>, rows_, width(), x, layer.weight,
        layer.mean, layer.rstd, dout, dx);
    run(blocks(width(), warp), layernorm_params<T>, rows_, width(), x, layer.mean, layer.rstd, dout,
        layer.dweight, layer.dbias);
  }

  // From qkv_out to attn_out.
  void attention_forward(const block& b) const {
    const int time = cfg_.context, depth = width() / cfg_.heads, stride = 3 * width();
    cublas_.multiply_each<T, float>(pieces(), time, time, depth, {b.q, stride}, {b.k, stride, true},
                                    score_heads_, time);
    run(blocks(score_rows(), block_warps), softmax_forward<T>, score_rows(), time, scale(), scores_,
        b.probs);
    cublas_.multiply_each<T, T>(pieces(), time, depth, time, {b.p, time}, {b.v, stride}, b.y,
                                width());
  }

  // From the gradient of attn_out in narrow_ to that of qkv_out in wide_.
  void attention_backward(const block& b) const {
    const int time = cfg_.context, depth = width() / cfg_.heads, stride = 3 * width();
    cublas_.multiply_each<T, float>(pieces(), time, time, depth, {dy_, width()},
                                    {b.v, stride, true}, score_heads_, time);
    run(blocks(score_rows(), block_warps), softmax_backward<T>, score_rows(), time, scale(),
        b.probs, scores_, dscores_);
    cublas_.multiply_each<T, T>(pieces(), time, depth, time, {ds_, time}, {b.k, stride}, dq_,
                                stride);
    cublas_.multiply_each<T, T>(pieces(), time, depth, time, {ds_, time, true}, {b.q, stride}, dk_,
                                stride);
    cublas_.multiply_each<T, T>(pieces(), time, depth, time, {b.p, time, true}, {dy_, width()}, dv_,
                                stride);
  }

  // ---- memory ----

  // Places the layers and all activations; returns the bytes of the activations.
  int64_t lay_out(void* base) {
    layout at(base);
    pointers_ = {at.take<void*>(int64_t{pieces()} * (5 * cfg_.layers + 6)), {}};
    embedded_ = at.take<T>(size(width()));
    int next = 2;  // tensors, in their order; 0 and 1 are of the embedding
    blocks_.assign(static_cast<std::size_t>(cfg_.layers), block{});
    for (block& b : blocks_) {
      b.ln1 = place_layernorm(next, at);
      b.qkv = place_linear(next, 3 * width(), width(), true);
      b.attn_proj = place_linear(next, width(), width(), true);
      b.ln2 = place_layernorm(next, at);
      b.fc = place_linear(next, 4 * width(), width(), true);
      b.mlp_proj = place_linear(next, width(), 4 * width(), true);
      b.ln1_out = at.take<T>(size(width()));
      b.qkv_out = at.take<T>(size(3 * width()));
      b.probs = at.take<T>(score_rows() * cfg_.context);
      b.attn_out = at.take<T>(size(width()));
      b.middle = at.take<T>(size(width()));
      b.ln2_out = at.take<T>(size(width()));
      b.fc_out = at.take<T>(size(4 * width()));
      b.gelu_out = at.take<T>(size(4 * width()));
      b.out = at.take<T>(size(width()));
      b.q = point_into(b.qkv_out, 3 * width());
      b.k = point_into(b.qkv_out + width(), 3 * width());
      b.v = point_into(b.qkv_out + 2 * width(), 3 * width());
      b.p = point_to_scores(b.probs);
      b.y = point_into(b.attn_out, width());
    }
    lnf_ = place_layernorm(next, at);
    lm_head_ = place_linear(next, cfg_.vocab, width(), false);
    lnf_out_ = at.take<T>(size(width()));
    logits_ = at.take<float>(size(cfg_.vocab));
    dlogits_ = at.take<T>(size(cfg_.vocab));
    losses_ = at.take<float>(rows_);
    scores_ = at.take<float>(score_rows() * cfg_.context);
    dscores_ = at.take<T>(score_rows() * cfg_.context);
    dx_ = at.take<T>(size(width()));
    narrow_ = at.take<T>(size(width()));
    wide_ = at.take<T>(size(4 * width()));
    score_heads_ = point_to_scores(scores_);
    ds_ = point_to_scores(dscores_);
    dy_ = point_into(narrow_, width());
    dq_ = point_into(wide_, 3 * width());
    dk_ = point_into(wide_ + width(), 3 * width());
    dv_ = point_into(wide_ + 2 * width(), 3 * width());
    return at.bytes();
  }

  layernorm place_layernorm(int& next, layout& at) const {
    const auto weight = static_cast<std::size_t>(next), bias = weight + 1;
    next += 2;
    return {params_[weight], params_[bias],         grads_[weight],
            grads_[bias],    at.take<float>(rows_), at.take<float>(rows_)};
  }

  linear place_linear(int& next, int outputs, int inputs, bool has_bias) const {
    const auto weight = static_cast<std::size_t>(next), bias = weight + 1;
    next += has_bias ? 2 : 1;
    return {outputs,         inputs,
            params_[weight], has_bias ? params_[bias] : nullptr,
            grads_[weight],  has_bias ? grads_[bias] : nullptr};
  }

  // The part of each head in the rows of each sequence; the rows are `stride` elements apart.
  template <class Element>
  heads<Element> point_into(Element* first, int64_t stride) {
    return point([=](int sequence, int head) {
      return first + stride * cfg_.context * sequence + head * (width() / cfg_.heads);
    });
  }

  // The (T, T) matrix of each head of each sequence.
  template <class Element>
  heads<Element> point_to_scores(Element* first) {
    const int64_t square = int64_t{cfg_.context} * cfg_.context;
    return point(
        [=](int sequence, int head) { return first + square * (sequence * cfg_.heads + head); });
  }

  template <class F>
  auto point(F address) -> heads<std::remove_pointer_t<decltype(address(0, 0))>> {
    using element = std::remove_pointer_t<decltype(address(0, 0))>;
    void** const place = pointers_.device + pointers_.host.size();
    if (pointers_.device != nullptr) {
      for (int sequence = 0; sequence < batch_; ++sequence) {
        for (int head = 0; head < cfg_.heads; ++head) {
          pointers_.host.push_back(address(sequence, head));
        }
      }
    }
    return reinterpret_cast<heads<element>>(place);
  }

  void upload_pointers() {
    check(cudaMemcpyAsync(pointers_.device, pointers_.host.data(),
                          pointers_.host.size() * sizeof(void*), cudaMemcpyHostToDevice, stream_),
          "cudaMemcpyAsync");
    check(cudaStreamSynchronize(stream_), "cudaStreamSynchronize");
  }

  const gpt::config cfg_;
  const int batch_;
  const int64_t rows_;  // N
  const cudaStream_t stream_;
  const std::vector<T*> params_, grads_;

  struct {
    void** device;
    std::vector<void*> host;
  } pointers_ = {};
  T* embedded_ = nullptr;
  std::vector<block> blocks_;
  layernorm lnf_ = {};
  linear lm_head_ = {};
  T* lnf_out_ = nullptr;
  float *logits_ = nullptr, *losses_ = nullptr, *scores_ = nullptr;
  T *dlogits_ = nullptr, *dscores_ = nullptr;
  T *dx_ = nullptr, *narrow_ = nullptr, *wide_ = nullptr;  // as in gpt::model
  heads<float> score_heads_ = nullptr;
  heads<T> ds_ = nullptr, dy_ = nullptr, dq_ = nullptr, dk_ = nullptr, dv_ = nullptr;

  const memory activations_, workspace_;
  const cublas cublas_;
};

}  // namespace gpu
