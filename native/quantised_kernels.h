// Included once per path by isa/*.cpp, after packing_kernels.h.
//
// One output element is the same chain of operations wherever it is computed: exact sums of a group, then
// sum = fma(dot, w_scale · x_scale, sum), group by group.

namespace sw {
namespace SW_ISA {

// How many rows of activations and tiles of weights fit the registers at a time.
#if SW_LEVEL >= 3
constexpr int ROWS = 6, TILES = 2;
#elif SW_LEVEL == 2
constexpr int ROWS = 4, TILES = 2;
#elif SW_LEVEL == 1
constexpr int ROWS = 2, TILES = 1;
#else
constexpr int ROWS = 1, TILES = 1;
#endif

// Weights that are read again for other rows should still be in the first cache.
constexpr int64_t NEAR_BYTES = 16384;
constexpr int AHEAD_BYTES = 2048;

// A part of a product: some rows and some groups of a few tiles. What its groups add up to waits in `sums`, side by side, for
// the next part: `y` has its rows far apart, often by powers of two, where caches hold few of them.
struct Part {
    const Rounded& x;
    const PackedWeight& w;
    const float* bias;
    float *y, *sums;
    int64_t begin, end;  // groups
    int64_t row, tile;   // the first

    float* waiting(int64_t r, int64_t t) const { return sums + ((t - tile) * NEAR_ROWS + r - row) * TILE; }

    F load(int64_t r, int64_t t) const { return begin == 0 ? F::all(0.0f) : F::load(waiting(r, t)); }

    void store(int64_t r, int64_t t, F sum) const {
        if (end < w.groups) {
            sum.store(waiting(r, t));
            return;
        }
        float* p = y + r * w.rows + t * TILE;
        const int64_t there = w.rows - t * TILE;
        if (there >= TILE) {
            (bias ? sum + F::load(bias + t * TILE) : sum).store(p);
        } else {
            const int n = static_cast<int>(there);
            (bias ? sum + F::load(bias + t * TILE, n) : sum).store(p, n);
        }
    }
};

inline void ahead(const uint8_t* p) {
#if SW_LEVEL >= 1
    _mm_prefetch(reinterpret_cast<const char*>(p) + AHEAD_BYTES, _MM_HINT_T0);
#else
    (void)p;
#endif
}

template <int R, int T>
inline void add(D (&dots)[R][T], const W (&w)[T], const int8_t* x, int64_t stride) {
#pragma GCC unroll 8
    for (int r = 0; r < R; r++) {
        const X four = X::load(x + r * stride);
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) dots[r][t].add(w[t], four);
    }
}

// The dots of one group: `w` is where the first tile's weights are, the next tile's are `apart` bytes on.
template <int BITS, int R, int T>
inline void dot(D (&dots)[R][T], const uint8_t* w, int64_t apart, const int8_t* x, int64_t stride, int group) {
    W one[T], two[T];
    for (int k = 0; k < group; k += 32 / BITS, w += 64) {
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) {
            ahead(w + t * apart);
            if (BITS == 8) one[t] = W::whole(w + t * apart);
            else W::halves(w + t * apart, one[t], two[t]);
        }
        add(dots, one, x + k, stride);
        if (BITS == 4) add(dots, two, x + k + 4, stride);
    }
}

template <int BITS, int R, int T>
void multiply(const Part& part, int64_t row, int64_t tile) {
    const Rounded& x = part.x;
    const PackedWeight& w = part.w;
    const int64_t bytes = w.bytes(), groups = w.groups;
    F sums[R][T];
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) sums[r][t] = part.load(row + r, tile + t);
    for (int64_t g = part.begin; g < part.end; g++) {
        D dots[R][T];
        const int64_t first = g * x.rows + row;
#pragma GCC unroll 8
        for (int r = 0; r < R; r++)
#pragma GCC unroll 2
            for (int t = 0; t < T; t++) dots[r][t] = D::start<BITS>(x.eighths[first + r]);
        const int64_t place = tile * groups + g;
        dot<BITS>(dots, w.weight + place * bytes, groups * bytes, x.q + row * x.stride + g * w.group, x.stride, w.group);
        F scales[T];
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) scales[t] = F::f16(w.scale + (place + t * groups) * TILE);
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const F scale = F::all(x.scale[first + r]);
#pragma GCC unroll 2
            for (int t = 0; t < T; t++) sums[r][t] = fma(dots[r][t].real(), scales[t] * scale, sums[r][t]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) part.store(row + r, tile + t, sums[r][t]);
}

