// Products of several rows by the tile unit: sixteen rows of activations by sixteen of weights, up to 64 inputs at a time.
//
// It gives the same bits as the other way: dots are whole numbers, and groups are added in the same order. Activations of a few
// groups stay in tile registers while the weights of several tiles go by, which were unpacked to the first cache once for all
// rows. Included by quantised_kernels.h, for the path of CPUs that have the unit.

#include <utility>

namespace sw {
namespace SW_ISA {

constexpr int R = 16;              // rows of activations at a time
constexpr int64_t LEAST_ROWS = 9;  // fewer go the other way
constexpr int STEPS = 4;           // tile registers that hold activations
constexpr int64_t WIDE = 8;        // tiles of weights side by side
constexpr int64_t SOME_ROWS = 64;  // up to so many, fewer tiles are side by side: more of the first cache is for what comes
constexpr int TURN_BYTES = STEPS * TILE * 64;

// Tiles 0-3 are activations [rows][inputs], 4-5 weights [inputs / 4][16 outputs][4], 6-7 dots [rows][16 outputs].
inline void configure(int inputs) {
    TileConfig c;
    for (int i = 0; i < 4; i++) c.bytes[i] = static_cast<uint16_t>(inputs), c.rows[i] = R;
    for (int i = 4; i < 6; i++) c.bytes[i] = 64, c.rows[i] = static_cast<uint8_t>(inputs / 4);
    for (int i = 6; i < 8; i++) c.bytes[i] = 64, c.rows[i] = R;
    _tile_loadconfig(&c);
}

// `bytes` of packed weights as signed bytes; what will be wanted soon is `ahead` bytes on.
inline void unpack_bytes(const uint8_t* p, int64_t bytes, int bits, int64_t ahead, int8_t* out) {
    const __m512i four = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8), top = _mm512_set1_epi8(-128);
    for (int64_t i = 0; i < bytes; i += 64) {
        const __m512i v = _mm512_loadu_si512(p + i);
        prefetch(p + i + ahead);
        if (bits == 8) {
            _mm512_store_si512(out + i, _mm512_xor_si512(v, top));
            continue;
        }
        _mm512_store_si512(out + 2 * i, _mm512_sub_epi8(_mm512_and_si512(v, four), eight));
        _mm512_store_si512(out + 2 * i + 64, _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(v, 4), four), eight));
    }
}

// Dots in memory, converted while they are loaded: a vector in a register would first be taken apart.
inline F converted(const int32_t* p, const F&) { return {_mm512_cvtepi32_ps(_mm512_load_si512(p))}; }
inline F64 converted(const int32_t* p, const F64&) {
    const __m256i* half = reinterpret_cast<const __m256i*>(p);
    return F64::whole(_mm256_load_si256(half), _mm256_load_si256(half + 1));
}

// Some tiles of weights by the rows begin..end-1, R at a time. `LONG`: groups have more than 64 inputs, and activations take two
// registers each. A turn is as many groups as there are registers; in each turn all rows are gone through.
template <class N, bool LONG>
struct Strip {
    using Total = Sums<N>;
    using V = typename Total::V;
    static constexpr int PART = sizeof(N) == 8 && R > 8 ? 8 : R;  // rows whose sums fit registers
    static constexpr int COUNT = LONG ? STEPS / 2 : STEPS;        // groups of a turn

    // One block of rows by one tile of weights in one turn.
    struct Job {
        int64_t g, row, t;
        N* waiting;
    };

    const Product<N>& p;
    const int64_t begin, end, tile, tiles;
    alignas(64) int8_t weights[WIDE][TURN_BYTES];
    alignas(64) float scales[2][WIDE][COUNT][TILE];  // of this turn, and of the one before
    alignas(64) int32_t dots[COUNT][R][TILE];
    double wide_scales[COUNT][R];  // of rows, widened once for all tiles

    Strip(const Product<N>& p, int64_t begin, int64_t end, int64_t tile, int64_t tiles)
        : p(p), begin(begin), end(end), tile(tile), tiles(tiles) {}

