// Training steps on a GPU: the model's forward and backward pass, and lowbit's step on the same
// memory and stream.
//
// What changes from step to step (learning rate, number of the step, tokens) is copied to fixed
// places in device memory, so a whole step can be captured in a CUDA graph once and replayed.
//
// Gradient release: each bucket of tensors (the head, a transformer block, the embedding) is
// stepped by a plan of its own as soon as the backward pass has its gradients, and the next
// bucket's gradients take their place. One bucket's gradients are all that is ever held. Where to
// read next: bindings/cpp/lowbit.hpp, the library; train.cu, which runs this.

#pragma once

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "lowbit.hpp"

#include "../cpp/run.hpp"
#include "../cpp/text.hpp"
#include "model.cuh"

namespace gpu {

struct settings {
  std::string optimizer = "adamw4";                        // a preset of the library
  lowbit::weights weights = lowbit::weights::correction8;  // of bf16 parameters
  int batch = 8, steps = 300;
  float lr = 2e-3f, weight_decay = 0.1f;
  float clip = 1;        // largest global norm of the gradients; 0: any
  bool captured = true;  // steps are a CUDA graph
  bool release = false;
};

// Bytes of device memory.
struct memory_use {
  int64_t params = 0, grads = 0, states = 0, activations = 0, other = 0;
  int64_t total() const { return params + grads + states + activations + other; }
};

template <class T>
constexpr lowbit::dtype lowbit_type = lowbit::dtype::f32;
template <>
constexpr lowbit::dtype lowbit_type<__nv_bfloat16> = lowbit::dtype::bf16;

// T is the type of parameters, gradients and activations.
template <class T>
class trainer {
 public:
  // Parameters begin with the values of `tensors`, which are those of a gpt::model of the same
  // config.
  trainer(const settings& s, const gpt::config& cfg, const std::vector<gpt::tensor<float>>& tensors)
      : settings_(s),
        tokens_(static_cast<std::size_t>(s.batch) * static_cast<std::size_t>(cfg.context)),
        buckets_(model<T>::buckets(cfg)),
        tensors_(describe(tensors)),
        context_(lowbit::context::cuda()),
        spec_(lowbit::spec::preset(s.optimizer)),
        plan_(lowbit::plan::make(context_, spec_, tensors_)) {
    if (s.release && s.clip > 0) {
      throw std::invalid_argument(
          "gradients are released before their global norm is known: release needs a clip of 0");
    }
    allocate();
    model_ = std::make_unique<model<T>>(cfg, s.batch, place_tensors(params_->data(), false),
                                        place_tensors(grads_->data(), s.release), stream_);
    upload(tensors);
    if (s.captured) {
      capture();
    }
  }

  // One step; returns the loss of its batch.
  float step(const text::batch& batch) {
    lowbit::hyper hyper;
    hyper.lr = gpt::learning_rate(settings_.lr, steps_ + 1, settings_.steps);
    hyper.weight_decay = settings_.weight_decay;
    feed(batch, hyper, steps_ + 1);
    if (graph_) {
      graph_->launch(stream_);
    } else {
      enqueue_step();
    }
    stream_.wait();
    ++steps_;
    return *host_loss();
  }

  float evaluate(const text::batch& batch) {
    feed(batch, {}, steps_);
    enqueue_forward();
    copy(host_loss(), loss_, sizeof(float), cudaMemcpyDeviceToHost);
    stream_.wait();
    return *host_loss();
  }

  // The gradients of a batch, without a step.
  std::vector<gpt::array<float>> gradients(const text::batch& batch) {
    if (settings_.release) {
      throw std::logic_error("gradients are released: there is no place for all of them");
    }
    feed(batch, {}, steps_);
    enqueue_forward();
    model_->backward(input_tokens(), [](int) {});
    return download(grad_list_);
  }

  // The folder that ../cpp/run.hpp describes.
  void save(const std::filesystem::path& folder) {
    gpt::save_params(folder, params());
    plan_.save(gpt::state_file(folder).string(), state_list_, steps_, stream_.get());
  }

  void load(const std::filesystem::path& folder) {
    std::vector<gpt::tensor<float>> values = params();
    gpt::load_params(folder, values);
    steps_ =
        static_cast<int>(plan_.load(gpt::state_file(folder).string(), state_list_, stream_.get()));
    upload(values);
  }

  std::vector<gpt::tensor<float>> params() {
    std::vector<gpt::array<float>> values = download(param_list_);
    std::vector<gpt::tensor<float>> all;
    for (std::size_t i = 0; i < tensors_.size(); ++i) {
      all.push_back({tensors_[i].name, tensors_[i].shape, std::move(values[i]), {}});
    }
    return all;
  }

  // All bits that training has changed: parameters, then states.
  std::vector<std::uint8_t> bits() {
    std::vector<std::uint8_t> all;
    for (const std::vector<lowbit::buffer>* list : {&param_list_, &state_list_}) {
      for (const lowbit::buffer& b : *list) {
        const auto size = static_cast<std::size_t>(b.bytes);
        all.resize(all.size() + size);
        copy(all.data() + all.size() - size, b.data, size, cudaMemcpyDeviceToHost);
        stream_.wait();
      }
    }
    return all;
  }

