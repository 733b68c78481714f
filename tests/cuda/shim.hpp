// Runs CUDA kernels on the host: the part of CUDA C++ that `cuda/` uses, as C++17.
//
// Every thread of a thread block is a fiber (a stack and a saved context); all run on one OS thread
// (the caller's, or where thread blocks wait for each other one for each), one at a time, and switch only where threads wait for each other: at barriers and at
// warp-wide operations. Thread blocks run one after the other, in an order drawn from a seed, as
// do the threads of each; no result may depend on it.
//
// Arithmetic is the host's IEEE-754 with the GPU's NaN (0x7fffffff from every operation). Compile
// with -ffp-contract=off -fno-strict-aliasing -U_FORTIFY_SOURCE (whose longjmp takes a change of
// stacks for a mistake); with -fsanitize=undefined -fsanitize-undefined-trap-on-error a misaligned
// access ends the program, as on the device.
//
// Not here, as no kernel needs it: partial warps, more than one dimension, dynamic shared memory.

#pragma once

#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cfenv>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

// ---- language ----------------------------------------------------------------------------------

#define LOWBIT_SHIM

#define __global__
#define __device__
#define __constant__
// Kernels have large parameters; on the host they are given by reference.
#define __grid_constant__ &
#define __launch_bounds__(...)
#define __forceinline__ inline
// One thread block at a time runs on an OS thread.
#define __shared__ static thread_local

#define threadIdx (shim::current_thread())
#define blockIdx (shim::block().index)
#define gridDim (shim::block().grid)
#define blockDim (shim::block().threads)

struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

// ---- thread blocks -----------------------------------------------------------------------------

namespace shim {

constexpr unsigned LANES = 32;
constexpr unsigned ALL = 0xffffffff;
constexpr size_t STACK = 64 * 1024;

struct Dim {
  unsigned x;
};

// What the lanes of a warp do together; all must do the same.
enum class Operation { none, shuffle, vote, reduce, barrier };

// A copy that was started; it is done when the thread waits for its group.
struct Copy {
  void* to;
  const void* from;
  size_t bytes;
  uint64_t group;
};

// Where threads wait until all have come, again and again: none comes for the next time before this one is over.
struct Meeting {
  unsigned present = 0;
  uint64_t over = 0;  // meetings so far
};

struct Fiber {
  Dim thread{};
  std::vector<Copy> copies;
  uint64_t groups = 0;  // of copies, committed so far
  std::unique_ptr<char[]> stack{new char[STACK]};
  ucontext_t entry{};
  jmp_buf resume{};
  bool started = false;
  bool done = false;
  const Meeting* meeting = nullptr;  // where it waits
  uint64_t awaited = 0;              // meetings to be over

