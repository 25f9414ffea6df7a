// Attention over pages: keys and values as they are written, and as queries read them. Written once, compiled for each path.
#pragma once

#include <cstdint>

namespace sw {
namespace paged {

// How a number of the cache is kept. INT8: after the `dim` numbers of a token and head comes their float32 scale.
enum class Kept : int64_t { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2, INT8 = 3 };

constexpr int64_t PAGE = 16;    // tokens of a page
constexpr int64_t TILE = 64;    // keys that are weighed together: each tile begins at a multiple of it
constexpr int64_t SPLIT = 512;  // keys whose sums are taken apart from those of others: likewise

// What queries read. `Reading` of nn/kernels/attention.py counts its fields alike.
struct Reading {
    const float* q;            // [tokens, heads, dim]
    float* out;                // the same
    const uint8_t* keys;       // [pages, PAGE, kv_heads, dim]
    const uint8_t* values;     // the same
    const int64_t* sequences;  // [count, 5]: its first row of q, rows, their first position, that of its table, where in `pages` that is
    const int64_t* pages;      // all tables, one behind the other
    const int64_t* readers;    // [heads]: the KV head that each query head reads
    const float* sinks;        // [heads], or null
    int64_t count, heads, kv_heads, dim;
    Kept kept;
    int64_t window;   // how far back a query sees, itself included; 0: to the first token
    int64_t chunked;  // not so far, but to the last multiple of `window`
    float scale, softcap;  // softcap 0: none
};

// Some queries of one sequence, and those of their heads that read one KV head: `rows` in all, each query's heads together.
struct Piece {
    const int64_t* sequence;
    const int64_t* heads;  // the query heads
    int64_t readers, kv_head;
    int64_t first, queries;     // of the sequence's
    int64_t split, split_end;   // the ranges of SPLIT keys that are read
    float* part;                // where what was read is left, `part_floats`; null: it is all, and goes to `out`
};

// Static, as each path compiles its own: the linker must not keep one path's for all.
static inline int64_t rows_of(const Piece& piece) { return piece.readers * piece.queries; }
// The next multiple of sixteen floats, a cache line: all that is computed with begins on one.
static inline int64_t lanes(int64_t dim) { return (dim + 15) / 16 * 16; }
// Of each row its sums of values, then the greatest score of each, then its sum of weights.
static inline int64_t part_floats(int64_t rows, int64_t dim) { return rows * lanes(dim) + lanes(2 * rows); }
// What reading takes: for a tile, and for each of the pieces that are read side by side.
static inline int64_t tile_floats(int64_t rows, int64_t dim) { return 2 * TILE * lanes(dim) + rows * TILE + lanes(rows); }
// Queries: as floats, or in three bfloat16 parts of sixteen rows each.
static inline int64_t query_floats(int64_t rows, int64_t dim) { return lanes((rows + 15) / 16 * 24 * dim); }
static inline int64_t own_floats(int64_t rows, int64_t dim) { return query_floats(rows, dim) + 2 * part_floats(rows, dim); }
static inline int64_t work_floats(int64_t rows, int64_t dim, int64_t pieces) {
    return tile_floats(rows, dim) + pieces * own_floats(rows, dim);
}
// The first position that the query at `position` sees, of a sequence whose table begins at `first`.
static inline int64_t seen_from(const Reading& of, int64_t first, int64_t position) {
    if (!of.window) return first;
    const int64_t seen = of.chunked ? position / of.window * of.window : position - of.window + 1;
    return seen > first ? seen : first;
}

// Queries and keys that are turned in place, and keys and values that are written. `Writing` of nn/kernels/attention.py.
struct Writing {
    float* q;            // [tokens, heads, dim]
    float* k;            // [tokens, kv_heads, dim]
    const float* v;      // the same
    const float* cos;    // [tokens, turned], or null: nothing is turned
    const float* sin;    // the same
    const int64_t* slots;  // [tokens]: page · PAGE + place in it
    uint8_t* keys;
    uint8_t* values;
    int64_t tokens, heads, kv_heads, dim, turned;
    Kept kept;
    int64_t halves;  // element i turns with i + turned / 2, and not with its neighbour
};

}  // namespace paged

struct AttentionKernels {
    // Reads some pieces side by side, as keys of all heads lie together: they differ in nothing but their heads, and the first has
    // the most rows. `work`: work_floats(its rows, dim, count), from a cache line on.
    void (*read)(const paged::Reading& of, const paged::Piece* pieces, int64_t count, float* work);
    // Joins the `count` parts of a piece, which lie one behind the other, in order. `work` as for one piece.
    void (*join)(const paged::Reading& of, const paged::Piece& piece, const float* parts, int64_t count, float* work);
    void (*write)(const paged::Writing& of, int64_t first, int64_t end);
};

}  // namespace sw
