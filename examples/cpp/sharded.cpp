// Trains the byte-level GPT on several processes, each with the optimizer states of its own
// rows, and checks that parameters and states are those of one process, bit for bit.
//
//   cargo build --release -p lowbit
//   mpicxx -std=c++17 -O3 -Iinclude -Ibindings/cpp examples/cpp/sharded.cpp -o sharded
//       -Ltarget/release -llowbit -pthread -Wl,-rpath,$PWD/target/release        (in one line)
//   mpirun -np 3 ./sharded --steps 10 --save FOLDER
//   mpirun -np 2 ./sharded --steps 20 --resume FOLDER
//
// Every process holds the whole model and works on its part of the batch. Gradients are
// exchanged so that each process has the sum for the rows it owns; it steps those, and sends the
// new parameters round (ZeRO, stage 2). What the library needs of other shards it says itself:
// after each stage of `collect` the trainer all-reduces integers, with MPI_MAX or MPI_SUM, which
// give the same bits in any order. The trainer's own sums of gradients are in f32: it adds
// micro-batches in their order, so that they do not depend on the number of processes either.
//
// Rows are cut where the library allows it: anywhere if a row holds whole blocks of 128, as rows
// here do. Tensors of one axis belong to one process each. A checkpoint is a file from each
// process and an index; it is loaded by any number of processes.
// Where to read next: gpt.hpp, the model.

#include <mpi.h>

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "lowbit.hpp"

#include "../../tests/common/sha256.h"
#include "gpt.hpp"
#include "text.hpp"

namespace {

namespace fs = std::filesystem;

constexpr int micro_batches = 6, batch = 2;
constexpr std::uint64_t seed = 1;
constexpr float max_norm = 1;

void check(lowbit_status_t code) {
  const lowbit::status done = lowbit::status::of(code);
  if (!done) {
    throw lowbit::error(done);
  }
}

gpt::config config() {
  gpt::config c;
  c.layers = 2;
  c.context = 32;
  c.seed = seed;
  return c;
}

// Elements of one tensor by process: how many each owns, and where they begin.
struct owners {
  std::vector<int> counts, starts;
};

class trainer {
 public:
  trainer(MPI_Comm comm, const std::string& optimizer, const text::corpus& corpus)
      : comm_(comm),
        rank_(call(MPI_Comm_rank)),
        size_(call(MPI_Comm_size)),
        corpus_(corpus),
        model_(config(), 1),
        stepper_(make_stepper(optimizer)) {
    std::vector<lowbit::buffer> params, grads;
    for (std::size_t i = 0; i < owners_.size(); ++i) {
      params.push_back(lowbit::buffer_of(model_.tensors()[i].value.data() + start(i), count(i)));
      grads.push_back(lowbit::buffer_of(grads_[i]));
    }
    stepper_.bind(params, grads);
  }

  // Returns the loss of the whole batch.
  double step() {
    const double loss = gradients();
    lowbit::hyper hyper;
    hyper.lr = 2e-3f;
    hyper.grad_scale = 1.0f / micro_batches;
    hyper.clip_factor = clip_factor(hyper.grad_scale);
    const lowbit::step_args args = stepper_.args(hyper);
    for (std::int64_t stage = 0; stage < stepper_.plan().stage_count(); ++stage) {
      stepper_.plan().collect(args, stage);
      all_reduce(stepper_.plan().stage_info(stage), args.scratch);
    }
    stepper_.plan().apply(args);
    stepper_.count_step();
    for (std::size_t i = 0; i < owners_.size(); ++i) {
      MPI_Allgatherv(MPI_IN_PLACE, 0, MPI_FLOAT, model_.tensors()[i].value.data(),
                     owners_[i].counts.data(), owners_[i].starts.data(), MPI_FLOAT, comm_);
    }
    return loss;
  }

