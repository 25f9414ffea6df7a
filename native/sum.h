// Sums of what several ranks hold, floats or doubles. Written once, compiled for each path.
#pragma once

#include <cstdint>

namespace sw {

struct SumKernels {
    // out[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + ..., for `count` >= 1 parts of n numbers. `out` may be one of them.
    void (*sum)(const void* const* parts, int count, float* out, int64_t n);
    void (*sum_wide)(const void* const* parts, int count, double* out, int64_t n);
    // Of doubles, rounded once.
    void (*sum_narrow)(const void* const* parts, int count, float* out, int64_t n);
};

}  // namespace sw
