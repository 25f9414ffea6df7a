// Included once per path by isa/*.cpp, after vector.h.
//
// A row is one query of one head. What is added to it, and in which order, depends on its own position alone: keys in tiles and
// splits that begin at multiples of their size, one after the other. So a row has the same bits alone, in a prompt, and in parts.
#include "attention_pack.h"

namespace sw {
namespace SW_ISA {
namespace attending {

#if SW_LEVEL >= 2
constexpr int ROWS = 6, WIDE = 4;  // 24 sums, 4 loads and a number for all lanes: within 32 registers
#else
constexpr int ROWS = 5, WIDE = 1;
#endif

// The scores of R rows for a tile: q [R, dim], keys [dim, TILE], scores [R, TILE].
template <int R>
void score(const float* q, const float* keys, int64_t dim, float* scores) {
    for (int64_t at = 0; at < TILE; at += WIDE * LANES) {
        F sums[R][WIDE];
        for (int r = 0; r < R; r++)
            for (int c = 0; c < WIDE; c++) sums[r][c] = F::all(0.0f);
        for (int64_t d = 0; d < dim; d++) {
            F k[WIDE];
            for (int c = 0; c < WIDE; c++) k[c] = F::load(keys + d * TILE + at + c * LANES);
            for (int r = 0; r < R; r++) {
                const F one = F::all(q[r * dim + d]);
                for (int c = 0; c < WIDE; c++) sums[r][c] = fma(one, k[c], sums[r][c]);
            }
        }
        for (int r = 0; r < R; r++)
            for (int c = 0; c < WIDE; c++) sums[r][c].store(scores + r * TILE + at + c * LANES);
    }
}

// R rows of sums [R, stride], C vectors of each: once more by `fade`, then each value by its weight.
template <int R, int C>
void gather(const float* weights, const float* values, int64_t stride, int64_t low, int64_t high, const float* fade, float* sums) {
    F now[R][C];
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) now[r][c] = F::load(sums + r * stride + c * LANES) * F::all(fade[r]);
    for (int64_t k = low; k < high; k++) {
        F v[C];
        for (int c = 0; c < C; c++) v[c] = F::load(values + k * stride + c * LANES);
        for (int r = 0; r < R; r++) {
            const F one = F::all(weights[r * TILE + k]);
            for (int c = 0; c < C; c++) now[r][c] = fma(one, v[c], now[r][c]);
        }
    }
    for (int r = 0; r < R; r++)
        for (int c = 0; c < C; c++) now[r][c].store(sums + r * stride + c * LANES);
}

template <int R>
void gather_row(const float* weights, const float* values, int64_t stride, int64_t low, int64_t high, const float* fade, float* sums) {
    int64_t d = 0;
    for (; d + WIDE * LANES <= stride; d += WIDE * LANES) gather<R, WIDE>(weights, values + d, stride, low, high, fade, sums + d);
    for (; d < stride; d += LANES) gather<R, 1>(weights, values + d, stride, low, high, fade, sums + d);
}

// Calls f with the number of rows as a type, ROWS or the rest: f(row, Number<R>).
template <int R>
struct Number {
    static constexpr int value = R;
};

template <int R, class G>
void rest_of_rows(int64_t row, int64_t count, const G& f) {
    if (count == R) f(row, Number<R>());
    else if constexpr (R > 1) rest_of_rows<R - 1>(row, count, f);
}

template <class G>
void in_rows(int64_t rows, const G& f) {
    int64_t row = 0;
    for (; row + ROWS <= rows; row += ROWS) f(row, Number<ROWS>());
    rest_of_rows<ROWS - 1>(row, rows - row, f);
}

// Sums of values [rows, lanes(dim)], the greatest score and the sum of weights of each row.
struct Sums {
    float *values, *most, *weight;

