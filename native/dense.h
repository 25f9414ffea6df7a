// Products with weights that are stored as numbers of 32 or 16 bits, in float32. Written once over sixteen floats, compiled for
// each path.
#pragma once

#include <cstdint>

#include "stored.h"

namespace sw {

// Rows of x and y stand `x_stride` and `y_stride` floats apart.
struct DenseProduct {
    const float* x;  // [rows, inputs]
    const void* w;   // `linear`: [outputs, inputs]; `across`: [inputs, outputs]
    const void* bias;  // [outputs], or null
    float* y;        // [rows, outputs]
    int64_t x_stride, y_stride, inputs, outputs;
    Stored stored, bias_stored;
};

// Up to this many rows the weights come from memory once, and set the pace; more are computed in blocks.
constexpr int64_t FEW_ROWS = 32;
// The most rows of a block.
constexpr int64_t BLOCK_ROWS = 128;
// Inputs whose products are summed at once: sixteen sums, one lane each, and these in the fixed tree of `sum`. Such sums are
// added up in rising order. So an element's bits depend on nothing but its row of x and its weights.
constexpr int64_t DEPTH = 1024;

// What the tile unit takes at once: inputs, and parts of an activation.
constexpr int TILE_INPUTS = 32, TILE_PARTS = 3;
// Rows that are cut into parts at a time: what that takes is bounded, and the engine plans with it. And outputs of a piece of them,
// whose sums stay in the second cache while the inputs pass by.
constexpr int64_t SLAB_ROWS = 128, SLAB_OUTPUTS = BLOCK_ROWS * DEPTH / SLAB_ROWS;

// A part of a product: outputs [out, out_end) of rows [row, row_end).
struct DensePart {
    int64_t row, row_end, out, out_end;
};

struct DenseKernels {
    // y = x · wᵀ + bias. `room`: BLOCK_ROWS · DEPTH floats, where there are more than FEW_ROWS rows.
    void (*linear)(const DenseProduct& product, const DensePart& part, float* room);
    // Where there is a tile unit, for bfloat16 weights; else null. A block of up to sixteen rows of x, of which `filled` are there, in
    // parts of bfloat16, `columns` (16, or all rows where they are fewer) side by side; and y = x · wᵀ + bias of such blocks.
    // `room`: SLAB_ROWS · SLAB_OUTPUTS floats from a cache line on, where there are more than FEW_ROWS rows.
    void (*split)(const DenseProduct& product, int64_t row, int columns, int filled, uint16_t* to);
    void (*linear_by_tiles)(const DenseProduct& product, const DensePart& part, const uint16_t* x, int columns, float* room);
    // y = x · w.
    void (*across)(const DenseProduct& product, const DensePart& part);
};

}  // namespace sw
