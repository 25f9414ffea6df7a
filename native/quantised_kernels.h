// Included once per path by isa/*.cpp, after packing_kernels.h.
//
// One output element is the same chain of operations wherever it is computed: exact sums of a group, then
// sum = fma(dot, w_scale · x_scale, sum), group by group: in floats, or all of it in doubles.

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

// Doubles take twice the registers.
template <class N>
constexpr int rows_of = sizeof(N) == 8 && ROWS > 4 ? 4 : ROWS;

// Weights that are read again for other rows should still be in the first cache.
constexpr int64_t NEAR_BYTES = 16384;
constexpr int AHEAD_BYTES = 2048;

// Stores that do not read what they write over, and leave the caches to others.
#if SW_LEVEL >= 2
inline bool begins_line(const void* p) { return (reinterpret_cast<uintptr_t>(p) & 63) == 0; }
inline void store_far(F x, float* p) {
    if (begins_line(p)) _mm512_stream_ps(p, x.v);
    else x.store(p);
}
inline void store_far(F64 x, double* p) {
    if (!begins_line(p)) return x.store(p);
    _mm512_stream_pd(p, x.a);
    _mm512_stream_pd(p + 8, x.b);
}
inline void far_stored() { _mm_sfence(); }
#else
inline void store_far(const F& x, float* p) { x.store(p); }
inline void store_far(const F64& x, double* p) { store(x, p, TILE); }
inline void far_stored() {}
#endif

// A part of a product: some rows and some groups of a few tiles. What its groups add up to waits in `sums`, side by side, for
// the next part: `y` has its rows far apart, often by powers of two, where caches hold few of them.
template <class N>
struct Part {
    using V = typename Sums<N>::V;
    const Rounded& x;
    const PackedWeight& w;
    const float* bias;
    float* y;
    double* wide;
    N* sums;
    int64_t begin, end;  // groups
    int64_t row, tile;   // the first
    bool far;            // as in Product

    N* waiting(int64_t r, int64_t t) const { return sums + ((t - tile) * NEAR_ROWS + r - row) * TILE; }

    V load(int64_t r, int64_t t) const { return begin == 0 ? Sums<N>::all(0.0f) : V::load(waiting(r, t)); }

    void store(int64_t r, int64_t t, const V& sum) const {
        if (end < w.groups) sum.store(waiting(r, t));
        else finish(r, t, sum);
    }

    void finish(int64_t r, int64_t t, const F64& sum) const {
        if (!wide) return finish(r, t, sum.narrow());
        const int64_t there = w.rows - t * TILE;
        const int n = static_cast<int>(there < TILE ? there : TILE);
        const F64 whole = bias ? sum + F64::wide(F::load(bias + t * TILE, n)) : sum;
        double* p = wide + r * w.rows + t * TILE;
        if (n == TILE && far) store_far(whole, p);
        else SW_ISA::store(whole, p, n);
    }

    void finish(int64_t r, int64_t t, const F& sum) const {
        float* p = y + r * w.rows + t * TILE;
        const int64_t there = w.rows - t * TILE;
        if (there >= TILE) {
            const F whole = bias ? sum + F::load(bias + t * TILE) : sum;
            if (far) store_far(whole, p);
            else whole.store(p);
        } else {
            const int n = static_cast<int>(there);
            (bias ? sum + F::load(bias + t * TILE, n) : sum).store(p, n);
        }
    }
};

inline void prefetch(const void* p) {
#if SW_LEVEL >= 1
    _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0);
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

// The dots of one group: `w` is where the first tile's weights are, the next tile's are `apart` bytes on; what will be wanted
// soon is `ahead` bytes on.
template <int BITS, int R, int T>
inline void dot(D (&dots)[R][T], const uint8_t* w, int64_t apart, int64_t ahead, const int8_t* x, int64_t stride, int group) {
    W one[T], two[T];
    for (int k = 0; k < group; k += 32 / BITS, w += 64) {
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) {
            prefetch(w + t * apart + ahead);
            if (BITS == 8) one[t] = W::whole(w + t * apart);
            else W::halves(w + t * apart, one[t], two[t]);
        }
        add(dots, one, x + k, stride);
        if (BITS == 4) add(dots, two, x + k + 4, stride);
    }
}

template <class N, int BITS, int R, int T>
void multiply(const Part<N>& part, int64_t row, int64_t tile) {
    const Rounded& x = part.x;
    const PackedWeight& w = part.w;
    const int64_t bytes = w.bytes(), groups = w.groups;
    using Total = Sums<N>;
    typename Total::V sums[R][T];
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
        // At the end of these tiles, the next ones.
        const int64_t ahead = AHEAD_BYTES + ((groups - g) * bytes > AHEAD_BYTES ? 0 : (T - 1) * groups * bytes);
        dot<BITS>(dots, w.weight + place * bytes, groups * bytes, ahead, x.q + row * x.stride + g * w.group, x.stride, w.group);
        typename Total::V scales[T];
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) scales[t] = Total::of(F::f16(w.scale + (place + t * groups) * TILE));
#pragma GCC unroll 8
        for (int r = 0; r < R; r++) {
            const auto scale = Total::all(x.scale[first + r]);
#pragma GCC unroll 2
            for (int t = 0; t < T; t++) sums[r][t] = fma(Total::of(dots[r][t]), scales[t] * scale, sums[r][t]);
        }
    }
#pragma GCC unroll 8
    for (int r = 0; r < R; r++)
#pragma GCC unroll 2
        for (int t = 0; t < T; t++) part.store(row + r, tile + t, sums[r][t]);
}

