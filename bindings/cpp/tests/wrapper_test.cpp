// Tests of lowbit.hpp. Compiled twice: as it is, and with LOWBIT_NO_EXCEPTIONS and -fno-exceptions.

#include "lowbit.hpp"

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <new>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "check.hpp"

// Counts what C++ allocates, to see that steps allocate nothing. Not inlined, where GCC would see
// free called on what `new` returned, and warn.
static std::size_t allocations = 0;

[[gnu::noinline]] void* operator new(std::size_t size) {
  ++allocations;
  void* memory = std::malloc(size > 0 ? size : 1);
  if (memory == nullptr) {
    std::abort();
  }
  return memory;
}
[[gnu::noinline]] void operator delete(void* memory) noexcept { std::free(memory); }
[[gnu::noinline]] void operator delete(void* memory, std::size_t) noexcept { std::free(memory); }

namespace {

const std::vector<lowbit::tensor> tensors{{"weight", {96, 130}}, {"bias", {130}}};

// Parameters and gradients of `tensors`, and the buffers that say where they are.
struct model {
  std::array<std::vector<float>, 2> param, grad;

  model() {
    for (std::size_t i = 0; i < 2; ++i) {
      const std::size_t size = i == 0 ? 96 * 130 : 130;
      param[i].resize(size);
      grad[i].resize(size);
      for (std::size_t j = 0; j < size; ++j) {
        param[i][j] = static_cast<float>(j % 17) / 16 - 0.5f;
        grad[i][j] = static_cast<float>(j % 23) / 1024 - 0.01f;
      }
    }
  }

