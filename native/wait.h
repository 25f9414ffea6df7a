// Waiting for a word of memory to change: spinning first, then yielding the core, then asleep in the kernel. Works within a
// process and, on shared memory, between processes.
#pragma once

#include <atomic>
#include <cerrno>
#include <cstdint>
#include <ctime>

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

namespace sw {

inline void pause() {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#endif
}

inline int64_t now_ns() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000LL + t.tv_nsec;
}

// Sleeps while *word == seen, for up to `for_ns`; may return early. `shared`: the word is in memory of several processes.
inline void sleep_on(const std::atomic<uint32_t>& word, uint32_t seen, int64_t for_ns, bool shared) {
    const timespec t{static_cast<time_t>(for_ns / 1000000000LL), static_cast<long>(for_ns % 1000000000LL)};
    syscall(SYS_futex, &word, FUTEX_WAIT | (shared ? 0 : FUTEX_PRIVATE_FLAG), seen, &t, nullptr, 0);
}

inline void wake_all(std::atomic<uint32_t>& word, bool shared) {
    syscall(SYS_futex, &word, FUTEX_WAKE | (shared ? 0 : FUTEX_PRIVATE_FLAG), INT32_MAX, nullptr, nullptr, 0);
}

}  // namespace sw
