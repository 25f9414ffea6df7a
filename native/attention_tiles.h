// Attention over bfloat16 pages by the tile unit: queries and weights are cut in three bfloat16 numbers, whose products with keys and
// values are exact in float32. A row's sums are taken in the same order whatever stands beside it, be it one query or many.
//
// Included by attention_kernels.h, for the path of CPUs that have the unit.

constexpr int64_t CUTS = TILE_PARTS, DEEP = TILE_INPUTS;  // parts of a number; elements, or keys, that one tile sums over
constexpr int64_t SIZE = LANES * DEEP;                                  // numbers of a tile

inline bool by_tiles(const Reading& of) { return of.kept == Kept::BFLOAT16 && of.dim % DEEP == 0; }

// Those of tiles: of a piece with few, no more than it has.
inline int64_t tile_rows(const Piece& most) { return rows_of(most) < LANES ? rows_of(most) : LANES; }

// Tiles 0-3 are sums [rows][16], 4-5 parts of queries or weights [rows][32], 6-7 keys or values [16 pairs][16][2].
inline void configure(int64_t rows) {
    TileConfig c;
    for (int i = 0; i < 8; i++) c.rows[i] = static_cast<uint8_t>(i < 6 ? rows : LANES), c.bytes[i] = 64;
    _tile_loadconfig(&c);
}

// Sums of up to sixteen rows by N tiles of columns, over `chunks`: a [chunks][CUTS] tiles, b [chunks] of `step` numbers each.
template <int N, bool FRESH>
inline void multiply(const uint16_t* a, const uint16_t* b, int64_t chunks, int64_t step, float* sums, int64_t stride) {
    const int64_t bytes = stride * 4;
    if constexpr (FRESH) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, bytes);
        if (N > 1) _tile_loadd(1, sums + LANES, bytes);
        if (N > 2) _tile_loadd(2, sums + 2 * LANES, bytes);
        if (N > 3) _tile_loadd(3, sums + 3 * LANES, bytes);
    }
    for (int64_t c = 0; c < chunks; c++, b += step) {
#pragma GCC unroll 3
        for (int64_t s = 0; s < CUTS; s++, a += SIZE) {
            _tile_loadd(4, a, 64);
            _tile_loadd(6, b, 64);
            _tile_dpbf16ps(0, 4, 6);
            if (N > 1) {
                _tile_loadd(7, b + SIZE, 64);
                _tile_dpbf16ps(1, 4, 7);
            }
            if (N > 2) {
                _tile_loadd(6, b + 2 * SIZE, 64);
                _tile_dpbf16ps(2, 4, 6);
            }
            if (N > 3) {
                _tile_loadd(7, b + 3 * SIZE, 64);
                _tile_dpbf16ps(3, 4, 7);
            }
        }
    }
    _tile_stored(0, sums, bytes);
    if (N > 1) _tile_stored(1, sums + LANES, bytes);
    if (N > 2) _tile_stored(2, sums + 2 * LANES, bytes);
    if (N > 3) _tile_stored(3, sums + 3 * LANES, bytes);
    written();
}

template <bool FRESH>
inline void multiply(int64_t columns, const uint16_t* a, const uint16_t* b, int64_t chunks, int64_t step, float* sums, int64_t stride) {
    written();
    if (columns == 4) multiply<4, FRESH>(a, b, chunks, step, sums, stride);
    else if (columns == 3) multiply<3, FRESH>(a, b, chunks, step, sums, stride);
    else if (columns == 2) multiply<2, FRESH>(a, b, chunks, step, sums, stride);
    else multiply<1, FRESH>(a, b, chunks, step, sums, stride);
}

inline float widened(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    return bits_of<float>(&bits);
}

