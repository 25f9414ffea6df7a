// The small parts of a step: norms. Written once over sixteen floats, compiled for each path.
#pragma once

#include <cstdint>

namespace sw {

struct StepKernels {
    // y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * (offset + w), for rows of `size` floats.
    void (*rms_norm)(const float* x, const float* w, float* y, int64_t rows, int64_t size, float eps, float offset);
};

}  // namespace sw
