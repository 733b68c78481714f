// lowbit for C++17: lowbit.h with owners, values and errors. Header-only; link with -llowbit.
//
//   auto context = lowbit::context::cpu();
//   auto spec = lowbit::spec::preset("adamw4");
//   auto plan = lowbit::plan::make(context, spec, {{"wte", {50304, 768}}, {"bias", {768}}});
//   auto stepper = lowbit::stepper::make(std::move(plan));     // allocates states and scratch
//   stepper.bind({lowbit::buffer_of(wte), lowbit::buffer_of(bias)},
//                {lowbit::buffer_of(dwte), lowbit::buffer_of(dbias)});
//   for (...) {
//     ... gradients ...
//     lowbit::hyper hyper;
//     hyper.lr = 3e-4f;
//     stepper.step(hyper);
//   }
//   stepper.save("run.safetensors");
//
// A trainer with memory of its own, or a sharded one, uses `plan` directly: `plan::step` and
// friends take a `step_args` full of addresses.
//
// Errors. Functions declared as `outcome<T>` can fail. They return T and throw `lowbit::error`;
// with LOWBIT_NO_EXCEPTIONS defined they throw nothing and return a `result<T>` (a `status` where T
// is void), and the header compiles under -fno-exceptions. All others cannot fail.
//
// Owners (`spec`, `context`, `plan`, `state`, `offload`, `stepper`) can be moved, not copied. One
// that was moved from may be destroyed or assigned to; using it is an error that the library
// reports. Threads, streams and life times are those of lowbit.h: what is const may be shared by
// threads.

#pragma once

#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#ifndef LOWBIT_NO_EXCEPTIONS
#include <stdexcept>
#endif

#include "lowbit.h"

// nvcc's front end takes the assignment of a [[nodiscard]] object for one that is discarded.
#ifdef __CUDACC__
#pragma nv_diagnostic push
#pragma nv_diag_suppress 2810
#endif

