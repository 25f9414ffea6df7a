// Products of many rows by the tile unit: sixteen rows of activations by sixteen of weights, up to 64 inputs at a time.
//
// It gives the same bits as the other way: dots are whole numbers, and the floats are added in the same order. Included by
// quantised_kernels.h, for the path of CPUs that have the unit.

namespace sw {
namespace SW_ISA {

constexpr int TILE_ROWS = 16;           // rows of activations at a time
constexpr int64_t UNPACKED_BYTES = 65536;  // of weights as signed bytes
constexpr int64_t WIDE = 4;             // tiles for which activations are read once from the second cache
constexpr int TURNS = 4;                // groups whose dots have room

// Tiles 0-3 are dots [16 rows][16 outputs], 4-5 activations [16 rows][inputs], 6-7 weights [inputs / 4][16 outputs][4].
inline void configure(int inputs) {
    TileConfig c;
    for (int i = 0; i < 4; i++) c.bytes[i] = 64, c.rows[i] = 16;
    for (int i = 4; i < 6; i++) c.bytes[i] = static_cast<uint16_t>(inputs), c.rows[i] = 16;
    for (int i = 6; i < 8; i++) c.bytes[i] = 64, c.rows[i] = static_cast<uint8_t>(inputs / 4);
    _tile_loadconfig(&c);
}

// Packed weights of one tile as signed bytes, four inputs of sixteen outputs after another.
inline void unpack_bytes(const uint8_t* p, int64_t bytes, int bits, int8_t* out) {
    const __m512i four = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8), top = _mm512_set1_epi8(-128);
    for (int64_t i = 0; i < bytes; i += 64) {
        const __m512i v = _mm512_loadu_si512(p + i);
        ahead(p + i);
        if (bits == 8) {
            _mm512_store_si512(out + i, _mm512_xor_si512(v, top));
            continue;
        }
        _mm512_store_si512(out + 2 * i, _mm512_sub_epi8(_mm512_and_si512(v, four), eight));
        _mm512_store_si512(out + 2 * i + 64, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), four), eight));
    }
}

// The dots of one group to `out`, by the tiles D, A and B.
#define SW_DOTS(D, A, B)                       \
    {                                          \
        _tile_zero(D);                         \
        _tile_loadd(A, x, stride);             \
        _tile_loadd(B, w, 64);                 \
        _tile_dpbssd(D, A, B);                 \
        if (LONG) {                            \
            _tile_loadd(A, x + 64, stride);    \
            _tile_loadd(B, w + 1024, 64);      \
            _tile_dpbssd(D, A, B);             \
        }                                      \
        _tile_stored(D, out, 64);              \
    }

// Sixteen rows of one tile over a part's groups, `LONG` if they have more than 64 inputs.
template <class N, bool LONG>
struct Tiles {
    using Total = Sums<N>;
    using V = typename Total::V;
    const int8_t *x, *w;      // activations, and weights as signed bytes, of the first group
    const float* x_scale;     // of the first group and row; of the next group, `rows` on
    const uint16_t* w_scale;
    int64_t stride, rows, groups, group;
    alignas(64) int32_t dots[TURNS][TILE_ROWS][TILE];

    template <int TURN>
    __attribute__((always_inline)) void start(int64_t g) {
        if (g < groups) dots_of<TURN>(x + g * group, w + g * group * TILE, dots[TURN][0]);
    }

    template <int TURN>
    __attribute__((always_inline)) void dots_of(const int8_t* x, const int8_t* w, int32_t* out) const {
        if (TURN == 0) SW_DOTS(0, 4, 6)
        if (TURN == 1) SW_DOTS(1, 5, 7)
        if (TURN == 2) SW_DOTS(2, 4, 6)
        if (TURN == 3) SW_DOTS(3, 5, 7)
    }

