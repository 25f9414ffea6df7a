#include "dense.h"

#include <memory>
#include <vector>

#include "api.h"
#include "paths.h"
#include "pool.h"

namespace sw {
SW_PATHS(DenseKernels, dense_kernels)

namespace {

// What one piece reads of the weights: enough to be worth handing over, little enough that threads end together.
constexpr int64_t PIECE_BYTES = 1 << 17;
constexpr int64_t PIECE_OUTPUTS = 256;

int64_t up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows and outputs of a piece, both multiples of a tile's.
struct Pieces {
    int64_t rows, outputs, down, across;

    Pieces(int64_t all_rows, const DenseProduct& p, int threads) {
        const int64_t bytes = p.inputs * (p.stored == FLOAT32 ? 4 : 2) + 1;
        const int64_t blocks = (all_rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
        if (all_rows <= FEW_ROWS) {
            rows = all_rows;
            outputs = up(PIECE_BYTES / bytes + 1, 4);
        } else {
            rows = up((all_rows + blocks - 1) / blocks, 4);
            outputs = least(PIECE_OUTPUTS, up((p.outputs + 2 * threads - 1) / (2 * threads), 4));
        }
        down = (all_rows + rows - 1) / rows;
        across = (p.outputs + outputs - 1) / outputs;
    }
    int64_t count() const { return down * across; }
    // Blocks of rows first: neighbours read the same weights.
    DensePart part(int64_t i, int64_t all_rows, int64_t all_outputs) const {
        const int64_t row = i % down * rows, out = i / down * outputs;
        return {row, least(row + rows, all_rows), out, least(out + outputs, all_outputs)};
    }
};

// Room for a block of x, for each thread that ever computes one.
float* room() {
    struct alignas(64) Floats {
        float at[BLOCK_ROWS * DEPTH];
    };
    static thread_local std::unique_ptr<Floats> floats;
    if (!floats) floats.reset(new Floats);
    return floats->at;
}

int threads_of(Pool* pool) { return pool ? pool->threads() : 1; }

uint16_t* parts_room(int64_t count) {
    static thread_local std::vector<uint16_t> numbers;
    if (static_cast<int64_t>(numbers.size()) < count + 32) numbers.resize(static_cast<size_t>(count + 32));
    const auto at = reinterpret_cast<uintptr_t>(numbers.data());
    return numbers.data() + (64 - at % 64) % 64 / sizeof(uint16_t);
}

// Outputs of a piece: few rows read so many bytes of weights, or all where there is one thread; of many, all threads get equally
// many pieces.
int64_t piece_outputs(const DenseProduct& p, int64_t rows, int threads) {
    if (rows <= FEW_ROWS && threads == 1) return up(p.outputs, 32);
    if (rows <= FEW_ROWS) return up(PIECE_BYTES / (2 * p.inputs + 1) + 1, 32);
    const int64_t turns = (p.outputs + SLAB_OUTPUTS * threads - 1) / (SLAB_OUTPUTS * threads);
    return up((p.outputs + turns * threads - 1) / (turns * threads), 32);
}

void by_tiles(Pool* pool, const DenseKernels& kernels, const DenseProduct& p, int64_t rows) {
    const int columns = static_cast<int>(least(rows, 16));
    const int64_t block = (p.inputs + TILE_INPUTS - 1) / TILE_INPUTS * TILE_PARTS * TILE_INPUTS * columns;
    const int64_t outputs = piece_outputs(p, rows, threads_of(pool)), across = (p.outputs + outputs - 1) / outputs;
    const int64_t slabs = (rows + SLAB_ROWS - 1) / SLAB_ROWS, size = up((rows + slabs - 1) / slabs, 32);
    for (int64_t slab = 0; slab < rows; slab += size) {
        const int64_t end = least(slab + size, rows), blocks = (end - slab + 15) / 16;
        uint16_t* parts = parts_room(blocks * block);
        each(pool, blocks, [&](int64_t i, int) {
            const int64_t row = slab + 16 * i;
            kernels.split(p, row, columns, static_cast<int>(least(end - row, 16)), parts + i * block);
        });
        each(pool, across, [&](int64_t i, int) {
            const DensePart part{slab, end, i * outputs, least((i + 1) * outputs, p.outputs)};
            kernels.linear_by_tiles(p, part, parts, columns, end - slab > FEW_ROWS ? room() : nullptr);
        });
    }
}

}  // namespace
}  // namespace sw

// x [rows, inputs], w [outputs, inputs] and bias [outputs] to y [rows, outputs]; `stored` and `bias_stored` are `Stored`.
SW_API void sw_linear(void* pool, const float* x, const void* w, int stored, const void* bias, int bias_stored, float* y,
                      int64_t rows, int64_t inputs, int64_t outputs) {
    using namespace sw;
    if (!rows || !outputs) return;
    const auto& kernels = dense_kernels_of();
    const auto kernel = kernels.linear;
    const DenseProduct product{x, w, bias, y, inputs, outputs, inputs, outputs, static_cast<Stored>(stored), static_cast<Stored>(bias_stored)};
    if (kernels.split && stored == BFLOAT16 && inputs) return by_tiles(static_cast<Pool*>(pool), kernels, product, rows);
    const Pieces pieces(rows, product, threads_of(static_cast<Pool*>(pool)));
    each(static_cast<Pool*>(pool), pieces.count(), [&](int64_t piece, int) {
        const DensePart part = pieces.part(piece, rows, outputs);
        kernel(product, part, part.row_end - part.row > FEW_ROWS ? room() : nullptr);
    });
}

// x [rows, heads, inputs] and y [rows, heads, outputs]; a head's w begins `w_stride` numbers after that of the head before,
// [outputs, inputs] or, `turned`, [inputs, outputs].
SW_API void sw_by_head(void* pool, const float* x, const void* w, int stored, int64_t w_stride, int turned, float* y, int64_t rows,
                       int64_t heads, int64_t inputs, int64_t outputs) {
    using namespace sw;
    if (!rows || !outputs) return;
    const auto& kernels = dense_kernels_of();
    const int64_t bytes = stored == FLOAT32 ? 4 : 2, blocks = (rows + BLOCK_ROWS - 1) / BLOCK_ROWS;
    if (kernels.split && stored == BFLOAT16 && inputs && !turned) {
        for (int64_t head = 0; head < heads; head++)
            by_tiles(static_cast<Pool*>(pool), kernels,
                     {x + head * inputs, static_cast<const char*>(w) + head * w_stride * bytes, nullptr, y + head * outputs,
                      heads * inputs, heads * outputs, inputs, outputs, BFLOAT16, FLOAT32}, rows);
        return;
    }
    each(static_cast<Pool*>(pool), heads * blocks, [&](int64_t piece, int) {
        const int64_t head = piece / blocks, row = piece % blocks * BLOCK_ROWS;
        const DenseProduct product{x + head * inputs, static_cast<const char*>(w) + head * w_stride * bytes, nullptr, y + head * outputs,
                              heads * inputs, heads * outputs, inputs, outputs, static_cast<Stored>(stored), FLOAT32};
        const DensePart part{row, least(row + BLOCK_ROWS, rows), 0, outputs};
        if (turned) kernels.across(product, part);
        else kernels.linear(product, part, part.row_end - part.row > FEW_ROWS ? room() : nullptr);
    });
}