// One sum again, in the order of the unit, without the parts that are nothing: by what is infinite they would make a NaN.
// `kept`: the first of the parts stays, whatever it is.
inline float again(const uint16_t* a, const uint16_t* b, int64_t chunks, int64_t step, bool kept, float sum) {
    for (int64_t c = 0; c < chunks; c++, b += step) {
        for (int64_t s = 0; s < CUTS; s++, a += SIZE) {
            float two[2] = {};
            for (int64_t i = 0; i < DEEP; i++) {
                const float part = widened(a[i]);
                if (part != 0.0f || (kept && s == 0)) two[i % 2] = std::fma(part, widened(b[i / 2 * DEEP + i % 2]), two[i % 2]);
            }
            sum += two[0] + two[1];
        }
    }
    return sum;
}

// `sums` [rows, stride] of `columns`: those that are none are taken again, from what was in `before`, or nothing.
inline void repair(int64_t rows, int64_t columns, const uint16_t* a, const uint16_t* b, int64_t chunks, int64_t step, float* sums,
                   int64_t stride, const float* before) {
    for (int64_t r = 0; r < rows; r++)
        for (int64_t i = 0; i < columns; i++)
            if (std::isnan(sums[r * stride + i]))
                sums[r * stride + i] = again(a + r * DEEP, b + i / LANES * SIZE + i % LANES * 2, chunks, step, !before,
                                             before ? before[r * stride + i] : 0.0f);
}

// The queries of a piece as parts: [blocks of sixteen rows][dim / 32][CUTS] tiles, zeros behind the last row.
inline void cut_queries(const Under& u) {
    const int64_t rows = rows_of(u.piece), dim = u.of.dim;
    auto* to = reinterpret_cast<uint16_t*>(u.q);
    for (int64_t r = 0; r < (rows + LANES - 1) / LANES * LANES; r++) {
        const float* x = r < rows ? u.of.q + u.place_of(r) : nullptr;
        for (int64_t c = 0; c < dim / DEEP; c++) {
            __m512i low[CUTS], high[CUTS];
            dense::cut(x ? F::load(x + c * DEEP).v : F::all(0.0f).v, low);
            dense::cut(x ? F::load(x + c * DEEP + LANES).v : F::all(0.0f).v, high);
            for (int64_t s = 0; s < CUTS; s++) {
                uint16_t* tile = to + ((r / LANES * (dim / DEEP) + c) * CUTS + s) * SIZE;
                _mm512_storeu_si512(tile + r % LANES * DEEP, dense::halves(low[s], high[s]));
            }
        }
    }
}

// Whether there is something among 32 numbers, or more, that is not finite.
struct Finite {
    __m512i most;

    void see(__m512i x) { most = _mm512_max_epu16(most, _mm512_and_si512(x, _mm512_set1_epi16(0x7fff))); }
    bool all() const { return !_mm512_cmpge_epu16_mask(most, _mm512_set1_epi16(0x7f80)); }
};

// The keys of a page as tiles [dim / 32][4 pages]. Those outside of [low, high) are never read: others stand for them.
inline void tile_keys(const uint8_t* page, int64_t stride, int64_t low, int64_t high, int64_t dim, Finite& finite, uint16_t* to) {
    for (int64_t c = 0; c < dim / DEEP; c++) {
        __m512 a[LANES];
        for (int64_t i = 0; i < PAGE; i++) {
            a[i] = _mm512_loadu_ps(page + (i < low ? low : i < high ? i : high - 1) * stride + c * DEEP * 2);
            finite.see(_mm512_castps_si512(a[i]));
        }
        turn_over(a);
        for (int64_t i = 0; i < LANES; i++) _mm512_storeu_ps(to + c * (TILE / PAGE) * SIZE + i * DEEP, a[i]);
    }
}

