// lowbit.hpp on a CUDA context. Run with the mock driver of tests/cuda, whose device memory is the
// host's: what is a device pointer here is one to the library.

#include "lowbit.hpp"

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <utility>
#include <vector>

#include <dlfcn.h>

#include "check.hpp"

namespace {

const std::vector<lowbit::tensor> tensors{
    {"weight", {96, 130}, lowbit::dtype::bf16, lowbit::dtype::f32},
    {"bias", {130}, lowbit::dtype::bf16, lowbit::dtype::f32}};

void* const stream = reinterpret_cast<void*>(0x57);

struct model {
  std::vector<std::uint16_t> weight, bias;
  std::vector<float> weight_grad, bias_grad;
  std::vector<std::int64_t> scratch;

  model() : weight(96 * 130), bias(130), weight_grad(96 * 130), bias_grad(130), scratch(4096) {
    for (std::size_t i = 0; i < weight.size(); ++i) {
      weight[i] = static_cast<std::uint16_t>(0x3c00 + i % 511);
      weight_grad[i] = static_cast<float>(i % 23) / 1024 - 0.01f;
    }
    for (std::size_t i = 0; i < bias.size(); ++i) {
      bias[i] = static_cast<std::uint16_t>(0xbc00 + i);
      bias_grad[i] = static_cast<float>(i % 7) - 3;
    }
  }

