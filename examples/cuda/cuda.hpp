// What the trainer needs of the CUDA runtime, as owners and exceptions: a stream, memory, graphs
// and the launch of a kernel. Where to read next: kernels.cuh, what is launched.

#pragma once

#include <cuda_bf16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace gpu {

using std::int64_t;

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess) {
    throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
  }
}

// ---- stream ----

class stream {
 public:
  stream() { check(cudaStreamCreate(&handle_), "cudaStreamCreate"); }
  ~stream() { cudaStreamDestroy(handle_); }
  stream(const stream&) = delete;
  stream& operator=(const stream&) = delete;

  cudaStream_t get() const { return handle_; }
  void wait() const { check(cudaStreamSynchronize(handle_), "cudaStreamSynchronize"); }

 private:
  cudaStream_t handle_ = nullptr;
};

// ---- memory ----

enum class place { device, pinned_host };

// One allocation, zero at first.
class memory {
 public:
  memory(place where, int64_t bytes) : where_(where), bytes_(bytes) {
    const auto size = static_cast<std::size_t>(bytes);
    if (where == place::device) {
      check(cudaMalloc(&data_, size), "cudaMalloc");
      check(cudaMemset(data_, 0, size), "cudaMemset");
    } else {
      check(cudaMallocHost(&data_, size), "cudaMallocHost");
      std::fill_n(static_cast<char*>(data_), size, '\0');
    }
  }
  ~memory() { where_ == place::device ? cudaFree(data_) : cudaFreeHost(data_); }
  memory(const memory&) = delete;
  memory& operator=(const memory&) = delete;

  void* data() const { return data_; }
  int64_t bytes() const { return bytes_; }

 private:
  place where_;
  int64_t bytes_;
  void* data_ = nullptr;
};

// Lays out pieces of one memory, each aligned to 256 bytes. From a null pointer on it only counts,
// so a layout is written once, as a function that is called twice: for its size, then for the
// pieces.
class layout {
 public:
  explicit layout(void* memory = nullptr) : memory_(static_cast<char*>(memory)) {}

  template <class T>
  T* take(int64_t count) {
    bytes_ = (bytes_ + 255) / 256 * 256;
    char* at = memory_ == nullptr ? nullptr : memory_ + bytes_;
    bytes_ += count * static_cast<int64_t>(sizeof(T));
    return reinterpret_cast<T*>(at);
  }

  int64_t bytes() const { return bytes_; }

 private:
  char* memory_;
  int64_t bytes_ = 0;
};

// ---- kernels ----

// Threads of a block, of every kernel: 16 warps.
constexpr int warp = 32, block_warps = 16, block_threads = warp * block_warps;

// How many blocks have `items`, with `per_block` in each.
inline unsigned blocks(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

template <class... P, class... A>
void launch(cudaStream_t stream, unsigned grid, void (*kernel)(P...), A... arguments) {
  cudaLaunchConfig_t config = {};
  config.gridDim.x = grid;
  config.blockDim.x = block_threads;
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, static_cast<P>(arguments)...), "a kernel");
}

// ---- graphs ----

// Work that was enqueued once and is launched again and again. It reads and writes the same
// addresses each time.
class graph {
 public:
  template <class F>
  graph(const stream& s, F enqueue) {
    check(cudaStreamBeginCapture(s.get(), cudaStreamCaptureModeThreadLocal), "capture");
    enqueue();
    cudaGraph_t captured = nullptr;
    check(cudaStreamEndCapture(s.get(), &captured), "capture");
    const cudaError_t status = cudaGraphInstantiate(&handle_, captured, 0);
    cudaGraphDestroy(captured);
    check(status, "cudaGraphInstantiate");
  }
  ~graph() { cudaGraphExecDestroy(handle_); }
  graph(const graph&) = delete;
  graph& operator=(const graph&) = delete;

  void launch(const stream& s) const {
    check(cudaGraphLaunch(handle_, s.get()), "cudaGraphLaunch");
  }

 private:
  cudaGraphExec_t handle_ = nullptr;
};

}  // namespace gpu
