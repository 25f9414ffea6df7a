// Products with bfloat16 weights by the tile unit, in float32: an activation is the sum of three bfloat16 numbers of eight bits each,
// and their products with a weight are exact in float32. Weights are read as they lie, sixteen outputs a tile.
//
// Included by dense_kernels.h, for the path of CPUs that have the unit.

namespace sw {
namespace SW_ISA {
namespace dense {

// Tiles 0-3 are sums [16 outputs][columns], 4-5 weights [16 outputs][32 inputs], 6-7 parts of activations [16 pairs][columns][2].
inline void configure(int columns) {
    TileConfig c;
    for (int i = 0; i < 8; i++) c.rows[i] = 16, c.bytes[i] = static_cast<uint16_t>(i == 4 || i == 5 ? 64 : 4 * columns);
    _tile_loadconfig(&c);
}

// Sixteen floats cut into the upper, middle and lower eight bits of their fractions. What is not finite is in the first alone.
inline void cut(__m512 x, __m512i (&parts)[TILE_PARTS]) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u)), bits = _mm512_castps_si512(x);
    const __mmask16 odd = _mm512_cmpeq_epi32_mask(_mm512_and_si512(bits, _mm512_set1_epi32(0x7f800000)), _mm512_set1_epi32(0x7f800000));
    // A NaN whose bits are all below the cut stays one.
    const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    const __m512i first = _mm512_mask_or_epi32(_mm512_and_si512(bits, upper), nan, bits, _mm512_set1_epi32(0x00400000));
    const __m512 rest = _mm512_maskz_sub_ps(static_cast<__mmask16>(~odd), x, _mm512_castsi512_ps(first));
    const __m512i second = _mm512_and_si512(_mm512_castps_si512(rest), upper);
    const __m512 last = _mm512_sub_ps(rest, _mm512_castsi512_ps(second));
    parts[0] = first, parts[1] = second, parts[2] = _mm512_castps_si512(last);
}

// The upper halves of 32 numbers, in pairs.
inline __m512i halves(__m512i low, __m512i high) {
    alignas(64) static const uint16_t odd[32] = {1,  3,  5,  7,  9,  11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31,
                                                 33, 35, 37, 39, 41, 43, 45, 47, 49, 51, 53, 55, 57, 59, 61, 63};
    return _mm512_permutex2var_epi16(low, _mm512_load_si512(odd), high);
}

// One block of up to sixteen rows: for each 32 inputs its three tiles, one after another.
void split(const DenseProduct& p, int64_t row, int columns, int filled, uint16_t* to) {
    const int64_t chunks = (p.inputs + TILE_INPUTS - 1) / TILE_INPUTS;
    const __mmask16 some = static_cast<__mmask16>((1u << columns) - 1);
    for (int64_t c = 0; c < chunks; c++) {
        __m512 pairs[TILE_PARTS][16] = {};
        const int64_t left = p.inputs - c * TILE_INPUTS;
        for (int m = 0; m < filled; m++) {
            const float* x = p.x + (row + m) * p.x_stride + c * TILE_INPUTS;
            __m512i low[TILE_PARTS], high[TILE_PARTS];
            cut((left >= 16 ? F::load(x) : F::load(x, static_cast<int>(left))).v, low);
            cut((left >= 32 ? F::load(x + 16) : left > 16 ? F::load(x + 16, static_cast<int>(left - 16)) : F::all(0.0f)).v, high);
            for (int s = 0; s < TILE_PARTS; s++) pairs[s][m] = _mm512_castsi512_ps(halves(low[s], high[s]));
        }
        for (int s = 0; s < TILE_PARTS; s++) {
            uint16_t* tile = to + (c * TILE_PARTS + s) * TILE_INPUTS * columns;
            if (columns == 1) {
                _mm512_storeu_ps(tile, pairs[s][0]);
                continue;
            }
            turn_over(pairs[s]);
            for (int pair = 0; pair < 16; pair++) _mm512_mask_storeu_ps(tile + pair * 2 * columns, some, pairs[s][pair]);
        }
    }
}

// Sixteen outputs of a weight: as they lie, or, where there are fewer or the inputs end within a tile, a copy with zeros behind.
struct Weights {
    const uint16_t* from;
    int64_t inputs;
    int outs;
    alignas(64) uint16_t edge[16 * TILE_INPUTS];

    // Tile `c`, and the bytes from row to row.
    const uint16_t* tile(int64_t c, int64_t& bytes) {
        const int64_t left = inputs - c * TILE_INPUTS;
        if (outs == 16 && left >= TILE_INPUTS) {
            bytes = inputs * 2;
            return from + c * TILE_INPUTS;
        }
        std::memset(edge, 0, sizeof edge);
        const size_t size = static_cast<size_t>(left < TILE_INPUTS ? left : TILE_INPUTS) * sizeof(uint16_t);
        for (int n = 0; n < outs; n++) std::memcpy(edge + n * TILE_INPUTS, from + n * inputs + c * TILE_INPUTS, size);
        written();
        bytes = TILE_INPUTS * 2;
        return edge;
    }
};