// The values of two pages as dim / 16 tiles: each pair is a token of the one and one of the other. A null row is one of zeros.
inline void tile_values(const uint8_t* const (&rows)[DEEP], int64_t dim, Finite& finite, uint16_t* to) {
    alignas(64) static const uint16_t first[32] = {0, 32, 1, 33, 2,  34, 3,  35, 4,  36, 5,  37, 6,  38, 7,  39,
                                                   8, 40, 9, 41, 10, 42, 11, 43, 12, 44, 13, 45, 14, 46, 15, 47};
    const __m512i low = _mm512_load_si512(first), high = _mm512_add_epi16(low, _mm512_set1_epi16(16));
    for (int64_t i = 0; i < PAGE; i++) {
        const uint8_t *one = rows[i], *other = rows[i + PAGE];
        for (int64_t d = 0; d < dim; d += DEEP) {
            const __m512i a = one ? _mm512_loadu_si512(one + 2 * d) : _mm512_setzero_si512();
            const __m512i b = other ? _mm512_loadu_si512(other + 2 * d) : _mm512_setzero_si512();
            finite.see(a);
            finite.see(b);
            uint16_t* tile = to + d / LANES * SIZE + i * DEEP;
            _mm512_store_si512(tile, _mm512_permutex2var_epi16(a, low, b));
            _mm512_store_si512(tile + SIZE, _mm512_permutex2var_epi16(a, high, b));
        }
    }
}

// Keys and values of a tile of positions, and whether all are finite.
struct Packed {
    const uint16_t *keys, *values;
    Finite of_keys, of_values;

    Packed(const Under& u, int64_t tile, int64_t low, int64_t high)
        : keys(reinterpret_cast<uint16_t*>(u.keys)), values(reinterpret_cast<uint16_t*>(u.values)),
          of_keys{_mm512_setzero_si512()}, of_values{_mm512_setzero_si512()} {
        const int64_t dim = u.of.dim, row = 2 * dim, stride = u.of.kv_heads * row, head = u.piece.kv_head * row;
        for (int64_t half = tile; half < high; half += DEEP) {
            if (half + DEEP <= low) continue;
            const uint8_t* rows[DEEP] = {};
            for (int64_t at = within(half, low / PAGE * PAGE, high); at < high && at < half + DEEP; at += PAGE) {
                const int64_t* page = u.table + (at - u.first) / PAGE;
                const int64_t place = *page * PAGE * stride + head, begin = at < low ? low - at : 0, end = high - at < PAGE ? high - at : PAGE;
                const int64_t next = at + TILE < u.start ? page[TILE / PAGE] * PAGE * stride + (u.all ? PAGE * head : head) : place;
                const Next ahead{u.of.keys + next, u.of.values + next, u.all ? row : stride, row};
                for (int64_t i = begin; i < end; i++) {
                    ahead.fetch(i);
                    rows[at - half + i] = u.of.values + place + i * stride;
                }
                tile_keys(u.of.keys + place, stride, begin, end, dim, of_keys, reinterpret_cast<uint16_t*>(u.keys) + (at - tile) / PAGE * SIZE);
            }
            tile_values(rows, dim, of_values, reinterpret_cast<uint16_t*>(u.values) + (half - tile) / DEEP * (dim / LANES) * SIZE);
        }
    }
};

// Up to sixteen rows of a piece, and which keys of the tile some of them see.
struct Block {
    int64_t row, rows, tile, from, to;

    Block(const Under& u, int64_t row, int64_t tile)
        : row(row), rows(rows_of(u.piece) - row < LANES ? rows_of(u.piece) - row : LANES), tile(tile),
          from(within(u.low(u.start + row / u.piece.readers) - tile, 0, TILE)),
          to(within(u.start + (row + rows - 1) / u.piece.readers + 1 - tile, 0, TILE)) {}
};

// The scores [16, TILE] of those keys, as products have them.
inline void score(const Under& u, const Block& block, const Packed& packed, float* scores) {
    const int64_t chunks = u.of.dim / DEEP, first = block.from / LANES, count = (block.to + LANES - 1) / LANES - first, step = TILE / LANES * SIZE;
    const uint16_t* q = reinterpret_cast<const uint16_t*>(u.q) + block.row / LANES * chunks * CUTS * SIZE;
    multiply<true>(count, q, packed.keys + first * SIZE, chunks, step, scores + first * LANES, TILE);
    if (__builtin_expect(!packed.of_keys.all(), 0))
        repair(block.rows, count * LANES, q, packed.keys + first * SIZE, chunks, step, scores + first * LANES, TILE, nullptr);
}

