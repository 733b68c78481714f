// A libcuda for machines without a GPU: devices whose memory is the host's, and whose kernels run
// under the shim, at once, when they are launched. For tests/cuda_driver.rs and the bindings' tests.
//
// A stream is any number; its third hexadecimal digit is its device.
//
// What goes wrong is said by variables of the environment, read at every call:
//   MOCK_VERSION  cuDriverGetVersion (13000)
//   MOCK_COUNT    cuDeviceGetCount (1; at most 8)
//   MOCK_MAJOR    major compute capability (9)
//   MOCK_FAIL     name=number: that function returns that error

#include "kernels.cpp"

#include <dlfcn.h>
#include <elf.h>

#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace {

using Result = int;
using Handle = void*;

std::string calls;             // names of the functions called, each followed by a space
std::recursive_mutex mutex;    // calls come from several threads
thread_local std::vector<Handle> contexts;  // current ones, the last on top
Handle last_stream = nullptr;

using Graph = std::vector<std::function<void()>>;
Graph* capture = nullptr;  // where work goes instead of being done

long variable(const char* name, long otherwise) {
  const char* text = std::getenv(name);
  return text == nullptr ? otherwise : std::atol(text);
}

Result called(const char* name) {
  const std::lock_guard guard(mutex);
  calls += name;
  calls += ' ';
  const char* fail = std::getenv("MOCK_FAIL");
  const size_t length = std::strlen(name);
  const bool this_one =
      fail != nullptr && std::strncmp(fail, name, length) == 0 && fail[length] == '=';
  return this_one ? std::atoi(fail + length + 1) : 0;
}

// What a call does unless it is to fail.
template <typename Body>
Result call(const char* name, Body body) {
  const std::lock_guard guard(mutex);
  const Result result = called(name);
  if (result == 0) {
    body();
  }
  return result;
}

// Work on a stream: done at once, or captured.
template <typename Body>
void enqueue(Handle stream, Body body) {
  last_stream = stream;
  if (capture == nullptr) {
    body();
  } else {
    capture->push_back(body);
  }
}

// Some contexts that are not the caller's, one for each device.
char primary_contexts[8];
Handle primary_context(int device) { return &primary_contexts[device]; }

}  // namespace

extern "C" {

// ---- what the test asks ------------------------------------------------------------------------

const char* mock_calls() { return calls.c_str(); }
void mock_forget_calls() { calls.clear(); }
Handle mock_last_stream() { return last_stream; }
Handle mock_current_context() { return contexts.empty() ? nullptr : contexts.back(); }
void mock_set_context(Handle context) { contexts.assign(1, context); }
void mock_use_primary_context() { contexts.assign(1, primary_context(0)); }
void mock_begin_capture() { capture = new Graph; }
Graph* mock_end_capture() { return std::exchange(capture, nullptr); }
void mock_replay(const Graph* graph) {
  for (const auto& work : *graph) {
    work();
  }
}
void mock_enqueue_add(int* number, int value) {
  enqueue(nullptr, [=] { *number += value; });
}

// ---- the driver --------------------------------------------------------------------------------

Result cuDriverGetVersion(int* version) {
  return call(__func__, [=] { *version = static_cast<int>(variable("MOCK_VERSION", 13000)); });
}

Result cuInit(unsigned) { return called(__func__); }

Result cuGetErrorName(Result error, const char** text) {
  const std::pair<Result, const char*> names[] = {
      {100, "CUDA_ERROR_NO_DEVICE"},
      {222, "CUDA_ERROR_UNSUPPORTED_PTX_VERSION"},
      {700, "CUDA_ERROR_ILLEGAL_ADDRESS"},
  };
  *text = nullptr;
  for (const auto& [number, name] : names) {
    if (number == error) {
      *text = name;
    }
  }
  return *text == nullptr ? 1 : 0;
}

Result cuGetErrorString(Result error, const char** text) {
  const Result result = cuGetErrorName(error, text);
  *text = result == 0 ? "the mock was asked to fail" : nullptr;
  return result;
}

Result cuDeviceGetCount(int* count) {
  return call(__func__, [=] { *count = static_cast<int>(variable("MOCK_COUNT", 1)); });
}

Result cuDeviceGet(int* device, int ordinal) {
  return call(__func__, [=] { *device = ordinal; });
}

Result cuDeviceGetAttribute(int* value, int attribute, int) {
  return call(__func__, [=] {
    switch (attribute) {
      case 13:  // kilohertz
        *value = 1980000;
        break;
      case 16:  // multiprocessors
        *value = 2;
        break;
      case 75:
        *value = static_cast<int>(variable("MOCK_MAJOR", 9));
        break;
      default:  // 76, the minor compute capability
        *value = 0;
    }
  });
}

Result cuDevicePrimaryCtxRetain(Handle* context, int device) {
  return call(__func__, [=] { *context = primary_context(device); });
}

Result cuDevicePrimaryCtxRelease_v2(int) { return called(__func__); }

Result cuCtxPushCurrent_v2(Handle context) {
  return call(__func__, [=] { contexts.push_back(context); });
}

Result cuCtxPopCurrent_v2(Handle* context) {
  return call(__func__, [=] {
    *context = contexts.back();
    contexts.pop_back();
  });
}

// For what the host program does, not the library.
Result cuCtxGetCurrent(Handle* context) {
  *context = mock_current_context();
  return 0;
}
Result cuCtxCreate_v2(Handle* context, unsigned, int) {
  *context = new char;
  contexts.push_back(*context);
  return 0;
}
Result cuCtxDestroy_v2(Handle context) {
  contexts.pop_back();
  delete static_cast<char*>(context);
  return 0;
}

Result cuCtxGetDevice(int* device) {
  return call(__func__,
              [=] { *device = static_cast<int>(static_cast<char*>(contexts.back()) - primary_contexts); });
}

Result cuStreamGetCtx(Handle stream, Handle* context) {
  return call(__func__, [=] {
    *context = primary_context(static_cast<int>(reinterpret_cast<uintptr_t>(stream) >> 8 & 15));
  });
}

// How long an image is: code says so itself, PTX is a string.
size_t size_of_image(const char* image) {
  if (std::memcmp(image, "\x7f" "ELF", 4) != 0) {
    return std::strlen(image) + 1;
  }
  Elf64_Ehdr header;
  std::memcpy(&header, image, sizeof header);
  return header.e_shoff + size_t{header.e_shnum} * header.e_shentsize;
}

// A module is a copy of its image.
Result cuModuleLoadDataEx(Handle* module, const char* image, unsigned count, const int* options,
                          Handle* values) {
  if (capture != nullptr) {
    return 900;
  }
  const Result result = called(__func__);
  if (result != 0 && count > 0 && options[0] == 5) {  // CU_JIT_ERROR_LOG_BUFFER
    std::strcpy(static_cast<char*>(values[0]), "line 1; a message of the assembler\n");
  }
  *module = new std::string(image, size_of_image(image));
  return result;
}

Result cuModuleUnload(Handle module) {
  return call(__func__, [=] { delete static_cast<std::string*>(module); });
}

// A function is the kernel's host form; its name must also be in the image.
Result cuModuleGetFunction(Handle* function, Handle module, const char* name) {
  if (static_cast<const std::string*>(module)->find(name) == std::string::npos) {
    return 500;
  }
  Handle self = dlopen("libcuda.so.1", RTLD_NOW | RTLD_NOLOAD);
  return call(__func__, [=] { *function = dlsym(self, name); });
}

Result cuFuncGetAttribute(int* value, int, Handle) {
  return call(__func__, [=] { *value = 32; });
}

Result cuOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Handle, int, size_t) {
  return call(__func__, [=] { *blocks = 2; });
}