    Sums(float* at, int64_t rows, int64_t dim) : values(at), most(at + rows * lanes(dim)), weight(most + rows) {}
    void clear(int64_t rows, int64_t dim) const {
        std::memset(values, 0, static_cast<size_t>(rows * lanes(dim)) * sizeof(float));
        for (int64_t r = 0; r < rows; r++) most[r] = -INFINITY, weight[r] = 0.0f;
    }
};

// e^x for what is not above 0, or NaN, as `exp` has it; 0 below -87: there results are no longer normal, and take a CPU a hundred
// times as long. Scores that are hidden lie there, and what nothing was seen of.
inline F falling(F x) {
    const F least = F::all(-87.0f), e = exp(max(least, x));
#if SW_LEVEL >= 2
    return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x.v, least.v, _CMP_NLT_UQ), e.v)};
#elif SW_LEVEL == 1
    return {_mm256_and_ps(e.a, _mm256_cmp_ps(x.a, least.a, _CMP_NLT_UQ)), _mm256_and_ps(e.b, _mm256_cmp_ps(x.b, least.b, _CMP_NLT_UQ))};
#else
    return F::make([&](int i) { return x.v[i] < -87.0f ? 0.0f : e.v[i]; });
#endif
}

inline float power(float x) {
    float all[LANES];
    falling(F::all(x)).store(all);
    return all[0];
}

// What exponents are taken below: nothing was seen, or nothing but -infinity, whose weight is 0.
inline float finite_or_0(float most) { return most == -INFINITY ? 0.0f : most; }

// Adds `more` to `sums`, as if its keys came after theirs.
inline void add(const Sums& sums, const Sums& more, int64_t rows, int64_t dim) {
    for (int64_t r = 0; r < rows; r++) {
        const float most = more.most[r] > sums.most[r] || std::isnan(more.most[r]) ? more.most[r] : sums.most[r];
        const float base = finite_or_0(most), old = power(sums.most[r] - base), fresh = power(more.most[r] - base);
        float *to = sums.values + r * lanes(dim), *from = more.values + r * lanes(dim);
        for (int64_t d = 0; d < lanes(dim); d += LANES) fma(F::load(to + d), F::all(old), F::load(from + d) * F::all(fresh)).store(to + d);
        sums.weight[r] = sums.weight[r] * old + more.weight[r] * fresh;
        sums.most[r] = most;
    }
}

// What a row says of the keys of a tile, of which it sees [low, high), made of its scores [TILE]. The greatest comes back.
inline float bend(float* scores, const Reading& of, int64_t low, int64_t high) {
    constexpr int COUNT = TILE / LANES;
    F x[COUNT];
    for (int i = 0; i < COUNT; i++) {
        x[i] = F::load(scores + i * LANES);
        if (of.softcap == 0.0f) {
            x[i] = x[i] * F::all(of.scale);
        } else {
            // tanh(y) = 1 - 2 / (e^2y + 1)
            const F both = exp(x[i] * F::all(2.0f * of.scale / of.softcap)) + F::all(1.0f);
            x[i] = F::all(of.softcap) * (F::all(1.0f) - F::all(2.0f) / both);
        }
    }
    for (int i = 0; i < COUNT; i++) x[i].store(scores + i * LANES);
    if (low > 0 || high < TILE) {
        for (int64_t i = 0; i < TILE; i++)
            if (i < low || i >= high) scores[i] = -INFINITY;
        for (int i = 0; i < COUNT; i++) x[i] = F::load(scores + i * LANES);
    }
    F top = x[0];
    for (int i = 1; i < COUNT; i++) top = max(top, x[i]);
    return greatest(top);
}

