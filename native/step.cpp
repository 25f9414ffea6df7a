#include "step.h"

#include "api.h"
#include "paths.h"
#include "pool.h"

namespace sw {
SW_PATHS(StepKernels, step_kernels)

namespace {
// Rows that are worth a piece: fewer cost more to hand over than to compute.
constexpr int64_t PIECE_FLOATS = 1 << 14;
}  // namespace
}  // namespace sw

SW_API void sw_rms_norm(void* pool, const float* x, const float* w, float* y, int64_t rows, int64_t size, float eps, float offset) {
    using namespace sw;
    const auto kernel = step_kernels_of().rms_norm;
    const int64_t step = 1 + PIECE_FLOATS / (size + 1);
    each(static_cast<Pool*>(pool), (rows + step - 1) / step, [&](int64_t piece, int) {
        const int64_t first = piece * step, count = first + step < rows ? step : rows - first;
        kernel(x + first * size, w, y + first * size, count, size, eps, offset);
    });
}
