#include "step.h"

#include "api.h"
#include "paths.h"
#include "pool.h"

namespace sw {
SW_PATHS(StepKernels, step_kernels)

namespace {

// Floats that are worth a piece: fewer cost more to hand over than to compute.
constexpr int64_t PIECE_FLOATS = 1 << 14;
// Where rows do not matter, pieces are made of so many floats.
constexpr int64_t LINE = 1024;

// f(first row, rows) for each piece of `rows` rows of `size` floats.
template <class Call>
void pieces(void* pool, int64_t rows, int64_t size, const Call& f) {
    const int64_t step = 1 + PIECE_FLOATS / (size + 1);
    each(static_cast<Pool*>(pool), (rows + step - 1) / step, [&](int64_t piece, int) {
        const int64_t first = piece * step;
        f(first, first + step < rows ? step : rows - first);
    });
}

}  // namespace
}  // namespace sw

SW_API void sw_rms_norm(void* pool, const float* x, const void* w, int stored, float* y, int64_t rows, int64_t size, float eps,
                        float offset) {
    using namespace sw;
    const auto kernel = step_kernels_of().rms_norm;
    pieces(pool, rows, size, [&](int64_t first, int64_t count) {
        kernel(x + first * size, w, static_cast<Stored>(stored), y + first * size, count, size, eps, offset);
    });
}

SW_API void sw_layer_norm(void* pool, const float* x, const void* w, const void* bias, int stored, float* y, int64_t rows,
                          int64_t size, float eps) {
    using namespace sw;
    const auto kernel = step_kernels_of().layer_norm;
    pieces(pool, rows, size, [&](int64_t first, int64_t count) {
        kernel(x + first * size, w, bias, static_cast<Stored>(stored), y + first * size, count, size, eps);
    });
}

SW_API void sw_silu_times(void* pool, const float* gate, const float* up, float* y, int64_t count) {
    using namespace sw;
    const auto kernel = step_kernels_of().silu_times;
    pieces(pool, (count + LINE - 1) / LINE, LINE, [&](int64_t first, int64_t lines) {
        const int64_t begin = first * LINE, end = begin + lines * LINE;
        kernel(gate + begin, up + begin, y + begin, (end < count ? end : count) - begin);
    });
}

SW_API void sw_greatest(void* pool, const float* x, double* y, int64_t rows, int64_t size) {
    using namespace sw;
    const auto kernel = step_kernels_of().best;
    pieces(pool, rows, size, [&](int64_t first, int64_t count) { kernel(x + first * size, y + 2 * first, count, size); });
}
