/*
 * A host's own threads, which flush subnormals to zero and round towards zero, as XLA's do: the
 * library's bytes are those of the reference on a quiet thread, and the host's settings are as they
 * were afterwards.
 *
 *   host_pool [emulated]
 *
 * `emulated`: under valgrind, which has no flush-to-zero, so that the hostile settings are not
 * proved to be on.
 */

#include <pthread.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "model.h"

static bool emulated;

/* --- the control register --- */

#if defined(__x86_64__)
typedef unsigned control_t;
static control_t control_read(void) { return _mm_getcsr(); }
static void control_write(control_t value) { _mm_setcsr(value); }
/* Flush to zero, denormals are zero, round towards zero, all exceptions masked. */
static control_t control_hostile(void) { return 0xffc0; }
#elif defined(__aarch64__)
typedef uint64_t control_t;
static control_t control_read(void) {
  control_t value;
  __asm__ volatile("mrs %0, fpcr" : "=r"(value));
  return value;
}
static void control_write(control_t value) { __asm__ volatile("msr fpcr, %0" : : "r"(value)); }
/* Flush to zero, round towards zero. */
static control_t control_hostile(void) { return (control_t)1 << 24 | (control_t)3 << 22; }
#else
#error "how does this processor flush subnormals?"
#endif

/* Whether this thread turns subnormals into zeros. */
static bool flushes(void) {
  volatile float smallest = 1e-40f;
  volatile float product = smallest * 1.0f;
  return product == 0.0f;
}

static bool hostile_is_on(void) { return emulated || flushes(); }

/* --- a thread pool --- */

enum { WORKERS = 3 };

typedef struct pool_t {
  pthread_mutex_t lock;
  pthread_cond_t changed;
  pthread_t threads[WORKERS];
  void (*body)(void *, int64_t);
  void *body_arg;
  int64_t next, count, unfinished;
  int64_t calls;  /* bodies run by workers */
  int64_t broken; /* bodies after which the control register was another */
  bool quiet;     /* all were hostile before their first job */
  bool stop;
} pool_t;

static void *pool_work(void *argument) {
  pool_t *pool = argument;
  control_write(control_hostile());
  const control_t mine = control_read();
  pthread_mutex_lock(&pool->lock);
  pool->quiet = pool->quiet || !hostile_is_on();
  while (!pool->stop) {
    if (pool->next == pool->count) {
      pthread_cond_wait(&pool->changed, &pool->lock);
      continue;
    }
    const int64_t index = pool->next++;
    pthread_mutex_unlock(&pool->lock);
    pool->body(pool->body_arg, index);
    const bool kept = control_read() == mine && hostile_is_on();
    pthread_mutex_lock(&pool->lock);
    pool->calls++;
    pool->broken += !kept;
    if (--pool->unfinished == 0) pthread_cond_broadcast(&pool->changed);
  }
  pthread_mutex_unlock(&pool->lock);
  return NULL;
}

static void pool_start(pool_t *pool) {
  memset(pool, 0, sizeof *pool);
  pthread_mutex_init(&pool->lock, NULL);
  pthread_cond_init(&pool->changed, NULL);
  for (int i = 0; i < WORKERS; i++) {
    REQUIRE(pthread_create(&pool->threads[i], NULL, pool_work, pool) == 0);
  }
}

static void pool_stop(pool_t *pool) {
  pthread_mutex_lock(&pool->lock);
  pool->stop = true;
  pthread_cond_broadcast(&pool->changed);
  pthread_mutex_unlock(&pool->lock);
  for (int i = 0; i < WORKERS; i++) pthread_join(pool->threads[i], NULL);
  pthread_cond_destroy(&pool->changed);
  pthread_mutex_destroy(&pool->lock);
}

/* The library's parallel_for. */
static void pool_run(void *user, int64_t count, void (*body)(void *, int64_t), void *body_arg) {
  pool_t *pool = user;
  pthread_mutex_lock(&pool->lock);
  pool->body = body;
  pool->body_arg = body_arg;
  pool->next = 0;
  pool->count = count;
  pool->unfinished = count;
  pthread_cond_broadcast(&pool->changed);
  while (pool->unfinished > 0) pthread_cond_wait(&pool->changed, &pool->lock);
  pthread_mutex_unlock(&pool->lock);
}

/* --- the test --- */

