// A libcuda for machines without a GPU: devices whose memory is the host's, and whose kernels run
// under the shim, at once, when they are launched. For tests/cuda_driver.rs and the bindings' tests.
//
// A stream is any number; its third hexadecimal digit is its device. Streams that the library makes
// are larger numbers. Work is done at once, which is one order that a device may choose; MOCK_ORDER
// chooses others, in which waits that are missing show:
//   late   work is done when the host waits for it, and what other streams have when a stream's
//          work waits for theirs: the latest moment for each
//   early  so is the callers' work; that of the library's streams is done as soon as what it waits
//          for is, which is at once if it waits for nothing
//
// What goes wrong is said by variables of the environment, read at every call:
//   MOCK_VERSION  cuDriverGetVersion (13000)
//   MOCK_COUNT    cuDeviceGetCount (1; at most 8)
//   MOCK_MAJOR    major compute capability (9)
//   MOCK_FAIL     name=number: that function returns that error
//   MOCK_FAIL_AT  only its call of this number since calls were forgotten, from 1 (0: every call)

#include "shim.hpp"

#include "adafactor.cu"
#include "adamw_any.cu"
#include "adamw_block4.cu"
#include "adamw_block8.cu"
#include "adamw_f32.cu"
#include "adamw_factor4.cu"
#include "adamw_factored.cu"
#include "adamw_rank1.cu"
#include "adamw_rank1_robust.cu"
#include "codec.cu"
#include "finish.cu"
#include "lion.cu"
#include "norm.cu"
#include "place.cu"
#include "sgdm.cu"
#include "sm3.cu"

#include <dlfcn.h>
#include <elf.h>

#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <string>
#include <utility>

namespace {

using lowbit::Launch;

using Result = int;
using Handle = void*;

std::string calls;             // names of the functions called, each followed by a space
std::recursive_mutex mutex;    // calls come from several threads
long failing_calls = 0;        // of the function that is to fail, for MOCK_FAIL_AT
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
  if (!this_one) {
    return 0;
  }
  const long at = variable("MOCK_FAIL_AT", 0);
  return at == 0 || ++failing_calls == at ? std::atoi(fail + length + 1) : 0;
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

// An event counts how often it was recorded, and up to which of those the work has come.
struct Event {
  long recorded = 0;
  long reached = 0;
  Handle stream = nullptr;
};

// Work that waits in a stream: for an event to have come as far as it was recorded, if it has one.
struct Work {
  std::function<void()> body;
  Event* event = nullptr;
  long until = 0;
};

std::map<Handle, std::deque<Work>> waiting;
std::vector<Handle> own_streams;  // those that the library made and did not destroy
int own_events = 0, own_memory = 0;

enum class Order { at_once, late, early };

Order order() {
  const char* text = std::getenv("MOCK_ORDER");
  if (text == nullptr) {
    return Order::at_once;
  }
  return std::strcmp(text, "early") == 0 ? Order::early : Order::late;
}

// Does a stream's first work, and before it what it waits for.
void advance(Handle stream) {
  std::deque<Work>& queue = waiting[stream];
  const Work work = queue.front();
  queue.pop_front();
  while (work.event != nullptr && work.event->reached < work.until) {
    advance(work.event->stream);
  }
  work.body();
}

// Does what the library's streams can do without others.
void advance_own() {
  bool again = order() == Order::early;
  while (std::exchange(again, false)) {
    for (Handle stream : own_streams) {
      std::deque<Work>& queue = waiting[stream];
      while (!queue.empty() &&
             (queue.front().event == nullptr ||
              queue.front().event->reached >= queue.front().until)) {
        advance(stream);
        again = true;
      }
    }
  }
}

// Does all work of a stream.
void finish(Handle stream) {
  while (!waiting[stream].empty()) {
    advance(stream);
    advance_own();
  }
}

// Work on a stream: done as the order says, or captured.
template <typename Body>
void enqueue(Handle stream, Body body, Event* event = nullptr) {
  last_stream = stream;
  if (capture != nullptr) {
    capture->push_back(body);
  } else if (order() == Order::at_once) {
    body();
  } else {
    waiting[stream].push_back({body, event, event == nullptr ? 0 : event->recorded});
    advance_own();
  }
}

// Some contexts that are not the caller's, one for each device.
char primary_contexts[8];
Handle primary_context(int device) { return &primary_contexts[device]; }

}  // namespace

