#include "quantised.h"

#include <vector>

#include "api.h"
#include "paths.h"
#include "pool.h"

namespace sw {
SW_PATHS(QuantisedKernels, quantised_kernels)

namespace {

constexpr int64_t PIECE_FLOATS = 1 << 14;   // rounded in one piece
constexpr int64_t PIECE_BYTES = 1 << 17;    // of weights, in one piece
constexpr int64_t FEW_ROWS = 32;
constexpr int64_t LINE = 64;  // bytes
constexpr int64_t MANY_TILES = 8;
constexpr int64_t FAR_BYTES = 1 << 21;  // of results

int64_t ceil_of(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Blocks of sixteen rows are read as a whole.
int64_t kept_rows(int64_t rows) { return rows < TILE ? TILE : rows; }

// Room in `scratch`, which is as `sw_rounded_bytes` says: scales, sums, bytes.
Rounded rounded(char* scratch, int64_t rows, int64_t columns, int group) {
    Rounded r;
    r.rows = rows, r.group = group, r.groups = ceil_of(columns, group);
    // A line more than needed: rows that are a power of two apart would compete for the same places of a cache.
    r.stride = ceil_of(r.groups * group, 64) * 64 + 64;
    const int64_t numbers = ceil_of(rows * r.groups, 16) * 16 + 16;
    r.q = reinterpret_cast<int8_t*>(scratch);
    r.scale = reinterpret_cast<float*>(scratch + kept_rows(rows) * r.stride);
    r.eighths = reinterpret_cast<int32_t*>(r.scale + numbers);
    return r;
}

void round_all(Pool* pool, const float* x, int64_t columns, const Rounded& out) {
    const auto kernel = quantised_kernels_of().round_rows;
    const int64_t step = 1 + PIECE_FLOATS / (columns + 1);
    each(pool, ceil_of(out.rows, step), [&](int64_t piece, int) {
        const int64_t first = piece * step;
        kernel(x, columns, out, first, first + step < out.rows ? first + step : out.rows);
    });
}

// Tiles in a piece. Few rows: what comes from memory in some ten microseconds. Many rows: activations that are read for one
// tile are there for the next ones, too, as long as all threads find enough pieces.
int64_t tiles_of(const PackedWeight& w, int64_t rows, int64_t tiles, int threads) {
    int64_t step = ceil_of(PIECE_BYTES, w.groups * w.bytes() + 1);
    if (rows > FEW_ROWS) {
        const int64_t fair = tiles / (4 * threads);
        step = fair < MANY_TILES ? fair : MANY_TILES;
    }
    return step < 2 ? 2 : step + (step & 1);  // two tiles at a time
}

// The first place from p on where a line of the cache begins.
template <class N>
N* whole_lines(N* p) {
    return reinterpret_cast<N*>((reinterpret_cast<uintptr_t>(p) + LINE - 1) / LINE * LINE);
}

template <class N, class Kernel>
void multiply_all(Pool* pool, Kernel kernel, const Rounded& x, const PackedWeight& w, const float* bias, float* y, double* wide) {
    const int64_t tiles = ceil_of(w.rows, TILE), step = tiles_of(w, x.rows, tiles, pool ? pool->threads() : 1);
    const int64_t room = NEAR_ROWS * step * TILE + LINE / static_cast<int64_t>(sizeof(N));
    const bool far = x.rows * w.rows * static_cast<int64_t>(wide ? sizeof(double) : sizeof(float)) > FAR_BYTES;
    each(pool, ceil_of(tiles, step), [&](int64_t piece, int) {
        thread_local std::vector<N> sums;
        if (x.rows > 1 && static_cast<int64_t>(sums.size()) < room) sums.resize(static_cast<size_t>(room));
        const int64_t first = piece * step;
        kernel({x, w, bias, y, wide, whole_lines(sums.data()), far}, first, first + step < tiles ? first + step : tiles);
    });
}

PackedWeight packed(uint8_t* weight, uint16_t* scale, int64_t rows, int64_t columns, int group, int bits) {
    return {weight, scale, rows, columns, ceil_of(columns, group), group, bits};
}

}  // namespace
}  // namespace sw

// How much room `rows` rounded rows take.
SW_API int64_t sw_rounded_bytes(int64_t rows, int64_t columns, int group) {
    const sw::Rounded r = sw::rounded(nullptr, rows, columns, group);
    return sw::kept_rows(rows) * r.stride + 8 * (sw::ceil_of(rows * r.groups, 16) * 16 + 16);
}

// Rounds x [rows, columns] into `scratch`.
SW_API void sw_quantise_rows(void* pool, const float* x, char* scratch, int64_t rows, int64_t columns, int group) {
    using namespace sw;
    round_all(static_cast<Pool*>(pool), x, columns, rounded(scratch, rows, columns, group));
}

// The rows first.. of `rows`: x [count, columns].
void sw_quantise_some(const float* x, char* scratch, int64_t first, int64_t count, int64_t rows, int64_t columns, int group) {
    sw::Rounded out = sw::rounded(scratch, rows, columns, group);
    out.q += first * out.stride, out.scale += first, out.eighths += first;
    sw::quantised_kernels_of().round_rows(x, columns, out, 0, count);
}

// y [m, rows] = x [m, columns], rounded into `scratch` before if `x` is given, times the weight, plus bias (may be null). `sums`: 0,
// of floats; 1, of doubles, rounded to floats before the bias; 2, of doubles, and y is of doubles, too.
SW_API void sw_quantised_linear(void* pool, const float* x, char* scratch, uint8_t* weight, uint16_t* scale, const float* bias,
                                void* y, int64_t m, int64_t rows, int64_t columns, int group, int bits, int sums) {
    using namespace sw;
    const Rounded in = rounded(scratch, m, columns, group);
    if (x) round_all(static_cast<Pool*>(pool), x, columns, in);
    const PackedWeight w = packed(weight, scale, rows, columns, group, bits);
    const QuantisedKernels& kernels = quantised_kernels_of();
    Pool* threads = static_cast<Pool*>(pool);
    float* narrow = sums < 2 ? static_cast<float*>(y) : nullptr;
    double* wide = sums < 2 ? nullptr : static_cast<double*>(y);
    if (sums) multiply_all<double>(threads, kernels.product_wide, in, w, bias, narrow, wide);
    else multiply_all<float>(threads, kernels.product, in, w, bias, narrow, wide);
}

// y [count, columns]: the rows `ids` of a packed table of `rows` rows.
SW_API void sw_quantised_rows(uint8_t* weight, uint16_t* scale, const int64_t* ids, float* y, int64_t count, int64_t rows,
                              int64_t columns, int group, int bits) {
    using namespace sw;
    const PackedWeight w = packed(weight, scale, rows, columns, group, bits);
    const auto kernel = quantised_kernels_of().unpack_row;
    for (int64_t i = 0; i < count; i++) kernel(w, ids[i], y + i * columns);
}

// Rounds `count` rows of `values` (`dtype` of Stored, `stride` elements from row to row) as the rows first.. of a weight.
SW_API void sw_pack(void* pool, const void* values, int dtype, int64_t stride, int64_t count, int64_t first, uint8_t* weight,
                    uint16_t* scale, int64_t rows, int64_t columns, int group, int bits) {
    using namespace sw;
    if (count == 0) return;
    const PackedWeight w = packed(weight, scale, rows, columns, group, bits);
    const auto kernel = quantised_kernels_of().pack;
    const int64_t tile = first / TILE, last = (first + count - 1) / TILE, size = dtype == FLOAT32 ? 4 : 2;
    each(static_cast<Pool*>(pool), last - tile + 1, [&](int64_t piece, int) {
        int64_t begin = (tile + piece) * TILE, end = begin + TILE;
        begin = begin > first ? begin : first;
        end = end < first + count ? end : first + count;
        const char* from = static_cast<const char*>(values) + (begin - first) * stride * size;
        kernel(from, dtype, stride, end - begin, w, begin);
    });
}