// The rows row..last-1 of T tiles.
template <class N, int BITS, int T>
void multiply_rows(const Part<N>& part, int64_t row, int64_t last, int64_t tile) {
    constexpr int most = rows_of<N>;
    for (; row + most <= last; row += most) multiply<N, BITS, most, T>(part, row, tile);
    if (most > 4 && row + 4 <= last) multiply<N, BITS, 4 < most ? 4 : 1, T>(part, row, tile), row += 4;
    if (most > 2 && row + 2 <= last) multiply<N, BITS, 2 < most ? 2 : 1, T>(part, row, tile), row += 2;
    if (row < last) multiply<N, BITS, 1, T>(part, row, tile);
}

template <class N, int BITS>
void product_of(const Product<N>& p, int64_t first, int64_t last) {
    const Rounded& x = p.x;
    const PackedWeight& w = p.w;
    const int64_t near = NEAR_BYTES / (TILES * w.bytes());
    const int64_t groups = x.rows <= rows_of<N> || near < 1 ? w.groups : near;
    for (int64_t row = 0; row < x.rows; row += NEAR_ROWS) {
        const int64_t rows = row + NEAR_ROWS < x.rows ? row + NEAR_ROWS : x.rows;
        for (int64_t g = 0; g < w.groups; g += groups) {
            const int64_t end = g + groups < w.groups ? g + groups : w.groups;
            const Part<N> part{x, w, p.bias, p.y, p.wide, p.sums, g, end, row, first, p.far};
            int64_t tile = first;
            for (; tile + TILES <= last; tile += TILES) multiply_rows<N, BITS, TILES>(part, row, rows, tile);
            for (; tile < last; tile++) multiply_rows<N, BITS, 1>(part, row, rows, tile);
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

template <class N>
void product(const Product<N>& p, int64_t first, int64_t last) {
#if SW_LEVEL >= 4
    if (p.x.rows >= LEAST_ROWS) {
        if (p.w.group > 64) product_by_tiles<N, true>(p, first, last);
        else product_by_tiles<N, false>(p, first, last);
        if (p.far) far_stored();
        return;
    }
#endif
    if (p.w.bits == 8) product_of<N, 8>(p, first, last);
    else product_of<N, 4>(p, first, last);
    if (p.far) far_stored();
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

// Sixteen groups of one row at a time, for what is computed of each of them. `SIZE` is the group's.
template <int SIZE>
struct Groups {
    const float* x;
    int64_t columns;
    const Rounded& out;
    int64_t row, first;  // group
    int count;           // of groups

    int rest(int i) const {
        const int64_t there = columns - (first + i) * SIZE;
        return static_cast<int>(there < SIZE ? there : SIZE);
    }

    // Calls f(lanes, where) for each sixteen of group i.
    template <class Call>
    void each(int i, const Call& f) const {
        const float* from = x + (first + i) * SIZE;
        const int there = rest(i);
        for (int k = 0; k < SIZE; k += LANES) {
            const int left = there - k;
            f(left >= LANES ? F::load(from + k) : F::load(from + k, left > 0 ? left : 0), k);
        }
    }

    // False, and nothing is done, if there is a NaN or an infinity.
    bool round_all() const {
        float sizes[LANES] = {}, inverses[LANES], scales[LANES];
        F poison = F::all(0.0f);
        for (int i = 0; i < count; i++) {
            F most = F::all(0.0f);
            each(i, [&](F a, int) {
                most = max(abs(a), most);
                poison = fma(a, F::all(0.0f), poison);
            });
            sizes[i] = greatest(most);
        }
        if (!(sum(poison) == 0.0f)) return false;
        const F size = max(F::load(sizes), F::all(1e-30f)), full = F::all(127.0f);
        (full / size).store(inverses);
        (size / full).store(scales);
        for (int i = 0; i < count; i++) finish(i, sizes[i] >= 1e-30f, inverses[i], scales[i]);
        return true;
    }

    void finish(int i, bool counts, float inverse, float scale) const {
        const int64_t place = (first + i) * out.rows + row;
        int8_t* q = out.q + row * out.stride + (first + i) * SIZE;
        F total = F::all(0.0f);
        const F by = F::all(counts ? inverse : 0.0f);
        each(i, [&](F a, int k) {
            const F whole = SW_ISA::round(a * by);
            total = total + whole;
            store_bytes(whole, q + k);
        });
        out.scale[place] = counts ? scale : 0.0f;
        out.eighths[place] = -8 * static_cast<int32_t>(sum(total));
    }
};

template <int SIZE>
void round_row(const float* x, int64_t columns, const Rounded& out, int64_t row) {
    for (int64_t g = 0; g < out.groups; g += LANES) {
        const int count = static_cast<int>(out.groups - g < LANES ? out.groups - g : LANES);
        const Groups<SIZE> some{x, columns, out, row, g, count};
        if (some.round_all()) continue;
        for (int i = 0; i < count; i++) {
            const int64_t start = (g + i) * SIZE;
            round_group(x + start, some.rest(i), out, (g + i) * out.rows + row, out.q + row * out.stride + start);
        }
    }
}

void round_rows(const float* x, int64_t columns, const Rounded& out, int64_t first, int64_t last) {
    for (int64_t row = first; row < last; row++) {
        const float* from = x + row * columns;
        switch (out.group) {
            case 16: round_row<16>(from, columns, out, row); break;
            case 32: round_row<32>(from, columns, out, row); break;
            case 64: round_row<64>(from, columns, out, row); break;
            default: round_row<128>(from, columns, out, row);
        }
    }
}

extern const QuantisedKernels quantised_kernels = {round_rows, product<float>, product<double>, pack, unpack_row};

}  // namespace SW_ISA
}  // namespace sw