  // A file of states from each process; then, from the first, their index and the parameters.
  void save(const fs::path& folder) {
    const auto file = [&](int rank) {
      return (folder / ("shard" + std::to_string(rank) + ".safetensors")).string();
    };
    fs::create_directories(folder);
    stepper_.save(file(rank_));
    MPI_Barrier(comm_);
    if (rank_ != 0) {
      return;
    }
    std::vector<std::string> files;
    std::vector<const char*> paths;
    for (int rank = 0; rank < size_; ++rank) {
      files.push_back(file(rank));
    }
    std::transform(files.begin(), files.end(), std::back_inserter(paths),
                   [](const std::string& f) { return f.c_str(); });
    check(lowbit_checkpoint_index(paths.data(), size_, index(folder).c_str()));
    std::ofstream out(folder / "params.f32", std::ios::binary);
    for (const gpt::tensor<float>& t : model_.tensors()) {
      out.write(reinterpret_cast<const char*>(t.value.data()),
                static_cast<std::streamsize>(t.value.size() * sizeof(float)));
    }
    if (!out.flush()) {
      throw std::runtime_error("cannot write the parameters to " + folder.string());
    }
  }

  // From however many processes.
  void load(const fs::path& folder) {
    std::ifstream in(folder / "params.f32", std::ios::binary);
    for (gpt::tensor<float>& t : model_.tensors()) {
      in.read(reinterpret_cast<char*>(t.value.data()),
              static_cast<std::streamsize>(t.value.size() * sizeof(float)));
    }
    if (!in || in.peek() != std::ifstream::traits_type::eof()) {
      throw std::runtime_error((folder / "params.f32").string() + " is not of this model");
    }
    stepper_.load(index(folder));
  }

  int steps() const { return static_cast<int>(stepper_.steps()); }

  // Of all parameters and states, as one process has them. The same on every process.
  std::string hash() {
    sha256_t hash;
    char hex[65];
    sha256_begin(&hash);
    for (const gpt::tensor<float>& t : model_.tensors()) {
      sha256_add(&hash, t.value.data(), t.value.size() * sizeof(float));
    }
    for (std::int64_t i = 0; i < stepper_.plan().buffer_count(); ++i) {
      const std::vector<unsigned char> bytes = whole(i);
      sha256_add(&hash, bytes.data(), bytes.size());
    }
    sha256_end(&hash, hex);
    return hex;
  }

  const lowbit::plan& plan() const { return stepper_.plan(); }

 private:
  int call(int (*function)(MPI_Comm, int*)) const {
    int value = 0;
    function(comm_, &value);
    return value;
  }

  static std::string index(const fs::path& folder) {
    return (folder / "index.json").string();
  }

  int count(std::size_t tensor) const { return owners_[tensor].counts[rank_]; }
  int start(std::size_t tensor) const { return owners_[tensor].starts[rank_]; }

  // Also decides who owns what.
  lowbit::stepper make_stepper(const std::string& optimizer) {
    if (micro_batches % size_ != 0) {
      throw std::invalid_argument("the number of processes must divide " +
                                  std::to_string(micro_batches));
    }
    std::vector<lowbit::tensor> tensors;
    for (const gpt::tensor<float>& t : model_.tensors()) {
      const int rows = static_cast<int>(t.shape[0]);
      const int width = static_cast<int>(t.value.size()) / rows;
      const int owner = static_cast<int>(owners_.size()) % size_;
      const auto first_row = [&](int rank) {
        return t.shape.size() > 1 ? rows * rank / size_ : rank <= owner ? 0 : rows;
      };
      owners o;
      for (int rank = 0; rank < size_; ++rank) {
        o.starts.push_back(first_row(rank) * width);
        o.counts.push_back((first_row(rank + 1) - first_row(rank)) * width);
      }
      std::vector<std::int64_t> shape = t.shape, offset(t.shape.size());
      shape[0] = o.counts[rank_] / width;
      offset[0] = o.starts[rank_] / width;
      tensors.push_back(lowbit::tensor{t.name, shape}.shard_of(t.shape, offset));
      grads_.emplace_back(o.counts[rank_]);
      owners_.push_back(o);
    }
    return lowbit::stepper::make(lowbit::plan::make(lowbit::context::cpu({1}),
                                                    lowbit::spec::preset(optimizer), tensors));
  }