  bool waits() const { return meeting != nullptr && meeting->over < awaited; }
};

struct Warp {
  Meeting meeting;
  // Of the last two operations: no lane starts the next but one before all have left this.
  Operation operation[2]{};
  uint32_t value[2][LANES]{};
};

struct Block {
  Dim index{};
  Dim grid{};
  Dim threads{};
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  Meeting barrier;
  Fiber* current = nullptr;
  jmp_buf scheduler{};
  bool progress = false;
  void (*kernel)(const void*) = nullptr;
  const void* params = nullptr;
};

inline Block& block() {
  static thread_local Block the;
  return the;
}

[[noreturn]] inline void fail(const char* why) {
  std::fprintf(stderr, "shim: thread block %u: %s\n", block().index.x, why);
  std::abort();
}

inline Dim current_thread() { return block().current->thread; }

[[gnu::noinline]] inline void yield() {
  if (_setjmp(block().current->resume) == 0) {
    _longjmp(block().scheduler, 1);
  }
}

// Comes to a meeting of so many threads, and returns when it is over.
inline void meet(Meeting& meeting, size_t threads) {
  Block& b = block();
  b.progress = true;
  if (++meeting.present == threads) {
    meeting.present = 0;
    ++meeting.over;
    return;
  }
  Fiber& fiber = *b.current;
  fiber.meeting = &meeting;
  fiber.awaited = meeting.over + 1;
  yield();
}

inline void start() {
  Block& b = block();
  b.kernel(b.params);
  if (!block().current->copies.empty()) {
    fail("a thread ends before its copies");
  }
  block().current->done = true;
  block().progress = true;
  _longjmp(block().scheduler, 1);
}

// Runs a thread until it waits or ends.
[[gnu::noinline]] inline void resume(Fiber& fiber) {
  block().current = &fiber;
  if (_setjmp(block().scheduler) != 0) {
    return;
  }
  if (fiber.started) {
    _longjmp(fiber.resume, 1);
  }
  fiber.started = true;
  getcontext(&fiber.entry);
  fiber.entry.uc_stack.ss_sp = fiber.stack.get();
  fiber.entry.uc_stack.ss_size = STACK;
  makecontext(&fiber.entry, start, 0);
  setcontext(&fiber.entry);
}

inline void run_block(unsigned index, const std::vector<unsigned>& order) {
  Block& b = block();
  b.index = {index};
  b.warps.assign(b.fibers.size() / LANES, Warp{});
  b.barrier = Meeting{};
  for (size_t i = 0; i < b.fibers.size(); ++i) {
    Fiber& fiber = b.fibers[i];
    fiber.thread = {static_cast<unsigned>(i)};
    fiber.started = fiber.done = false;
    fiber.meeting = nullptr;
  }
  for (size_t left = b.fibers.size(); left > 0;) {
    b.progress = false;
    left = 0;
    for (unsigned i : order) {
      Fiber& fiber = b.fibers[i];
      if (!fiber.done && !fiber.waits()) {
        resume(fiber);
      }
      left += fiber.done ? 0 : 1;
    }
    if (!b.progress) {
      fail("threads wait for others that do not come");
    }
  }
}

// Runs a whole grid; `Params` is what the kernel takes. Together: every thread block on an OS thread
// of its own, for kernels whose thread blocks wait for each other.
template <typename Params>
void launch(void (*kernel)(const Params&), unsigned grid, unsigned threads, const Params& params,
            uint64_t seed, bool together = false) {
  struct Call {
    void (*kernel)(const Params&);
    const Params* params;
  } call{kernel, &params};
  if (threads % LANES != 0) {
    std::abort();
  }
  const auto run = [&call, grid, threads, seed](const std::vector<unsigned>& blocks) {
    Block& b = block();
    b.grid = {grid};
    b.threads = {threads};
    b.params = &call;
    b.kernel = [](const void* data) {
      const Call& made = *static_cast<const Call*>(data);
      made.kernel(*made.params);
    };
    b.fibers.resize(threads);
    std::mt19937_64 random(seed);
    std::vector<unsigned> order(threads);
    for (unsigned i = 0; i < threads; ++i) {
      order[i] = i;
    }
    for (unsigned i : blocks) {
      std::shuffle(order.begin(), order.end(), random);
      run_block(i, order);
    }
  };
  std::vector<unsigned> blocks(grid);
  for (unsigned i = 0; i < grid; ++i) {
    blocks[i] = i;
  }
  std::mt19937_64 random(seed);
  std::shuffle(blocks.begin(), blocks.end(), random);
  if (!together) {
    run(blocks);
    return;
  }
  std::vector<std::thread> all;
  for (unsigned i : blocks) {
    all.emplace_back(run, std::vector<unsigned>{i});
  }
  for (std::thread& one : all) {
    one.join();
  }
}

// ---- waiting for each other --------------------------------------------------------------------

// Every lane gives a value and gets those of all.
inline const uint32_t* exchange(Operation operation, unsigned mask, uint32_t value) {
  if (mask != ALL) {
    fail("a partial warp");
  }
  Block& b = block();
  const unsigned thread = b.current->thread.x, lane = thread % LANES;
  Warp& warp = b.warps[thread / LANES];
  const unsigned slot = warp.meeting.over % 2;
  if (warp.meeting.present > 0 && warp.operation[slot] != operation) {
    fail("the lanes of a warp are at different operations");
  }
  warp.operation[slot] = operation;
  warp.value[slot][lane] = value;
  meet(warp.meeting, LANES);
  return warp.value[slot];
}

template <typename T>
uint32_t to_bits(T value) {
  static_assert(sizeof(T) == sizeof(uint32_t), "32-bit values only");
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

template <typename T>
T from_bits(uint32_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace shim

inline void __syncthreads() {
  shim::Block& b = shim::block();
  shim::meet(b.barrier, b.fibers.size());
}

// Whether `predicate` holds for any thread of the block.
inline int __syncthreads_or(int predicate) {
  static thread_local bool any;
  __syncthreads();
  any = false;
  __syncthreads();
  any = any || predicate != 0;
  __syncthreads();
  return any;
}

inline void __syncwarp() { shim::exchange(shim::Operation::barrier, shim::ALL, 0); }

// Reads lane `lane` of the caller's group of `width` lanes.
template <typename T>
T __shfl_sync(unsigned mask, T value, int lane, unsigned width = shim::LANES) {
  const uint32_t* all = shim::exchange(shim::Operation::shuffle, mask, shim::to_bits(value));
  const unsigned group = shim::current_thread().x % shim::LANES / width * width;
  return shim::from_bits<T>(all[group + static_cast<unsigned>(lane) % width]);
}

// The value of the lane whose number differs in these bits.
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int bits) {
  return __shfl_sync(mask, value, static_cast<int>(shim::current_thread().x) ^ bits);
}

inline int __any_sync(unsigned mask, bool predicate) {
  const uint32_t* all = shim::exchange(shim::Operation::vote, mask, predicate);
  return std::any_of(all, all + shim::LANES, [](uint32_t bit) { return bit != 0; });
}

inline unsigned __reduce_max_sync(unsigned mask, unsigned value) {
  const uint32_t* all = shim::exchange(shim::Operation::reduce, mask, value);
  return *std::max_element(all, all + shim::LANES);
}

inline unsigned __reduce_add_sync(unsigned mask, unsigned value) {
  const uint32_t* all = shim::exchange(shim::Operation::reduce, mask, value);
  return std::accumulate(all, all + shim::LANES, 0u);
}

inline unsigned __ballot_sync(unsigned mask, bool predicate) {
  const uint32_t* all = shim::exchange(shim::Operation::vote, mask, predicate);
  unsigned bits = 0;
  for (unsigned lane = 0; lane < shim::LANES; ++lane) {
    bits |= all[lane] << lane;
  }
  return bits;
}

inline unsigned long long atomicAdd(unsigned long long* at, unsigned long long value) {
  return __atomic_fetch_add(at, value, __ATOMIC_RELAXED);
}

// Reads past the L1 cache, which the host's caches do of themselves.
template <typename T>
T __ldcg(const T* at) {
  return __atomic_load_n(at, __ATOMIC_ACQUIRE);
}
inline void __threadfence() { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
inline void __nanosleep(unsigned) { std::this_thread::yield(); }

inline int atomicAdd(int* at, int value) { return __atomic_fetch_add(at, value, __ATOMIC_RELAXED); }

inline int atomicMax(int* at, int value) {
  int old = __atomic_load_n(at, __ATOMIC_RELAXED);
  while (old < value && !__atomic_compare_exchange_n(at, &old, value, false, __ATOMIC_RELAXED,
                                                     __ATOMIC_RELAXED)) {
  }
  return old;
}

// ---- arithmetic --------------------------------------------------------------------------------

inline unsigned __float_as_uint(float x) { return shim::to_bits(x); }
inline float __uint_as_float(unsigned bits) { return shim::from_bits<float>(bits); }

namespace shim {
inline float as_gpu(float x) { return std::isnan(x) ? from_bits<float>(0x7fffffff) : x; }
}  // namespace shim

inline float __fadd_rn(float a, float b) { return shim::as_gpu(a + b); }
inline float __fmul_rn(float a, float b) { return shim::as_gpu(a * b); }
inline float __fdiv_rn(float a, float b) { return shim::as_gpu(a / b); }
inline float __fsqrt_rn(float a) { return shim::as_gpu(std::sqrt(a)); }
inline float __fmaf_rn(float a, float b, float c) { return shim::as_gpu(std::fma(a, b, c)); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
// The four bytes that the nibbles of `selector` name, of x (0 to 3) and y (4 to 7).
inline unsigned __byte_perm(unsigned x, unsigned y, unsigned selector) {
  const uint64_t bytes = static_cast<uint64_t>(y) << 32 | x;
  unsigned result = 0;
  for (unsigned i = 0; i < 4; ++i) {
    result |= static_cast<unsigned>(bytes >> 8 * (selector >> 4 * i & 7) & 0xff) << 8 * i;
  }
  return result;
}
inline int __float2int_rn(float a) { return static_cast<int>(std::lrint(a)); }
inline float __double2float_rn(double a) { return shim::as_gpu(static_cast<float>(a)); }
inline long long __double2ll_rn(double a) { return std::llrint(a); }
inline double __longlong_as_double(long long bits) {
  double value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}
inline long long __double_as_longlong(double value) {
  long long bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}
inline double __fma_rn(double a, double b, double c) { return std::fma(a, b, c); }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline double __dsqrt_rn(double a) { return std::sqrt(a); }

// Rounded towards zero.
inline float __fmaf_rz(float a, float b, float c) {
  const int before = std::fegetround();
  std::fesetround(FE_TOWARDZERO);
  volatile float x = a, y = b, z = c;
  volatile float result = std::fma(x, y, z);
  std::fesetround(before);
  return shim::as_gpu(result);
}

namespace shim {
// A value near `x`, by at most `units` in its last place: what an approximation may be. Which one,
// the bits of `x` decide, so that all are tried.
inline float near(float x, int units) {
  if (!std::isnormal(x)) {
    return x;
  }
  const uint32_t bits = to_bits(x);
  const int range = 2 * units + 1;
  const int off = static_cast<int>((bits * 2654435761u >> 16) % static_cast<unsigned>(range));
  const float moved = from_bits<float>(bits + static_cast<uint32_t>(off - units));
  return std::isnormal(moved) ? moved : x;
}
}  // namespace shim

namespace lowbit {
// What is asm on the device (`cuda/ptx.cuh`).
inline float approximate_reciprocal(float x) {
  return shim::as_gpu(shim::near(static_cast<float>(1.0 / static_cast<double>(x)), 1));
}
inline float approximate_reciprocal_root(float x) {
  // Not moved: for a few significands the root would be wrong by a unit. The device's approximation
  // is good enough for all of them, or its own sqrt.rn, the same operations, would be wrong too.
  return shim::as_gpu(static_cast<float>(1.0 / std::sqrt(static_cast<double>(x))));
}
using SharedAddress = uintptr_t;
inline SharedAddress shared_address(const void* shared) {
  return reinterpret_cast<SharedAddress>(shared);
}
template <int BYTES>
void copy_async(SharedAddress to, const void* from) {
  if ((to | reinterpret_cast<uintptr_t>(from)) % BYTES != 0) {
    shim::fail("a misaligned copy");
  }
  shim::Fiber& thread = *shim::block().current;
  thread.copies.push_back({reinterpret_cast<void*>(to), from, BYTES, thread.groups});
}
template <int BYTES>
void copy_or_zero_async(SharedAddress to, const void* from, bool there) {
  static const unsigned char zeros alignas(BYTES)[BYTES] = {};
  copy_async<BYTES>(to, there ? from : zeros);
}
template <typename T>
void load_shared(SharedAddress from, T& to) {
  to = *reinterpret_cast<const T*>(from);
}
inline void commit_copies() { ++shim::block().current->groups; }
template <int N>
void await_copies() {
  shim::Fiber& thread = *shim::block().current;
  auto waits = [&](const shim::Copy& copy) { return copy.group + N < thread.groups; };
  for (const shim::Copy& copy : thread.copies) {
    if (waits(copy)) {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
  auto& copies = thread.copies;
  copies.erase(std::remove_if(copies.begin(), copies.end(), waits), copies.end());
}
inline unsigned significand_of(unsigned bits) { return (bits & 0x7fffff) | 0x800000; }
inline unsigned long long shift_left(unsigned x, int places) {
  return places < 0 || places > 63 ? 0 : static_cast<unsigned long long>(x) << places;
}
inline float max_nan(float a, float b) {
  return std::isnan(a) || std::isnan(b) ? shim::from_bits<float>(0x7fffffff) : std::max(a, b);
}
inline unsigned add_if_greater(unsigned sum, unsigned more, float x, float y) {
  return x > y ? sum + more : sum;
}
inline unsigned long long multiply_wide(unsigned x, unsigned y) {
  return static_cast<unsigned long long>(x) * y;
}
inline unsigned add_unless_less(unsigned sum, unsigned more, float x, float y) {
  return x >= y ? sum + more : sum;
}
inline unsigned pack_bf16(float low, float high) {
  const auto round = [](float x) {
    const uint32_t bits = shim::to_bits(x);
    return std::isnan(x) ? 0x7fffu : (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  };
  return round(low) | round(high) << 16;
}
inline unsigned pack_f16(float low, float high) {
  // By exact arithmetic on the value, unlike the kernels' own conversion.
  const auto round = [](float x) {
    if (std::isnan(x)) {
      return 0x7fffu;
    }
    const uint32_t sign = std::signbit(x) ? 0x8000u : 0;
    const double size = std::fabs(static_cast<double>(x));
    if (size >= 65520) {
      return sign | 0x7c00u;
    }
    // Multiples of the last place, which is 2^-24 at least.
    const int exponent = size < 0x1p-14 ? -24 : std::ilogb(size) - 10;
    const auto multiple = static_cast<uint32_t>(std::nearbyint(std::ldexp(size, -exponent)));
    return sign | (static_cast<uint32_t>(exponent + 24) * 1024 + multiple);
  };
  return round(low) | round(high) << 16;
}
inline float f16_to_f32(unsigned bits) {
  const int exponent = static_cast<int>(bits >> 10 & 31);
  const auto fraction = static_cast<float>(bits & 1023);
  const float size = exponent == 31  ? (fraction == 0 ? INFINITY : NAN)
                     : exponent == 0 ? std::ldexp(fraction, -24)
                                     : std::ldexp(fraction + 1024, exponent - 25);
  return bits & 0x8000 ? -size : size;
}
}  // namespace lowbit