// The rows row..last-1 of T tiles.
template <int BITS, int T>
void multiply_rows(const Part& part, int64_t row, int64_t last, int64_t tile) {
    for (; row + ROWS <= last; row += ROWS) multiply<BITS, ROWS, T>(part, row, tile);
    if (ROWS > 4 && row + 4 <= last) multiply<BITS, 4 < ROWS ? 4 : 1, T>(part, row, tile), row += 4;
    if (ROWS > 2 && row + 2 <= last) multiply<BITS, 2 < ROWS ? 2 : 1, T>(part, row, tile), row += 2;
    if (row < last) multiply<BITS, 1, T>(part, row, tile);
}

template <int BITS>
void product_of(const Product& p, int64_t first, int64_t last) {
    const Rounded& x = p.x;
    const PackedWeight& w = p.w;
    const int64_t near = NEAR_BYTES / (TILES * w.bytes());
    const int64_t groups = x.rows <= ROWS || near < 1 ? w.groups : near;
    for (int64_t row = 0; row < x.rows; row += NEAR_ROWS) {
        const int64_t rows = row + NEAR_ROWS < x.rows ? row + NEAR_ROWS : x.rows;
        for (int64_t g = 0; g < w.groups; g += groups) {
            const int64_t end = g + groups < w.groups ? g + groups : w.groups;
            const Part part{x, w, p.bias, p.y, p.sums, g, end, row, first};
            int64_t tile = first;
            for (; tile + TILES <= last; tile += TILES) multiply_rows<BITS, TILES>(part, row, rows, tile);
            for (; tile < last; tile++) multiply_rows<BITS, 1>(part, row, rows, tile);
        }
    }
}

}  // namespace SW_ISA
}  // namespace sw

#if SW_LEVEL >= 4
#include "quantised_tiles.h"
#endif

namespace sw {
namespace SW_ISA {

void product(const Product& p, int64_t first, int64_t last) {
#if SW_LEVEL >= 4
    if (p.x.rows >= TILE_ROWS) {
        if (p.w.bits == 8) product_by_tiles<8>(p, first, last);
        else product_by_tiles<4>(p, first, last);
        return;
    }
#endif
    if (p.w.bits == 8) product_of<8>(p, first, last);
    else product_of<4>(p, first, last);
}

// One group of up to 128 activations; those behind `count` are zeros.
inline void round_group(const float* x, int count, const Rounded& out, int64_t place, int8_t* q) {
    F most = F::all(0.0f), poison = F::all(0.0f);
    for (int i = 0; i < count; i += LANES) {
        const F a = count - i >= LANES ? F::load(x + i) : F::load(x + i, count - i);
        most = max(abs(a), most);
        poison = fma(a, F::all(0.0f), poison);
    }
    const float size = greatest(most), zero = sum(poison);
    const bool counts = size >= 1e-30f, finite = zero == 0.0f;
    const F inverse = F::all(counts && finite ? 127.0f / size : 0.0f);
    F total = F::all(0.0f);
    for (int i = 0; i < out.group; i += LANES) {
        const int there = count - i;
        const F a = there >= LANES ? F::load(x + i) : F::load(x + i, there > 0 ? there : 0);
        const F whole = finite ? round(a * inverse) : F::all(0.0f);
        total = total + whole;
        store_bytes(whole, q + i);
    }
    out.scale[place] = finite ? (counts ? size / 127.0f : 0.0f) : NAN;
    out.eighths[place] = -8 * static_cast<int32_t>(sum(total));
}

void round_rows(const float* x, int64_t columns, const Rounded& out, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++)
        for (int64_t g = 0; g < out.groups; g++) {
            const int64_t start = g * out.group, rest = columns - start;
            const int count = static_cast<int>(rest < out.group ? rest : out.group);
            round_group(x + row * columns + start, count, out, g * out.rows + row, out.q + row * out.stride + start);
        }
}

extern const QuantisedKernels quantised_kernels = {round_rows, product, pack, unpack_row};

}  // namespace SW_ISA
}  // namespace sw