    // Where a block of rows really begins: the last one may overlap the one before, and gives the same once more.
    int64_t top(int64_t row) const { return row + R > end && end >= R ? end - R : row; }

// The compiler wants tile registers by their literal numbers: C of dots, A of activations, B of weights.
#define SW_DOTS(C, A, B, MORE, B_MORE)                  \
    {                                                   \
        if (fresh) {                                    \
            _tile_loadd(A, x, stride);                  \
            if (LONG) _tile_loadd(MORE, x + 64, stride); \
        }                                               \
        _tile_zero(C);                                  \
        _tile_loadd(B, w, 64);                          \
        _tile_dpbssd(C, A, B);                          \
        if (LONG) {                                     \
            _tile_loadd(B_MORE, w + 1024, 64);          \
            _tile_dpbssd(C, MORE, B_MORE);              \
        }                                               \
        _tile_stored(C, dots[G], 64);                   \
    }

    // The dots of group G: `x` and `w` are where the first group's activations and weights are. `fresh` activations are loaded
    // before, and stay.
    template <int G>
    __attribute__((always_inline)) static void start(const int8_t* x, const int8_t* w, int64_t stride, int64_t group, bool fresh,
                                                     int32_t (*dots)[R][TILE]) {
        x += G * group, w += G * group * TILE;
        written();
        if constexpr (G == 0) SW_DOTS(6, 0, 4, 1, 5)
        else if constexpr (G == 1 && LONG) SW_DOTS(7, 2, 4, 3, 5)
        else if constexpr (G == 1) SW_DOTS(7, 1, 5, 1, 5)
        else if constexpr (G == 2) SW_DOTS(6, 2, 4, 2, 4)
        else SW_DOTS(7, 3, 5, 3, 5)
    }
#undef SW_DOTS

    // Adds what group G gives to the sums of the rows from `first` on.
    template <int G>
    __attribute__((always_inline)) static void add(V (&sums)[PART], int first, const float (*scales)[TILE], const N* row_scales,
                                                   const int32_t (*dots)[R][TILE]) {
        const V scale = Total::of(F::load(scales[G]));
#pragma GCC unroll 16
        for (int r = 0; r < PART; r++) {
            sums[r] = fma(converted(dots[G][first + r], scale), scale * V::all(row_scales[first + r]), sums[r]);
        }
    }

    const double* widened(const Job& job, int count) {
        const float* from = p.x.scale + job.g * p.x.rows + top(job.row);
        if (job.t == 0)
            for (int g = 0; g < count; g++)
                for (int r = 0; r < R; r++) wide_scales[g][r] = static_cast<double>(from[g * p.x.rows + r]);
        return wide_scales[0];
    }

    const int8_t* activations(const Job& job) const { return p.x.q + top(job.row) * p.x.stride + job.g * p.x.group; }

    // What groups G... add to the sums, while the next job's dots begin. All that is needed lies in registers: what is written
    // by tiles, the compiler takes for everything.
    template <int... G>
    __attribute__((always_inline)) void step(const Job& job, const Job* next, const Job* later, std::integer_sequence<int, G...>) {
        const int64_t stride = p.x.stride, group = p.x.group, rows = p.x.rows;
        const int8_t *x = next ? activations(*next) : nullptr, *w = next ? weights[next->t] : nullptr;
        const bool fresh = next && next->t == 0;
        const float(*tile_scales)[TILE] = scales[job.g / COUNT & 1][job.t];
        const N* row_scales;
        int64_t apart;
        if constexpr (sizeof(N) == 4) row_scales = p.x.scale + job.g * rows + top(job.row), apart = rows;
        else row_scales = widened(job, sizeof...(G)), apart = R;
        int32_t(*out)[R][TILE] = dots;
        N* waiting = job.waiting;
#pragma GCC unroll 2
        for (int first = 0; first < R; first += PART) {
            V sums[PART];
            const bool last_part = first + PART == R, last = last_part && next;
#pragma GCC unroll 16
            for (int r = 0; r < PART; r++) sums[r] = job.g ? V::load(waiting + (first + r) * TILE) : Total::all(0.0f);
            ((last_part && later ? unpack(*later, G) : void(), add<G>(sums, first, tile_scales, row_scales + G * apart, out),
              last ? start<G>(x, w, stride, group, fresh, out) : void()),
             ...);
#pragma GCC unroll 16
            for (int r = 0; r < PART; r++) sums[r].store(waiting + (first + r) * TILE);
        }
    }