// What a row says of the keys that it sees, [low, high), made of its scores [TILE]. The greatest of each lane comes back.
inline F bent(float* scores, const Reading& of, int64_t low, int64_t high) {
    const uint64_t below = high < TILE ? (uint64_t{1} << high) - 1 : ~uint64_t{0}, seen = low < TILE ? below >> low << low : 0;
    F top = F::all(-INFINITY);
    for (int64_t i = 0; i < TILE / LANES; i++) {
        F x = F::load(scores + i * LANES);
        if (of.softcap == 0.0f) {
            x = x * F::all(of.scale);
        } else {
            // tanh(y) = 1 - 2 / (e^2y + 1)
            const F both = exp(x * F::all(2.0f * of.scale / of.softcap)) + F::all(1.0f);
            x = F::all(of.softcap) * (F::all(1.0f) - F::all(2.0f) / both);
        }
        x.v = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), static_cast<__mmask16>(seen >> (i * LANES)), x.v);
        x.store(scores + i * LANES);
        top = max(top, x);
    }
    return top;
}

// The greatest so far of some rows, which the greatest `found` of a tile may raise. What earlier sums are worth now comes back.
inline F raised(F found, float* most, int64_t rows, F& base) {
    const F before = F::load(most, static_cast<int>(rows)), lowest = F::all(-INFINITY);
    const auto higher = _mm512_cmp_ps_mask(found.v, before.v, _CMP_NLE_UQ);  // or a NaN
    const F now = {_mm512_mask_mov_ps(before.v, higher, found.v)};
    base = {_mm512_mask_mov_ps(now.v, _mm512_cmp_ps_mask(now.v, lowest.v, _CMP_EQ_OQ), _mm512_setzero_ps())};
    const F old = {_mm512_mask_mov_ps(before.v, _mm512_cmp_ps_mask(before.v, now.v, _CMP_EQ_OQ), base.v)};  // e^0 is 1
    now.store(most, static_cast<int>(rows));
    return falling(old - base);
}

// Sixteen weights and the sixteen after, as parts: each pair is one of these and one of those, as values are.
inline void cut_weights(F low, F high, uint16_t* to) {
    const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
    for (int64_t s = 0; s < CUTS; s++, to += SIZE) {
        const __m512i a = _mm512_castps_si512(low.v), b = _mm512_and_si512(_mm512_castps_si512(high.v), upper);
        _mm512_store_si512(to, _mm512_or_si512(_mm512_srli_epi32(a, 16), b));
        low.v = _mm512_sub_ps(low.v, _mm512_castsi512_ps(_mm512_and_si512(a, upper)));
        high.v = _mm512_sub_ps(high.v, _mm512_castsi512_ps(b));
    }
}

// Scores become weights, in parts [TILE / 32][CUTS]; their greatest and their sum are taken in. What earlier sums are worth comes back.
inline F weighed(const Under& u, const Block& block, float* scores, uint16_t* parts) {
    __m512 some[LANES];
    for (int64_t r = 0; r < LANES; r++) some[r] = _mm512_set1_ps(-INFINITY);
    for (int64_t r = 0; r < block.rows; r++) {
        const int64_t position = u.start + (block.row + r) / u.piece.readers;
        some[r] = bent(scores + r * TILE, u.of, within(u.low(position) - block.tile, 0, TILE), within(position + 1 - block.tile, 0, TILE)).v;
    }
    turn_over(some);
    F most = {some[0]};
    for (int64_t i = 1; i < LANES; i++) most = max(most, F{some[i]});
    F base;
    const F fade = raised(most, u.split.most + block.row, block.rows, base);
    alignas(64) float bases[LANES];
    base.store(bases);
    for (int64_t r = 0; r < LANES; r++) some[r] = _mm512_setzero_ps();
    for (int64_t r = 0; r < block.rows; r++) {
        F x[TILE / LANES];
        for (int64_t i = 0; i < TILE / LANES; i++) x[i] = falling(F::load(scores + r * TILE + i * LANES) - F::all(bases[r]));
        some[r] = ((x[0] + x[1]) + (x[2] + x[3])).v;
        cut_weights(x[0], x[1], parts + r * DEEP);
        cut_weights(x[2], x[3], parts + CUTS * SIZE + r * DEEP);
    }
    turn_over(some);
    for (int64_t width = LANES / 2; width; width /= 2)
        for (int64_t i = 0; i < width; i++) some[i] = _mm512_add_ps(some[i], some[i + width]);
    float* weight = u.split.weight + block.row;
    fma(F::load(weight, static_cast<int>(block.rows)), fade, {some[0]}).store(weight, static_cast<int>(block.rows));
    return fade;
}

