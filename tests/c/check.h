/*
 * Counting checks, for the programs of this folder. A program ends with `return check_end();`, which
 * prints "N passed, 0 failed".
 */

#ifndef LOWBIT_TESTS_CHECK_H
#define LOWBIT_TESTS_CHECK_H

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "lowbit.h"

static int check_passed;
static int check_failed;

static inline bool check(bool good, const char *what, const char *file, int line) {
  if (good) {
    check_passed++;
  } else {
    check_failed++;
    printf("%s:%d: %s\n", file, line, what);
  }
  return good;
}

static inline int check_end(void) {
  printf("%d passed, %d failed\n", check_passed, check_failed);
  return check_failed == 0 && check_passed > 0 ? 0 : 1;
}

/* The text of this thread's last error, in a buffer that the next call reuses. */
static inline const char *last_error(void) {
  static char text[1025];
  if (lowbit_last_error(text, sizeof text, NULL) != LOWBIT_STATUS_OK) return "(no text)";
  return text;
}

/* Leaves a text that no other failure has, so that a stale text cannot pass for a new one. */
static inline void provoke_another_error(void) {
  lowbit_spec_t *spec = NULL;
  (void)lowbit_spec_create_preset("stale text", &spec);
}

static inline bool check_ok(lowbit_status_t status, const char *call, const char *file, int line) {
  const bool good = check(status == LOWBIT_STATUS_OK, call, file, line);
  if (!good) printf("  %s: %s\n", lowbit_status_name(status), last_error());
  return good;
}

/* `words`: pieces, separated by |, that the error's text must have. */
static inline void check_fails(lowbit_status_t status, lowbit_status_t want, const char *words,
                               const char *call, const char *file, int line) {
  if (!check(status == want, call, file, line)) {
    printf("  %s, not %s: %s\n", lowbit_status_name(status), lowbit_status_name(want),
           last_error());
    return;
  }
  char list[256];
  snprintf(list, sizeof list, "%s", words);
  for (char *word = strtok(list, "|"); word != NULL; word = strtok(NULL, "|")) {
    if (!check(strstr(last_error(), word) != NULL, call, file, line)) {
      printf("  the text lacks \"%s\": %s\n", word, last_error());
    }
  }
}

#define CHECK(condition) check((condition), #condition, __FILE__, __LINE__)
#define OK(call) check_ok((call), #call, __FILE__, __LINE__)
#define FAILS(call, status, words)                                                        \
  do {                                                                                    \
    provoke_another_error();                                                              \
    check_fails((call), LOWBIT_STATUS_##status, words, #call, __FILE__, __LINE__);        \
  } while (0)

/* For what a test cannot go on without. */
#define REQUIRE(condition)             \
  do {                                 \
    if (!CHECK(condition)) exit(1);    \
  } while (0)

#endif