// The greatest so far of each row, which the greatest `here` of a tile may raise. `here` becomes what earlier sums are worth now.
inline void raise(float* here, float* most, int64_t rows) {
    for (int64_t row = 0; row < rows; row += LANES) {
        const int count = static_cast<int>(rows - row < LANES ? rows - row : LANES);
        alignas(64) float old[LANES] = {}, base[LANES] = {};
        for (int i = 0; i < count; i++) {
            const float before = most[row + i], found = here[row + i], now = found > before || std::isnan(found) ? found : before;
            base[i] = finite_or_0(now);
            old[i] = before == now ? base[i] : before;  // e^0 is 1
            most[row + i] = now;
        }
        falling(F::load(old) - F::load(base)).store(here + row, count);
    }
}

// What a row says of the keys of a tile becomes weights; their sum comes back.
inline float weigh(float* scores, float most) {
    const F base = F::all(finite_or_0(most));
    F x[TILE / LANES], all = F::all(0.0f);
    for (int i = 0; i < TILE / LANES; i++) {
        x[i] = falling(F::load(scores + i * LANES) - base);
        x[i].store(scores + i * LANES);
    }
    for (const F& one : x) all = all + one;
    return sum(all);
}

// One piece under way: its place in `work`, and what its rows see.
struct Under {
    const Reading& of;
    const Piece& piece;
    float *keys, *values, *scores, *fade, *q;
    Sums split, whole;
    int64_t start, first;
    const int64_t* table;
    bool all;  // all KV heads are read side by side

    // Piece `at` of `count`.
    Under(const Reading& of, const Piece* pieces, int64_t count, int64_t at, float* work)
        : of(of), piece(pieces[at]), keys(work), values(keys + TILE * lanes(of.dim)), scores(values + TILE * lanes(of.dim)),
          fade(scores + rows_of(pieces[0]) * TILE), q(work + tile_floats(rows_of(pieces[0]), of.dim) + at * own_floats(rows_of(pieces[0]), of.dim)),
          split(q + query_floats(rows_of(piece), of.dim), rows_of(piece), of.dim),
          whole(split.values + part_floats(rows_of(piece), of.dim), rows_of(piece), of.dim), start(piece.sequence[2] + piece.first),
          first(piece.sequence[3]), table(of.pages + piece.sequence[4]), all(count == of.kv_heads) {}

    int64_t low(int64_t position) const { return seen_from(of, first, position); }
    int64_t head_of(int64_t row) const { return piece.heads[row % piece.readers]; }
    int64_t place_of(int64_t row) const { return ((piece.sequence[0] + piece.first + row / piece.readers) * of.heads + head_of(row)) * of.dim; }
};

inline int64_t within(int64_t x, int64_t low, int64_t high) { return x < low ? low : x > high ? high : x; }

#if SW_LEVEL >= 4
#include "attention_tiles.h"
#endif

template <class K>
void pack(const Under& u, int64_t tile, int64_t low, int64_t high) {
    const int64_t row = row_bytes<K>(u.of.dim), stride = u.of.kv_heads * row, head = u.piece.kv_head * row;
    for (int64_t at = within(tile, low / PAGE * PAGE, high); at < high; at += PAGE) {
        const int64_t* page = u.table + (at - u.first) / PAGE;
        const int64_t place = *page * PAGE * stride + head, begin = at < low ? low - at : 0, end = high - at < PAGE ? high - at : PAGE;
        // What the next tile reads, if it is there: of this head, or a part of all that lies together.
        const int64_t next = at + TILE < u.start ? page[TILE / PAGE] * PAGE * stride + (u.all ? PAGE * head : head) : place;
        pack_keys<K>(u.of.keys + place, stride, begin, end, u.of.dim, u.keys + (at - tile));
        const Next ahead{u.of.keys + next, u.of.values + next, u.all ? row : stride, row};
        pack_values<K>(u.of.values + place, stride, begin, end, u.of.dim, ahead, u.values + (at - tile) * lanes(u.of.dim));
    }
}

