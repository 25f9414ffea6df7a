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

// One block of up to sixteen rows: for each 32 inputs its three tiles, one after another.
void split(const DenseProduct& p, int64_t row, int columns, int filled, uint16_t* to) {
    const int64_t chunks = (p.inputs + TILE_INPUTS - 1) / TILE_INPUTS;
    for (int64_t c = 0; c < chunks; c++) {
        for (int m = 0; m < columns; m++) {
            const float* x = p.x + (row + m) * p.x_stride + c * TILE_INPUTS;
            const int64_t left = m < filled ? p.inputs - c * TILE_INPUTS : 0;
            __m512i low[TILE_PARTS], high[TILE_PARTS];
            cut((left >= 16 ? F::load(x) : F::load(x, static_cast<int>(left))).v, low);
            cut((left >= 32 ? F::load(x + 16) : left > 16 ? F::load(x + 16, static_cast<int>(left - 16)) : F::all(0.0f)).v, high);
            for (int s = 0; s < TILE_PARTS; s++) {
                alignas(64) uint32_t pairs[16];
                const __m256i a = _mm512_cvtepi32_epi16(_mm512_srli_epi32(low[s], 16)), b = _mm512_cvtepi32_epi16(_mm512_srli_epi32(high[s], 16));
                _mm512_store_si512(pairs, _mm512_inserti64x4(_mm512_castsi256_si512(a), b, 1));
                uint16_t* tile = to + (c * TILE_PARTS + s) * TILE_INPUTS * columns + 2 * m;
                for (int pair = 0; pair < 16; pair++) std::memcpy(tile + pair * 2 * columns, pairs + pair, 4);
            }
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
            // Some tiles on: each row's next lines.
            const char* next = reinterpret_cast<const char*>(from + c * TILE_INPUTS) + AHEAD_BYTES;
            for (int n = 0; n < 16; n++) __builtin_prefetch(next + n * bytes);
            return from + c * TILE_INPUTS;
        }
        std::memset(edge, 0, sizeof edge);
        const size_t size = static_cast<size_t>(left < TILE_INPUTS ? left : TILE_INPUTS) * sizeof(uint16_t);
        for (int n = 0; n < outs; n++) std::memcpy(edge + n * TILE_INPUTS, from + n * inputs + c * TILE_INPUTS, size);
        written();
        bytes = TILE_INPUTS * 2;
        return edge;
    }
    static constexpr int64_t AHEAD_BYTES = 512;
};

// One or two tiles of weights by one or two blocks of rows, over all inputs, into tiles 0-3.
template <bool TWO_W, bool TWO_X>
void multiply(Weights& first, Weights& second, const uint16_t* x, int64_t block, int columns) {
    const int64_t chunks = (first.inputs + TILE_INPUTS - 1) / TILE_INPUTS, x_bytes = 4 * columns, size = TILE_INPUTS * columns;
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
    for (int64_t c = 0; c < chunks; c++) {
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
    for (int64_t m = 0; m < rows; m++) {
        float* y = p.y + (row + m) * p.y_stride + out;
        for (int n = 0; n < outs; n++) {
            y[n] = sums[n * columns + m];
            if (__builtin_expect(y[n] != y[n], 0)) linear_of<Bfloat16>(p, {row + m, row + m + 1, out + n, out + n + 1}, nullptr);
        }
    }
}

// Outputs [out, out_end) of blocks of rows from `row` on, which `x` has in parts.
void linear_by_tiles(const DenseProduct& p, const DensePart& part, const uint16_t* x, int columns) {
    const int64_t chunks = (p.inputs + TILE_INPUTS - 1) / TILE_INPUTS, block = chunks * TILE_PARTS * TILE_INPUTS * columns;
    const auto* w = static_cast<const uint16_t*>(p.w);
    configure(columns);
    for (int64_t out = part.out; out < part.out_end; out += 32) {
        const auto outs = [&](int64_t from) { return static_cast<int>(from + 16 < part.out_end ? 16 : part.out_end - from); };
        const bool two_w = out + 16 < part.out_end;
        Weights first{w + out * p.inputs, p.inputs, outs(out), {}};
        Weights second{two_w ? w + (out + 16) * p.inputs : w, p.inputs, two_w ? outs(out + 16) : 0, {}};
        const uint16_t* at = x;
        for (int64_t row = part.row; row < part.row_end; row += 32, at += 2 * block) {
            const bool two_x = row + 16 < part.row_end;
            if (two_w && two_x) multiply<true, true>(first, second, at, block, columns);
            else if (two_w) multiply<true, false>(first, second, at, block, columns);
            else if (two_x) multiply<false, true>(first, second, at, block, columns);
            else multiply<false, false>(first, second, at, block, columns);
            alignas(64) float sums[4][16 * 16];
            const int64_t bytes = 4 * columns, rows = part.row_end - row;
            _tile_stored(0, sums[0], bytes);
            _tile_stored(1, sums[1], bytes);
            _tile_stored(2, sums[2], bytes);
            _tile_stored(3, sums[3], bytes);
            written();
            put(p, sums[0], row, rows < 16 ? rows : 16, out, first.outs, columns);
            if (two_w) put(p, sums[1], row, rows < 16 ? rows : 16, out + 16, second.outs, columns);
            if (two_x) put(p, sums[2], row + 16, rows < 32 ? rows - 16 : 16, out, first.outs, columns);
            if (two_w && two_x) put(p, sums[3], row + 16, rows < 32 ? rows - 16 : 16, out + 16, second.outs, columns);
        }
    }
    _tile_release();
    finish(p, part);
}

}  // namespace dense
}  // namespace SW_ISA
}  // namespace sw