// One or two tiles of weights by one or two blocks of rows, over chunks [from, end), into tiles 0-3.
template <bool TWO_W, bool TWO_X>
inline void multiply(Weights& first, Weights& second, const uint16_t* x, int64_t block, int columns, int64_t from, int64_t end) {
    const int64_t x_bytes = 4 * columns, size = TILE_INPUTS * columns;
    for (int64_t c = from; c < end; c++) {
        int64_t bytes = 0;
        const uint16_t* w = first.tile(c, bytes);
        _tile_loadd(4, w, bytes);
        if (TWO_W) {
            w = second.tile(c, bytes);
            _tile_loadd(5, w, bytes);
        }
#pragma GCC unroll 3
        for (int s = 0; s < TILE_PARTS; s++) {
            const uint16_t* part = x + (c * TILE_PARTS + s) * size;
            _tile_loadd(6, part, x_bytes);
            _tile_dpbf16ps(0, 4, 6);
            if (TWO_W) _tile_dpbf16ps(1, 5, 6);
            if (TWO_X) {
                _tile_loadd(7, part + block, x_bytes);
                _tile_dpbf16ps(2, 4, 7);
                if (TWO_W) _tile_dpbf16ps(3, 5, 7);
            }
        }
    }
}

// A tile of sums to y. Where a weight or an activation is not finite, a part of nothing may have made a NaN of what is infinite:
// such an element is computed again, without parts.
inline void put(const DenseProduct& p, const float* sums, int64_t row, int64_t rows, int64_t out, int outs, int columns) {
    const __mmask16 some = static_cast<__mmask16>((1u << columns) - 1), there = static_cast<__mmask16>((1u << outs) - 1);
    __m512 turned[16];
    for (int n = 0; n < 16; n++) turned[n] = _mm512_maskz_loadu_ps(some, sums + n * columns);
    turn_over(turned);
    for (int m = 0; m < rows; m++) {
        float* y = p.y + (row + m) * p.y_stride + out;
        _mm512_mask_storeu_ps(y, there, turned[m]);
        if (__builtin_expect(!_mm512_mask_cmp_ps_mask(there, turned[m], turned[m], _CMP_UNORD_Q), 1)) continue;
        for (int n = 0; n < outs; n++)
            if (y[n] != y[n]) linear_of<Bfloat16>(p, {row + m, row + m + 1, out + n, out + n + 1}, nullptr);
    }
}

// Four tiles of sums, of two of outputs by two of rows, to y.
inline void put_all(const DenseProduct& p, const float (*sums)[256], const DensePart& part, int64_t row, int64_t out, int columns) {
    for (int i = 0; i < 4; i++) {
        const int64_t r = row + i / 2 * 16, o = out + i % 2 * 16, rows = part.row_end - r, outs = part.out_end - o;
        if (rows > 0 && outs > 0) put(p, sums[i], r, rows < 16 ? rows : 16, o, outs < 16 ? static_cast<int>(outs) : 16, columns);
    }
}

inline void store(float (*sums)[256], int columns) {
    _tile_stored(0, sums[0], 4 * columns);
    _tile_stored(1, sums[1], 4 * columns);
    _tile_stored(2, sums[2], 4 * columns);
    _tile_stored(3, sums[3], 4 * columns);
    written();
}

inline void clear() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

inline void load(const float (*sums)[256]) {
    _tile_loadd(0, sums[0], 64);
    _tile_loadd(1, sums[1], 64);
    _tile_loadd(2, sums[2], 64);
    _tile_loadd(3, sums[3], 64);
}

// Up to 32 outputs.
struct TwoWeights {
    Weights first, second;
    bool two;

    TwoWeights(const DenseProduct& p, int64_t out, int64_t out_end)
        : first{static_cast<const uint16_t*>(p.w) + out * p.inputs, p.inputs, static_cast<int>(out_end - out < 16 ? out_end - out : 16), {}},
          second{first.from, p.inputs, 0, {}}, two(out_end - out > 16) {
        if (!two) return;
        second.from += 16 * p.inputs;
        second.outs = static_cast<int>(out_end - out < 32 ? out_end - out - 16 : 16);
    }

    // By one or two blocks of rows.
    void multiply(const uint16_t* x, int64_t block, int columns, bool two_x, int64_t from, int64_t end) {
        if (two && two_x) dense::multiply<true, true>(first, second, x, block, columns, from, end);
        else if (two) dense::multiply<true, false>(first, second, x, block, columns, from, end);
        else if (two_x) dense::multiply<false, true>(first, second, x, block, columns, from, end);
        else dense::multiply<false, false>(first, second, x, block, columns, from, end);
    }
};