// The keys [low, high) of the tile that begins at position `tile`, into the sums of the split.
inline void read_tile(const Under& u, int64_t tile, int64_t low, int64_t high) {
    const int64_t dim = u.of.dim, wide = lanes(dim), rows = rows_of(u.piece);
    switch (u.of.kept) {
        case Kept::FLOAT32: pack<OfFloat32>(u, tile, low, high); break;
        case Kept::BFLOAT16: pack<OfBfloat16>(u, tile, low, high); break;
        case Kept::FLOAT16: pack<OfFloat16>(u, tile, low, high); break;
        default: pack<OfInt8>(u, tile, low, high);
    }
    in_rows(rows, [&](int64_t row, auto count) { score<decltype(count)::value>(u.q + row * dim, u.keys, dim, u.scores + row * TILE); });
    for (int64_t query = 0, r = 0; query < u.piece.queries; query++) {
        const int64_t position = u.start + query, from = within(u.low(position) - tile, 0, TILE), to = within(position + 1 - tile, 0, TILE);
        for (int64_t end = r + u.piece.readers; r < end; r++) u.fade[r] = bend(u.scores + r * TILE, u.of, from, to);
    }
    raise(u.fade, u.split.most, rows);
    for (int64_t r = 0; r < rows; r++) u.split.weight[r] = u.split.weight[r] * u.fade[r] + weigh(u.scores + r * TILE, u.split.most[r]);
    in_rows(rows, [&](int64_t row, auto count) {
        gather_row<decltype(count)::value>(u.scores + row * TILE, u.values, wide, low - tile, high - tile, u.fade + row, u.split.values + row * wide);
    });
}

// Sinks, and what the sums say.
inline void finish(const Under& u, const Sums& sums) {
    const int64_t dim = u.of.dim;
    for (int64_t r = 0; r < rows_of(u.piece); r++) {
        float weight = sums.weight[r], factor = 1.0f;
        if (u.of.sinks) {
            // One more key for every query, seen by all and worth nothing.
            const float sink = u.of.sinks[u.head_of(r)], base = finite_or_0(sink > sums.most[r] ? sink : sums.most[r]);
            factor = power(sums.most[r] - base);
            weight = weight * factor + power(sink - base);
        }
        const float* from = sums.values + r * lanes(dim);
        float* to = u.of.out + u.place_of(r);
        const F share = F::all(factor / weight);
        int64_t d = 0;
        for (; d + LANES <= dim; d += LANES) (F::load(from + d) * share).store(to + d);
        if (d < dim) (F::load(from + d) * share).store(to + d, static_cast<int>(dim - d));
    }
}

// The queries of a piece side by side, as its tiles are read with.
inline void take_queries(const Under& u) {
#if SW_LEVEL >= 4
    if (by_tiles(u.of)) return cut_queries(u);
#endif
    for (int64_t r = 0; r < rows_of(u.piece); r++)
        std::memcpy(u.q + r * u.of.dim, u.of.q + u.place_of(r), static_cast<size_t>(u.of.dim) * sizeof(float));
}

void read(const Reading& of, const Piece* pieces, int64_t count, float* work) {
    const auto each = [&](auto f) {
        for (int64_t i = 0; i < count; i++) {
            const Under u(of, pieces, count, i, work);
            f(u, rows_of(u.piece));
        }
    };
    const auto one = [&](const Under& u, int64_t tile, int64_t low, int64_t high) {
#if SW_LEVEL >= 4
        if (by_tiles(of)) return read_by_tiles(u, tile, low, high, tile_rows(pieces[0]));
#endif
        read_tile(u, tile, low, high);
    };
    each([&](const Under& u, int64_t rows) {
        take_queries(u);
        u.whole.clear(rows, of.dim);
    });
#if SW_LEVEL >= 4
    if (by_tiles(of)) configure(tile_rows(pieces[0]));
#endif
    const Under first(of, pieces, count, 0, work);
    const int64_t end = first.start + first.piece.queries, low = first.low(first.start);
    for (int64_t split = first.piece.split; split < first.piece.split_end; split++) {
        const int64_t from = within(split * SPLIT, low, end), to = within((split + 1) * SPLIT, low, end);
        if (from >= to) continue;
        each([&](const Under& u, int64_t rows) { u.split.clear(rows, of.dim); });
        for (int64_t tile = from / TILE * TILE; tile < to; tile += TILE)
            each([&](const Under& u, int64_t) { one(u, tile, within(from, tile, tile + TILE), within(to, tile, tile + TILE)); });
        each([&](const Under& u, int64_t rows) { add(u.whole, u.split, rows, of.dim); });
    }
#if SW_LEVEL >= 4
    if (by_tiles(of)) _tile_release();
#endif
    each([&](const Under& u, int64_t rows) {
        if (u.piece.part) std::memcpy(u.piece.part, u.whole.values, static_cast<size_t>(part_floats(rows, of.dim)) * sizeof(float));
        else finish(u, u.whole);
    });
}

