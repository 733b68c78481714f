/*
 * Checkpoints through every door: paths, descriptors, callbacks; progress and cancelling; the last N;
 * other meshes; slices.
 *
 *   checkpoints FOLDER
 */

#define _POSIX_C_SOURCE 200809L /* open, pipe: not of C99 */

#include <fcntl.h>
#include <time.h>
#include <unistd.h>

#include "model.h"

static const model_tensor_t tensors[3] = {
    {"matrix", 2, {9, 130, 0, 0, 0}, LOWBIT_DTYPE_F32, LOWBIT_DTYPE_F32, LOWBIT_WEIGHTS_PLAIN},
    {"kernel", 3, {8, 4, 40, 0, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_F32, LOWBIT_WEIGHTS_MASTER},
    {"bias", 1, {261, 0, 0, 0, 0}, LOWBIT_DTYPE_BF16, LOWBIT_DTYPE_BF16, LOWBIT_WEIGHTS_PLAIN}};
enum { TENSORS = 3, CAPACITY = 1 << 16 };

static const char *folder;

/* FOLDER/name, in one of eight buffers that are reused in turn. */
static const char *in_folder(const char *name) {
  static char paths[8][1024];
  static int next;
  char *path = paths[next++ % 8];
  snprintf(path, sizeof paths[0], "%s/%s", folder, name);
  return path;
}

/* --- callbacks --- */

typedef struct bytes_t {
  unsigned char data[CAPACITY];
  size_t bytes;
  size_t fail_at; /* the call that fails; 0: none */
  size_t calls;
} bytes_t;

static int32_t append(void *user, const void *data, size_t bytes) {
  bytes_t *all = user;
  if (++all->calls == all->fail_at || bytes > CAPACITY - all->bytes) return 77;
  memcpy(all->data + all->bytes, data, bytes);
  all->bytes += bytes;
  return 0;
}

static int32_t fetch(void *user, int64_t offset, void *data, size_t bytes) {
  bytes_t *all = user;
  if (++all->calls == all->fail_at || (size_t)offset + bytes > all->bytes) return 78;
  memcpy(data, all->data + offset, bytes);
  return 0;
}

typedef struct count_t {
  int64_t calls;
  int64_t done;
  int64_t total;
  int64_t stop_at; /* the call that cancels; 0: none */
} count_t;

static int32_t count_progress(void *user, int64_t done, int64_t total) {
  count_t *count = user;
  CHECK(done >= count->done && done <= total);
  CHECK(count->calls == 0 || total == count->total);
  count->done = done;
  count->total = total;
  return ++count->calls == count->stop_at;
}

static lowbit_save_args_t saving(const model_t *model) {
  lowbit_save_args_t args = LOWBIT_SAVE_ARGS_INIT;
  args.buffer_count = model->info.buffer_count;
  args.state = model->state;
  args.step = 5;
  return args;
}

static lowbit_load_args_t loading(const model_t *model) {
  lowbit_load_args_t args = LOWBIT_LOAD_ARGS_INIT;
  args.buffer_count = model->info.buffer_count;
  args.state = model->state;
  return args;
}

static bool same_states(const model_t *a, const model_t *b) {
  for (int64_t i = 0; i < a->info.buffer_count; i++) {
    if (memcmp(a->state[i].data, b->state[i].data, (size_t)a->state[i].bytes) != 0) return false;
  }
  return true;
}

/* --- the doors --- */

static void doors(const model_t *from, model_t *to) {
  static bytes_t all;
  count_t count = {0, 0, 0, 0};
  lowbit_save_args_t save = saving(from);
  lowbit_load_args_t load = loading(to);
  lowbit_checkpoint_info_t info = LOWBIT_CHECKPOINT_INFO_INIT;

  save.write = append;
  save.write_user = &all;
  save.progress = count_progress;
  save.progress_user = &count;
  OK(lowbit_checkpoint_write(from->plan, &save, NULL));
  CHECK(count.calls > 0 && count.done == count.total && (size_t)count.total == all.bytes);

  memset(&count, 0, sizeof count);
  load.read = fetch;
  load.read_user = &all;
  load.bytes = (int64_t)all.bytes;
  load.progress = count_progress;
  load.progress_user = &count;
  model_reset(to);
  OK(lowbit_checkpoint_read(to->plan, &load, NULL, &info));
  CHECK(info.step == 5 && same_states(from, to));
  CHECK(count.calls > 0 && count.done == count.total);

  /* A file descriptor, at any position. */
  const int fd = open(in_folder("by descriptor"), O_RDWR | O_CREAT | O_TRUNC, 0600);
  REQUIRE(fd >= 0);
  save = saving(from);
  save.flags = LOWBIT_SAVE_FD;
  save.fd = fd;
  OK(lowbit_checkpoint_write(from->plan, &save, NULL));
  CHECK(lseek(fd, 0, SEEK_CUR) == (off_t)all.bytes);
  load = loading(to);
  load.flags = LOWBIT_LOAD_FD;
  load.fd = fd;
  model_reset(to);
  OK(lowbit_checkpoint_read(to->plan, &load, NULL, NULL));
  CHECK(same_states(from, to));
  CHECK(lseek(fd, 0, SEEK_CUR) == (off_t)all.bytes);
  REQUIRE(close(fd) == 0);
  FAILS(lowbit_checkpoint_read(to->plan, &load, NULL, NULL), INVALID_ARGUMENT, "args.fd|not open");
  save.fd = fd;
  FAILS(lowbit_checkpoint_write(from->plan, &save, NULL), INVALID_ARGUMENT, "args.fd|not open");

  /* A pipe can be written to, here until it is full, and not read at any place. */
  int ends[2];
  REQUIRE(pipe(ends) == 0 && fcntl(ends[1], F_SETFL, O_NONBLOCK) == 0);
  save.fd = ends[1];
  const lowbit_status_t status = lowbit_checkpoint_write(from->plan, &save, NULL);
  CHECK(status == LOWBIT_STATUS_OK || status == LOWBIT_STATUS_IO);
  load.fd = ends[0];
  FAILS(lowbit_checkpoint_read(to->plan, &load, NULL, NULL), INVALID_ARGUMENT, "no regular file");
  REQUIRE(close(ends[0]) == 0 && close(ends[1]) == 0);

  /* A path, equal to what the other doors gave. */
  save = saving(from);
  save.path = in_folder("by path, \xc3\xa4");
  OK(lowbit_checkpoint_write(from->plan, &save, NULL));
  load = loading(to);
  load.path = save.path;
  model_reset(to);
  OK(lowbit_checkpoint_read(to->plan, &load, NULL, NULL));
  CHECK(same_states(from, to));
  FILE *file = fopen(save.path, "rb");
  REQUIRE(file != NULL);
  static unsigned char bytes[CAPACITY];
  CHECK(fread(bytes, 1, sizeof bytes, file) == all.bytes);
  CHECK(memcmp(bytes, all.data, all.bytes) == 0);
  fclose(file);

  /* Every call of a callback may fail, and every report may cancel. */
  for (size_t fail_at = 1; fail_at < 40; fail_at++) {
    static bytes_t other;
    memset(&other, 0, sizeof other);
    other.fail_at = fail_at;
    save = saving(from);
    save.write = append;
    save.write_user = &other;
    if (lowbit_checkpoint_write(from->plan, &save, NULL) == LOWBIT_STATUS_OK) break;
    FAILS((other.calls = 0, lowbit_checkpoint_write(from->plan, &save, NULL)), IO, "returned 77");
  }
  int cancelled = 0;
  for (int64_t stop_at = 1; stop_at < 100; stop_at++) {
    memset(&count, 0, sizeof count);
    count.stop_at = stop_at;
    all.calls = 0;
    load = loading(to);
    load.read = fetch;
    load.read_user = &all;
    load.bytes = (int64_t)all.bytes;
    load.progress = count_progress;
    load.progress_user = &count;
    model_reset(to);
    model_remember(to);
    if (lowbit_checkpoint_read(to->plan, &load, NULL, NULL) == LOWBIT_STATUS_OK) break;
    CHECK(strstr(last_error(), "cancelled") != NULL);
    CHECK(model_is_as_remembered(to));
    cancelled++;
  }
  CHECK(cancelled > 3);
  /* Reads fail before the state is touched, or the text says that it was. */
  for (size_t fail_at = 1; fail_at < 100; fail_at++) {
    all.calls = 0;
    all.fail_at = fail_at;
    load.progress = NULL;
    model_reset(to);
    model_remember(to);
    const lowbit_status_t read = lowbit_checkpoint_read(to->plan, &load, NULL, NULL);
    if (read == LOWBIT_STATUS_OK) break;
    CHECK(read == LOWBIT_STATUS_IO);
    CHECK(model_is_as_remembered(to) || strstr(last_error(), "in part written") != NULL);
  }
  memset(&count, 0, sizeof count);
  count.stop_at = 2;
  save = saving(from);
  save.path = in_folder("cancelled");
  save.progress = count_progress;
  save.progress_user = &count;
  FAILS(lowbit_checkpoint_write(from->plan, &save, NULL), CANCELLED, "cancelled");
  CHECK(access(save.path, F_OK) != 0);
}

static void bad_arguments(const model_t *model) {
  lowbit_save_args_t save = saving(model);
  lowbit_load_args_t load = loading(model);
  const lowbit_plan_t *plan = model->plan;
  FAILS(lowbit_checkpoint_write(NULL, &save, NULL), NULL_POINTER, "plan");
  FAILS(lowbit_checkpoint_write(plan, NULL, NULL), NULL_POINTER, "args");
  FAILS(lowbit_checkpoint_read(plan, NULL, NULL, NULL), NULL_POINTER, "args");
  FAILS(lowbit_checkpoint_write(plan, &save, NULL), INVALID_ARGUMENT, "0 of path, callback and fd");
  FAILS(lowbit_checkpoint_read(plan, &load, NULL, NULL), INVALID_ARGUMENT, "0 of path");
  save.path = load.path = in_folder("x");
  save.write = append;
  load.read = fetch;
  FAILS(lowbit_checkpoint_write(plan, &save, NULL), INVALID_ARGUMENT, "2 of path");
  FAILS(lowbit_checkpoint_read(plan, &load, NULL, NULL), INVALID_ARGUMENT, "2 of path");
  save.path = load.path = NULL;
  save.keep = 1;
  FAILS(lowbit_checkpoint_write(plan, &save, NULL), INVALID_ARGUMENT, "args.keep");
  save.write = NULL;
  save.path = in_folder("no step in it");
  FAILS(lowbit_checkpoint_write(plan, &save, NULL), INVALID_ARGUMENT, "{step}");
  save.keep = -1;
  FAILS(lowbit_checkpoint_write(plan, &save, NULL), INVALID_ARGUMENT, "args.keep is -1");
  save.keep = 0;
  save.step = -1;
  FAILS(lowbit_checkpoint_write(plan, &save, NULL), INVALID_ARGUMENT, "step is -1");
  save.step = 0;
  save.flags = 6;
  FAILS(lowbit_checkpoint_write(plan, &save, NULL), UNKNOWN_FLAG, "args.flags");
  save.flags = 0;
  save.buffer_count--;
  FAILS(lowbit_checkpoint_write(plan, &save, NULL), INVALID_ARGUMENT, "state buffers");
  save.struct_size = 8;
  FAILS(lowbit_checkpoint_write(plan, &save, NULL), STRUCT_SIZE, "lowbit_save_args_t");
  load.bytes = -1;
  FAILS(lowbit_checkpoint_read(plan, &load, NULL, NULL), INVALID_ARGUMENT, "args.bytes is -1");
  load.bytes = 0;
  FAILS(lowbit_checkpoint_read(plan, &load, NULL, NULL), FORMAT_TRUNCATED, "0 bytes");
  load.reserved = 1;
  FAILS(lowbit_checkpoint_read(plan, &load, NULL, NULL), INVALID_ARGUMENT, "reserved");
  load.flags = 4;
  FAILS(lowbit_checkpoint_read(plan, &load, NULL, NULL), UNKNOWN_FLAG, "args.flags");
  load.struct_size = 80;
  FAILS(lowbit_checkpoint_read(plan, &load, NULL, NULL), STRUCT_SIZE, "lowbit_load_args_t");
  FAILS(lowbit_checkpoint_index(NULL, 1, in_folder("x")), NULL_POINTER, "paths");
  FAILS(lowbit_checkpoint_index(NULL, 0, in_folder("x")), FORMAT_MISMATCH, "without files");
  FAILS(lowbit_checkpoint_merge(NULL, in_folder("x"), NULL, NULL), NULL_POINTER, "from");
  FAILS(lowbit_checkpoint_merge(in_folder("none"), in_folder("x"), NULL, NULL), IO, "none");
  FAILS(lowbit_checkpoint_merge(in_folder(""), in_folder("x"), NULL, NULL), IO, "folder");
  FAILS(lowbit_checkpoint_reshard(plan, NULL, in_folder("x"), NULL, NULL), NULL_POINTER, "from");
  FAILS(lowbit_checkpoint_json(NULL, NULL, 0, NULL), NULL_POINTER, "from");
}

/* --- the last N --- */

static void keeps_the_newest(const model_t *model) {
  lowbit_save_args_t save = saving(model);
  save.path = in_folder("run-{step}.safetensors");
  save.keep = 2;
  FILE *other = fopen(in_folder("run-best.safetensors"), "w");
  REQUIRE(other != NULL && fclose(other) == 0);
  /* After step 30 the trainer goes back to 10. */
  const int64_t steps[4] = {10, 20, 30, 11};
  for (int i = 0; i < 4; i++) {
    save.step = steps[i];
    OK(lowbit_checkpoint_write(model->plan, &save, NULL));
    const struct timespec pause = {0, 20000000};
    nanosleep(&pause, NULL);
  }
  CHECK(access(in_folder("run-10.safetensors"), F_OK) != 0);
  CHECK(access(in_folder("run-20.safetensors"), F_OK) != 0);
  CHECK(access(in_folder("run-30.safetensors"), F_OK) == 0);
  CHECK(access(in_folder("run-11.safetensors"), F_OK) == 0);
  CHECK(access(in_folder("run-best.safetensors"), F_OK) == 0);
}

/* --- meshes and slices --- */

static lowbit_plan_t *shard(const lowbit_context_t *context, const lowbit_spec_t *spec,
                            int64_t first, int64_t rows) {
  lowbit_tensor_info_t info = LOWBIT_TENSOR_INFO_INIT;
  const int64_t shape[2] = {rows, 130}, global[2] = {9, 130}, offset[2] = {first, 0};
  lowbit_plan_t *plan = NULL;
  info.name = "matrix";
  info.shape = shape;
  info.ndim = 2;
  info.global_shape = global;
  info.offset = offset;
  OK(lowbit_plan_create(context, spec, &info, 1, &plan));
  REQUIRE(plan != NULL);
  return plan;
}

static void meshes(const lowbit_context_t *context, const lowbit_spec_t *spec, const model_t *from,
                   model_t *to) {
  count_t count = {0, 0, 0, 0};
  const char *whole = in_folder("whole.safetensors");
  OK(lowbit_checkpoint_save(from->plan, from->state, from->info.buffer_count, 7, whole, NULL));
  OK(lowbit_checkpoint_split(whole, 0, 3, in_folder("parts.json"), count_progress, &count));
  CHECK(count.calls > 0 && count.done == count.total);
  lowbit_checkpoint_info_t info = LOWBIT_CHECKPOINT_INFO_INIT;
  model_reset(to);
  OK(lowbit_checkpoint_load(to->plan, in_folder("parts.json"), to->state, to->info.buffer_count,
                            NULL, &info));
  CHECK(info.step == 7 && same_states(from, to));
  OK(lowbit_checkpoint_merge(in_folder("parts.json"), in_folder("merged"), NULL, NULL));
  model_reset(to);
  OK(lowbit_checkpoint_load(to->plan, in_folder("merged"), to->state, to->info.buffer_count, NULL,
                            NULL));
  CHECK(same_states(from, to));

  /* Shards of one tensor alone, and an index of them. */
  lowbit_plan_t *plans[2] = {shard(context, spec, 0, 4), shard(context, spec, 4, 5)};
  const char *files[2] = {in_folder("rows-a"), in_folder("rows-b")};
  for (int i = 0; i < 2; i++) {
    OK(lowbit_checkpoint_reshard(plans[i], in_folder("parts.json"), files[i], NULL, NULL));
    lowbit_plan_destroy(plans[i]);
  }
  FAILS(lowbit_checkpoint_index(files, 1, in_folder("rows.json")), FORMAT_MISMATCH, "in no file");
  OK(lowbit_checkpoint_index(files, 2, in_folder("rows.json")));
  lowbit_load_args_t load = loading(to);
  load.path = in_folder("rows.json");
  FAILS(lowbit_checkpoint_read(to->plan, &load, NULL, NULL), FORMAT_MISMATCH, "kernel");
  lowbit_plan_t *middle = shard(context, spec, 3, 3);
  FAILS(lowbit_checkpoint_reshard(to->plan, in_folder("rows.json"), in_folder("x"), NULL, NULL),
        FORMAT_MISMATCH, "kernel");
  lowbit_state_t *state = NULL;
  OK(lowbit_state_create(middle, NULL, &state));
  lowbit_buffer_t buffers[MODEL_BUFFERS];
  lowbit_plan_info_t sizes = LOWBIT_PLAN_INFO_INIT;
  OK(lowbit_plan_info(middle, &sizes));
  OK(lowbit_state_buffers(state, buffers, sizes.buffer_count));
  load.path = in_folder("whole.safetensors");
  load.state = buffers;
  load.buffer_count = sizes.buffer_count;
  FAILS(lowbit_checkpoint_read(middle, &load, NULL, NULL), FORMAT_MISMATCH, "3 tensors");
  load.flags = LOWBIT_LOAD_SUBSET;
  OK(lowbit_checkpoint_read(middle, &load, NULL, NULL));
  const size_t row = (size_t)buffers[0].bytes / 3;
  CHECK(memcmp(buffers[0].data, (unsigned char *)from->state[0].data + 3 * row, 3 * row) == 0);
  lowbit_state_destroy(state, NULL);
  lowbit_plan_destroy(middle);

  /* What is in it, and a slice. */
  char text[4096];
  size_t needed = 0;
  OK(lowbit_checkpoint_json(in_folder("rows.json"), NULL, 0, &needed));
  OK(lowbit_checkpoint_json(in_folder("rows.json"), text, sizeof text, NULL));
  CHECK(strlen(text) + 1 == needed && strstr(text, "\"step\":7") != NULL);
  CHECK(strstr(text, "\"name\":\"matrix\"") != NULL);
  FAILS(lowbit_checkpoint_json(whole, text, 3, NULL), BUFFER_SIZE, "cap is 3");
  OK(lowbit_decompress(from->plan, "v", from->state, from->info.buffer_count, from->values,
                       from->info.tensor_count, NULL));
  const float *all = from->values[0].data;
  const int64_t offset[2] = {3, 100}, shape[2] = {4, 29};
  float slice[4 * 29];
  OK(lowbit_checkpoint_values(in_folder("rows.json"), "matrix", "v", offset, shape, 2, slice,
                              sizeof slice));
  int equal = 0;
  for (int i = 0; i < 4; i++) {
    for (int j = 0; j < 29; j++) equal += slice[29 * i + j] == all[130 * (3 + i) + 100 + j];
  }
  CHECK(equal == 4 * 29);
  FAILS(lowbit_checkpoint_values(whole, "matrix", "v", offset, shape, 2, slice, 4), BUFFER_SIZE,
        "4 bytes");
  FAILS(lowbit_checkpoint_values(whole, "matrix", "v", offset, shape, 2, NULL, sizeof slice),
        NULL_POINTER, "values");
  FAILS(lowbit_checkpoint_values(whole, "none", "v", offset, shape, 2, slice, sizeof slice),
        INVALID_ARGUMENT, "none");
  FAILS(lowbit_checkpoint_values(whole, "matrix", "vmax", offset, shape, 2, slice, sizeof slice),
        INVALID_ARGUMENT, "vmax");
  FAILS(lowbit_checkpoint_split(whole, -1, 2, in_folder("x"), NULL, NULL), INVALID_ARGUMENT,
        "axis is -1");
  FAILS(lowbit_checkpoint_split(whole, 0, 0, in_folder("x"), NULL, NULL), INVALID_ARGUMENT,
        "parts is 0");
}

int main(int argc, char **argv) {
  REQUIRE(argc == 2);
  folder = argv[1];
  lowbit_context_t *context = cpu_context(1, LOWBIT_CPU_VARIANT_AUTO);
  lowbit_spec_t *spec = spec_without_threshold("adamw4");
  model_t from, to;
  model_create(&from, context, spec, tensors, TENSORS);
  model_create(&to, context, spec, tensors, TENSORS);
  lowbit_step_args_t args = model_args(&from);
  OK(lowbit_step(from.plan, &args, NULL));
  doors(&from, &to);
  bad_arguments(&from);
  keeps_the_newest(&from);
  meshes(context, spec, &from, &to);
  model_destroy(&from);
  model_destroy(&to);
  lowbit_spec_destroy(spec);
  lowbit_context_destroy(context);
  return check_end();
}