// Values by their weights, to sums [rows, dim] that are worth `fade` by now. 64 columns at a time: `own` keeps those of a block of
// fewer rows than tiles have, and what was there before where something is not finite.
inline void gather(const Under& u, const Block& block, const Packed& packed, const uint16_t* parts, F fade, int64_t tile_rows) {
    const int64_t dim = u.of.dim, wide = dim / LANES, first = block.from / DEEP, chunks = (block.to + DEEP - 1) / DEEP - first;
    alignas(64) float fades[LANES], own[LANES * TILE], before[LANES * TILE];
    fade.store(fades);
    float* const sums = u.split.values + block.row * dim;
    for (int64_t r = 0; r < block.rows; r++)
        if (fades[r] != 1.0f)
            for (int64_t d = 0; d < dim; d += LANES) (F::load(sums + r * dim + d) * F::all(fades[r])).store(sums + r * dim + d);
    const bool apart = block.rows < tile_rows, finite = packed.of_values.all();
    const auto copy = [&](const float* from, int64_t from_stride, float* to, int64_t to_stride, int64_t columns) {
        for (int64_t r = 0; r < block.rows; r++) std::memcpy(to + r * to_stride, from + r * from_stride, static_cast<size_t>(columns) * sizeof(float));
    };
    if (apart) std::memset(own, 0, sizeof own);
    const uint16_t* a = parts + first * CUTS * SIZE;
    for (int64_t e = 0; e < wide; e += 4) {
        const int64_t count = wide - e < 4 ? wide - e : 4, stride = apart ? TILE : dim;
        const uint16_t* b = packed.values + (first * wide + e) * SIZE;
        float *there = sums + e * LANES, *at = apart ? own : there;
        if (!finite) copy(there, dim, before, TILE, count * LANES);
        if (apart) copy(there, dim, own, TILE, count * LANES);
        multiply<false>(count, a, b, chunks, wide * SIZE, at, stride);
        if (apart) copy(own, TILE, there, dim, count * LANES);
        if (__builtin_expect(!finite, 0))
            for (int64_t r = 0; r < block.rows; r++) repair(1, count * LANES, a + r * DEEP, b, chunks, wide * SIZE, there + r * dim, dim, before + r * TILE);
    }
}

// The keys [low, high) of the tile that begins at position `tile`, into the sums of the split. The scores of a block are made while
// those of the block before become weights.
inline void read_by_tiles(const Under& u, int64_t tile, int64_t low, int64_t high, int64_t tile_rows) {
    const int64_t rows = rows_of(u.piece);
    alignas(64) float scores[2][LANES * TILE];
    alignas(64) uint16_t parts[TILE / DEEP * CUTS * SIZE];
    const Packed packed(u, tile, low, high);
    const auto next = [&](int64_t row, float* to) {
        for (; row < rows; row += LANES) {
            const Block block(u, row, tile);
            if (block.from >= block.to) continue;
            score(u, block, packed, to);
            break;
        }
        return row;
    };
    int64_t side = 0;
    for (int64_t row = next(0, scores[0]), after; row < rows; row = after, side = 1 - side) {
        after = next(row + LANES, scores[1 - side]);
        const Block block(u, row, tile);
        gather(u, block, packed, parts, weighed(u, block, scores[side], parts), tile_rows);
    }
}