void join(const Reading& of, const Piece& piece, const float* parts, int64_t count, float* work) {
    const Under u(of, &piece, 1, 0, work);
    const int64_t rows = rows_of(piece), floats = part_floats(rows, of.dim);
    u.whole.clear(rows, of.dim);
    for (int64_t i = 0; i < count; i++) {
        std::memcpy(u.split.values, parts + i * floats, static_cast<size_t>(floats) * sizeof(float));
        add(u.whole, u.split, rows, of.dim);
    }
    finish(u, u.whole);
}

// --- turning and writing ----------------------------------------------------------------------------------------------

inline void turn(float* x, const float* cos, const float* sin, int64_t size, bool halves) {
    const int64_t half = size / 2;
    int64_t i = 0;
    if (!halves) {
        for (; i < size; i += 2) {
            const float a = x[i], b = x[i + 1];
            x[i] = a * cos[i] - b * sin[i];
            x[i + 1] = b * cos[i + 1] + a * sin[i + 1];
        }
        return;
    }
    for (; i + LANES <= half; i += LANES) {
        const F a = F::load(x + i), b = F::load(x + half + i);
        (a * F::load(cos + i) - b * F::load(sin + i)).store(x + i);
        (b * F::load(cos + half + i) + a * F::load(sin + half + i)).store(x + half + i);
    }
    const int rest = static_cast<int>(half - i);
    if (!rest) return;
    const F a = F::load(x + i, rest), b = F::load(x + half + i, rest);
    (a * F::load(cos + i, rest) - b * F::load(sin + i, rest)).store(x + i, rest);
    (b * F::load(cos + half + i, rest) + a * F::load(sin + half + i, rest)).store(x + half + i, rest);
}

void write(const Writing& of, int64_t first, int64_t end) {
    const int64_t row = of.kept == Kept::FLOAT32 ? 4 * of.dim : of.kept == Kept::INT8 ? of.dim + 4 : 2 * of.dim;
    for (int64_t t = first; t < end; t++) {
        float *q = of.q + t * of.heads * of.dim, *k = of.k + t * of.kv_heads * of.dim;
        if (of.cos) {
            const float *cos = of.cos + t * of.turned, *sin = of.sin + t * of.turned;
            for (int64_t h = 0; h < of.heads; h++) turn(q + h * of.dim, cos, sin, of.turned, of.halves);
            for (int64_t h = 0; h < of.kv_heads; h++) turn(k + h * of.dim, cos, sin, of.turned, of.halves);
        }
        for (int64_t h = 0; h < of.kv_heads; h++) {
            const int64_t place = (of.slots[t] * of.kv_heads + h) * row;
            keep(k + h * of.dim, of.dim, of.kept, of.keys + place);
            keep(of.v + (t * of.kv_heads + h) * of.dim, of.dim, of.kept, of.values + place);
        }
    }
}

}  // namespace attending

extern const AttentionKernels attention_kernels = {attending::read, attending::join, attending::write};

}  // namespace SW_ISA
}  // namespace sw
