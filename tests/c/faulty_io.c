/*
 * Preloaded into a process that saves: the nth call of one function on a regular file or folder fails,
 * or does half its work. LOWBIT_FAULT is "FUNCTION NTH ERRNO" (a number; 0 for a short write or read).
 */

#define _GNU_SOURCE

#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

static int counted; /* calls so far of the chosen function */

/* -1: not this call; else the errno, 0 for a short one. */
static int fault(const char *function) {
  char chosen[32];
  int nth, code;
  const char *text = getenv("LOWBIT_FAULT");
  if (text == NULL || sscanf(text, "%31s %d %d", chosen, &nth, &code) != 3) return -1;
  if (strcmp(chosen, function) != 0) return -1;
  return ++counted == nth ? code : -1;
}

static int is_ours(int fd) {
  struct stat info;
  return fd > 2 && fstat(fd, &info) == 0 && (S_ISREG(info.st_mode) || S_ISDIR(info.st_mode));
}

#define NEXT(type, name, ...) ((type(*)(__VA_ARGS__))dlsym(RTLD_NEXT, name))

ssize_t write(int fd, const void *data, size_t bytes) {
  const int code = is_ours(fd) ? fault("write") : -1;
  if (code > 0) {
    errno = code;
    return -1;
  }
  if (code == 0) bytes = (bytes + 1) / 2;
  return NEXT(ssize_t, "write", int, const void *, size_t)(fd, data, bytes);
}

static ssize_t faulty_pread(int fd, void *data, size_t bytes, off64_t offset) {
  const int code = is_ours(fd) ? fault("pread") : -1;
  if (code > 0) {
    errno = code;
    return -1;
  }
  if (code == 0) bytes = (bytes + 1) / 2;
  return NEXT(ssize_t, "pread64", int, void *, size_t, off64_t)(fd, data, bytes, offset);
}

ssize_t pread64(int fd, void *data, size_t bytes, off64_t offset) {
  return faulty_pread(fd, data, bytes, offset);
}

ssize_t pread(int fd, void *data, size_t bytes, off_t offset) {
  return faulty_pread(fd, data, bytes, offset);
}

int fsync(int fd) {
  const int code = is_ours(fd) ? fault("fsync") : -1;
  if (code > 0) {
    errno = code;
    return -1;
  }
  return NEXT(int, "fsync", int)(fd);
}

int rename(const char *from, const char *to) {
  const int code = fault("rename");
  if (code > 0) {
    errno = code;
    return -1;
  }
  return NEXT(int, "rename", const char *, const char *)(from, to);
}

int open64(const char *path, int flags, ...) {
  mode_t mode = 0;
  if (flags & O_CREAT) {
    va_list list;
    va_start(list, flags);
    mode = va_arg(list, mode_t);
    va_end(list);
  }
  const int code = flags & O_CREAT ? fault("open") : -1;
  if (code > 0) {
    errno = code;
    return -1;
  }
  return NEXT(int, "open64", const char *, int, mode_t)(path, flags, mode);
}