    // Group job.g + g of a tile of weights as signed bytes; those AHEAD_BYTES on are asked for.
    void unpack(const Job& job, int64_t g) {
        const PackedWeight& w = p.w;
        const int64_t group = job.g + g, place = (tile + job.t) * w.groups + group, bytes = w.bytes();
        // At the end of a tile, the one that comes after all of these.
        const int64_t over = (w.groups - group) * bytes > AHEAD_BYTES ? 0 : (tiles - 1) * w.groups * bytes;
        unpack_bytes(w.weight + place * bytes, bytes, w.bits, AHEAD_BYTES + over, weights[job.t] + g * w.group * TILE);
        F::f16(w.scale + place * TILE).store(scales[job.g / COUNT & 1][job.t][g]);
    }

    // The activations of the next block of rows, in as many shares as there are tiles.
    void ahead_of(const Job& job) const {
        for (int64_t r = job.t * R / tiles; r < (job.t + 1) * R / tiles; r++) {
            const int8_t* x = p.x.q + (job.row + R + r) * p.x.stride + job.g * p.x.group;
            for (int i = 0; i < COUNT * p.x.group; i += 64) prefetch(x + i);
        }
    }

    // The job after; false if there is none before group `stop`.
    bool follow(Job& job, int64_t step, int64_t stop) const {
        job.waiting += R * TILE;
        if (++job.t < tiles) return true;
        job.t = 0, job.row += R;
        if (job.row < end) return true;
        job.row = begin, job.waiting = p.sums, job.g += step;
        return job.g + step <= stop;
    }

    // The turns from group g on, `whole` groups in all.
    template <int... G>
    void turns(int64_t g, int64_t whole, std::integer_sequence<int, G...> groups) {
        constexpr int64_t count = sizeof...(G);
        Job job{g, begin, 0, p.sums}, next = job, later = job;
        for (int64_t i = 0; i < count; i++) unpack(job, i);
        bool more = follow(next, count, g + whole), still = more && follow(later = next, count, g + whole);
        if (more && tiles > 1)
            for (int64_t i = 0; i < count; i++) unpack(next, i);
        written();
        (start<G>(activations(job), weights[job.t], p.x.stride, p.x.group, true, dots), ...);
        for (;;) {
            // A tile's weights are unpacked two jobs before they are wanted, if there are two buffers.
            const Job* fresh = tiles > 1 ? (still ? &later : nullptr) : (more ? &next : nullptr);
            if (job.row + R < end) ahead_of(job);
            step(job, more ? &next : nullptr, fresh && fresh->row == begin ? fresh : nullptr, groups);
            if (job.g + count == p.w.groups) finish(job);
            if (!more) break;
            job = next, next = later, more = still, still = still && follow(later, count, g + whole);
        }
    }

    void finish(const Job& job) const {
        const Part<N> part{p.x, p.w, p.bias, p.y, p.wide, nullptr, 0, 0, 0, 0, p.far};
        const int64_t row = top(job.row), rows = end - row < R ? end - row : R;
        for (int64_t r = 0; r < rows; r++) part.finish(row + r, tile + job.t, V::load(job.waiting + r * TILE));
    }

    void all() {
        const int64_t whole = p.w.groups / COUNT * COUNT;
        if (whole) turns(0, whole, std::make_integer_sequence<int, COUNT>());
        for (int64_t g = whole; g < p.w.groups; g++) turns(g, 1, std::make_integer_sequence<int, 1>());
    }
};

// As product_of.
template <class N, bool LONG>
void product_by_tiles(const Product<N>& p, int64_t first, int64_t last) {
    configure(LONG ? 64 : p.w.group);
    const int64_t wide = p.x.rows > SOME_ROWS ? WIDE : WIDE / 4;
    for (int64_t row = 0; row < p.x.rows; row += NEAR_ROWS) {
        const int64_t end = row + NEAR_ROWS < p.x.rows ? row + NEAR_ROWS : p.x.rows;
        for (int64_t tile = first; tile < last; tile += wide) {
            Strip<N, LONG> strip(p, row, end, tile, tile + wide < last ? wide : last - tile);
            strip.all();
        }
    }
    _tile_release();
}

}  // namespace SW_ISA
}  // namespace sw