// The CPU's own prefetching sees what is read on within a page of 4 KiB, and has to learn anew at the next: 32 rows that begin one at
// once cost a microsecond. So some chunks before, the next page's first two lines are asked for; earlier, or more lines, would hold
// up what is wanted before them.
constexpr int64_t PAGE = 4096, LAST = 4, ASKED = 32 / LAST;

inline void ask(const DenseProduct& p, int64_t out, int64_t input) {
    const int64_t end = out + ASKED < p.outputs ? out + ASKED : p.outputs;
    for (; out < end; out++) {
        const uint16_t* w = static_cast<const uint16_t*>(p.w) + out * p.inputs + input;
        __builtin_prefetch(w, 0, 2);
        __builtin_prefetch(w + (input + TILE_INPUTS < p.inputs ? TILE_INPUTS : 0), 0, 2);
    }
}

// Chunks of a row from `w` on until a page begins.
inline int64_t chunks_of_page(const uint16_t* w) {
    constexpr int64_t bytes = TILE_INPUTS * sizeof(uint16_t);
    return (PAGE - static_cast<int64_t>(reinterpret_cast<uintptr_t>(w) % PAGE) + bytes - 1) / bytes;
}

// Up to FEW_ROWS rows: all inputs of 32 outputs after another, as they lie in memory.
void few_by_tiles(const DenseProduct& p, const DensePart& part, const uint16_t* x, int columns) {
    const int64_t chunks = (p.inputs + TILE_INPUTS - 1) / TILE_INPUTS, block = chunks * TILE_PARTS * TILE_INPUTS * columns;
    const bool two_x = part.row + 16 < part.row_end;
    alignas(64) float sums[4][256];
    for (int64_t out = part.out; out < part.out_end; out += 32) {
        TwoWeights w(p, out, part.out_end);
        clear();
        for (int64_t c = 0; c < chunks;) {
            const int64_t page = c + chunks_of_page(w.first.from + c * TILE_INPUTS), stop = page < chunks ? page : chunks;
            const int64_t last = stop - LAST > c ? stop - LAST : c;
            w.multiply(x, block, columns, two_x, c, last);
            for (c = last; c < stop; c++) {
                const int64_t row = (c - last) * ASKED;
                if (stop < chunks) ask(p, out + row, stop * TILE_INPUTS);
                else ask(p, out + 32 + row, 0);
                w.multiply(x, block, columns, two_x, c, c + 1);
            }
        }
        store(sums, columns);
        put_all(p, sums, part, part.row, out, columns);
    }
}

// Of the rows of a slab, in parts, so much stays in the second cache.
constexpr int64_t NEAR_BYTES = 768 << 10;

// Asks for the lines of y that are written next.
inline void own(const DenseProduct& p, const DensePart& part, int64_t row, int64_t out) {
    for (int64_t m = row; m < row + 32 && m < part.row_end; m++) {
        const float* y = p.y + m * p.y_stride + out;
        __builtin_prefetch(y, 1);
        __builtin_prefetch(y + (out + 16 < part.out_end ? 16 : 0), 1);
    }
}

// Many rows: some inputs of all outputs before the next; sums wait in `room`, four tiles after another.
void many_by_tiles(const DenseProduct& p, const DensePart& part, const uint16_t* x, float* room) {
    const int64_t chunks = (p.inputs + TILE_INPUTS - 1) / TILE_INPUTS, block = chunks * TILE_PARTS * TILE_INPUTS * 16;
    const int64_t size = NEAR_BYTES / ((part.row_end - part.row + 15) / 16 * TILE_PARTS * TILE_INPUTS * 32);
    for (int64_t from = 0; from < chunks; from += size) {
        const int64_t end = from + size < chunks ? from + size : chunks;
        auto* sums = reinterpret_cast<float(*)[256]>(room);
        for (int64_t out = part.out; out < part.out_end; out += 32) {
            TwoWeights w(p, out, part.out_end);
            for (int64_t row = part.row; row < part.row_end; row += 32, sums += 4) {
                if (from == 0) clear();
                else load(sums);
                if (end == chunks) own(p, part, row, out);
                w.multiply(x + (row - part.row) / 16 * block, block, 16, row + 16 < part.row_end, from, end);
                store(sums, 16);
                if (end == chunks) put_all(p, sums, part, row, out, 16);
            }
        }
    }
}

// Outputs [out, out_end) of blocks of rows from `row` on, which `x` has in parts.
void linear_by_tiles(const DenseProduct& p, const DensePart& part, const uint16_t* x, int columns, float* room) {
    configure(columns);
    if (part.row_end - part.row <= FEW_ROWS) few_by_tiles(p, part, x, columns);
    else many_by_tiles(p, part, x, room);
    _tile_release();
    finish(p, part);
}

}  // namespace dense
}  // namespace SW_ISA
}  // namespace sw
