// The small parts of a step: norms, a gate. Written once over sixteen floats, compiled for each path.
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
    // y[i] = gate[i] / (1 + e^-gate[i]) * up[i].
    void (*silu_times)(const float* gate, const float* up, float* y, int64_t count);
    // y[r] = the greatest number of x[r], and where it is first; NaN and 0 where a number of x[r] is not finite.
    void (*best)(const float* x, double* y, int64_t rows, int64_t size);
};

}  // namespace sw
