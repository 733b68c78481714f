// The part of the CUDA runtime that examples/cuda uses, for machines without a GPU: kernels run
// under the shim, and streams and captures are those of the mock driver, so the trainer's work and
// the library's keep their order. Compile with g++ as the shim asks.

#pragma once

#include "../shim.hpp"

#include <dlfcn.h>

#include <cstdlib>
#include <cstring>
#include <tuple>
#include <utility>

#define __host__

// The launch configuration has fields of these names, and no kernel of the trainer asks for them.
#undef gridDim
#undef blockDim

struct dim3 {
  unsigned x = 1, y = 1, z = 1;
};

using cudaStream_t = void*;
using cudaGraph_t = void*;
using cudaGraphExec_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorMemoryAllocation = 2, cudaErrorNoDevice = 100 };
enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost = 2 };
enum cudaStreamCaptureMode { cudaStreamCaptureModeThreadLocal = 1 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  std::size_t dynamicSmemBytes;
  cudaStream_t stream;
};

struct cudaDeviceProp {
  char name[256];
};

namespace shim {

// A function of the mock driver.
template <class F>
F* mock(const char* name) {
  static void* const driver = dlopen("libcuda.so.1", RTLD_NOW);
  void* function = driver == nullptr ? nullptr : dlsym(driver, name);
  if (function == nullptr) {
    std::fprintf(stderr, "shim: the mock driver with %s is not on LD_LIBRARY_PATH\n", name);
    std::abort();
  }
  return reinterpret_cast<F*>(function);
}

// Work in the order of a stream. It is not freed: a graph may do it again.
template <class Body>
void enqueue(cudaStream_t stream, Body body) {
  static auto* const function = mock<void(void*, void (*)(void*), void*)>("mock_enqueue");
  function(stream, [](void* data) { (*static_cast<Body*>(data))(); }, new Body(std::move(body)));
}

}  // namespace shim

inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaErrorMemoryAllocation ? "out of memory" : "an error";
}

inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* device, int) {
  std::strcpy(device->name, "the host");
  return cudaSuccess;
}

// ---- memory ----

inline cudaError_t cudaMalloc(void** data, std::size_t bytes) {
  *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
  return *data == nullptr ? cudaErrorMemoryAllocation : cudaSuccess;
}
inline cudaError_t cudaFree(void* data) {
  std::free(data);
  return cudaSuccess;
}
inline cudaError_t cudaMallocHost(void** data, std::size_t bytes) {
  return cudaMalloc(data, bytes);
}
inline cudaError_t cudaFreeHost(void* data) { return cudaFree(data); }
inline cudaError_t cudaMemset(void* data, int value, std::size_t bytes) {
  std::memset(data, value, bytes);
  return cudaSuccess;
}
inline cudaError_t cudaMemGetInfo(std::size_t* free, std::size_t* total) {
  *free = *total = 0;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* data, int value, std::size_t bytes, cudaStream_t stream) {
  shim::enqueue(stream, [=] { std::memset(data, value, bytes); });
  return cudaSuccess;
}
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, std::size_t bytes, cudaMemcpyKind,
                                   cudaStream_t stream) {
  shim::enqueue(stream, [=] { std::memcpy(to, from, bytes); });
  return cudaSuccess;
}

// ---- streams and graphs ----

inline cudaError_t cudaStreamCreate(cudaStream_t* stream) {
  *stream = reinterpret_cast<cudaStream_t>(0x57);  // one of the mock driver's device 0
  return cudaSuccess;
}
inline cudaError_t cudaStreamDestroy(cudaStream_t) { return cudaSuccess; }
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  return static_cast<cudaError_t>(shim::mock<int(void*)>("cuStreamSynchronize")(stream));
}
inline cudaError_t cudaStreamBeginCapture(cudaStream_t, cudaStreamCaptureMode) {
  shim::mock<void()>("mock_begin_capture")();
  return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t, cudaGraph_t* graph) {
  *graph = shim::mock<void*()>("mock_end_capture")();
  return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* graph, cudaGraph_t captured, unsigned) {
  *graph = captured;
  return cudaSuccess;
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t) { return cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t) { return cudaSuccess; }
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t graph, cudaStream_t stream) {
  shim::enqueue(stream, [=] { shim::mock<void(const void*)>("mock_replay")(graph); });
  return cudaSuccess;
}

// ---- kernels ----

template <class... P, class... A>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(P...),
                               A... arguments) {
  using Call = std::pair<void (*)(P...), std::tuple<P...>>;
  const Call call{kernel, std::tuple<P...>(arguments...)};
  const unsigned grid = config->gridDim.x, threads = config->blockDim.x;
  shim::enqueue(config->stream, [=] {
    shim::launch<Call>([](const Call& made) { std::apply(made.first, made.second); }, grid, threads,
                       call, 1);
  });
  return cudaSuccess;
}

