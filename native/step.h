// The small parts of a step: norms. Written once over sixteen floats, compiled for each path.
#pragma once

#include <cstdint>

#include "stored.h"

namespace sw {

// Rows of `size` floats; weights lie as `stored` says.
struct StepKernels {
    // y[r] = x[r] / sqrt(mean(x[r]^2) + eps) * (offset + w).
    void (*rms_norm)(const float* x, const void* w, Stored stored, float* y, int64_t rows, int64_t size, float eps, float offset);
    // y[r] = (x[r] - mean(x[r])) / sqrt(variance(x[r]) + eps) * w + bias; `bias` may be null.
    void (*layer_norm)(const float* x, const void* w, const void* bias, Stored stored, float* y, int64_t rows, int64_t size, float eps);
};

}  // namespace sw