  std::vector<lowbit::buffer> params() {
    return {lowbit::buffer_of(weight), lowbit::buffer_of(bias)};
  }
  std::vector<lowbit::buffer> grads() {
    return {lowbit::buffer_of(weight_grad), lowbit::buffer_of(bias_grad)};
  }
  bool equals(const model& other) const { return weight == other.weight && bias == other.bias; }
};

lowbit::plan make_plan(const lowbit::context& context, const char* preset) {
  return MUST(lowbit::plan::make(context, MUST(lowbit::spec::preset(preset)), tensors));
}

lowbit::context host() {
  return MUST(lowbit::context::cpu({1, LOWBIT_CPU_VARIANT_REFERENCE}));
}

std::vector<unsigned char> bytes_of(lowbit::buffers state) {
  std::vector<unsigned char> bytes;
  for (const lowbit::buffer& b : state) {
    const auto* data = static_cast<const unsigned char*>(b.data);
    bytes.insert(bytes.end(), data, data + b.bytes);
  }
  return bytes;
}

std::string file(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

void steps(const char* preset) {
  const lowbit::context device = MUST(lowbit::context::cuda());
  CHECK(!device.on_host());
  model on_device, on_host;
  FAILS(lowbit::stepper::make(make_plan(device, preset)), NULL_POINTER, "scratch");
  lowbit::stepper stepper = MUST(lowbit::stepper::make(
      make_plan(device, preset), lowbit::buffer_of(on_device.scratch), stream));
  lowbit::stepper reference = MUST(lowbit::stepper::make(make_plan(host(), preset)));
  CHECK(stepper.plan().scratch_bytes() <= 8 * 4096);
  stepper.bind(on_device.params(), on_device.grads());
  reference.bind(on_host.params(), on_host.grads());
  for (int i = 0; i < 3; ++i) {
    MUST(stepper.step({}, stream));
    MUST(reference.step({}));
  }
  CHECK(on_device.equals(on_host));
  CHECK(bytes_of(stepper.state()) == bytes_of(reference.state()));

  // In stages; hyper-parameters and step number in device memory.
  const lowbit::hyper hyper;
  lowbit::step_args next = stepper.args(hyper);
  const std::int32_t number = next.step;
  next.device_hyper = &hyper;
  next.device_step = &number;
  for (std::int64_t stage = 0; stage < stepper.plan().stage_count(); ++stage) {
    MUST(stepper.plan().collect(next, stage, stream));
  }
  MUST(stepper.plan().apply(next, stream));
  stepper.count_step();
  MUST(reference.step(hyper));
  CHECK(on_device.equals(on_host));
  CHECK(bytes_of(stepper.state()) == bytes_of(reference.state()));
  FAILS(stepper.step_groups({hyper}, stream), UNSUPPORTED, "device memory");

  // States to values and back, and to a file that is the host's.
  std::vector<float> weight(96 * 130), bias(130), host_weight(96 * 130), host_bias(130);
  const std::vector<lowbit::buffer> values{lowbit::buffer_of(weight), lowbit::buffer_of(bias)};
  const std::vector<lowbit::buffer> host_values{lowbit::buffer_of(host_weight),
                                                lowbit::buffer_of(host_bias)};
  MUST(stepper.plan().decompress("m", stepper.state(), values, stream));
  MUST(reference.plan().decompress("m", reference.state(), host_values));
  CHECK(weight == host_weight && bias == host_bias);
  MUST(stepper.plan().compress("m", values, stepper.state(), stream));
  MUST(reference.plan().compress("m", host_values, reference.state()));
  CHECK(bytes_of(stepper.state()) == bytes_of(reference.state()));
  const std::filesystem::path folder =
      std::filesystem::temp_directory_path() / "lowbit-device-test";
  std::filesystem::create_directories(folder);
  MUST(stepper.save((folder / "device").string(), stream));
  MUST(reference.save((folder / "host").string()));
  CHECK(!file(folder / "host").empty() && file(folder / "device") == file(folder / "host"));
  lowbit::stepper resumed = MUST(lowbit::stepper::make(
      make_plan(device, preset), lowbit::buffer_of(on_device.scratch), stream));
  MUST(resumed.load((folder / "host").string(), stream));
  CHECK(resumed.steps() == 4 && bytes_of(resumed.state()) == bytes_of(reference.state()));
  std::filesystem::remove_all(folder);
}

// ---- offload ----

// A function of the mock driver.
template <class F>
F* mock(const char* name) {
  static void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  return reinterpret_cast<F*>(driver == nullptr ? nullptr : dlsym(driver, name));
}

void synchronize() { CHECK(mock<int(void*)>("cuStreamSynchronize")(stream) == 0); }

// Streams, events and pieces of pinned memory that the library has and did not give back.
int left() { return mock<int()>("mock_left")(); }

// The driver function `name` gives `error` at its call `at` from now on.
void fail(const char* name, const char* error, const char* at) {
  setenv("MOCK_FAIL", (std::string(name) + "=" + error).c_str(), 1);
  setenv("MOCK_FAIL_AT", at, 1);
  mock<void()>("mock_forget_calls")();
}
void succeed() { unsetenv("MOCK_FAIL"); }

// Two groups, and master weights among the states.
lowbit::plan make_grouped(const lowbit::context& context) {
  std::vector<lowbit::tensor> grouped = tensors;
  grouped[0].weights = lowbit::weights::master;
  grouped[1].group = 1;
  return MUST(lowbit::plan::make(context, MUST(lowbit::spec::preset("adamw4")), grouped));
}

// A model on the device, whose gradients the stream brings, and what a step of groups takes. All of
// it lives until the stream is synchronised.
struct trainer {
  model on_device;
  std::vector<float> weight_grad, bias_grad;
  const std::vector<lowbit::buffer> params, grads;
  std::vector<lowbit::hyper> hypers;
  const std::vector<std::int32_t> numbers{1, 2, 3, 4};
  std::int64_t skipped[2] = {0, 0};

  trainer()
      : weight_grad(on_device.weight_grad),
        bias_grad(on_device.bias_grad),
        params(on_device.params()),
        grads(on_device.grads()),
        hypers(2) {
    hypers[1].lr = 0.125f;
  }

  lowbit::step_args args(std::size_t step) const {
    lowbit::step_args args;
    args.params = params;
    args.grads = grads;
    args.device_hyper = hypers.data();
    args.device_step = &numbers[step];
    return args;
  }

  // Gradients are there only when the stream has come so far.
  void backward() {
    on_device.weight_grad.assign(weight_grad.size(), 0);
    on_device.bias_grad.assign(bias_grad.size(), 0);
    const auto copy = mock<void(void*, const void*, std::size_t, void*)>("mock_copy");
    copy(grads[0].data, weight_grad.data(), 4 * weight_grad.size(), stream);
    copy(grads[1].data, bias_grad.data(), 4 * bias_grad.size(), stream);
  }
};

// The initial parameters of an offload that steps on the host.
void give_params(const lowbit::offload& offload) {
  model first;
  const std::vector<lowbit::buffer> params = first.params();
  for (std::size_t i = 0; i < offload.params().size(); ++i) {
    const lowbit::buffer to = offload.params()[i];
    CHECK(to.bytes == params[i].bytes);
    std::memcpy(to.data, params[i].data, static_cast<std::size_t>(to.bytes));
  }
}

lowbit::offload make_offload(const lowbit::context& device, bool on_host) {
  lowbit::offload offload = on_host ? MUST(lowbit::offload::make(make_grouped(host()), device))
                                    : MUST(lowbit::offload::make(make_grouped(device)));
  give_params(offload);
  return offload;
}

// Work is done as late as the driver may, so that a stream that is not passed on changes the bits.
void offloads(bool on_host) {
  setenv("MOCK_ORDER", "late", 1);
  const lowbit::context device = MUST(lowbit::context::cuda());
  trainer trainer;
  model& on_device = trainer.on_device;
  model reference_model;
  lowbit::stepper reference = MUST(lowbit::stepper::make(make_grouped(host())));
  reference.bind(reference_model.params(), reference_model.grads());

  {
    lowbit::offload offload = make_offload(device, on_host);
    const lowbit_offload_info_t before = MUST(offload.info());
    CHECK(before.on_host == on_host && before.chunk_count == 2 && before.stepped == 0);
    CHECK(before.staging_bytes > 0 && before.host_bytes >= reference.plan().state_bytes());
    CHECK(before.bytes_to_device > 0 && before.bytes_to_host > 0);
    CHECK(offload.params().size() == (on_host ? 2 : 0));
    CHECK(offload.state().count() == reference.plan().buffer_count());
    CHECK(bytes_of(offload.state()) == bytes_of(reference.state()));  // zero
    if (on_host) {
      // The device's parameters are only written.
      on_device.weight.assign(on_device.weight.size(), 0);
      on_device.bias.assign(on_device.bias.size(), 0);
    }
    for (std::size_t step = 0; step < 3; ++step) {
      trainer.backward();
      MUST(offload.step(trainer.args(step), stream));
      MUST(reference.step_groups(trainer.hypers));
      CHECK(MUST(offload.info()).stepped == 2);
      CHECK(!on_device.equals(reference_model));  // copies, or all of it, are still to come
      synchronize();
      CHECK(on_device.equals(reference_model));
      CHECK(bytes_of(offload.state()) == bytes_of(reference.state()));
    }

    // Its states are as a plan on the host has them: saved, loaded into another, stepped further.
    const lowbit::plan on_cpu = make_grouped(host());
    const auto bytes = MUST(on_cpu.serialize(offload.state(), 3));
    CHECK(bytes == MUST(reference.plan().serialize(reference.state(), 3)));
    lowbit::offload resumed = make_offload(device, on_host);
    const int both = left();
    CHECK(MUST(on_cpu.deserialize(bytes, resumed.state())) == 3);
    for (std::size_t i = 0; i < resumed.params().size(); ++i) {
      const lowbit::buffer from = offload.params()[i];
      std::memcpy(resumed.params()[i].data, from.data, static_cast<std::size_t>(from.bytes));
    }
    offload = std::move(resumed);  // frees the first
    CHECK(left() == both / 2);
    FAILS(resumed.step(trainer.args(3), stream), NULL_POINTER, "offload");
    FAILS(resumed.info(), NULL_POINTER, "offload");
    trainer.weight_grad[777] = reference_model.weight_grad[777] = NAN;
    trainer.backward();
    lowbit::step_args next = trainer.args(3);
    next.skipped = trainer.skipped;
    MUST(offload.step(next, stream));
    MUST(reference.step_groups(trainer.hypers));
    synchronize();
    CHECK(on_device.equals(reference_model));
    CHECK(bytes_of(offload.state()) == bytes_of(reference.state()));
    CHECK(trainer.skipped[0] == 0 && trainer.skipped[1] == 1);  // the tensor, by its quantizer
  }
  CHECK(left() == 0);
  unsetenv("MOCK_ORDER");
}

void offload_errors(bool on_host) {
  const lowbit::context device = MUST(lowbit::context::cuda());
  const lowbit::plan plan = on_host ? make_grouped(host()) : make_grouped(device);
  FAILS(lowbit::offload::make(plan, device, -1), INVALID_ARGUMENT, "staging_bytes is -1");
  FAILS(lowbit::offload::make(plan, device, 512), INVALID_ARGUMENT, "two slots");
  FAILS(lowbit::offload::make(plan, host()), INVALID_ARGUMENT, "CPU context");
  lowbit::spec_options none;
  none.preset.clear();
  none.optimizer = LOWBIT_OPTIMIZER_NONE;
  none.x = lowbit::quantizer::block();
  FAILS(lowbit::offload::make(
            MUST(lowbit::plan::make(device, MUST(lowbit::spec::make(none)), tensors))),
        UNSUPPORTED, "optimizer is none");
  fail("cuMemHostAlloc", "2", "1");
  FAILS(lowbit::offload::make(plan, device), OUT_OF_MEMORY, "pinned");
  succeed();
  CHECK(left() == 0);

  // More memory than the least, so that the tensors share a slot.
  CHECK(MUST(MUST(lowbit::offload::make(plan, device, 1 << 20)).info()).chunk_count == 1);

  trainer trainer;
  lowbit::offload offload = make_offload(device, on_host);
  const std::vector<unsigned char> state = bytes_of(offload.state());
  const auto with = [&](auto change) {
    lowbit::step_args args = trainer.args(0);
    change(args);
    return offload.step(args, stream);
  };
  using args = lowbit::step_args;
  const std::vector<lowbit::buffer> one{trainer.grads[0]};
  const std::vector<const std::int64_t*> offsets(2, nullptr);
  FAILS(with([&](args& a) { a.grads = one; }), INVALID_ARGUMENT, "1 grads");
  FAILS(with([&](args& a) { a.params = trainer.grads; }), BUFFER_SIZE, "params[0] (weight)");
  FAILS(with([&](args& a) { a.state = offload.state(); }), INVALID_ARGUMENT, "its own");
  FAILS(with([&](args& a) { a.updates = trainer.params; }), UNSUPPORTED, "updates");
  FAILS(with([&](args& a) { a.offsets = offsets.data(); }), UNSUPPORTED, "offsets");
  FAILS(with([&](args& a) { a.nonfinite = lowbit::nonfinite::skip_step; }), UNSUPPORTED,
        "SKIP_STEP");
  FAILS(with([&](args& a) { a.device_step = nullptr; }), NULL_POINTER, "step");
  FAILS(with([&](args& a) {
          a.device_hyper = nullptr;
          a.device_step = nullptr;
        }),
        INVALID_ARGUMENT, "2 groups");
  CHECK(trainer.on_device.equals({}) && bytes_of(offload.state()) == state);

  // The second part's copy to the device: on the host both tensors are stepped then.
  fail("cuMemcpyHtoDAsync_v2", "700", "2");
  FAILS(offload.step(trainer.args(0), stream), CUDA_ERROR, on_host ? "2 of 2" : "1 of 2");
  succeed();
  CHECK(MUST(offload.info()).stepped == (on_host ? 2 : 1));
}

}  // namespace

int main() {
  CHECK(lowbit::cuda_probe().ok());
  FAILS(lowbit::context::cuda(1), INVALID_ARGUMENT, "device is 1");
  for (const char* preset : {"adamw4", "adamw4-block", "adamw32"}) {
    steps(preset);
  }
  for (const bool on_host : {true, false}) {
    offloads(on_host);
    offload_errors(on_host);
  }
  return check::end();
}