namespace lowbit {

// Two translation units may choose differently about exceptions; their names must not be merged.
#ifdef LOWBIT_NO_EXCEPTIONS
inline namespace v0_status {
#else
inline namespace v0 {
#endif

// ---- errors ----

// OK, or why nothing was done. Only a failure carries a text, so OK costs no allocation.
class [[nodiscard]] status {
 public:
  status() = default;
  status(lowbit_status_t code, std::string text) : code_(code), text_(std::move(text)) {}

  // Of a call that was just made on this thread.
  static status of(lowbit_status_t code) {
    if (code == LOWBIT_STATUS_OK) {
      return {};
    }
    char text[1025] = "";  // the longest there is
    (void)lowbit_last_error(text, sizeof text, nullptr);
    return {code, text};
  }

  bool ok() const { return code_ == LOWBIT_STATUS_OK; }
  explicit operator bool() const { return ok(); }
  lowbit_status_t code() const { return code_; }
  const char* name() const { return lowbit_status_name(code_); }
  // Names the argument and its value; empty if ok.
  const std::string& text() const { return text_; }

 private:
  lowbit_status_t code_ = LOWBIT_STATUS_OK;
  std::string text_;
};

#ifdef LOWBIT_NO_EXCEPTIONS

// A value, or why there is none.
template <class T>
class [[nodiscard]] result {
 public:
  result(status failure) : failure_(std::move(failure)) {}
  result(T value) : value_(std::move(value)) {}

  bool ok() const { return failure_.ok(); }
  explicit operator bool() const { return ok(); }
  const status& failure() const { return failure_; }

  // Only if ok.
  T& operator*() & { return *value_; }
  const T& operator*() const& { return *value_; }
  T&& operator*() && { return std::move(*value_); }
  T* operator->() { return &*value_; }
  const T* operator->() const { return &*value_; }

 private:
  status failure_;
  std::optional<T> value_;
};

template <class T>
using outcome = std::conditional_t<std::is_void_v<T>, status, result<T>>;

namespace detail {

inline status settle(status done) { return done; }

template <class T>
result<T> settle(status done, T value) {
  if (!done) {
    return done;
  }
  return value;
}

}  // namespace detail

#else

class error : public std::runtime_error {
 public:
  explicit error(const status& failure)
      : std::runtime_error(std::string(failure.name()) + ": " + failure.text()),
        code_(failure.code()) {}

  // LOWBIT_STATUS_...
  lowbit_status_t code() const { return code_; }

 private:
  lowbit_status_t code_;
};

template <class T>
using outcome = T;

namespace detail {

inline void settle(const status& done) {
  if (!done) {
    throw error(done);
  }
}

template <class T>
T settle(const status& done, T value) {
  settle(done);
  return value;
}

}  // namespace detail

#endif

namespace detail {

// Asks for a text's size, then for the text.
template <class Call>
outcome<std::string> copy_text(Call call) {
  std::size_t needed = 0;
  status done = status::of(call(nullptr, 0, &needed));
  std::string text(needed, '\0');
  if (done) {
    done = status::of(call(text.data(), text.size(), &needed));
    text.resize(needed - 1);  // without the NUL
  }
  return settle(std::move(done), std::move(text));
}

struct destroy {
  void operator()(lowbit_spec_t* handle) const { lowbit_spec_destroy(handle); }
  void operator()(lowbit_context_t* handle) const { lowbit_context_destroy(handle); }
  void operator()(lowbit_plan_t* handle) const { lowbit_plan_destroy(handle); }
  void operator()(lowbit_offload_t* handle) const { lowbit_offload_destroy(handle); }
};

struct destroy_state {
  void* stream = nullptr;
  void operator()(lowbit_state_t* handle) const { lowbit_state_destroy(handle, stream); }
};

}  // namespace detail

// ---- versions ----

// The library's own version, as "0.1.0".
inline const char* version() { return lowbit_version(); }

namespace detail {

inline status match_version() {
  std::uint32_t major = 0, minor = 0;
  status done = status::of(lowbit_abi_version(&major, &minor));
  if (done && (major != LOWBIT_ABI_MAJOR || minor < LOWBIT_ABI_MINOR)) {
    const auto dotted = [](std::uint32_t a, std::uint32_t b) {
      return std::to_string(a) + "." + std::to_string(b);
    };
    done = status(LOWBIT_STATUS_UNSUPPORTED,
                  "lowbit.h has ABI " + dotted(LOWBIT_ABI_MAJOR, LOWBIT_ABI_MINOR) +
                      ", the loaded library " + lowbit_version() + " has " + dotted(major, minor));
  }
  return done;
}

}  // namespace detail

// Fails unless the loaded library has the ABI of the header that this was compiled with. Making a
// context checks it too.
inline outcome<void> check_version() { return detail::settle(detail::match_version()); }

// ---- memory ----

// A piece of the caller's memory: data and bytes.
using buffer = lowbit_buffer_t;

// `count` elements from `data` on. Memory that a call only reads (gradients, values to compress)
// may be const; the C struct is the same for both.
template <class T>
buffer buffer_of(T* data, std::size_t count) {
  static_assert(std::is_trivially_copyable_v<T>, "buffers hold plain numbers");
  return {const_cast<std::remove_const_t<T>*>(data), static_cast<std::int64_t>(count * sizeof(T))};
}

// All of a std::vector, std::array or the like, which must outlive the buffer.
template <class Container>
auto buffer_of(Container& values) -> decltype(buffer_of(values.data(), values.size())) {
  return buffer_of(values.data(), values.size());
}

// A view of an array of buffers: one per tensor, or one per state buffer.
class buffers {
 public:
  buffers() = default;
  buffers(const buffer* data, std::size_t size) : data_(data), size_(size) {}
  buffers(const std::vector<buffer>& list) : buffers(list.data(), list.size()) {}

  const buffer* data() const { return data_; }
  std::size_t size() const { return size_; }
  std::int64_t count() const { return static_cast<std::int64_t>(size_); }
  const buffer* begin() const { return data_; }
  const buffer* end() const { return data_ + size_; }
  const buffer& operator[](std::size_t i) const { return data_[i]; }

 private:
  const buffer* data_ = nullptr;
  std::size_t size_ = 0;
};

// ---- spec ----

// One state's quantizer; make it by one of the functions, then set other fields of `info`:
// rounding, flags, factor_axes.
struct quantizer {
  lowbit_quantizer_info_t info = LOWBIT_QUANTIZER_INFO_INIT;
  // Of LOWBIT_MAPPING_TABLE. They are copied; `info.levels` and `info.level_count` stay unset.
  std::vector<float> levels = {};

  // One scale for each block of a row. `mapping`: LOWBIT_MAPPING_...
  static quantizer block(std::int64_t size = 128, lowbit_mapping_t mapping = LOWBIT_MAPPING_DE,
                         std::int32_t bits = 4) {
    quantizer q = codes(LOWBIT_NORMALIZATION_BLOCK, mapping, bits);
    q.info.block = size;
    return q;
  }

  // One scale for each index of each axis.
  static quantizer rank1(lowbit_mapping_t mapping = LOWBIT_MAPPING_LINEAR, std::int32_t bits = 4) {
    return codes(LOWBIT_NORMALIZATION_RANK1, mapping, bits);
  }

  // Row and column means in f32, for v; vectors are coded in blocks of 128.
  static quantizer factored(lowbit_mapping_t mapping = LOWBIT_MAPPING_LINEAR,
                            std::int32_t bits = 4) {
    return codes(LOWBIT_NORMALIZATION_FACTORED, mapping, bits);
  }

  // Any normalization: LOWBIT_NORMALIZATION_...
  static quantizer codes(lowbit_normalization_t normalization, lowbit_mapping_t mapping,
                         std::int32_t bits = 4) {
    quantizer q;
    q.info.normalization = normalization;
    q.info.mapping = mapping;
    q.info.bits = bits;
    return q;
  }

  // Not quantized.
  static quantizer f32() {
    quantizer q;
    q.info.bits = 32;
    return q;
  }
};

// Other quantizers for the tensors whose name matches a shell pattern; also lifts the threshold.
struct quantizer_override {
  std::string pattern;
  std::optional<quantizer> m = {}, v = {}, x = {};  // those not given: the spec's
};

// What is not given comes from the preset.
struct spec_options {
  std::string preset = "adamw4";  // empty: none
  lowbit_optimizer_t optimizer = 0;
  std::optional<std::int64_t> threshold = {};  // tensors of at most so many elements stay f32
  std::optional<quantizer> m = {}, v = {}, x = {};
  std::vector<quantizer_override> overrides = {};
  std::uint64_t flags = 0;  // LOWBIT_SPEC_AMSGRAD, LOWBIT_SPEC_MAXIMIZE, ...
  float dampening = 0;      // of SGD
  std::uint64_t seed = 0;   // of stochastic rounding and dither
  std::optional<lowbit_adafactor_info_t> adafactor = {};  // begin from LOWBIT_ADAFACTOR_INFO_INIT
};

// Which optimizer, with which quantizer for each of its states.
class spec {
 public:
  // "adamw4", "adamw4-robust", "adamw4-block", "lion4", ...: lowbit_spec_create_preset lists them.
  static outcome<spec> preset(const std::string& name) {
    lowbit_spec_t* handle = nullptr;
    status done = status::of(lowbit_spec_create_preset(name.c_str(), &handle));
    return detail::settle(std::move(done), spec(handle));
  }

  static outcome<spec> from_json(const std::string& json) {
    lowbit_spec_t* handle = nullptr;
    status done = status::of(lowbit_spec_create_json(json.c_str(), &handle));
    return detail::settle(std::move(done), spec(handle));
  }

  static outcome<spec> make(const spec_options& options) {
    std::deque<lowbit_quantizer_info_t> quantizers;  // which keeps its elements' addresses
    const auto pointer = [&](const std::optional<quantizer>& q) -> lowbit_quantizer_info_t* {
      if (!q) {
        return nullptr;
      }
      lowbit_quantizer_info_t& info = quantizers.emplace_back(q->info);
      info.levels = q->levels.data();
      info.level_count = static_cast<std::int64_t>(q->levels.size());
      return &info;
    };
    std::vector<lowbit_override_info_t> overrides;
    for (const quantizer_override& o : options.overrides) {
      overrides.push_back({sizeof(lowbit_override_info_t), o.pattern.c_str(), pointer(o.m),
                           pointer(o.v), pointer(o.x)});
    }
    lowbit_spec_info_t info = LOWBIT_SPEC_INFO_INIT;
    info.flags = options.flags | (options.threshold ? LOWBIT_SPEC_THRESHOLD : 0);
    info.preset = options.preset.empty() ? nullptr : options.preset.c_str();
    info.optimizer = options.optimizer;
    info.threshold = options.threshold.value_or(0);
    info.m = pointer(options.m);
    info.v = pointer(options.v);
    info.x = pointer(options.x);
    info.overrides = overrides.data();
    info.override_count = static_cast<std::int64_t>(overrides.size());
    info.seed = options.seed;
    info.dampening = options.dampening;
    info.adafactor = options.adafactor ? &*options.adafactor : nullptr;
    lowbit_spec_t* handle = nullptr;
    status done = status::of(lowbit_spec_create(&info, &handle));
    return detail::settle(std::move(done), spec(handle));
  }

  // One line; the same text for equal specs.
  outcome<std::string> json() const {
    return detail::copy_text([this](char* text, std::size_t size, std::size_t* needed) {
      return lowbit_spec_json(get(), text, size, needed);
    });
  }

  const lowbit_spec_t* get() const { return handle_.get(); }

 private:
  explicit spec(lowbit_spec_t* handle) : handle_(handle) {}

  std::unique_ptr<lowbit_spec_t, detail::destroy> handle_;
};

// ---- context ----

struct cpu_options {
  std::int64_t threads = 0;  // that work, the caller's among them; 0: all that the process may use
  lowbit_cpu_variant_t variant = LOWBIT_CPU_VARIANT_AUTO;
  lowbit_parallel_for_t parallel_for = nullptr;  // the trainer's threads instead of own ones
  void* parallel_for_user = nullptr;
};

// The CPU with its threads, or a CUDA device.
class context {
 public:
  static outcome<context> cpu(const cpu_options& options = {}) {
    lowbit_cpu_info_t info = LOWBIT_CPU_INFO_INIT;
    info.threads = options.threads;
    info.variant = options.variant;
    info.parallel_for = options.parallel_for;
    info.parallel_for_user = options.parallel_for_user;
    return make(true,
                [&](lowbit_context_t** out) { return lowbit_context_create_cpu(&info, out); });
  }

  static outcome<context> cuda(std::int32_t device = 0) {
    lowbit_cuda_info_t info = LOWBIT_CUDA_INFO_INIT;
    info.device = device;
    return make(false,
                [&](lowbit_context_t** out) { return lowbit_context_create_cuda(&info, out); });
  }

  bool on_host() const { return on_host_; }
  const lowbit_context_t* get() const { return handle_.get(); }

 private:
  context(lowbit_context_t* handle, bool on_host) : handle_(handle), on_host_(on_host) {}

  template <class Create>
  static outcome<context> make(bool on_host, Create create) {
    lowbit_context_t* handle = nullptr;
    status done = detail::match_version();
    if (done) {
      done = status::of(create(&handle));
    }
    return detail::settle(std::move(done), context(handle, on_host));
  }

  std::unique_ptr<lowbit_context_t, detail::destroy> handle_;
  bool on_host_;
};

// Whether `context::cuda` would find driver, device and kernels; if not, the text says why.
inline status cuda_probe(std::int32_t device = 0) {
  std::size_t needed = 0;
  return status::of(lowbit_cuda_probe(device, nullptr, 0, &needed));
}

// ---- plan ----

enum class dtype : lowbit_dtype_t {
  none = 0,
  f32 = LOWBIT_DTYPE_F32,
  bf16 = LOWBIT_DTYPE_BF16,
  f16 = LOWBIT_DTYPE_F16,
};

// What is kept beside a 16-bit parameter so that small updates are not lost: a state buffer.
enum class weights : lowbit_weights_t {
  plain = LOWBIT_WEIGHTS_PLAIN,              // nothing: rounded to nearest
  stochastic = LOWBIT_WEIGHTS_STOCHASTIC,    // nothing: rounded at random
  master = LOWBIT_WEIGHTS_MASTER,            // an f32
  remainder16 = LOWBIT_WEIGHTS_REMAINDER16,  // bf16: the lower 16 bits of the f32
  correction8 = LOWBIT_WEIGHTS_CORRECTION8,  // bf16: 8 bits
};

// A tensor of a plan: {"wte", {50304, 768}, lowbit::dtype::bf16}.
struct tensor {
  std::string name;
  std::vector<std::int64_t> shape;  // outermost axis first
  dtype param = dtype::f32;
  dtype grad = dtype::none;                                  // none: the parameter's
  std::vector<std::int64_t> global_shape = {}, offset = {};  // both empty: the tensor is whole
  lowbit::weights weights = lowbit::weights::plain;
  std::int64_t group = 0;  // whose hyper-parameters it takes

  // The same tensor as a shard: the part at `start` of a tensor of the shape `global`.
  tensor shard_of(std::vector<std::int64_t> global, std::vector<std::int64_t> start) const {
    tensor shard = *this;
    shard.global_shape = std::move(global);
    shard.offset = std::move(start);
    return shard;
  }
};

// What changes from step to step, with the library's defaults.
struct hyper {
  float lr = 1e-3f;
  float beta1 = 0.9f;
  float beta2 = 0.999f;
  float eps = 1e-8f;
  float weight_decay = 0.01f;  // decoupled: multiplied by lr
  float grad_scale = 1;        // gradients are multiplied by this (1 / loss scale)
  float clip_factor = 1;       // and by this (clipping by global norm)
  float skip = 0;              // non-zero: nothing changes
};
static_assert(sizeof(hyper) == LOWBIT_HYPER_COUNT * sizeof(float) &&
                  std::is_standard_layout_v<hyper>,
              "an array of them is what lowbit_step_args_t.hyper points to");

enum class nonfinite : lowbit_nonfinite_t {
  by_quantizer = LOWBIT_NONFINITE_DEFAULT,  // skip_tensor where an update needs the whole tensor
  skip_block = LOWBIT_NONFINITE_SKIP_BLOCK,
  skip_tensor = LOWBIT_NONFINITE_SKIP_TENSOR,
  skip_step = LOWBIT_NONFINITE_SKIP_STEP,
  propagate = LOWBIT_NONFINITE_PROPAGATE,
};

// One step on the caller's memory. The views are only read during the call.
struct step_args {
  buffers params, grads, state;
  buffer scratch = {};    // plan::scratch_bytes of them
  std::int32_t step = 1;  // number of this step, from 1
  lowbit::hyper hyper = {};
  buffers updates = {};  // where the updates go, instead of being added to the parameters
  lowbit::nonfinite nonfinite = nonfinite::by_quantizer;
  // As in lowbit.h: a `hyper` for each group of the plan, and the step, in the tensors' memory
  // space, where nothing checks them. A plan with several groups needs them.
  const lowbit::hyper* device_hyper = nullptr;
  const std::int32_t* device_step = nullptr;
  const std::int64_t* const* offsets = nullptr;  // per tensor, other places than the plan's
  std::int64_t* skipped = nullptr;               // two counters: blocks and tensors skipped
};

namespace detail {

// What `function` returns for the C form of a step's arguments.
template <class Call>
status with_args(const step_args& args, Call function) {
  // The C struct has one count for all three.
  const auto misfits = [&](buffers list) { return list.size() != args.params.size(); };
  if (misfits(args.grads) || (args.updates.size() != 0 && misfits(args.updates))) {
    return status(LOWBIT_STATUS_INVALID_ARGUMENT,
                  "step: " + std::to_string(args.params.size()) + " params, " +
                      std::to_string(args.grads.size()) + " grads and " +
                      std::to_string(args.updates.size()) + " updates; they must be as many");
  }
  lowbit_step_args_t c = LOWBIT_STEP_ARGS_INIT;
  c.tensor_count = args.params.count();
  c.params = args.params.data();
  c.grads = args.grads.data();
  c.updates = args.updates.size() == 0 ? nullptr : args.updates.data();
  c.buffer_count = args.state.count();
  c.state = args.state.data();
  c.scratch = args.scratch;
  c.lr = args.hyper.lr;
  c.beta1 = args.hyper.beta1;
  c.beta2 = args.hyper.beta2;
  c.eps = args.hyper.eps;
  c.weight_decay = args.hyper.weight_decay;
  c.grad_scale = args.hyper.grad_scale;
  c.clip_factor = args.hyper.clip_factor;
  c.skip = args.hyper.skip;
  c.step = args.step;
  c.nonfinite = static_cast<lowbit_nonfinite_t>(args.nonfinite);
  c.hyper = args.device_hyper == nullptr ? nullptr : &args.device_hyper->lr;
  c.step_number = args.device_step;
  c.offsets = args.offsets;
  c.skipped = args.skipped;
  return status::of(function(&c));
}

}  // namespace detail

// Is told the bytes that are done and how many there are; false ends the call with CANCELLED.
using progress_function = std::function<bool(std::int64_t done, std::int64_t total)>;

// Takes the next bytes of a checkpoint; false ends the call with IO.
using write_function = std::function<bool(const void* data, std::size_t bytes)>;

struct save_options {
  // Above 0: the path has "{step}" in its file's name, and so many of the files with such names stay.
  std::int32_t keep = 0;
  progress_function progress;
};

struct load_options {
  // The checkpoint may have tensors that the plan lacks.
  bool subset = false;
  progress_function progress;
};

namespace detail {

// A function of the caller's that C calls: what it throws waits until C has returned.
template <class F>
class callback {
 public:
  explicit callback(const std::function<F>& function) : function_(function) {}
  explicit operator bool() const { return static_cast<bool>(function_); }

  template <class... A>
  std::int32_t operator()(A... arguments) noexcept {
#ifdef LOWBIT_NO_EXCEPTIONS
    return function_(arguments...) ? 0 : 1;
#else
    try {
      return function_(arguments...) ? 0 : 1;
    } catch (...) {
      thrown_ = std::current_exception();
      return 1;
    }
#endif
  }

  void rethrow() const {
#ifndef LOWBIT_NO_EXCEPTIONS
    if (thrown_) {
      std::rethrow_exception(thrown_);
    }
#endif
  }

 private:
  const std::function<F>& function_;
#ifndef LOWBIT_NO_EXCEPTIONS
  std::exception_ptr thrown_;
#endif
};

inline std::int32_t report(void* user, std::int64_t done, std::int64_t total) {
  return (*static_cast<callback<bool(std::int64_t, std::int64_t)>*>(user))(done, total);
}

inline std::int32_t write(void* user, const void* data, std::size_t bytes) {
  return (*static_cast<callback<bool(const void*, std::size_t)>*>(user))(data, bytes);
}

}  // namespace detail

// What every tensor got and where every state buffer lies. Immutable.
class plan {
 public:
  static outcome<plan> make(const context& context, const spec& spec,
                            const std::vector<tensor>& tensors) {
    std::vector<lowbit_tensor_info_t> infos;
    status done;
    for (const tensor& t : tensors) {
      done = check_axes(t);
      if (!done) {
        break;
      }
      lowbit_tensor_info_t info = LOWBIT_TENSOR_INFO_INIT;
      info.name = t.name.c_str();
      info.shape = t.shape.data();
      info.ndim = static_cast<std::int32_t>(t.shape.size());
      info.param_dtype = static_cast<lowbit_dtype_t>(t.param);
      info.grad_dtype = static_cast<lowbit_dtype_t>(t.grad);
      info.global_shape = t.global_shape.empty() ? nullptr : t.global_shape.data();
      info.offset = t.offset.empty() ? nullptr : t.offset.data();
      info.weights = static_cast<lowbit_weights_t>(t.weights);
      info.group = t.group;
      infos.push_back(info);
    }
    lowbit_plan_t* handle = nullptr;
    if (done) {
      done = status::of(lowbit_plan_create(context.get(), spec.get(), infos.data(),
                                           static_cast<std::int64_t>(infos.size()), &handle));
    }
    plan made(handle, context.on_host());
    if (done) {
      done = status::of(lowbit_plan_info(handle, &made.info_));
    }
    return detail::settle(std::move(done), std::move(made));
  }

  std::int64_t tensor_count() const { return info_.tensor_count; }
  std::int64_t buffer_count() const { return info_.buffer_count; }
  // Of all state buffers, exactly.
  std::int64_t state_bytes() const { return info_.state_bytes; }
  // Of one arena with every state buffer at its arena_offset, and its alignment.
  std::int64_t arena_bytes() const { return info_.arena_bytes; }
  std::int64_t arena_align() const { return info_.arena_align; }
  // Of the scratch of one call in flight, aligned to 8.
  std::int64_t scratch_bytes() const { return info_.scratch_bytes; }
  // How many times shards combine statistics in a step, and how many `hyper`s a step takes.
  std::int64_t stage_count() const { return info_.stage_count; }
  std::int64_t group_count() const { return info_.group_count; }
  // Whether its memory is the host's.
  bool on_host() const { return on_host_; }

  // A table for people.
  outcome<std::string> report() const {
    return detail::copy_text([this](char* text, std::size_t size, std::size_t* needed) {
      return lowbit_plan_report(get(), text, size, needed);
    });
  }

  // What one tensor got, and why. The pointers live as long as the plan.
  outcome<lowbit_tensor_report_t> tensor_report(std::int64_t i) const {
    lowbit_tensor_report_t report = LOWBIT_TENSOR_REPORT_INIT;
    status done = status::of(lowbit_plan_tensor(get(), i, &report));
    return detail::settle(std::move(done), report);
  }

  // Type, shape, size and place of one state buffer. The pointers live as long as the plan.
  outcome<lowbit_buffer_info_t> buffer_info(std::int64_t i) const {
    lowbit_buffer_info_t info = LOWBIT_BUFFER_INFO_INIT;
    status done = status::of(lowbit_plan_buffer(get(), i, &info));
    return detail::settle(std::move(done), info);
  }

  // What shards all-reduce in the scratch after `collect(args, i)`.
  outcome<lowbit_stage_info_t> stage_info(std::int64_t i) const {
    lowbit_stage_info_t info = LOWBIT_STAGE_INFO_INIT;
    status done = status::of(lowbit_plan_stage(get(), i, &info));
    return detail::settle(std::move(done), info);
  }

  // Updates all parameters (or writes the updates) and states. Allocates nothing, unless it fails
  // or `offsets` are given.
  outcome<void> step(const step_args& args, void* stream = nullptr) const {
    return detail::settle(call(lowbit_step, args, stream));
  }

  // A step in parts, for trainers with shards: `collect` for each stage in turn, with an all-reduce
  // after it, then `apply`.
  outcome<void> collect(const step_args& args, std::int64_t stage, void* stream = nullptr) const {
    const auto stats = [stage](const lowbit_plan_t* self, const lowbit_step_args_t* c, void* s) {
      return lowbit_step_stats(self, c, stage, s);
    };
    return detail::settle(call(stats, args, stream));
  }
  outcome<void> apply(const step_args& args, void* stream = nullptr) const {
    return detail::settle(call(lowbit_step_apply, args, stream));
  }

  // Quantizes f32 values, one buffer per tensor, into the state "m", "v", ...; and back.
  outcome<void> compress(const char* name, buffers values, buffers state,
                         void* stream = nullptr) const {
    return detail::settle(status::of(lowbit_compress(get(), name, values.data(), values.count(),
                                                     state.data(), state.count(), stream)));
  }
  outcome<void> decompress(const char* name, buffers state, buffers values,
                           void* stream = nullptr) const {
    return detail::settle(status::of(lowbit_decompress(get(), name, state.data(), state.count(),
                                                       values.data(), values.count(), stream)));
  }

  // Writes a checkpoint after `steps` steps, whole or not at all.
  outcome<void> save(const std::string& path, buffers state, std::int64_t steps,
                     void* stream = nullptr) const {
    return detail::settle(status::of(
        lowbit_checkpoint_save(get(), state.data(), state.count(), steps, path.c_str(), stream)));
  }

  // The same with a number of checkpoints to keep, progress, or both.
  outcome<void> save(const std::string& path, buffers state, std::int64_t steps,
                     const save_options& options, void* stream = nullptr) const {
    lowbit_save_args_t args = save_args(state, steps);
    detail::callback<bool(std::int64_t, std::int64_t)> progress(options.progress);
    args.path = path.c_str();
    args.keep = options.keep;
    args.progress = progress ? detail::report : nullptr;
    args.progress_user = &progress;
    status done = status::of(lowbit_checkpoint_write(get(), &args, stream));
    progress.rethrow();
    return detail::settle(std::move(done));
  }

  // Writes a checkpoint piece by piece; `function` returns false where it cannot go on.
  outcome<void> save(const write_function& function, buffers state, std::int64_t steps,
                     void* stream = nullptr) const {
    lowbit_save_args_t args = save_args(state, steps);
    detail::callback<bool(const void*, std::size_t)> write(function);
    args.write = detail::write;
    args.write_user = &write;
    status done = status::of(lowbit_checkpoint_write(get(), &args, stream));
    write.rethrow();
    return detail::settle(std::move(done));
  }

  // Writes the checkpoint file of this plan's tensors, whole or shards, from one of any mesh.
  outcome<void> reshard(const std::string& from, const std::string& path) const {
    return detail::settle(
        status::of(lowbit_checkpoint_reshard(get(), from.c_str(), path.c_str(), nullptr, nullptr)));
  }

  // Reads a checkpoint, or an index of several, of the same spec and tensors, whatever its shards,
  // into `state` and returns its number of steps.
  outcome<std::int64_t> load(const std::string& path, buffers state, void* stream = nullptr) const {
    std::int64_t steps = 0;
    status done = read(path, state, stream, steps);
    return detail::settle(std::move(done), steps);
  }

  // The same with options.
  outcome<std::int64_t> load(const std::string& path, buffers state, const load_options& options,
                             void* stream = nullptr) const {
    lowbit_load_args_t args = LOWBIT_LOAD_ARGS_INIT;
    detail::callback<bool(std::int64_t, std::int64_t)> progress(options.progress);
    args.flags = options.subset ? LOWBIT_LOAD_SUBSET : 0;
    args.buffer_count = state.count();
    args.state = state.data();
    args.path = path.c_str();
    args.progress = progress ? detail::report : nullptr;
    args.progress_user = &progress;
    lowbit_checkpoint_info_t info = LOWBIT_CHECKPOINT_INFO_INIT;
    status done = status::of(lowbit_checkpoint_read(get(), &args, stream, &info));
    progress.rethrow();
    return detail::settle(std::move(done), info.step);
  }

  // The same in memory.
  outcome<std::vector<unsigned char>> serialize(buffers state, std::int64_t steps,
                                                void* stream = nullptr) const {
    std::size_t needed = 0;
    std::vector<unsigned char> bytes;
    const auto write = [&] {
      return status::of(lowbit_checkpoint_serialize(get(), state.data(), state.count(), steps,
                                                    stream, bytes.data(), bytes.size(), &needed));
    };
    status done = write();
    if (done) {
      bytes.resize(needed);
      done = write();
    }
    return detail::settle(std::move(done), std::move(bytes));
  }
  outcome<std::int64_t> deserialize(const std::vector<unsigned char>& bytes, buffers state,
                                    void* stream = nullptr) const {
    lowbit_checkpoint_info_t info = LOWBIT_CHECKPOINT_INFO_INIT;
    status done = status::of(lowbit_checkpoint_deserialize(
        get(), bytes.data(), bytes.size(), state.data(), state.count(), stream, &info));
    return detail::settle(std::move(done), info.step);
  }

  const lowbit_plan_t* get() const { return handle_.get(); }

 private:
  friend class stepper;

  plan(lowbit_plan_t* handle, bool on_host) : handle_(handle), on_host_(on_host) {}

  static lowbit_save_args_t save_args(buffers state, std::int64_t steps) {
    lowbit_save_args_t args = LOWBIT_SAVE_ARGS_INIT;
    args.buffer_count = state.count();
    args.state = state.data();
    args.step = steps;
    return args;
  }

  status read(const std::string& path, buffers state, void* stream, std::int64_t& steps) const {
    lowbit_checkpoint_info_t info = LOWBIT_CHECKPOINT_INFO_INIT;
    status done = status::of(
        lowbit_checkpoint_load(get(), path.c_str(), state.data(), state.count(), stream, &info));
    steps = done ? info.step : steps;
    return done;
  }

  // The C struct has one number of axes for all three.
  static status check_axes(const tensor& t) {
    for (const std::vector<std::int64_t>* axes : {&t.global_shape, &t.offset}) {
      if (!axes->empty() && axes->size() != t.shape.size()) {
        return status(LOWBIT_STATUS_INVALID_ARGUMENT,
                      "tensor " + t.name + ": " + (axes == &t.offset ? "offset" : "global_shape") +
                          " has " + std::to_string(axes->size()) + " axes, its shape " +
                          std::to_string(t.shape.size()));
      }
    }
    return {};
  }

  template <class Call>
  status call(Call function, const step_args& args, void* stream) const {
    return detail::with_args(
        args, [&](const lowbit_step_args_t* c) { return function(get(), c, stream); });
  }

  std::unique_ptr<lowbit_plan_t, detail::destroy> handle_;
  lowbit_plan_info_t info_ = LOWBIT_PLAN_INFO_INIT;
  bool on_host_;
};

// ---- state ----

// Owned state buffers, zero at first. May outlive its plan.
class state {
 public:
  static outcome<state> make(const plan& plan, void* stream = nullptr) {
    state made;
    status done = made.allocate(plan, stream);
    return detail::settle(std::move(done), std::move(made));
  }

  lowbit::buffers buffers() const { return list_; }
  operator lowbit::buffers() const { return list_; }
  const lowbit_state_t* get() const { return handle_.get(); }

 private:
  friend class stepper;

  state() = default;

  status allocate(const plan& plan, void* stream) {
    lowbit_state_t* handle = nullptr;
    status done = status::of(lowbit_state_create(plan.get(), stream, &handle));
    handle_ = {handle, {stream}};
    if (done) {
      list_.resize(static_cast<std::size_t>(plan.buffer_count()));
      done = status::of(lowbit_state_buffers(handle, list_.data(), plan.buffer_count()));
    }
    return done;
  }

  std::unique_ptr<lowbit_state_t, detail::destroy_state> handle_;
  std::vector<buffer> list_;
};

// ---- offload ----

// Steps of a plan whose states are in pinned host memory, for parameters and gradients on a CUDA
// device. A plan of a CPU context is stepped on the host, to which gradients come and from which
// parameters go; one of a CUDA context on the device, to which states come and from which they go.
// The bits are those of plan::step. Its destructor waits for the copies.
class offload {
 public:
  // Allocates all that steps need. `device` is where parameters and gradients are; it and `plan`
  // may then be destroyed. `staging_bytes` limits the memory through which a step moves tensors; 0
  // means the least, twice the gradient (steps on the host) or the states (steps on the device) of
  // the largest tensor.
  static outcome<offload> make(const plan& plan, const context& device,
                               std::int64_t staging_bytes = 0) {
    return create(plan, device.get(), staging_bytes);
  }
  // The same for a plan of a CUDA context, which is the device.
  static outcome<offload> make(const plan& plan, std::int64_t staging_bytes = 0) {
    return create(plan, nullptr, staging_bytes);
  }

  // Sizes, the bytes that a step moves, and how many tensors the last step has stepped.
  outcome<lowbit_offload_info_t> info() const {
    lowbit_offload_info_t info = LOWBIT_OFFLOAD_INFO_INIT;
    status done = status::of(lowbit_offload_info(get(), &info));
    return detail::settle(std::move(done), info);
  }

  // The memory on the host, which lives as long as this. States are in the plan's order, zero at
  // first, and as a plan of a CPU context saves and loads them. Parameters are one per tensor if
  // steps run on the host, and the caller copies the initial ones there; else there are none. Both
  // may be read and written once the last step's stream has been synchronised; if steps run on the
  // host, they may be read as soon as the step has returned.
  buffers params() const { return params_; }
  buffers state() const { return state_; }

  // Updates all parameters and states in the order of `stream`, one of the device. `params` and
  // `grads` are device memory; `device_hyper`, `device_step` and `skipped` are in the plan's memory
  // space. `state`, `scratch`, `updates` and `offsets` stay empty, and nonfinite::skip_step is not
  // possible. If steps run on the host, waits until they are done. Allocates nothing, unless it
  // fails; after CUDA_ERROR, `info` says how many tensors, from the first on, were stepped.
  outcome<void> step(const step_args& args, void* stream = nullptr) {
    return detail::settle(detail::with_args(args, [&](const lowbit_step_args_t* c) {
      return lowbit_offload_step(handle_.get(), c, stream);
    }));
  }

  const lowbit_offload_t* get() const { return handle_.get(); }

 private:
  offload() = default;

  static outcome<offload> create(const plan& plan, const lowbit_context_t* device,
                                 std::int64_t staging_bytes) {
    offload made;
    status done = made.allocate(plan, device, staging_bytes);
    return detail::settle(std::move(done), std::move(made));
  }

  status allocate(const plan& plan, const lowbit_context_t* device, std::int64_t staging_bytes) {
    lowbit_offload_t* handle = nullptr;
    status done = status::of(lowbit_offload_create(plan.get(), device, staging_bytes, &handle));
    handle_.reset(handle);
    if (done) {
      params_.resize(static_cast<std::size_t>(plan.on_host() ? plan.tensor_count() : 0));
      state_.resize(static_cast<std::size_t>(plan.buffer_count()));
      done = status::of(
          lowbit_offload_buffers(handle, params_.data(), static_cast<std::int64_t>(params_.size()),
                                 state_.data(), static_cast<std::int64_t>(state_.size())));
    }
    return done;
  }

  std::unique_ptr<lowbit_offload_t, detail::destroy> handle_;
  std::vector<buffer> params_, state_;
};

// ---- stepper ----

// What a training loop keeps: plan, states, scratch, the model's addresses and the number of steps.
class stepper {
 public:
  // `scratch`: the caller's device memory for CUDA plans; on the host it is allocated here.
  static outcome<stepper> make(lowbit::plan plan, buffer scratch = {}, void* stream = nullptr) {
    stepper made(std::move(plan), scratch);
    status done = made.allocate(stream);
    return detail::settle(std::move(done), std::move(made));
  }

  // Where parameters and gradients are, in the plan's order; and, if not to be added to the
  // parameters, where updates go. Checked by the next step.
  void bind(std::vector<buffer> params, std::vector<buffer> grads,
            std::vector<buffer> updates = {}) {
    params_ = std::move(params);
    grads_ = std::move(grads);
    updates_ = std::move(updates);
  }

  // Number steps() + 1. Allocates nothing, unless it fails.
  outcome<void> step(const hyper& hyper, void* stream = nullptr) {
    status done = plan_.call(lowbit_step, args(hyper), stream);
    steps_ += done.ok() ? 1 : 0;
    return detail::settle(std::move(done));
  }

  // The same with a `hyper` for each group of the plan, on the host.
  outcome<void> step_groups(const std::vector<hyper>& groups, void* stream = nullptr) {
    step_args next = args({});
    next.device_hyper = groups.data();
    next.device_step = &next.step;
    status done = check_groups(groups);
    if (done) {
      done = plan_.call(lowbit_step, next, stream);
    }
    steps_ += done.ok() ? 1 : 0;
    return detail::settle(std::move(done));
  }

  // The arguments of the next step, for one with other settings or in parts. Such a step is counted
  // by `count_step`.
  step_args args(const hyper& hyper) const {
    step_args args;
    args.params = params_;
    args.grads = grads_;
    args.updates = updates_;
    args.state = state_;
    args.scratch = scratch_;
    args.step = static_cast<std::int32_t>(steps_ + 1);
    args.hyper = hyper;
    return args;
  }
  void count_step() { ++steps_; }

  // Steps done.
  std::int64_t steps() const { return steps_; }
  const lowbit::plan& plan() const { return plan_; }
  lowbit::buffers state() const { return state_; }

  // A checkpoint of states and number of steps; parameters are the trainer's to save.
  outcome<void> save(const std::string& path, void* stream = nullptr) const {
    return plan_.save(path, state_, steps_, stream);
  }
  outcome<void> load(const std::string& path, void* stream = nullptr) {
    return detail::settle(plan_.read(path, state_, stream, steps_));
  }

 private:
  stepper(lowbit::plan plan, buffer scratch) : plan_(std::move(plan)), scratch_(scratch) {}

  // What the library cannot see behind the pointer.
  status check_groups(const std::vector<hyper>& groups) const {
    if (!plan_.on_host()) {
      return status(LOWBIT_STATUS_UNSUPPORTED,
                    "a CUDA plan takes the groups' hyper-parameters from device memory: set "
                    "device_hyper and device_step of args()");
    }
    if (static_cast<std::int64_t>(groups.size()) != plan_.group_count()) {
      return status(LOWBIT_STATUS_INVALID_ARGUMENT,
                    std::to_string(groups.size()) + " hyper-parameters are given; the plan has " +
                        std::to_string(plan_.group_count()) + " groups");
    }
    return {};
  }

  status allocate(void* stream) {
    if (scratch_.data == nullptr && !plan_.on_host()) {
      return status(LOWBIT_STATUS_NULL_POINTER, "scratch is null; a CUDA plan needs device memory");
    }
    if (scratch_.data == nullptr) {
      own_scratch_.resize(static_cast<std::size_t>(plan_.scratch_bytes()) / 8);
      scratch_ = buffer_of(own_scratch_);
    }
    return state_.allocate(plan_, stream);
  }

  lowbit::plan plan_;
  lowbit::state state_;
  std::vector<std::int64_t> own_scratch_;
  buffer scratch_;
  std::vector<buffer> params_, grads_, updates_;
  std::int64_t steps_ = 0;
};

}  // inline namespace
// --- checkpoint files ---

// Writes the index of files that lie in its folder, once they are one complete checkpoint: each has
// the shards of one process. It is the index that is then loaded.
inline outcome<void> write_index(const std::vector<std::string>& files, const std::string& path) {
  std::vector<const char*> names;
  for (const std::string& file : files) {
    names.push_back(file.c_str());
  }
  return detail::settle(status::of(lowbit_checkpoint_index(
      names.data(), static_cast<std::int64_t>(names.size()), path.c_str())));
}

// Writes all tensors of a checkpoint, whole, into one file.
inline outcome<void> merge_checkpoint(const std::string& from, const std::string& path) {
  return detail::settle(
      status::of(lowbit_checkpoint_merge(from.c_str(), path.c_str(), nullptr, nullptr)));
}

// Cuts every tensor along `axis` into `parts`: a file for each, and their index at `path`.
inline outcome<void> split_checkpoint(const std::string& from, std::int32_t axis,
                                      std::int64_t parts, const std::string& path) {
  return detail::settle(status::of(
      lowbit_checkpoint_split(from.c_str(), axis, parts, path.c_str(), nullptr, nullptr)));
}

// Step, spec, and tensors with the places of their shards, as JSON.
inline outcome<std::string> checkpoint_json(const std::string& from) {
  std::size_t needed = 0;
  std::string text;
  status done = status::of(lowbit_checkpoint_json(from.c_str(), nullptr, 0, &needed));
  if (done) {
    text.resize(needed);
    done = status::of(lowbit_checkpoint_json(from.c_str(), &text[0], text.size(), nullptr));
    text.resize(needed - 1);
  }
  return detail::settle(std::move(done), std::move(text));
}

// The values of a slice of one state of one tensor, without reading the rest.
inline outcome<std::vector<float>> checkpoint_values(const std::string& from,
                                                     const std::string& tensor,
                                                     const std::string& state,
                                                     const std::vector<std::int64_t>& offset,
                                                     const std::vector<std::int64_t>& shape) {
  if (offset.size() != shape.size()) {
    return detail::settle(status(LOWBIT_STATUS_INVALID_ARGUMENT,
                                 "offset and shape differ in their number of axes"),
                          std::vector<float>());
  }
  std::int64_t count = 1;
  for (const std::int64_t extent : shape) {
    count *= extent > 0 ? extent : 0;
  }
  std::vector<float> values(static_cast<std::size_t>(count));
  status done = status::of(lowbit_checkpoint_values(
      from.c_str(), tensor.c_str(), state.c_str(), offset.data(), shape.data(),
      static_cast<std::int32_t>(shape.size()), values.data(), 4 * count));
  return detail::settle(std::move(done), std::move(values));
}

}  // namespace lowbit

#ifdef __CUDACC__
#pragma nv_diagnostic pop
#endif
