// Products of many rows by the tile unit: sixteen rows of activations by sixteen of weights, up to 64 inputs at a time.
//
// It gives the same bits as the other way: dots are whole numbers, and the floats are added in the same order. Included by
// quantised_kernels.h, for the path of CPUs that have the unit.

namespace sw {
namespace SW_ISA {

constexpr int TILE_ROWS = 16;           // rows of activations at a time
constexpr int64_t UNPACKED_BYTES = 16384;  // of weights as signed bytes, in the first cache
constexpr int TURNS = 4, AHEAD = 2;     // room for dots of so many groups, of which so many are ahead of the sums

// As LDTILECFG reads it.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {};
    uint8_t rows[16] = {};
};

// Tiles 0-3 are dots [16 rows][16 outputs], 4-5 activations [16 rows][inputs], 6-7 weights [inputs / 4][16 outputs][4].
inline void configure(int inputs) {
    TileConfig c;
    for (int i = 0; i < 4; i++) c.bytes[i] = 64, c.rows[i] = 16;
    for (int i = 4; i < 6; i++) c.bytes[i] = static_cast<uint16_t>(inputs), c.rows[i] = 16;
    for (int i = 6; i < 8; i++) c.bytes[i] = 64, c.rows[i] = static_cast<uint8_t>(inputs / 4);
    _tile_loadconfig(&c);
}

// The compiler does not know what the instructions for tiles read.
inline void written() { __asm__ volatile("" ::: "memory"); }

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
#define SW_DOTS(D, A, B)                                                 \
    _tile_zero(D);                                                       \
    _tile_loadd(A, x, stride);                                           \
    _tile_loadd(B, w, 64);                                               \
    _tile_dpbssd(D, A, B);                                               \
    if (group > 64) {                                                    \
        _tile_loadd(A, x + 64, stride);                                  \
        _tile_loadd(B, w + 1024, 64);                                    \
        _tile_dpbssd(D, A, B);                                           \
    }                                                                    \
    _tile_stored(D, out, 64);

inline void dots_of(int turn, const int8_t* x, int64_t stride, const int8_t* w, int group, int32_t* out) {
    switch (turn & 3) {
        case 0: { SW_DOTS(0, 4, 6) break; }
        case 1: { SW_DOTS(1, 5, 7) break; }
        case 2: { SW_DOTS(2, 4, 6) break; }
        default: { SW_DOTS(3, 5, 7) break; }
    }
}
#undef SW_DOTS

// Sixteen rows of one tile over the part's groups; `signed_weights` are theirs.
inline void multiply_tiles(const Part& part, int64_t row, int64_t tile, const int8_t* signed_weights) {
    const Rounded& x = part.x;
    const int group = x.group;
    const int64_t groups = x.groups;
    alignas(64) int32_t dots[TURNS][TILE_ROWS][TILE];
    F sums[TILE_ROWS];
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) sums[r] = part.load(row + r, tile);
    const int8_t* q = x.q + row * x.stride;
    const float* scale = x.scale + row * groups;
    const uint16_t* w_scale = part.w.scale + tile * groups * TILE;
    const auto start = [&](int64_t g) {
        const int turn = static_cast<int>(g % TURNS);
        dots_of(turn, q + g * group, x.stride, signed_weights + (g - part.begin) * group * TILE, group, dots[turn][0]);
    };
    for (int64_t g = part.begin; g < part.begin + AHEAD && g < part.end; g++) start(g);
    for (int64_t g = part.begin; g < part.end; g++) {
        if (g + AHEAD < part.end) start(g + AHEAD);
        const int turn = static_cast<int>(g % TURNS);
        const F scales = F::f16(w_scale + g * TILE);
#pragma GCC unroll 16
        for (int r = 0; r < TILE_ROWS; r++) {
            const F dot = {_mm512_cvtepi32_ps(_mm512_load_si512(dots[turn][r]))};
            sums[r] = fma(dot, scales * F::all(scale[r * groups + g]), sums[r]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < TILE_ROWS; r++) part.store(row + r, tile, sums[r]);
}

// As product_of; a last few rows go the other way.
template <int BITS>
void product_by_tiles(const Product& p, int64_t first, int64_t last) {
    const Rounded& x = p.x;
    const PackedWeight& w = p.w;
    alignas(64) int8_t weights[UNPACKED_BYTES];
    configure(w.group < 64 ? w.group : 64);
    const int64_t groups = UNPACKED_BYTES / (w.group * TILE);
    for (int64_t row = 0; row < x.rows; row += NEAR_ROWS) {
        const int64_t stop = row + NEAR_ROWS < x.rows ? row + NEAR_ROWS : x.rows;
        for (int64_t g = 0; g < w.groups; g += groups) {
            const int64_t end = g + groups < w.groups ? g + groups : w.groups;
            const Part part{x, w, p.bias, p.y, p.sums, g, end, row, first};
            for (int64_t tile = first; tile < last; tile++) {
                unpack_bytes(w.weight + (tile * w.groups + g) * w.bytes(), (part.end - g) * w.bytes(), BITS, weights);
                written();
                int64_t r = row;
                for (; r + TILE_ROWS <= stop; r += TILE_ROWS) multiply_tiles(part, r, tile, weights);
                multiply_rows<BITS, 1>(part, r, stop, tile);
            }
        }
    }
    _tile_release();
}

}  // namespace SW_ISA
}  // namespace sw