  int steps() const { return steps_; }
  const lowbit::plan& plan() const { return plan_; }

  memory_use memory_used() const {
    return {params_->bytes(), grads_->bytes(), states_->bytes(), model_->activation_bytes(),
            other_->bytes() + model_->workspace_bytes()};
  }

 private:
  // What a step reads besides the model. The tokens and targets, N bytes each, are behind it.
  struct input {
    lowbit::hyper hyper;
    std::int32_t step;
  };

  std::vector<lowbit::tensor> describe(const std::vector<gpt::tensor<float>>& tensors) const {
    const lowbit::dtype type = lowbit_type<T>;
    std::vector<lowbit::tensor> all;
    for (const gpt::tensor<float>& t : tensors) {
      all.push_back({t.name, t.shape, type});
      if (type == lowbit::dtype::bf16) {
        all.back().weights = settings_.weights;
      }
    }
    return all;
  }

  int64_t numel(std::size_t i) const {
    int64_t count = 1;
    for (const int64_t extent : tensors_[i].shape) {
      count *= extent;
    }
    return count;
  }

  // ---- memory ----

  // Where each tensor is in a memory of parameters, or of gradients, where buckets may share their
  // place; with null, where from zero on. `bytes` becomes the size.
  std::vector<T*> place_tensors(void* base, bool shared, int64_t* bytes = nullptr) const {
    std::vector<T*> places(tensors_.size());
    layout at(base);
    int64_t largest = 0;
    for (const bucket& b : buckets_) {
      if (shared) {
        at = layout(base);
      }
      for (int i = b.first; i < b.last; ++i) {
        places[static_cast<std::size_t>(i)] = at.take<T>(numel(static_cast<std::size_t>(i)));
      }
      largest = std::max(largest, at.bytes());
    }
    if (bytes != nullptr) {
      *bytes = largest;
    }
    return places;
  }

  std::unique_ptr<memory> allocate_tensors(bool shared, std::vector<lowbit::buffer>& list) const {
    int64_t bytes = 0;
    place_tensors(nullptr, shared, &bytes);
    auto made = std::make_unique<memory>(place::device, bytes);
    const std::vector<T*> places = place_tensors(made->data(), shared);
    for (std::size_t i = 0; i < places.size(); ++i) {
      list.push_back(lowbit::buffer_of(places[i], static_cast<std::size_t>(numel(i))));
    }
    return made;
  }

  void allocate() {
    params_ = allocate_tensors(false, param_list_);
    grads_ = allocate_tensors(settings_.release, grad_list_);

    states_ = std::make_unique<memory>(place::device, plan_.arena_bytes());
    for (int64_t i = 0; i < plan_.buffer_count(); ++i) {
      const lowbit_buffer_info_t info = plan_.buffer_info(i);
      state_list_.push_back({static_cast<char*>(states_->data()) + info.arena_offset, info.bytes});
    }

    int64_t scratch_bytes = plan_.scratch_bytes();
    if (settings_.release) {
      for (const bucket& b : buckets_) {
        bucket_plans_.push_back(lowbit::plan::make(
            context_, spec_, {tensors_.begin() + b.first, tensors_.begin() + b.last}));
        scratch_bytes = std::max(scratch_bytes, bucket_plans_.back().scratch_bytes());
      }
    }
    const auto input_bytes = static_cast<int64_t>(sizeof(input) + 2 * tokens_);
    const auto lay_out = [&](void* base) {
      layout at(base);
      scratch_ = {at.take<char>(scratch_bytes), scratch_bytes};
      norm_scratch_ = {at.take<char>(LOWBIT_NORM_SCRATCH), LOWBIT_NORM_SCRATCH};
      input_ = reinterpret_cast<input*>(at.take<char>(input_bytes));
      loss_ = at.take<float>(1);
      return at.bytes();
    };
    other_ = std::make_unique<memory>(place::device, lay_out(nullptr));
    lay_out(other_->data());
    host_input_ = std::make_unique<memory>(place::pinned_host, input_bytes);
    host_loss_ = std::make_unique<memory>(place::pinned_host, sizeof(float));
  }

  const std::uint8_t* input_tokens() const {
    return reinterpret_cast<const std::uint8_t*>(input_ + 1);
  }
  float* host_loss() const { return static_cast<float*>(host_loss_->data()); }

  void copy(void* to, const void* from, std::size_t bytes, cudaMemcpyKind kind) const {
    check(cudaMemcpyAsync(to, from, bytes, kind, stream_.get()), "cudaMemcpyAsync");
  }

  void upload(const std::vector<gpt::tensor<float>>& tensors) {
    for (std::size_t i = 0; i < tensors.size(); ++i) {
      std::vector<T> values(tensors[i].value.size());
      std::transform(tensors[i].value.begin(), tensors[i].value.end(), values.begin(),
                     from_float<T>);
      copy(param_list_[i].data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice);
      stream_.wait();
    }
  }

