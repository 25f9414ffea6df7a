// Included once per path by isa/*.cpp, after stored_kernels.h.

namespace sw {
namespace SW_ISA {
namespace dense {

// A tile of y stays in registers: so many rows of x by so many outputs.
constexpr int ROWS = SW_LEVEL >= 2 ? 4 : 1, OUTS = 4;

// Weights to ask memory for while others are in use: OUTS rows that stand `stride` bytes apart.
struct Ahead {
    const char* first;
    int64_t stride;
};

// f(0), f(1), ... f(N - 1), written out: so that what f indexes may stay in registers.
template <int N, class Call>
inline void times(const Call& f) {
    if constexpr (N > 0) {
        times<N - 1>(f);
        f(N - 1);
    }
}

// y = the sums over lanes, or y + them. acc[n][m] is of row m and output n.
template <int M, int N>
inline void settle(const F (&acc)[N][M], float* y, int64_t y_stride, bool more) {
#if SW_LEVEL >= 2
    if constexpr (M == 4 && N == 4) {
        // All sixteen trees at once, in the order of `sum`: halves, quarters, pairs, and the last two.
        __m512 halves[8], quarters[4], pairs[2];
        times<8>([&](int i) {
            const __m512 a = acc[i / 2][2 * (i % 2)].v, b = acc[i / 2][2 * (i % 2) + 1].v;
            halves[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        });
        times<4>([&](int i) {
            const __m512 a = halves[2 * i], b = halves[2 * i + 1];
            quarters[i] = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
        });
        times<2>([&](int i) {
            const __m512 a = quarters[2 * i], b = quarters[2 * i + 1];
            pairs[i] = _mm512_add_ps(_mm512_shuffle_ps(a, b, 0x44), _mm512_shuffle_ps(a, b, 0xee));
        });
        // A quarter of it for each row: its four outputs.
        const __m512 all = _mm512_add_ps(_mm512_shuffle_ps(pairs[0], pairs[1], 0x88), _mm512_shuffle_ps(pairs[0], pairs[1], 0xdd));
        const __m128 rows[4] = {_mm512_castps512_ps128(all), _mm512_extractf32x4_ps(all, 1), _mm512_extractf32x4_ps(all, 2),
                                _mm512_extractf32x4_ps(all, 3)};
        times<4>([&](int m) {
            float* to = y + m * y_stride;
            _mm_storeu_ps(to, more ? _mm_add_ps(_mm_loadu_ps(to), rows[m]) : rows[m]);
        });
        return;
    }
#endif
    times<M>([&](int m) {
        times<N>([&](int n) {
            float& to = y[m * y_stride + n];
            to = more ? to + sum(acc[n][m]) : sum(acc[n][m]);
        });
    });
}

// acc += M rows of x by N rows of w, of sixteen inputs, or of the first `rest`.
template <class W, int M, int N>
inline void step(const float* x, int64_t x_stride, const typename W::number* w, int64_t w_stride, int rest, F (&acc)[N][M]) {
    F a[M];
    times<M>([&](int m) { a[m] = rest ? F::load(x + m * x_stride, rest) : F::load(x + m * x_stride); });
    times<N>([&](int n) {
        const F b = rest ? W::load(w + n * w_stride, rest) : W::load(w + n * w_stride);
        times<M>([&](int m) { acc[n][m] = fma(a[m], b, acc[n][m]); });
    });
}

// M rows of x by N rows of w over `size` inputs. Weights of BYTES a number are asked for ahead; of 0: none.
template <class W, int BYTES, int M, int N>
__attribute__((flatten)) inline void tile(const float* x, int64_t x_stride, const typename W::number* w, int64_t w_stride, int64_t size, Ahead ahead,
                 float* y, int64_t y_stride, bool more) {
    F acc[N][M];
    times<N>([&](int n) { times<M>([&](int m) { acc[n][m] = F::all(0.0f); }); });
    int64_t k = 0;
    for (; k + LANES <= size; k += LANES) {
        if constexpr (BYTES > 0) times<OUTS>([&](int n) { __builtin_prefetch(ahead.first + n * ahead.stride + k * BYTES); });
        step<W, M, N>(x + k, x_stride, w + k, w_stride, 0, acc);
    }
    if (k < size) step<W, M, N>(x + k, x_stride, w + k, w_stride, static_cast<int>(size - k), acc);
    settle(acc, y, y_stride, more);
}

// The same for `outs` outputs, up to OUTS.
template <class W, int BYTES, int M>
inline void tiles(const float* x, int64_t x_stride, const typename W::number* w, int64_t w_stride, int64_t size, int outs,
                  Ahead ahead, float* y, int64_t y_stride, bool more) {
    if (outs == OUTS) return tile<W, BYTES, M, OUTS>(x, x_stride, w, w_stride, size, ahead, y, y_stride, more);
    for (int n = 0; n < outs; n++) tile<W, 0, M, 1>(x, x_stride, w + n * w_stride, w_stride, size, ahead, y + n, y_stride, more);
}

// The same for any number of rows; memory is asked ahead once.
template <class W, int BYTES>
inline void rows_of_tiles(const float* x, int64_t x_stride, int64_t rows, const typename W::number* w, int64_t w_stride,
                          int64_t size, int outs, Ahead ahead, float* y, int64_t y_stride, bool more) {
    int64_t r = 0;
    for (; r + ROWS <= rows; r += ROWS, x += ROWS * x_stride, y += ROWS * y_stride) {
        if (r == 0) tiles<W, BYTES, ROWS>(x, x_stride, w, w_stride, size, outs, ahead, y, y_stride, more);
        else tiles<W, 0, ROWS>(x, x_stride, w, w_stride, size, outs, ahead, y, y_stride, more);
    }
#if SW_LEVEL >= 2
    if (rows - r == 1) tiles<W, BYTES, 1>(x, x_stride, w, w_stride, size, outs, ahead, y, y_stride, more);
    if (rows - r == 2) tiles<W, BYTES, 2>(x, x_stride, w, w_stride, size, outs, ahead, y, y_stride, more);
    if (rows - r == 3) tiles<W, BYTES, 3>(x, x_stride, w, w_stride, size, outs, ahead, y, y_stride, more);
#endif
}

// Some rows of w by all rows of x, over one range of inputs. Where several tiles use them, weights of 16 bits are widened once,
// into what stays in the nearest cache.
template <class W>
inline void panel(const float* x, int64_t x_stride, int64_t rows, const typename W::number* w, int64_t w_stride, int64_t size,
                  int outs, Ahead ahead, float* y, int64_t y_stride, bool more) {
    constexpr int BYTES = static_cast<int>(sizeof(typename W::number));
    if constexpr (BYTES == 4) {
        rows_of_tiles<W, BYTES>(x, x_stride, rows, w, w_stride, size, outs, ahead, y, y_stride, more);
    } else {
        if (rows <= ROWS) return rows_of_tiles<W, BYTES>(x, x_stride, rows, w, w_stride, size, outs, ahead, y, y_stride, more);
        alignas(64) float wide[OUTS * DEPTH];
        for (int n = 0; n < outs; n++) {
            const auto* from = w + n * w_stride;
            float* to = wide + n * DEPTH;
            int64_t k = 0;
            for (; k + LANES <= size; k += LANES) W::load(from + k).store(to + k);
            if (k < size) W::load(from + k, static_cast<int>(size - k)).store(to + k, static_cast<int>(size - k));
        }
        rows_of_tiles<Float32, BYTES>(x, x_stride, rows, wide, DEPTH, size, outs, ahead, y, y_stride, more);
    }
}

template <class W>
inline void add(float* y, const typename W::number* bias, int64_t size) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) (F::load(y + i) + W::load(bias + i)).store(y + i);
    const int rest = static_cast<int>(size - i);
    if (rest) (F::load(y + i, rest) + W::load(bias + i, rest)).store(y + i, rest);
}

inline void finish(const DenseProduct& p, const DensePart& part) {
    for (int64_t r = part.row; r < part.row_end; r++) {
        float* y = p.y + r * p.y_stride + part.out;
        const int64_t size = part.out_end - part.out;
        if (!p.inputs) std::memset(y, 0, static_cast<size_t>(size) * sizeof(float));
        if (p.bias)
            with(p.bias_stored, [&](auto stored) {
                using W = decltype(stored);
                add<W>(y, static_cast<const typename W::number*>(p.bias) + part.out, size);
            });
    }
}

template <class W>
inline void linear_of(const DenseProduct& p, const DensePart& part, float* room) {
    using number = typename W::number;
    const int64_t rows = part.row_end - part.row, chunks = (p.inputs + DEPTH - 1) / DEPTH;
    const int64_t panels = (part.out_end - part.out + OUTS - 1) / OUTS;
    // Few rows: all of a weight before the next, as they lie in memory. Many: all weights over one range of inputs, for whose
    // part of x there is room in the second cache.
    const bool few = rows <= FEW_ROWS;
    const auto weights = [&](int64_t i) {
        const int64_t chunk = few ? i % chunks : i / panels, at = few ? i / chunks : i % panels;
        return static_cast<const number*>(p.w) + (part.out + at * OUTS) * p.inputs + chunk * DEPTH;
    };
    for (int64_t i = 0; i < chunks * panels; i++) {
        const int64_t chunk = few ? i % chunks : i / panels, at = few ? i / chunks : i % panels;
        const int64_t out = part.out + at * OUTS, k = chunk * DEPTH;
        const int64_t size = k + DEPTH < p.inputs ? DEPTH : p.inputs - k;
        const int outs = static_cast<int>(out + OUTS < part.out_end ? OUTS : part.out_end - out);
        const float* x = p.x + part.row * p.x_stride + k;
        int64_t x_stride = p.x_stride;
        if (!few) {
            // Rows that stand a power of two apart would share a few places of a cache.
            for (int64_t r = 0; at == 0 && r < rows; r++) std::memcpy(room + r * DEPTH, x + r * x_stride, static_cast<size_t>(size) * sizeof(float));
            x = room, x_stride = DEPTH;
        }
        // Behind the last panel there is most often the next part.
        const number* next = i + 1 < chunks * panels ? weights(i + 1) : weights(i);
        const Ahead ahead = {reinterpret_cast<const char*>(next), p.inputs * static_cast<int64_t>(sizeof(number))};
        panel<W>(x, x_stride, rows, weights(i), p.inputs, size, outs, ahead, p.y + part.row * p.y_stride + out, p.y_stride, chunk > 0);
    }
}

void linear(const DenseProduct& p, const DensePart& part, float* room) {
    with(p.stored, [&](auto stored) { linear_of<decltype(stored)>(p, part, room); });
    finish(p, part);
}

// M rows of x by V · 16 outputs, or by `rest` of 16, in the order of the inputs.
template <class W, int M, int V>
inline void across_tile(const DenseProduct& p, int64_t row, int64_t out, int rest) {
    F acc[V][M];
    for (int v = 0; v < V; v++)
        for (int m = 0; m < M; m++) acc[v][m] = F::all(0.0f);
    const auto* w = static_cast<const typename W::number*>(p.w) + out;
    const float* x = p.x + row * p.x_stride;
    for (int64_t k = 0; k < p.inputs; k++, w += p.outputs)
        for (int v = 0; v < V; v++) {
            const F b = rest ? W::load(w, rest) : W::load(w + v * LANES);
            for (int m = 0; m < M; m++) acc[v][m] = fma(F::all(x[m * p.x_stride + k]), b, acc[v][m]);
        }
    for (int m = 0; m < M; m++)
        for (int v = 0; v < V; v++) {
            float* y = p.y + (row + m) * p.y_stride + out + v * LANES;
            if (rest) acc[v][m].store(y, rest);
            else acc[v][m].store(y);
        }
}

template <class W, int M>
inline void across_rows(const DenseProduct& p, const DensePart& part, int64_t row) {
    int64_t out = part.out;
    for (; out + 4 * LANES <= part.out_end; out += 4 * LANES) across_tile<W, M, 4>(p, row, out, 0);
    for (; out < part.out_end; out += LANES) {
        const int64_t left = part.out_end - out;
        across_tile<W, M, 1>(p, row, out, left < LANES ? static_cast<int>(left) : 0);
    }
}

void across(const DenseProduct& p, const DensePart& part) {
    with(p.stored, [&](auto stored) {
        int64_t row = part.row;
        for (; row + ROWS <= part.row_end; row += ROWS) across_rows<decltype(stored), ROWS>(p, part, row);
        for (; row < part.row_end; row++) across_rows<decltype(stored), 1>(p, part, row);
    });
}

}  // namespace dense

#if SW_LEVEL >= 4
}  // namespace SW_ISA
}  // namespace sw
#include "dense_tiles.h"
namespace sw {
namespace SW_ISA {
extern const DenseKernels dense_kernels = {dense::linear, dense::split, dense::linear_by_tiles, dense::across};
#else
extern const DenseKernels dense_kernels = {dense::linear, nullptr, nullptr, dense::across};
#endif

}  // namespace SW_ISA
}  // namespace sw