extern "C" {

// ---- what the test asks ------------------------------------------------------------------------

const char* mock_calls() { return calls.c_str(); }
void mock_forget_calls() {
  calls.clear();
  failing_calls = 0;
}
// Streams, events and pieces of pinned memory that were made and not given back.
int mock_left() { return static_cast<int>(own_streams.size()) + own_events + own_memory; }
// Sets memory in the order of a stream.
void mock_copy(Handle to, const void* from, size_t bytes, Handle stream) {
  const auto* first = static_cast<const char*>(from);
  const std::vector<char> copy(first, first + bytes);
  enqueue(stream, [=] { std::memcpy(to, copy.data(), bytes); });
}
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
// Other work in the order of a stream, captured or not. `data` stays the caller's.
void mock_enqueue(Handle stream, void (*body)(void*), void* data) {
  enqueue(stream, [=] { body(data); });
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

// Work of all streams, the callers' too.
Result cuCtxSynchronize() {
  if (capture != nullptr) {
    return 900;
  }
  return call(__func__, [=] {
    for (auto& [stream, queue] : waiting) {
      finish(stream);
    }
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
  return call(__func__, [=] { enqueue(stream, [=] { std::free(data); }); });
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
  return call(__func__, [=] { enqueue(stream, [=] { std::memcpy(to, from, bytes); }); });
}

Result cuMemcpyHtoDAsync_v2(Handle to, Handle from, size_t bytes, Handle stream) {
  if (const Result refused = not_captured()) {
    return refused;
  }
  return call(__func__, [=] { enqueue(stream, [=] { std::memcpy(to, from, bytes); }); });
}

Result cuStreamSynchronize(Handle stream) {
  if (const Result refused = not_captured()) {
    return refused;
  }
  return call(__func__, [=] {
    last_stream = stream;
    finish(stream);
  });
}

// ---- beside the caller's stream ----------------------------------------------------------------

Result cuMemHostAlloc(Handle* data, size_t bytes, unsigned) {
  return call(__func__, [=] {
    *data = std::aligned_alloc(256, (bytes + 255) / 256 * 256);
    std::memset(*data, 0xa5, bytes);
    ++own_memory;
  });
}

Result cuMemFreeHost(Handle data) {
  return call(__func__, [=] {
    std::free(data);
    --own_memory;
  });
}

Result cuStreamCreate(Handle* stream, unsigned) {
  static uintptr_t made = 0;
  return call(__func__, [=] {
    *stream = reinterpret_cast<Handle>(++made << 32);
    own_streams.push_back(*stream);
  });
}

Result cuStreamDestroy_v2(Handle stream) {
  return call(__func__, [=] {
    finish(stream);
    for (auto& own : own_streams) {
      if (own == stream) {
        own = own_streams.back();
        own_streams.pop_back();
        break;
      }
    }
  });
}

Result cuEventCreate(Handle* event, unsigned) {
  return call(__func__, [=] {
    *event = new Event;
    ++own_events;
  });
}

// Whoever destroys an event has waited for all that was enqueued with it.
Result cuEventDestroy_v2(Handle event) {
  return call(__func__, [=] {
    delete static_cast<Event*>(event);
    --own_events;
  });
}

Result cuEventRecord(Handle handle, Handle stream) {
  return call(__func__, [=] {
    auto* event = static_cast<Event*>(handle);
    event->stream = stream;
    const long number = ++event->recorded;
    enqueue(stream, [=] { event->reached = number; });
  });
}

Result cuStreamWaitEvent(Handle stream, Handle event, unsigned) {
  return call(__func__, [=] { enqueue(stream, [] {}, static_cast<Event*>(event)); });
}

Result cuEventSynchronize(Handle handle) {
  return call(__func__, [=] {
    auto* event = static_cast<Event*>(handle);
    while (event->reached < event->recorded) {
      advance(event->stream);
      advance_own();
    }
  });
}

}  // extern "C"
