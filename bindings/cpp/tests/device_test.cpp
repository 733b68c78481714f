// lowbit.hpp on a CUDA context. Run with the mock driver of tests/cuda, whose device memory is the
// host's: what is a device pointer here is one to the library.

#include "lowbit.hpp"

#include <cstdint>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

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

}  // namespace

int main() {
  CHECK(lowbit::cuda_probe().ok());
  FAILS(lowbit::context::cuda(1), INVALID_ARGUMENT, "device is 1");
  for (const char* preset : {"adamw4", "adamw4-block", "adamw32"}) {
    steps(preset);
  }
  return check::end();
}
