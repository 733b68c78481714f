/*
 * No allocation inside a step after the first: this program's malloc and its kin, and mmap, count
 * their calls, and the library, which is linked dynamically, calls these.
 *
 *   alloc [steps]
 */

/* For syscall. */
#define _DEFAULT_SOURCE

#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "model.h"

/* --- counting --- */

static long allocations;

static void count_one(void) { __atomic_fetch_add(&allocations, 1, __ATOMIC_RELAXED); }
static long counted(void) { return __atomic_load_n(&allocations, __ATOMIC_RELAXED); }

/* The names under which glibc has the allocator that these definitions hide. */
void *__libc_malloc(size_t bytes);
void *__libc_calloc(size_t count, size_t bytes);
void *__libc_realloc(void *old, size_t bytes);
void *__libc_memalign(size_t align, size_t bytes);
void __libc_free(void *memory);

void *malloc(size_t bytes) {
  count_one();
  return __libc_malloc(bytes);
}

void *calloc(size_t count, size_t bytes) {
  count_one();
  return __libc_calloc(count, bytes);
}

void *realloc(void *old, size_t bytes) {
  count_one();
  return __libc_realloc(old, bytes);
}

/* Frees count too: nothing may be given back that was not taken. */
void free(void *memory) {
  if (memory != NULL) count_one();
  __libc_free(memory);
}

void *aligned_alloc(size_t align, size_t bytes) {
  count_one();
  return __libc_memalign(align, bytes);
}

int posix_memalign(void **out, size_t align, size_t bytes) {
  count_one();
  *out = __libc_memalign(align, bytes);
  return *out == NULL ? 12 /* ENOMEM */ : 0;
}

void *mmap(void *address, size_t bytes, int protection, int flags, int file, off_t offset) {
  count_one();
  return (void *)(intptr_t)syscall(SYS_mmap, address, bytes, protection, flags, file, offset);
}

/* --- the test --- */

/* Enough elements for several tasks, so that the workers wake up; several tensors. */
static const model_tensor_t tensors[5] = {
    {"embedding", 2, {300, 257, 0, 0, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_BF16,
     LOWBIT_WEIGHTS_PLAIN},
    {"matrix", 2, {128, 512, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN},
    {"kernel", 4, {32, 16, 3, 3, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN},
    {"bias", 1, {4097, 0, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN},
    {"scalar", 0, {0, 0, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN}};

static void run(const char *preset, int64_t threads, bool update, lowbit_nonfinite_t nonfinite,
                int steps) {
  const long before_all = counted();
  lowbit_context_t *context = cpu_context(threads, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = NULL;
  OK(lowbit_spec_create_preset(preset, &spec));
  model_t model;
  model_create(&model, context, spec, tensors, 5);
  lowbit_step_args_t args = model_args(&model);
  args.updates = update ? model.updates : NULL;
  args.nonfinite = nonfinite;
  args.skipped = model.skipped;
  OK(lowbit_step(model.plan, &args, NULL));
  /* The counters work. */
  CHECK(counted() - before_all > 20);

  long count = 0;
  int failures = 0;
  for (int i = 0; i < steps; i++) {
    args.step++;
    const long before = counted();
    failures += lowbit_step(model.plan, &args, NULL) != LOWBIT_STATUS_OK;
    count += counted() - before;
  }
  CHECK(failures == 0);
  if (!CHECK(count == 0)) {
    printf("  %s, %d threads, %s: %ld calls in %d steps\n", preset, (int)threads,
           update ? "updates" : "in place", count, steps);
  }
  model_destroy(&model);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

int main(int argc, char **argv) {
  static const char *const presets[] = {"adamw32", "adamw8", "adamw4", "adamw4-block", "factor4",
                                        "sgdm4",   "lion4",  "adafactor", "sm3"};
  const int steps = argc > 1 ? atoi(argv[1]) : 100;
  for (size_t i = 0; i < sizeof presets / sizeof presets[0]; i++) {
    for (int64_t threads = 1; threads <= 3; threads += 2) {
      run(presets[i], threads, false, LOWBIT_NONFINITE_DEFAULT, steps);
      run(presets[i], threads, true, LOWBIT_NONFINITE_SKIP_STEP, steps);
    }
  }
  return check_end();
}
