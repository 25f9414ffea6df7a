#include "limits.h"

#include <algorithm>
#include <atomic>
#include <cstring>

#include "api.h"
#include "paths.h"
#include "pool.h"

namespace sw {
SW_PATHS(LimitKernels, limit_kernels)

namespace {
// A piece is far larger than what handing it over costs, and far smaller than a thread's share.
constexpr int64_t PIECE = 1 << 20;

template <class F>
void pieces(void* pool, int64_t count, const F& f) {
    each(static_cast<Pool*>(pool), (count + PIECE - 1) / PIECE, [&](int64_t piece, int) {
        const int64_t first = piece * PIECE;
        f(first, std::min(PIECE, count - first));
    });
}
}  // namespace
}  // namespace sw

// Reads `count` floats with all threads of the pool, and returns their sum, so that no read can be left out.
SW_API float sw_stream(void* pool, const float* x, int64_t count) {
    using namespace sw;
    const auto kernel = limit_kernels_of().stream;
    std::atomic<float> total{0.0f};
    pieces(pool, count, [&](int64_t first, int64_t size) {
        const float found = kernel(x + first, size);
        float before = total.load(std::memory_order_relaxed);
        while (!total.compare_exchange_weak(before, before + found, std::memory_order_relaxed)) continue;
    });
    return total.load(std::memory_order_relaxed);
}

// Copies `count` bytes with all threads of the pool.
SW_API void sw_copy(void* pool, const char* from, char* to, int64_t count) {
    sw::pieces(pool, count, [&](int64_t first, int64_t size) { std::memcpy(to + first, from + first, static_cast<size_t>(size)); });
}
