// Sums of what several ranks hold. Written once over sixteen floats, compiled for each path.
#pragma once

#include <cstdint>

namespace sw {

struct SumKernels {
    // out[i] = ((parts[0][i] + parts[1][i]) + parts[2][i]) + ..., for `count` >= 1 parts of n floats. `out` may be one of them.
    void (*sum)(const float* const* parts, int count, float* out, int64_t n);
};

}  // namespace sw