  std::vector<gpt::array<float>> download(const std::vector<lowbit::buffer>& list) const {
    std::vector<gpt::array<float>> all;
    for (const lowbit::buffer& b : list) {
      std::vector<T> values(static_cast<std::size_t>(b.bytes) / sizeof(T));
      copy(values.data(), b.data, static_cast<std::size_t>(b.bytes), cudaMemcpyDeviceToHost);
      stream_.wait();
      gpt::array<float>& floats = all.emplace_back(values.size());
      std::transform(values.begin(), values.end(), floats.begin(), [](T x) { return to_float(x); });
    }
    return all;
  }

  // ---- steps ----

  // Before work on the stream that begins with `enqueue_forward`.
  void feed(const text::batch& batch, const lowbit::hyper& hyper, int step) {
    if (batch.tokens.size() != tokens_ || batch.targets.size() != tokens_) {
      throw std::invalid_argument("tokens and targets must be batch x context");
    }
    auto* in = static_cast<input*>(host_input_->data());
    *in = {hyper, step};
    auto* bytes = reinterpret_cast<std::uint8_t*>(in + 1);
    std::copy(batch.targets.begin(), batch.targets.end(),
              std::copy(batch.tokens.begin(), batch.tokens.end(), bytes));
  }

  void enqueue_forward() {
    copy(input_, host_input_->data(), sizeof(input) + 2 * tokens_, cudaMemcpyHostToDevice);
    model_->forward(input_tokens(), input_tokens() + tokens_, loss_);
  }

  void enqueue_step() {
    enqueue_forward();
    if (settings_.release) {
      model_->backward(input_tokens(), [this](int i) {
        enqueue_update(bucket_plans_[static_cast<std::size_t>(i)],
                       buckets_[static_cast<std::size_t>(i)]);
      });
    } else {
      model_->backward(input_tokens(), [](int) {});
      if (settings_.clip > 0) {
        enqueue_clip();
      }
      enqueue_update(plan_, {0, static_cast<int>(tensors_.size())});
    }
    copy(host_loss(), loss_, sizeof(float), cudaMemcpyDeviceToHost);
  }

  // Puts the factor that clips the global norm where the update reads it.
  void enqueue_clip() {
    lowbit_norm_args_t args = LOWBIT_NORM_ARGS_INIT;
    args.tensor_count = static_cast<int64_t>(grad_list_.size());
    args.grads = grad_list_.data();
    args.scratch = norm_scratch_;
    args.max_norm = settings_.clip;
    for (int64_t stage = 0; stage < 2; ++stage) {
      require(lowbit_norm_stats(plan_.get(), &args, stage, stream_.get()));
    }
    require(
        lowbit_norm_clip(plan_.get(), &args, stream_.get(), nullptr, &input_->hyper.clip_factor));
  }

  // The update of the tensors of `b`, which are the plan's.
  void enqueue_update(const lowbit::plan& plan, bucket b) {
    const auto first = static_cast<std::size_t>(b.first),
               count = static_cast<std::size_t>(b.last - b.first);
    const auto first_state =
        static_cast<std::size_t>(lowbit_tensor_report_t(plan_.tensor_report(b.first)).first_buffer);
    lowbit::step_args args;
    args.params = {param_list_.data() + first, count};
    args.grads = {grad_list_.data() + first, count};
    args.state = {state_list_.data() + first_state, static_cast<std::size_t>(plan.buffer_count())};
    args.scratch = scratch_;
    args.device_hyper = &input_->hyper;
    args.device_step = &input_->step;
    plan.step(args, stream_.get());
  }

  static void require(lowbit_status_t code) {
    const lowbit::status status = lowbit::status::of(code);
    if (!status) {
      throw lowbit::error(status);
    }
  }

  // One step that changes nothing comes first: libraries load their kernels at the first use, which
  // is not to happen during the capture.
  void capture() {
    lowbit::hyper nothing;
    nothing.skip = 1;
    feed({std::vector<std::uint8_t>(tokens_), std::vector<std::uint8_t>(tokens_)}, nothing, 1);
    enqueue_step();
    stream_.wait();
    graph_ = std::make_unique<graph>(stream_, [this] { enqueue_step(); });
  }

  const settings settings_;
  const std::size_t tokens_;  // N, of a batch
  const std::vector<bucket> buckets_;
  const std::vector<lowbit::tensor> tensors_;
  const lowbit::context context_;
  const lowbit::spec spec_;
  const lowbit::plan plan_;                 // of all tensors
  std::vector<lowbit::plan> bucket_plans_;  // where gradients are released
  const stream stream_;
  std::unique_ptr<memory> params_, grads_, states_, other_, host_input_, host_loss_;
  std::vector<lowbit::buffer> param_list_, grad_list_, state_list_;
  lowbit::buffer scratch_ = {}, norm_scratch_ = {};
  input* input_ = nullptr;  // in device memory
  float* loss_ = nullptr;   // in device memory
  std::unique_ptr<model<T>> model_;
  std::unique_ptr<graph> graph_;
  int steps_ = 0;
};

}  // namespace gpu
