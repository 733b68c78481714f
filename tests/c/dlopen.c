/*
 * The library is loaded, used on several threads, and unloaded, many times.
 *
 *   dlopen LIBRARY FOLDER [rounds]
 */

#include <dirent.h>
#include <dlfcn.h>
#include <pthread.h>
#include <time.h>

#include "check.h"

static void *library;

/* A function by name; through memory, as ISO C has no cast from object to function pointers. */
#define FUNCTION(name)                                                 \
  __typeof__(name) *name##_at;                                         \
  do {                                                                 \
    void *found = dlsym(library, #name);                               \
    REQUIRE(found != NULL);                                            \
    memcpy(&name##_at, &found, sizeof found);                          \
  } while (0)

#define WORKS(call) CHECK((call) == LOWBIT_STATUS_OK)

static int threads_of_process(void) {
  int count = 0;
  DIR *list = opendir("/proc/self/task");
  REQUIRE(list != NULL);
  for (const struct dirent *entry = readdir(list); entry != NULL; entry = readdir(list)) {
    count += entry->d_name[0] != '.';
  }
  closedir(list);
  return count;
}

/* Whether no other thread is left. One that was joined is in the list for a moment: the kernel wakes who
 * waits for it before it takes it out. */
static bool is_alone(void) {
  const struct timespec millisecond = {0, 1000000};
  for (int i = 0; i < 1000 && threads_of_process() > 1; i++) {
    nanosleep(&millisecond, NULL);
  }
  return threads_of_process() == 1;
}

/* What could leave traces: an error text, a plan, a step; with a folder, worker threads and a
 * file, too. */
static void use(const char *folder) {
  FUNCTION(lowbit_context_create_cpu);
  FUNCTION(lowbit_context_destroy);
  FUNCTION(lowbit_spec_create_preset);
  FUNCTION(lowbit_spec_destroy);
  FUNCTION(lowbit_plan_create);
  FUNCTION(lowbit_plan_info);
  FUNCTION(lowbit_plan_destroy);
  FUNCTION(lowbit_state_create);
  FUNCTION(lowbit_state_buffers);
  FUNCTION(lowbit_state_destroy);
  FUNCTION(lowbit_step);
  FUNCTION(lowbit_checkpoint_save);
  FUNCTION(lowbit_last_error);
  enum { ROWS = 300, COLUMNS = 512, BUFFERS = 5 };
  static float params[ROWS * COLUMNS];
  static float grads[ROWS * COLUMNS];
  static int32_t scratch[4096];

  lowbit_spec_t *spec = NULL;
  CHECK(lowbit_spec_create_preset_at("nothing", &spec) == LOWBIT_STATUS_INVALID_ARGUMENT);
  char text[1025] = "";
  WORKS(lowbit_last_error_at(text, sizeof text, NULL));
  CHECK(strstr(text, "\"nothing\"") != NULL);
  WORKS(lowbit_spec_create_preset_at("adamw4", &spec));
  lowbit_cpu_info_t cpu = LOWBIT_CPU_INFO_INIT;
  lowbit_context_t *context = NULL;
  cpu.threads = folder == NULL ? 1 : 3;
  WORKS(lowbit_context_create_cpu_at(&cpu, &context));
  lowbit_tensor_info_t tensor = LOWBIT_TENSOR_INFO_INIT;
  const int64_t shape[2] = {ROWS, COLUMNS};
  tensor.name = "w";
  tensor.shape = shape;
  tensor.ndim = 2;
  lowbit_plan_t *plan = NULL;
  WORKS(lowbit_plan_create_at(context, spec, &tensor, 1, &plan));
  lowbit_plan_info_t info = LOWBIT_PLAN_INFO_INIT;
  WORKS(lowbit_plan_info_at(plan, &info));
  REQUIRE(info.buffer_count == BUFFERS && info.scratch_bytes <= (int64_t)sizeof scratch);
  lowbit_state_t *state = NULL;
  lowbit_buffer_t buffers[BUFFERS];
  WORKS(lowbit_state_create_at(plan, NULL, &state));
  WORKS(lowbit_state_buffers_at(state, buffers, BUFFERS));
  const lowbit_buffer_t param = {params, sizeof params};
  const lowbit_buffer_t grad = {grads, sizeof grads};
  lowbit_step_args_t args = LOWBIT_STEP_ARGS_INIT;
  args.tensor_count = 1;
  args.params = &param;
  args.grads = &grad;
  args.buffer_count = BUFFERS;
  args.state = buffers;
  args.scratch.data = scratch;
  args.scratch.bytes = sizeof scratch;
  for (int i = 0; i < ROWS * COLUMNS; i++) grads[i] = (float)(i % 7 - 3);
  params[0] = 0.0f;
  WORKS(lowbit_step_at(plan, &args, NULL));
  CHECK(params[0] != 0.0f);
  if (folder != NULL) {
    char path[512];
    snprintf(path, sizeof path, "%s/dlopen.safetensors", folder);
    WORKS(lowbit_checkpoint_save_at(plan, buffers, BUFFERS, 1, path, NULL));
    CHECK(remove(path) == 0);
  }
  lowbit_state_destroy_at(state, NULL);
  lowbit_plan_destroy_at(plan);
  lowbit_spec_destroy_at(spec);
  lowbit_context_destroy_at(context);
}

/* --- a thread that outlives the library --- */

static pthread_barrier_t used;
static pthread_barrier_t unloaded;

static void *use_and_wait(void *folder) {
  use(folder);
  pthread_barrier_wait(&used);
  pthread_barrier_wait(&unloaded);
  return NULL; /* thread-local destructors of the library, if any, run now */
}

static void load(const char *path) {
  library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) printf("%s\n", dlerror());
  REQUIRE(library != NULL);
}

static bool is_loaded(const char *path) {
  void *handle = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  if (handle != NULL) dlclose(handle);
  return handle != NULL;
}

int main(int argc, char **argv) {
  if (argc < 3) {
    printf("usage: dlopen LIBRARY FOLDER [rounds]\n");
    return 2;
  }
  const char *path = argv[1];
  char *folder = argv[2];
  const int rounds = argc > 3 ? atoi(argv[3]) : 100;

  /* The library's own code leaves nothing behind that keeps it mapped. */
  for (int i = 0; i < rounds; i++) {
    CHECK(!is_loaded(path));
    load(path);
    use(NULL);
    CHECK(dlclose(library) == 0);
  }
  CHECK(!is_loaded(path));

  /* Starting threads and naming temporary files leaves a thread-local destructor of Rust's standard
   * library with the calling thread; until that thread ends, libc keeps the library mapped. So on
   * threads that end after the library was closed: */
  REQUIRE(pthread_barrier_init(&used, NULL, 2) == 0);
  REQUIRE(pthread_barrier_init(&unloaded, NULL, 2) == 0);
  for (int i = 0; i < rounds; i++) {
    pthread_t thread;
    load(path);
    REQUIRE(pthread_create(&thread, NULL, use_and_wait, folder) == 0);
    pthread_barrier_wait(&used);
    CHECK(dlclose(library) == 0);
    pthread_barrier_wait(&unloaded);
    REQUIRE(pthread_join(thread, NULL) == 0);
    CHECK(is_alone());
  }
  pthread_barrier_destroy(&used);
  pthread_barrier_destroy(&unloaded);

  /* And on the main thread, which does not end. */
  for (int i = 0; i < rounds; i++) {
    load(path);
    use(folder);
    CHECK(dlclose(library) == 0);
    CHECK(is_alone());
  }
  return check_end();
}