  std::vector<lowbit::buffer> params() {
    return {lowbit::buffer_of(param[0]), lowbit::buffer_of(param[1])};
  }
  std::vector<lowbit::buffer> grads() {
    return {lowbit::buffer_of(grad[0]), lowbit::buffer_of(grad[1])};
  }
};

lowbit::context one_thread() { return MUST(lowbit::context::cpu({1})); }

lowbit::plan make_plan(const char* preset = "adamw4") {
  return MUST(lowbit::plan::make(one_thread(), MUST(lowbit::spec::preset(preset)), tensors));
}

std::vector<unsigned char> bytes_of(lowbit::buffers state) {
  std::vector<unsigned char> bytes;
  for (const lowbit::buffer& b : state) {
    const auto* data = static_cast<const unsigned char*>(b.data);
    bytes.insert(bytes.end(), data, data + b.bytes);
  }
  return bytes;
}

bool has(const std::string& text, const char* word) { return text.find(word) != std::string::npos; }

void versions() {
  MUST(lowbit::check_version());
  CHECK(std::strlen(lowbit::version()) > 0);
}

void specs() {
  const lowbit::spec preset = MUST(lowbit::spec::preset("adamw4"));
  const std::string json = MUST(preset.json());
  CHECK(has(json, "rank1") && json.back() == '}');
  CHECK(MUST(MUST(lowbit::spec::from_json(json)).json()) == json);
  CHECK(MUST(MUST(lowbit::spec::make({})).json()) == json);

  lowbit::spec_options options;
  options.threshold = 0;
  options.v = lowbit::quantizer::block(64, LOWBIT_MAPPING_LINEAR);
  options.overrides = {{"*bias*", lowbit::quantizer::f32(), lowbit::quantizer::f32()}};
  const lowbit::spec made = MUST(lowbit::spec::make(options));
  const lowbit::plan plan = MUST(lowbit::plan::make(one_thread(), made, tensors));
  CHECK(has(MUST(plan.tensor_report(0)).quantizers, "block(64)"));
  CHECK(has(MUST(plan.tensor_report(1)).reason, "*bias*"));

  lowbit::spec_options factor;
  factor.preset = "factor4";
  factor.seed = 7;
  factor.flags = LOWBIT_SPEC_MAXIMIZE;
  factor.m = lowbit::quantizer::block(256, LOWBIT_MAPPING_DE, 8);
  factor.m->info.rounding = LOWBIT_ROUNDING_STOCHASTIC;
  factor.v = lowbit::quantizer::codes(LOWBIT_NORMALIZATION_BLOCK, LOWBIT_MAPPING_TABLE, 2);
  factor.v->levels = {0.25f, 0.5f, 1};
  const std::string text = MUST(MUST(lowbit::spec::make(factor)).json());
  CHECK(has(text, "\"levels\":[0.25,0.5,1.0]") && has(text, "\"seed\":7"));
  CHECK(has(text, "\"maximize\":true") && has(text, "\"rounding\":\"stochastic\""));
  factor.v = lowbit::quantizer::factored();
  factor.v->info.factor_axes = LOWBIT_FACTOR_AXES_LAST_TWO;
  CHECK(has(MUST(MUST(lowbit::spec::make(factor)).json()), "last_two"));
  factor.adafactor = lowbit_adafactor_info_t LOWBIT_ADAFACTOR_INFO_INIT;
  FAILS(lowbit::spec::make(factor), INVALID_ARGUMENT, "adafactor");
  factor.preset = "adafactor";
  factor.m.reset();
  factor.adafactor->clip_threshold = 0.5f;
  CHECK(has(MUST(MUST(lowbit::spec::make(factor)).json()), "\"clip_threshold\":0.5"));

  FAILS(lowbit::spec::preset("adamw5"), INVALID_ARGUMENT, "adamw5");
  FAILS(lowbit::spec::from_json("{"), INVALID_ARGUMENT, "JSON");
  options.v = lowbit::quantizer::block(100);
  FAILS(lowbit::spec::make(options), INVALID_ARGUMENT, "100");
}

void plans() {
  const lowbit::plan plan = make_plan();
  CHECK(plan.tensor_count() == 2 && plan.on_host());
  CHECK(has(MUST(plan.report()), "weight"));
  std::int64_t bytes = 0;
  for (std::int64_t i = 0; i < plan.buffer_count(); ++i) {
    bytes += MUST(plan.buffer_info(i)).bytes;
  }
  CHECK(bytes == plan.state_bytes());
  CHECK(plan.state_bytes() < 96 * 130 * 2 && plan.arena_bytes() >= plan.state_bytes());
  CHECK(plan.stage_count() == 1 && plan.group_count() == 1);
  CHECK(MUST(plan.stage_info(0)).reduce == LOWBIT_REDUCE_MAX);
  FAILS(plan.stage_info(1), INVALID_ARGUMENT, "stage is 1");

  const lowbit::context context = one_thread();
  const lowbit::spec spec = MUST(lowbit::spec::preset("adamw4"));
  FAILS(plan.buffer_info(1000), INVALID_ARGUMENT, "1000");
  FAILS(lowbit::plan::make(context, spec, {{"x", {2, -3}}}), INVALID_ARGUMENT, "-3");
  FAILS(lowbit::plan::make(context, spec, {{"twice", {2}}, {"twice", {2}}}), INVALID_ARGUMENT,
        "twice");
  const lowbit::tensor half = {"half", {48, 130}};
  MUST(lowbit::plan::make(context, spec, {half.shard_of({96, 130}, {48, 0})}));
  FAILS(lowbit::plan::make(context, spec, {half.shard_of({96, 130}, {64, 0})}), INVALID_ARGUMENT,
        "half");
  FAILS(lowbit::plan::make(context, spec, {half.shard_of({96, 130, 1}, {})}), INVALID_ARGUMENT,
        "global_shape has 3");
  FAILS(lowbit::plan::make(context, spec, {half.shard_of({96, 130}, {48})}), INVALID_ARGUMENT,
        "offset has 1");
  FAILS(lowbit::context::cpu({-1}), INVALID_ARGUMENT, "threads");
}

void steps() {
  model m;
  lowbit::stepper stepper = MUST(lowbit::stepper::make(make_plan()));
  lowbit::hyper hyper;
  FAILS(stepper.step(hyper), INVALID_ARGUMENT, "params");  // not bound yet
  stepper.bind(m.params(), {lowbit::buffer_of(m.grad[0])});
  FAILS(stepper.step(hyper), INVALID_ARGUMENT, "1 grads");
  stepper.bind(m.params(), {lowbit::buffer_of(m.grad[0]), lowbit::buffer_of(m.grad[0])});
  FAILS(stepper.step(hyper), BUFFER_SIZE, "grads[1] (bias)");

  stepper.bind(m.params(), m.grads());
  hyper.lr = NAN;
  FAILS(stepper.step(hyper), INVALID_ARGUMENT, "lr");
  CHECK(stepper.steps() == 0 && m.param == model().param);

  hyper.lr = 0.5f;
  const std::size_t before = allocations;
  for (int i = 0; i < 3; ++i) {
    MUST(stepper.step(hyper));
  }
  const std::size_t after = allocations;
  CHECK(after == before);
  CHECK(stepper.steps() == 3 && m.param[0] != model().param[0] && m.param[1] != model().param[1]);

  const std::vector<float> param = m.param[0];
  hyper.skip = 1;
  MUST(stepper.step(hyper));
  CHECK(m.param[0] == param);
}

// The same steps four ways: in place, by updates, in parts, and by the plan on other memory.
void ways_to_step() {
  lowbit::hyper hyper;
  hyper.clip_factor = 0.5f;

  model in_place;
  lowbit::stepper stepper = MUST(lowbit::stepper::make(make_plan()));
  stepper.bind(in_place.params(), in_place.grads());
  MUST(stepper.step(hyper));

  model by_update;
  lowbit::stepper updating = MUST(lowbit::stepper::make(make_plan()));
  updating.bind(by_update.params(), by_update.grads(), by_update.grads());
  MUST(updating.step(hyper));
  CHECK(by_update.param == model().param);
  for (std::size_t i = 0; i < 2; ++i) {
    for (std::size_t j = 0; j < by_update.param[i].size(); ++j) {
      by_update.param[i][j] += by_update.grad[i][j];
    }
  }
  CHECK(by_update.param == in_place.param);

  model parts;
  lowbit::stepper parting = MUST(lowbit::stepper::make(make_plan()));
  parting.bind(parts.params(), parts.grads());
  const lowbit::step_args args = parting.args(hyper);
  MUST(parting.plan().collect(args, 0));
  CHECK(parts.param == model().param);
  MUST(parting.plan().apply(args));
  parting.count_step();
  CHECK(parts.param == in_place.param && parting.steps() == 1);
  FAILS(parting.plan().collect(args, 1), INVALID_ARGUMENT, "stage is 1");

  model direct;
  const lowbit::plan plan = make_plan();
  std::vector<std::uint32_t> arena(static_cast<std::size_t>(plan.arena_bytes()) / 4 + 16);
  std::vector<lowbit::buffer> state;
  auto* start = reinterpret_cast<unsigned char*>(arena.data());
  while (reinterpret_cast<std::uintptr_t>(start) % static_cast<std::size_t>(plan.arena_align()) !=
         0) {
    ++start;
  }
  for (std::int64_t i = 0; i < plan.buffer_count(); ++i) {
    const lowbit_buffer_info_t info = MUST(plan.buffer_info(i));
    state.push_back(
        lowbit::buffer_of(start + info.arena_offset, static_cast<std::size_t>(info.bytes)));
  }
  std::vector<std::int64_t> scratch(static_cast<std::size_t>(plan.scratch_bytes()) / 8 + 1);
  const std::vector<lowbit::buffer> params = direct.params(), grads = direct.grads();
  lowbit::step_args own{params, grads, state, lowbit::buffer_of(scratch)};
  own.hyper = hyper;
  MUST(plan.step(own));
  CHECK(direct.param == in_place.param && bytes_of(state) == bytes_of(stepper.state()));
  own.step = 0;
  FAILS(plan.step(own), INVALID_ARGUMENT, "step is 0");
}

// Every stage of a step of Adafactor, whose statistics are maxima and sums of whole tensors.
void stages() {
  model whole, parts;
  lowbit::stepper one = MUST(lowbit::stepper::make(make_plan("adafactor")));
  one.bind(whole.params(), whole.grads());
  MUST(one.step({}));

  lowbit::stepper many = MUST(lowbit::stepper::make(make_plan("adafactor")));
  many.bind(parts.params(), parts.grads());
  const lowbit::step_args args = many.args({});
  CHECK(many.plan().stage_count() == 4);
  for (std::int64_t i = 0; i < many.plan().stage_count(); ++i) {
    const lowbit_stage_info_t stage = MUST(many.plan().stage_info(i));
    CHECK(stage.dtype == (i % 2 == 0 ? LOWBIT_DTYPE_I32 : LOWBIT_DTYPE_I64));
    CHECK(stage.reduce == (i % 2 == 0 ? LOWBIT_REDUCE_MAX : LOWBIT_REDUCE_SUM));
    MUST(many.plan().collect(args, i));
  }
  MUST(many.plan().apply(args));
  CHECK(parts.param == whole.param && bytes_of(many.state()) == bytes_of(one.state()));
}

// Two groups step as two optimizers do.
void groups() {
  const lowbit::spec spec = MUST(lowbit::spec::preset("lion4"));
  std::vector<lowbit::tensor> grouped = tensors;
  grouped[1].group = 1;
  lowbit::stepper stepper =
      MUST(lowbit::stepper::make(MUST(lowbit::plan::make(one_thread(), spec, grouped))));
  model m, fast, slow;
  std::vector<lowbit::hyper> two(2);
  two[0].lr = 0.25f;
  two[1].lr = 0.125f;
  stepper.bind(m.params(), m.grads());
  CHECK(stepper.plan().group_count() == 2);
  FAILS(stepper.step(two[0]), INVALID_ARGUMENT, "2 groups");
  FAILS(stepper.step_groups(std::vector<lowbit::hyper>(3)), INVALID_ARGUMENT, "2 groups");
  MUST(stepper.step_groups(two));
  CHECK(stepper.steps() == 1);
  for (std::size_t i = 0; i < 2; ++i) {
    lowbit::stepper alone = MUST(lowbit::stepper::make(make_plan("lion4")));
    model& other = i == 0 ? fast : slow;
    alone.bind(other.params(), other.grads());
    MUST(alone.step(two[i]));
  }
  CHECK(m.param[0] == fast.param[0] && m.param[1] == slow.param[1]);
  CHECK(m.param[1] != fast.param[1]);
}

// A step too small for bf16 is not lost where something is kept beside the parameter.
void weight_forms() {
  const lowbit::spec spec = MUST(lowbit::spec::preset("sgdm32"));
  std::vector<float> grad(8, 1);
  const std::vector<lowbit::buffer> grads{lowbit::buffer_of(grad)};
  for (const auto& [form, bytes] : {std::pair(lowbit::weights::plain, 0),
                                    {lowbit::weights::master, 4},
                                    {lowbit::weights::remainder16, 2},
                                    {lowbit::weights::correction8, 1}}) {
    lowbit::tensor t{"w", {8}, lowbit::dtype::bf16, lowbit::dtype::f32};
    t.weights = form;
    lowbit::stepper stepper =
        MUST(lowbit::stepper::make(MUST(lowbit::plan::make(one_thread(), spec, {t}))));
    CHECK(stepper.plan().state_bytes() == 8 * (4 + bytes));
    std::vector<std::uint16_t> param(8, 0x3f80);  // 1
    stepper.bind({lowbit::buffer_of(param)}, grads);
    lowbit::hyper hyper;
    hyper.lr = 0.000244140625f;  // 2^-12, a sixteenth of what bf16 can tell below 1
    hyper.beta1 = 0;
    hyper.weight_decay = 0;
    for (int i = 0; i < 16; ++i) {
      MUST(stepper.step(hyper));
    }
    CHECK(param[0] == (form == lowbit::weights::plain ? 0x3f80 : 0x3f7f));
  }
  lowbit::tensor t{"w", {8}};
  t.weights = lowbit::weights::master;
  FAILS(lowbit::plan::make(one_thread(), spec, {t}), UNSUPPORTED, "master");
  const lowbit::plan half =
      MUST(lowbit::plan::make(one_thread(), spec, {{"h", {8}, lowbit::dtype::f16}}));
  CHECK(half.state_bytes() == 32);
}

void moves() {
  static_assert(!std::is_copy_constructible_v<lowbit::spec> &&
                !std::is_copy_constructible_v<lowbit::context> &&
                !std::is_copy_constructible_v<lowbit::plan> &&
                !std::is_copy_constructible_v<lowbit::state> &&
                !std::is_copy_constructible_v<lowbit::offload> &&
                !std::is_copy_constructible_v<lowbit::stepper>);
  static_assert(std::is_nothrow_move_constructible_v<lowbit::plan> &&
                std::is_nothrow_move_assignable_v<lowbit::state> &&
                std::is_nothrow_move_assignable_v<lowbit::offload> &&
                std::is_nothrow_move_constructible_v<lowbit::stepper>);

  model m;
  lowbit::stepper first = MUST(lowbit::stepper::make(make_plan()));
  first.bind(m.params(), m.grads());
  MUST(first.step({}));
  lowbit::stepper second = std::move(first);
  MUST(second.step({}));
  CHECK(second.steps() == 2);
  second = MUST(lowbit::stepper::make(make_plan("adamw4-block")));  // frees the old states
  second.bind(m.params(), m.grads());
  MUST(second.step({}));

  lowbit::plan plan = make_plan();
  const lowbit::plan taken = std::move(plan);
  FAILS(plan.report(), NULL_POINTER, "plan");
  CHECK(has(MUST(taken.report()), "bias"));
  const lowbit::state outlives = MUST(lowbit::state::make(make_plan()));
  CHECK(bytes_of(outlives).size() == static_cast<std::size_t>(taken.state_bytes()));
}

// What needs no device to be refused; device_test.cpp has the steps.
void offloads() {
  FAILS(lowbit::offload::make(make_plan()), NULL_POINTER, "device is null");
  FAILS(lowbit::offload::make(make_plan(), one_thread()), INVALID_ARGUMENT, "CPU context");
}

void codecs() {
  model m;
  const lowbit::plan plan = make_plan("adamw4-block");
  const lowbit::state state = MUST(lowbit::state::make(plan));
  const model back = m;
  const std::vector<lowbit::buffer> values = m.params();
  MUST(plan.compress("m", values, state));
  m.param[0].assign(m.param[0].size(), 0);
  m.param[1].assign(m.param[1].size(), 0);
  MUST(plan.decompress("m", state, values));
  CHECK(m.param[1] == back.param[1]);  // at most 4096 elements: not quantized
  float largest = 0;
  for (std::size_t j = 0; j < m.param[0].size(); ++j) {
    largest = std::max(largest, std::fabs(m.param[0][j] - back.param[0][j]));
  }
  CHECK(largest > 0 && largest < 0.1f);
  FAILS(plan.compress("w", values, state), INVALID_ARGUMENT, "w");
}

void checkpoints() {
  const std::filesystem::path folder = std::filesystem::temp_directory_path() /
                                       ("lowbit_wrapper_test_" + std::to_string(std::rand()));
  std::filesystem::create_directory(folder);
  const std::string path = (folder / "state.safetensors").string();

  model m;
  lowbit::stepper stepper = MUST(lowbit::stepper::make(make_plan()));
  stepper.bind(m.params(), m.grads());
  MUST(stepper.step({}));
  MUST(stepper.step({}));
  MUST(stepper.save(path));
  const model at_two = m;
  MUST(stepper.step({}));

  model again = at_two;
  lowbit::stepper resumed = MUST(lowbit::stepper::make(make_plan()));
  resumed.bind(again.params(), again.grads());
  MUST(resumed.load(path));
  CHECK(resumed.steps() == 2);
  MUST(resumed.step({}));
  CHECK(again.param == m.param && bytes_of(resumed.state()) == bytes_of(stepper.state()));

  const auto bytes = MUST(stepper.plan().serialize(stepper.state(), 3));
  const lowbit::state loaded = MUST(lowbit::state::make(stepper.plan()));
  CHECK(MUST(stepper.plan().deserialize(bytes, loaded)) == 3);
  CHECK(bytes_of(loaded) == bytes_of(stepper.state()));

  // Progress, pieces, the last two.
  const lowbit::plan& plan = stepper.plan();
  std::int64_t reported = 0;
  lowbit::load_options loading;
  loading.progress = [&](std::int64_t done, std::int64_t) { return (reported = done) > 0; };
  CHECK(MUST(plan.load(path, loaded, loading)) == 2 && reported > 0);
  loading.progress = [](std::int64_t, std::int64_t) { return false; };
  FAILS(plan.load(path, loaded, loading), CANCELLED, "cancelled");
  std::vector<unsigned char> pieces;
  const lowbit::write_function sink = [&](const void* data, std::size_t count) {
    const auto* first = static_cast<const unsigned char*>(data);
    pieces.insert(pieces.end(), first, first + count);
    return true;
  };
  MUST(plan.save(sink, stepper.state(), 3));
  CHECK(pieces == bytes);
  FAILS(plan.save([](const void*, std::size_t) { return false; }, stepper.state(), 3), IO,
        "callback");
#ifndef LOWBIT_NO_EXCEPTIONS
  bool thrown = false;
  try {
    plan.save([](const void*, std::size_t) -> bool { throw 5; }, stepper.state(), 3);
  } catch (int number) {
    thrown = number == 5;
  }
  CHECK(thrown);
#endif
  lowbit::save_options keeping;
  keeping.keep = 2;
  for (std::int64_t step = 1; step <= 3; ++step) {
    MUST(plan.save((folder / "run-{step}").string(), stepper.state(), step, keeping));
  }
  CHECK(!std::filesystem::exists(folder / "run-1") && std::filesystem::exists(folder / "run-3"));

  // Other meshes, and a slice.
  const auto name = [&](const char* file) { return (folder / file).string(); };
  MUST(lowbit::split_checkpoint(path, 0, 2, name("parts.json")));
  MUST(lowbit::merge_checkpoint(name("parts.json"), name("merged")));
  MUST(plan.load(name("merged"), loaded));
  MUST(plan.reshard(name("parts.json"), name("again")));
  MUST(lowbit::write_index({name("again")}, name("again.json")));
  MUST(plan.load(name("again.json"), loaded));
  CHECK(MUST(lowbit::checkpoint_json(name("again.json"))).find("\"step\":2") != std::string::npos);
    const std::vector<std::int64_t> shape = {3, 130};
  const auto origin = std::vector<std::int64_t>(shape.size(), 0);
  CHECK(!MUST(lowbit::checkpoint_values(path, "weight", "m", origin, shape)).empty());
  FAILS(lowbit::checkpoint_values(path, "none", "m", origin, shape), INVALID_ARGUMENT, "none");

  lowbit::stepper other = MUST(lowbit::stepper::make(make_plan("adamw32")));
  FAILS(other.load(path), FORMAT_MISMATCH, "spec");
  CHECK(other.steps() == 0);
  FAILS(stepper.load((folder / "none").string()), IO, "none");
  FAILS(stepper.save((folder / "none" / "x").string()), IO, "none");
  std::ofstream(path, std::ios::binary) << "not a checkpoint";
  FAILS(stepper.load(path), FORMAT_MAGIC, "");
  CHECK(stepper.steps() == 3);
  std::filesystem::remove_all(folder);
}

void cuda() {
  const lowbit::status probe = lowbit::cuda_probe();
  if (probe) {
    CHECK(!MUST(lowbit::context::cuda()).on_host());
  } else {
    CHECK(probe.code() == LOWBIT_STATUS_CUDA_UNAVAILABLE && !probe.text().empty());
    FAILS(lowbit::context::cuda(), CUDA_UNAVAILABLE, "");
  }
}

}  // namespace

int main() {
  versions();
  specs();
  plans();
  steps();
  ways_to_step();
  stages();
  groups();
  weight_forms();
  moves();
  offloads();
  codecs();
  checkpoints();
  cuda();
  return check::end();
}
