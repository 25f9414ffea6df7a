// Products with weights of 8 and 4 bits, and activations rounded to 8: whole numbers within a group, floats over the groups.
#pragma once

#include <cstdint>

#include "stored.h"

namespace sw {

constexpr int TILE = 16;  // rows of a weight that lie side by side

// Activations of `rows` rows, rounded group by group: q in -127..127, `stride` bytes from row to row, zeros behind the last
// column as far as the last group goes; [groups][rows] scales; and -8 times each group's sum of q, likewise.
struct Rounded {
    int8_t* q;
    float* scale;
    int32_t* eighths;
    int64_t rows, groups, stride;
    int group;
};

// A weight as shardwise/nn/kernels/packing.py describes it.
struct PackedWeight {
    uint8_t* weight;
    uint16_t* scale;
    int64_t rows, columns, groups;
    int group, bits;
    int64_t bytes() const { return static_cast<int64_t>(TILE) * group * bits / 8; }  // of a tile and group
};

// Rows of activations that should still be in the second cache when the next tile comes.
constexpr int64_t NEAR_ROWS = 256;

// y [x.rows, w.rows] = x · w + bias, which may be null. Groups are added up as N, float or double; doubles are rounded once to
// `y`, before the bias, or go to `wide` as they are, if that is given. `sums` has room for NEAR_ROWS · TILE numbers for each tile
// of a piece; each thread brings its own. `far`: results are too many for the second cache, and are stored past it.
template <class N>
struct Product {
    const Rounded& x;
    const PackedWeight& w;
    const float* bias;
    float* y;
    double* wide;
    N* sums;
    bool far;
};

struct QuantisedKernels {
    // Rounds the rows first..last-1 of x [rows, columns].
    void (*round_rows)(const float* x, int64_t columns, const Rounded& out, int64_t first, int64_t last);
    // The tiles first..last-1: y[:, 16·first : 16·last].
    void (*product)(const Product<float>& p, int64_t first, int64_t last);
    void (*product_wide)(const Product<double>& p, int64_t first, int64_t last);
    // Rounds `count` rows of `values` (`dtype` of Stored, `stride` elements from row to row), and writes them as the rows first..
    // of one tile; with the weight's last row, zeros behind it.
    void (*pack)(const void* values, int dtype, int64_t stride, int64_t count, const PackedWeight& w, int64_t first);
    // The weight's row as floats y [columns].
    void (*unpack_row)(const PackedWeight& w, int64_t row, float* y);
};

}  // namespace sw