  // Fills `grads_` with the sum over all micro-batches, added in their order.
  double gradients() {
    for (std::vector<float>& sum : grads_) {
      std::fill(sum.begin(), sum.end(), 0.0f);
    }
    std::vector<double> losses(static_cast<std::size_t>(size_));
    double loss = 0;
    for (int first = 0; first < micro_batches; first += size_) {
      const std::int64_t number = stepper_.steps() * micro_batches + first + rank_;
      const text::batch b = text::draw(corpus_.train, batch, config().context, seed,
                                       static_cast<std::uint64_t>(number));
      const double own = model_.forward_backward(b.tokens, b.targets, batch);
      MPI_Allgather(&own, 1, MPI_DOUBLE, losses.data(), 1, MPI_DOUBLE, comm_);
      loss = std::accumulate(losses.begin(), losses.end(), loss);
      for (std::size_t i = 0; i < owners_.size(); ++i) {
        add_from_all(i);
      }
    }
    return loss / micro_batches;
  }

  // Sends each process its rows of this one's gradient; adds what all others send, in their order.
  void add_from_all(std::size_t tensor) {
    const int own = count(tensor);
    const std::vector<int> counts(static_cast<std::size_t>(size_), own);
    std::vector<int> starts(counts.size());
    for (int rank = 0; rank < size_; ++rank) {
      starts[static_cast<std::size_t>(rank)] = rank * own;
    }
    received_.resize(counts.size() * static_cast<std::size_t>(own));
    MPI_Alltoallv(model_.tensors()[tensor].grad.data(), owners_[tensor].counts.data(),
                  owners_[tensor].starts.data(), MPI_FLOAT, received_.data(), counts.data(),
                  starts.data(), MPI_FLOAT, comm_);
    for (int rank = 0; rank < size_; ++rank) {
      for (int j = 0; j < own; ++j) {
        grads_[tensor][static_cast<std::size_t>(j)] +=
            received_[static_cast<std::size_t>(rank * own + j)];
      }
    }
  }

  // Clips by the global norm of all gradients.
  float clip_factor(float grad_scale) {
    std::vector<lowbit::buffer> grads;
    for (std::vector<float>& grad : grads_) {
      grads.push_back(lowbit::buffer_of(grad));
    }
    std::int64_t scratch[LOWBIT_NORM_SCRATCH / 8];
    lowbit_norm_args_t args = LOWBIT_NORM_ARGS_INIT;
    args.tensor_count = static_cast<std::int64_t>(grads.size());
    args.grads = grads.data();
    args.scratch = lowbit::buffer_of(scratch, LOWBIT_NORM_SCRATCH / 8);
    args.grad_scale = grad_scale;
    args.max_norm = max_norm;
    for (std::int64_t stage = 0; stage < 2; ++stage) {
      lowbit_stage_info_t info = LOWBIT_STAGE_INFO_INIT;
      check(lowbit_norm_stats(plan().get(), &args, stage, nullptr));
      check(lowbit_norm_stage(plan().get(), stage, &info));
      all_reduce(info, args.scratch);
    }
    float norm = 0, factor = 1;
    check(lowbit_norm_finish(plan().get(), &args, &norm, &factor));
    return factor;
  }

  // What the library asks for between two stages.
  void all_reduce(const lowbit_stage_info_t& stage, const lowbit::buffer& scratch) {
    MPI_Allreduce(MPI_IN_PLACE, static_cast<char*>(scratch.data) + stage.offset,
                  static_cast<int>(stage.count),
                  stage.dtype == LOWBIT_DTYPE_I32 ? MPI_INT32_T : MPI_INT64_T,
                  stage.reduce == LOWBIT_REDUCE_MAX ? MPI_MAX : MPI_SUM, comm_);
  }

  // A state buffer as one process has it: the rows of all processes, or what is the same on all.
  std::vector<unsigned char> whole(std::int64_t index) {
    const lowbit::buffer own = stepper_.state()[static_cast<std::size_t>(index)];
    const std::string part = plan().buffer_info(index).part;
    const auto* data = static_cast<const unsigned char*>(own.data);
    if (part == "axis1" || part == "columns" || part == "mean") {
      return {data, data + own.bytes};
    }
    const int bytes = static_cast<int>(own.bytes);
    owners o;
    o.counts.resize(static_cast<std::size_t>(size_));
    o.starts.resize(o.counts.size());
    MPI_Allgather(&bytes, 1, MPI_INT, o.counts.data(), 1, MPI_INT, comm_);
    std::partial_sum(o.counts.begin(), o.counts.end() - 1, o.starts.begin() + 1);
    std::vector<unsigned char> all(static_cast<std::size_t>(o.starts.back() + o.counts.back()));
    MPI_Allgatherv(data, bytes, MPI_BYTE, all.data(), o.counts.data(), o.starts.data(), MPI_BYTE,
                   comm_);
    return all;
  }

