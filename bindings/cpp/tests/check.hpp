// Counting checks. They read the same with and without exceptions: MUST(call) is the call's value,
// and FAILS(call, code, word) wants that failure, with that word in its text.

#pragma once

#include <cstdio>
#include <cstdlib>
#include <string>
#include <utility>

#include "lowbit.hpp"

namespace check {

inline int passed = 0, failed = 0;

inline bool that(bool good, const std::string& what, int line) {
  ++(good ? passed : failed);
  if (!good) {
    std::printf("line %d: %s\n", line, what.c_str());
  }
  return good;
}

inline int end() {
  std::printf("%d passed, %d failed\n", passed, failed);
  return failed == 0 && passed > 0 ? 0 : 1;
}

inline void failure(lowbit_status_t got, lowbit_status_t want, const std::string& text,
                    const std::string& word, const char* call, int line) {
  that(got == want && text.find(word) != std::string::npos,
       std::string(call) + " gave " + lowbit_status_name(got) + ": " + text, line);
}

// A test that lacks a value cannot go on.
[[noreturn]] inline void give_up(const std::string& text, const char* call, int line) {
  that(false, std::string(call) + ": " + text, line);
  std::exit(end());
}

#ifdef LOWBIT_NO_EXCEPTIONS

inline void value(const lowbit::status& done, const char* call, int line) {
  if (!done) {
    give_up(done.text(), call, line);
  }
}

template <class T>
T value(lowbit::result<T> outcome, const char* call, int line) {
  value(outcome.failure(), call, line);
  return *std::move(outcome);
}

inline const lowbit::status& why(const lowbit::status& done) { return done; }
template <class T>
const lowbit::status& why(const lowbit::result<T>& outcome) {
  return outcome.failure();
}

#define MUST(call) check::value(call, #call, __LINE__)
#define FAILS(call, want, word)                                                                  \
  do {                                                                                           \
    const auto outcome = call;                                                                   \
    check::failure(check::why(outcome).code(), LOWBIT_STATUS_##want, check::why(outcome).text(), \
                   word, #call, __LINE__);                                                       \
  } while (0)

#else

template <class Call>
auto value(Call call, const char* text, int line) -> decltype(call()) {
  try {
    return call();
  } catch (const lowbit::error& e) {
    give_up(e.what(), text, line);
  }
}

#define MUST(call) check::value([&] { return call; }, #call, __LINE__)
#define FAILS(call, want, word)                                                        \
  do {                                                                                 \
    try {                                                                              \
      (void)call;                                                                      \
      check::that(false, #call " did not fail", __LINE__);                             \
    } catch (const lowbit::error& e) {                                                 \
      check::failure(e.code(), LOWBIT_STATUS_##want, e.what(), word, #call, __LINE__); \
    }                                                                                  \
  } while (0)

#endif

}  // namespace check

#define CHECK(condition) check::that(condition, #condition, __LINE__)