    // The sums of group g, when the dots of the one after the next are on their way.
    template <int TURN>
    __attribute__((always_inline)) void step(int64_t g, V (&sums)[TILE_ROWS]) {
        start<(TURN + 2) % TURNS>(g + 2);
        if (g >= groups) return;
        const V scales = Total::of(F::f16(w_scale + g * TILE));
        const float* scale = x_scale + g * rows;
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) {
            const D dot = {_mm512_load_si512(dots[TURN][r])};
            sums[r] = fma(Total::of(dot), scales * Total::all(scale[r]), sums[r]);
        }
    }

    void all(const Part<N>& part, int64_t row, int64_t tile) {
        V sums[TILE_ROWS];  // not a member: what lies beside the dots would be written and read again each time
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) sums[r] = part.load(row + r, tile);
        start<0>(0);
        start<1>(1);
        for (int64_t g = 0; g < groups; g += TURNS) {
            step<0>(g, sums);
            step<1>(g + 1, sums);
            step<2>(g + 2, sums);
            step<3>(g + 3, sums);
        }
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) part.store(row + r, tile, sums[r]);
    }
};
#undef SW_DOTS

template <class N, bool LONG>
void multiply_tiles(const Part<N>& part, int64_t row, int64_t tile, const int8_t* weights) {
    const Rounded& x = part.x;
    const int64_t g = part.begin;
    Tiles<N, LONG> t;
    t.x = x.q + row * x.stride + g * x.group, t.w = weights;
    t.x_scale = x.scale + g * x.rows + row, t.w_scale = part.w.scale + (tile * x.groups + g) * TILE;
    t.stride = x.stride, t.rows = x.rows, t.groups = part.end - g, t.group = x.group;
    t.all(part, row, tile);
}

// The rows of a part, sixteen at a time, of `tiles` tiles from `tile` on; a last few rows go the other way.
template <class N, int BITS, bool LONG>
void multiply_unpacked(const Part<N>& part, int64_t last, int64_t tile, int64_t tiles, int8_t* weights) {
    const PackedWeight& w = part.w;
    const int64_t packed = (part.end - part.begin) * w.bytes(), size = packed * 8 / BITS;
    for (int64_t t = 0; t < tiles; t++)
        unpack_bytes(w.weight + ((tile + t) * w.groups + part.begin) * w.bytes(), packed, BITS, weights + t * size);
    written();
    int64_t row = part.row;
    for (; row + TILE_ROWS <= last; row += TILE_ROWS)
        for (int64_t t = 0; t < tiles; t++) multiply_tiles<N, LONG>(part, row, tile + t, weights + t * size);
    for (int64_t t = 0; t < tiles; t++) multiply_rows<N, BITS, 1>(part, row, last, tile + t);
}

// As product_of.
template <class N, int BITS>
void product_by_tiles(const Product<N>& p, int64_t first, int64_t last) {
    alignas(64) int8_t weights[UNPACKED_BYTES];
    const Rounded& x = p.x;
    const PackedWeight& w = p.w;
    configure(w.group < 64 ? w.group : 64);
    const int64_t groups = UNPACKED_BYTES / (WIDE * TILE * w.group);
    for (int64_t row = 0; row < x.rows; row += NEAR_ROWS) {
        const int64_t stop = row + NEAR_ROWS < x.rows ? row + NEAR_ROWS : x.rows;
        for (int64_t g = 0; g < w.groups; g += groups) {
            const int64_t end = g + groups < w.groups ? g + groups : w.groups;
            const Part<N> part{x, w, p.bias, p.y, p.wide, p.sums, g, end, row, first};
            for (int64_t tile = first; tile < last; tile += WIDE) {
                const int64_t tiles = tile + WIDE < last ? WIDE : last - tile;
                if (w.group > 64) multiply_unpacked<N, BITS, true>(part, stop, tile, tiles, weights);
                else multiply_unpacked<N, BITS, false>(part, stop, tile, tiles, weights);
            }
        }
    }
    _tile_release();
}

}  // namespace SW_ISA
}  // namespace sw