  MPI_Comm comm_;
  int rank_, size_;
  const text::corpus& corpus_;
  gpt::model<float> model_;
  std::vector<owners> owners_;             // by tensor
  std::vector<std::vector<float>> grads_;  // of the rows of this process, by tensor
  lowbit::stepper stepper_;
  std::vector<float> received_;
};

struct result {
  double first_loss = 0, last_loss = 0;
  std::int64_t stages = 0, state_bytes = 0;
  std::string hash;
};

struct options {
  std::string text, save, resume;
  int steps = 20;
};

// Up to step o.steps, from a checkpoint if one is given.
result train(MPI_Comm comm, const std::string& optimizer, const text::corpus& corpus,
             const options& o) {
  trainer run(comm, optimizer, corpus);
  if (!o.resume.empty()) {
    run.load(fs::path(o.resume) / optimizer);
  }
  result r;
  while (run.steps() < o.steps) {
    const bool first = r.first_loss == 0;
    r.last_loss = run.step();
    r.first_loss = first ? r.last_loss : r.first_loss;
  }
  if (!o.save.empty()) {
    run.save(fs::path(o.save) / optimizer);
  }
  r.stages = run.plan().stage_count();
  r.state_bytes = run.plan().state_bytes();
  r.hash = run.hash();
  return r;
}

options parse(int argc, char** argv) {
  options o;
  for (int i = 1; i < argc; i += 2) {
    const std::string name = argv[i];
    if (i + 1 < argc && name == "--steps") {
      o.steps = std::max(1, std::stoi(argv[i + 1]));
    } else if (i + 1 < argc && name == "--text") {
      o.text = argv[i + 1];
    } else if (i + 1 < argc && name == "--save") {
      o.save = argv[i + 1];
    } else if (i + 1 < argc && name == "--resume") {
      o.resume = argv[i + 1];
    } else {
      throw std::invalid_argument(
          name + ": the options are --steps N, --text PATH, --save FOLDER and --resume FOLDER");
    }
  }
  return o;
}

// Process 0 trains again, alone and from the start, and prints the comparison. Returns whether all
// bits are equal.
bool run(const options& o) {
  const text::corpus corpus = text::load(o.text.empty() ? text::python_stdlib() : o.text);
  int rank = 0, size = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  MPI_Comm_size(MPI_COMM_WORLD, &size);
  if (rank == 0) {
    std::printf("%d steps on %d processes and on one\n", o.steps, size);
  }
  options alone;
  alone.steps = o.steps;
  bool equal = true;
  for (const char* optimizer : {"adamw4", "adamw4-block", "factor4", "adafactor", "sm3"}) {
    const result many = train(MPI_COMM_WORLD, optimizer, corpus, o);
    if (rank != 0) {
      continue;
    }
    const result one = train(MPI_COMM_SELF, optimizer, corpus, alone);
    const bool same = one.hash == many.hash && one.last_loss == many.last_loss;
    std::printf(
        "%-13s %lld all-reduces a step, loss %.4f to %.4f, %lld of %lld state bytes on process 0\n"
        "  %s\n  %s  %s\n",
        optimizer, static_cast<long long>(many.stages), many.first_loss, many.last_loss,
        static_cast<long long>(many.state_bytes), static_cast<long long>(one.state_bytes),
        many.hash.c_str(), one.hash.c_str(), same ? "equal" : "DIFFERENT");
    std::fflush(stdout);
    equal = equal && same;
  }
  return equal;
}

}  // namespace

int main(int argc, char** argv) {
  MPI_Init(&argc, &argv);
  int code = 2;
  try {
    code = run(parse(argc, argv)) ? 0 : 1;
  } catch (const std::exception& e) {
    std::fprintf(stderr, "sharded: %s\n", e.what());
  }
  if (code != 0) {
    MPI_Abort(MPI_COMM_WORLD, code);  // the others may wait for this one
  }
  MPI_Finalize();
  return 0;
}