static const model_tensor_t tensors[3] = {
    {"w", 2, {40, 300, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN},
    {"k", 3, {7, 11, 13, 0, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_BF16,
     LOWBIT_WEIGHTS_PLAIN},
    {"b", 1, {517, 0, 0, 0, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_F32,
     LOWBIT_WEIGHTS_PLAIN}};
enum { TENSORS = 3 };

/* Gradients and parameters of which many are subnormal, some of the smallest kind. */
static void subnormal_values(model_t *model, uint64_t t) {
  for (int64_t i = 0; i < TENSORS; i++) {
    const model_tensor_t *tensor = &model->tensors[i];
    for (size_t j = 0; j < model_numel(tensor); j++) {
      const uint64_t word = conformance_word(t * TENSORS + (uint64_t)i, j);
      /* Exponents 0 ... 3 of 255, either sign; as bf16, the upper half. */
      const uint32_t bits = (uint32_t)(word >> 63) << 31 | (uint32_t)(word & 3) << 23 |
                            (uint32_t)(word >> 20 & 0x7fffff);
      /* Here m is subnormal; there the gradients are larger, and small levels of v are. */
      const uint32_t grad_bits = bits + (j / 600 % 2 == 1 ? (uint32_t)66 << 23 : 0);
      float grad;
      memcpy(&grad, &grad_bits, sizeof grad);
      conformance_store(model->grads[i].data, tensor->grad_dtype, j, grad);
      if (t == 1) {
        float param;
        memcpy(&param, &bits, sizeof param);
        conformance_store(model->params[i].data, tensor->param_dtype, j, param);
      }
    }
  }
}

static void run(model_t *model) {
  lowbit_step_args_t args = model_args(model);
  args.eps = 1e-38f;
  args.lr = 1e-39f; /* subnormal, as are the updates */
  for (args.step = 1; args.step <= 4; args.step++) {
    subnormal_values(model, (uint64_t)args.step);
    OK(lowbit_step(model->plan, &args, NULL));
  }
}

static void decompress(model_t *model, const char *state) {
  OK(lowbit_decompress(model->plan, state, model->state, model->info.buffer_count, model->values,
                       TENSORS, NULL));
}

/* Whether any f32 is subnormal: else the test would prove nothing. By bits, whatever the mode. */
static bool has_subnormals(const lowbit_buffer_t *buffer) {
  for (int64_t i = 0; i < buffer->bytes / 4; i++) {
    uint32_t bits;
    memcpy(&bits, (unsigned char *)buffer->data + 4 * i, sizeof bits);
    if ((bits & 0x7f800000) == 0 && (bits & 0x7fffff) != 0) return true;
  }
  return false;
}

static bool same_values(const model_t *a, const model_t *b) {
  for (int i = 0; i < TENSORS; i++) {
    if (memcmp(a->values[i].data, b->values[i].data, (size_t)a->values[i].bytes) != 0) return false;
  }
  return true;
}

static void compare(const char *preset, lowbit_cpu_variant_t variant, pool_t *pool) {
  lowbit_spec_t *spec = spec_without_threshold(preset);
  lowbit_context_t *quiet = cpu_context(1, LOWBIT_CPU_VARIANT_REFERENCE);
  model_t expected;
  model_create(&expected, quiet, spec, tensors, TENSORS);
  run(&expected);
  CHECK(has_subnormals(&expected.params[0]));
  decompress(&expected, "m");
  CHECK(has_subnormals(&expected.values[0]));
  decompress(&expected, "v");
  CHECK(has_subnormals(&expected.values[0]));

  lowbit_cpu_info_t info = LOWBIT_CPU_INFO_INIT;
  info.variant = variant;
  /* First the host's pool; then threads of the library's own, which inherit these settings. */
  for (int own = 0; own < 2; own++) {
    lowbit_context_t *context = NULL;
    info.parallel_for = own ? NULL : pool_run;
    info.parallel_for_user = own ? NULL : pool;
    info.threads = own ? 3 : 0;
    const control_t before = control_read();
    control_write(control_hostile());
    const control_t hostile = control_read();
    CHECK(hostile_is_on());
    OK(lowbit_context_create_cpu(&info, &context));
    model_t model;
    model_create(&model, context, spec, tensors, TENSORS);
    control_write(before); /* the generator is not what is tested */
    model_reset(&model);
    lowbit_step_args_t args = model_args(&model);
    args.eps = 1e-38f;
    args.lr = 1e-39f;
    for (args.step = 1; args.step <= 4; args.step++) {
      subnormal_values(&model, (uint64_t)args.step);
      control_write(control_hostile());
      const lowbit_status_t status = lowbit_step(model.plan, &args, NULL);
      const control_t after = control_read();
      control_write(before);
      OK(status);
      CHECK(after == hostile);
    }
    CHECK(model_equals(&expected, &model));
    control_write(control_hostile());
    decompress(&model, "v");
    CHECK(control_read() == hostile);
    CHECK(same_values(&expected, &model));
    OK(lowbit_compress(model.plan, "v", model.values, TENSORS, model.state,
                       model.info.buffer_count, NULL));
    OK(lowbit_compress(expected.plan, "v", expected.values, TENSORS, expected.state,
                       expected.info.buffer_count, NULL));
    CHECK(control_read() == hostile);
    control_write(before);
    CHECK(model_equals(&expected, &model));
    /* As it was, for the second round. */
    model_reset(&expected);
    run(&expected);
    decompress(&expected, "v");
    model_destroy(&model);
    lowbit_context_destroy(context);
  }
  model_destroy(&expected);
  lowbit_context_destroy(quiet);
  lowbit_spec_destroy(spec);
}

/* Arguments are judged by the same rules: a subnormal eps is positive. */
static void subnormal_arguments(void) {
  lowbit_context_t *context = cpu_context(1, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold("adamw32");
  model_t model;
  model_create(&model, context, spec, tensors, TENSORS);
  lowbit_step_args_t args = model_args(&model);
  const control_t before = control_read();
  args.eps = 1e-40f;
  control_write(control_hostile());
  const lowbit_status_t small_eps = lowbit_step(model.plan, &args, NULL);
  control_write(before);
  OK(small_eps);
  args.eps = 1e-8f;
  args.beta1 = -1e-40f;
  control_write(control_hostile());
  const lowbit_status_t negative_beta = lowbit_step(model.plan, &args, NULL);
  control_write(before);
  CHECK(negative_beta == LOWBIT_STATUS_INVALID_ARGUMENT);
  model_destroy(&model);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
}

int main(int argc, char **argv) {
  static const char *const presets[3] = {"adamw32", "adamw4", "adamw4-block"};
  emulated = argc > 1 && strcmp(argv[1], "emulated") == 0;
  CHECK(!flushes());
  pool_t pool;
  pool_start(&pool);
  for (int i = 0; i < 3; i++) {
    compare(presets[i], LOWBIT_CPU_VARIANT_PORTABLE, &pool);
    compare(presets[i], LOWBIT_CPU_VARIANT_AUTO, &pool);
  }
  pool_stop(&pool);
  CHECK(pool.calls > 0 && pool.broken == 0 && !pool.quiet);
  subnormal_arguments();
  return check_end();
}