Result cuLaunchKernel(Handle function, unsigned grid, unsigned, unsigned, unsigned threads,
                      unsigned, unsigned, unsigned, Handle stream, Handle* params, Handle*) {
  return call(__func__, [=] {
    const auto kernel = reinterpret_cast<void (*)(const Launch&)>(function);
    // A driver copies the parameters before it returns.
    const auto launch = std::make_shared<Launch>(*static_cast<const Launch*>(params[0]));
    enqueue(stream, [=] { shim::launch(kernel, grid, threads, *launch, 1); });
  });
}

// What a capture forbids, or would not do as a step's caller expects.
Result not_captured() { return capture == nullptr ? 0 : 900; }

Result cuMemAllocAsync(Handle* data, size_t bytes, Handle stream) {
  if (const Result refused = not_captured()) {
    return refused;
  }
  return call(__func__, [=] {
    last_stream = stream;
    *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    // Not zero, so that who wants zeros must write them.
    std::memset(*data, 0xa5, bytes);
  });
}

Result cuMemFreeAsync(Handle data, Handle stream) {
  return call(__func__, [=] {
    last_stream = stream;
    std::free(data);
  });
}

Result cuMemsetD8Async(Handle data, unsigned char value, size_t bytes, Handle stream) {
  return call(__func__, [=] { enqueue(stream, [=] { std::memset(data, value, bytes); }); });
}

Result cuMemcpyDtoDAsync_v2(Handle to, Handle from, size_t bytes, Handle stream) {
  return call(__func__, [=] { enqueue(stream, [=] { std::memcpy(to, from, bytes); }); });
}

Result cuMemcpyDtoHAsync_v2(Handle to, Handle from, size_t bytes, Handle stream) {
  if (const Result refused = not_captured()) {
    return refused;
  }
  return call(__func__, [=] {
    last_stream = stream;
    std::memcpy(to, from, bytes);
  });
}

Result cuMemcpyHtoDAsync_v2(Handle to, Handle from, size_t bytes, Handle stream) {
  if (const Result refused = not_captured()) {
    return refused;
  }
  return call(__func__, [=] {
    last_stream = stream;
    std::memcpy(to, from, bytes);
  });
}

Result cuStreamSynchronize(Handle stream) {
  if (const Result refused = not_captured()) {
    return refused;
  }
  return call(__func__, [=] { last_stream = stream; });
}

}  // extern "C"
