// The work of a launch: many tensors, cut into tasks of about equal size, so that hundreds of small
// tensors and one large one keep the device equally busy. A thread block takes tasks in turn; what
// it must know of a task's tensor is brought to shared memory when the tensor changes.

#pragma once

#include "numerics.cuh"
#include "random.cuh"
#include "warp.cuh"

namespace lowbit {

constexpr int THREADS = 256;
constexpr int WARPS = THREADS / LANES;

// Elements of a task, but at least a unit for every warp.
constexpr int TASK_ELEMENTS = 8192;

__device__ __forceinline__ int units_per_task(int block) {
  return block * WARPS > TASK_ELEMENTS ? WARPS : TASK_ELEMENTS / block;
}

// What the threads of a block share about the tensor at hand.
struct Shared {
  Tensor tensor;
  Scalars scalars;
  int group;  // of the scalars
  int step;
  int skip;   // the tensor stays as it is
  int ticket;
  int wide;   // its elements can be accessed four at a time (wide.cuh)
  float mean;  // of a factored v, all of it (adamw_factor4.cu)
  float alpha;  // of adafactor, with what the whole tensor has in it: the step size
  float clip;   // and what the update is multiplied by
};

__device__ __forceinline__ Stream stream_of(const Launch& launch, const Shared& shared) {
  return Stream{launch.keys, shared.tensor.hash & 0x0fffffff, static_cast<unsigned>(shared.step)};
}

// Index of the task among those of its kind and tensor.
struct Task {
  int kind;
  long long index;
};

template <typename Pointer>
__device__ __forceinline__ Pointer* pointer(const Launch& launch, const Tensor& tensor, int which) {
  return reinterpret_cast<Pointer*>(launch.words[tensor.words + which]);
}

template <typename Item>
__device__ __forceinline__ const Item* in_table(const Launch& launch, long long offset) {
  return reinterpret_cast<const Item*>(launch.table + offset);
}

// Whether no tensor changes: the skip flag of any group, or under SKIP_STEP a flag of any tensor.
// All threads call it together.
__device__ inline bool skips_all(const Launch& launch) {
  bool any = (launch.flags & SKIP_ALL) != 0;
  if (launch.hyper != nullptr) {
    for (int i = static_cast<int>(threadIdx.x); i < launch.groups; i += THREADS) {
      any = any || launch.hyper[8 * i + 7] != 0.0f;
    }
  }
  if (launch.flags & SKIP_STEP) {
    for (int i = static_cast<int>(threadIdx.x); i < launch.tensor_count; i += THREADS) {
      any = any || launch.statistics[i] != 0;
    }
  }
  return __syncthreads_or(any) != 0;
}

// The tasks of a thread block that takes consecutive ones, so that it has those of a tensor as one piece:
// as many as any other, give or take one.
struct Share {
  long long begin;  // the next
  long long end;

  __device__ __forceinline__ explicit Share(const Launch& launch) {
    const long long each = launch.tasks / gridDim.x, more = launch.tasks - each * gridDim.x;
    begin = blockIdx.x * each + (blockIdx.x < more ? blockIdx.x : more);
    end = begin + each + (blockIdx.x < more ? 1 : 0);
  }

  // Takes those before task `limit`, of which there is one at least; their number.
  __device__ __forceinline__ long long take(long long limit) {
    const long long from = begin;
    begin = limit < end ? limit : end;
    return begin - from;
  }
};

// The scalars of a group whose hyper-parameters lie in device memory.
using ScalarsOf = Scalars(const Launch& launch, const float* hyper, int step);

__device__ __forceinline__ Scalars adamw_scalars(const Launch& launch, const float* hyper,
                                                 int step) {
  return compute_scalars(hyper, step, launch.flags);
}

// Brings to shared memory what else a rule needs of a whole tensor; one thread calls it.
using CompleteFor = void(const Launch& launch, const Tensor& tensor, Shared& shared);

__device__ __forceinline__ void nothing_more(const Launch&, const Tensor&, Shared&) {}

// Walks through the segments; the tasks that a thread block takes have increasing numbers.
template <ScalarsOf& scalars_of, CompleteFor& complete = nothing_more>
struct WalkerOf {
  const Launch& launch;
  Shared& shared;
  const Segment* segment;
  bool skip_all;
  bool fresh;  // the shared memory holds nothing yet

  __device__ WalkerOf(const Launch& launch, Shared& shared)
      : launch(launch),
        shared(shared),
        segment(in_table<Segment>(launch, launch.segments)),
        skip_all(skips_all(launch)),
        fresh(true) {}

  // Goes to a task: its tensor and scalars are in shared memory afterwards. All threads call it
  // together.
  __device__ inline Task enter(long long task) {
    bool changed = fresh;
    while (task >= segment[1].first) {
      ++segment;
      changed = true;
    }
    if (changed) {
      __syncthreads();  // nobody needs what was there any more
      load_tensor();
    }
    return Task{segment->kind, task - segment->first};
  }

  // The first task that is not of the tensor at hand.
  __device__ __forceinline__ long long end_of_segment() const { return segment[1].first; }

  // The tasks of the tensor at hand.
  __device__ __forceinline__ long long tasks() const { return segment[1].first - segment->first; }

  __device__ inline void load_tensor() {
    const Tensor* from = in_table<Tensor>(launch, launch.tensors) + segment->tensor;
    const unsigned long long* words = reinterpret_cast<const unsigned long long*>(from);
    unsigned long long* to = reinterpret_cast<unsigned long long*>(&shared.tensor);
    for (int i = static_cast<int>(threadIdx.x); i < static_cast<int>(sizeof(Tensor) / 8);
         i += THREADS) {
      to[i] = words[i];
    }
    if (threadIdx.x == 0) {
      const int group = from->group;
      if (launch.hyper == nullptr) {
        shared.scalars = *reinterpret_cast<const Scalars*>(launch.words + from->scalars);
        shared.step = launch.step;
      } else if (fresh || shared.group != group) {
        shared.step = *launch.step_number;
        shared.scalars = scalars_of(launch, launch.hyper + 8 * group, shared.step);
      }
      shared.group = group;
      complete(launch, *from, shared);
      const bool flagged = launch.flags & SKIP_TENSORS ||
                           (launch.flags & SKIP_GLOBAL && from->global);
      shared.skip = skip_all || (flagged && launch.statistics[from->index] != 0);
    }
    fresh = false;
    __syncthreads();
  }

  // Counts a tensor that is skipped, once.
  __device__ __forceinline__ void count_skipped(const Task& task) const {
    if (task.index == 0 && threadIdx.x == 0 && shared.skip && launch.skipped != nullptr) {
      atomicAdd(launch.skipped + 1, 1ull);
    }
  }

  __device__ __forceinline__ Stream stream() const { return stream_of(launch, shared); }
};

using Walker = WalkerOf<adamw_scalars>;

}  // namespace lowbit
