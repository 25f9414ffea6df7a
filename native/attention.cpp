#include "attention.h"

#include <vector>

#include "api.h"
#include "paths.h"
#include "pool.h"

namespace sw {
SW_PATHS(AttentionKernels, attention_kernels)

namespace {

using namespace paged;

constexpr int64_t BLOCK_ROWS = 96;      // about as many rows are read together: what is packed serves them all
constexpr int64_t PIECES_A_THREAD = 4;  // with fewer pieces, long ones are divided
constexpr int64_t PARTS_BYTES = 16 << 20;  // the most that sums of divided pieces take; the engine plans with it
constexpr int64_t SOME_TOKENS = 16;     // tokens that are worth a piece when they are written

constexpr size_t LINE = 64;

// Room for so many floats from a cache line on, in `memory`, which grows as it must.
float* room(std::vector<float>& memory, int64_t floats) {
    const size_t needed = static_cast<size_t>(floats) + LINE / sizeof(float);
    if (memory.size() < needed) memory.resize(needed);
    const size_t over = reinterpret_cast<uintptr_t>(memory.data()) % LINE;
    return memory.data() + (over ? (LINE - over) / sizeof(float) : 0);
}

// A thread's own, kept for the next call.
float* work_of(int64_t floats) {
    thread_local std::vector<float> memory;
    return room(memory, floats);
}

// Query heads in the order of the KV heads that they read, and where each of these begins.
struct Readers {
    std::vector<int64_t> heads, begins;

    explicit Readers(const Reading& of) : begins(1, 0) {
        for (int64_t kv = 0; kv < of.kv_heads; kv++) {
            for (int64_t head = 0; head < of.heads; head++)
                if (of.readers[head] == kv) heads.push_back(head);
            begins.push_back(static_cast<int64_t>(heads.size()));
        }
    }
    int64_t count(int64_t kv) const { return begins[static_cast<size_t>(kv) + 1] - begins[static_cast<size_t>(kv)]; }
    const int64_t* of(int64_t kv) const { return heads.data() + begins[static_cast<size_t>(kv)]; }
};

// All pieces, those with the most keys first: a long one must not be the last.
std::vector<Piece> pieces_of(const Reading& of, const Readers& readers) {
    std::vector<Piece> found;
    for (int64_t i = 0; i < of.count; i++) {
        const int64_t *sequence = of.sequences + 5 * i, count = sequence[1];
        for (int64_t kv = 0; kv < of.kv_heads; kv++) {
            const int64_t heads = readers.count(kv);
            if (!heads) continue;
            const int64_t block = heads < BLOCK_ROWS ? BLOCK_ROWS / heads : 1;
            for (int64_t first = (count - 1) / block * block; first >= 0; first -= block) {
                const int64_t queries = first + block < count ? block : count - first, position = sequence[2] + first;
                const int64_t split = seen_from(of, sequence[3], position) / SPLIT, end = (position + queries - 1) / SPLIT + 1;
                found.push_back({sequence, readers.of(kv), heads, kv, first, queries, split, end, nullptr});
            }
        }
    }
    return found;
}

// Few rows: memory sets the pace, and gives most where all heads of a token are read together.
constexpr int64_t FEW_ROWS_READ = 16;

// Where the pieces begin that are read side by side, and where the last ends.
std::vector<size_t> beside(const Reading& of, const std::vector<Piece>& pieces, int threads) {
    const bool wanted = threads == 1 || of.count >= PIECES_A_THREAD * threads;
    std::vector<size_t> begins;
    for (size_t i = 0; i < pieces.size(); i++) {
        const Piece &piece = pieces[i], &first = begins.empty() ? piece : pieces[begins.back()];
        const bool same = wanted && !begins.empty() && piece.sequence == first.sequence && piece.first == first.first &&
                          rows_of(first) <= FEW_ROWS_READ && rows_of(piece) <= rows_of(first) && piece.split == first.split;
        if (!same) begins.push_back(i);
    }
    begins.push_back(pieces.size());
    return begins;
}

void read_whole(Pool* pool, const Reading& of, const std::vector<Piece>& pieces) {
    const auto kernel = attention_kernels_of().read;
    const std::vector<size_t> begins = beside(of, pieces, pool ? pool->threads() : 1);
    each(pool, static_cast<int64_t>(begins.size()) - 1, [&](int64_t i, int) {
        const size_t first = begins[static_cast<size_t>(i)];
        const auto count = static_cast<int64_t>(begins[static_cast<size_t>(i) + 1] - first);
        kernel(of, &pieces[first], count, work_of(work_floats(rows_of(pieces[first]), of.dim, count)));
    });
}

// Each split of each piece for itself; then those of a piece are joined.
void read_divided(Pool* pool, const Reading& of, const std::vector<Piece>& pieces) {
    std::vector<Piece> parts;
    std::vector<size_t> begins;
    std::vector<int64_t> places;
    int64_t floats = 0;
    for (const Piece& piece : pieces) {
        begins.push_back(parts.size());
        for (int64_t split = piece.split; split < piece.split_end; split++) {
            parts.push_back(piece);
            parts.back().split = split;
            parts.back().split_end = split + 1;
            places.push_back(floats);
            floats += part_floats(rows_of(piece), of.dim);
        }
    }
    std::vector<float> memory;
    float* const all = room(memory, floats);
    for (size_t i = 0; i < parts.size(); i++) parts[i].part = all + places[i];
    read_whole(pool, of, parts);
    const auto kernel = attention_kernels_of().join;
    each(pool, static_cast<int64_t>(pieces.size()), [&](int64_t i, int) {
        const Piece& piece = pieces[static_cast<size_t>(i)];
        kernel(of, piece, parts[begins[static_cast<size_t>(i)]].part, piece.split_end - piece.split, work_of(work_floats(rows_of(piece), of.dim, 1)));
    });
}

bool worth_dividing(const Reading& of, const std::vector<Piece>& pieces, int threads) {
    if (threads == 1 || static_cast<int64_t>(pieces.size()) >= PIECES_A_THREAD * threads) return false;
    int64_t floats = 0, most = 0;
    for (const Piece& piece : pieces) {
        const int64_t splits = piece.split_end - piece.split;
        floats += splits * part_floats(rows_of(piece), of.dim);
        most = splits > most ? splits : most;
    }
    return most > 1 && floats * static_cast<int64_t>(sizeof(float)) <= PARTS_BYTES;
}

}  // namespace
}  // namespace sw

SW_API void sw_attention_read(void* pool, const sw::paged::Reading* of) {
    using namespace sw;
    auto* threads = static_cast<Pool*>(pool);
    const Readers readers(*of);
    const std::vector<Piece> pieces = pieces_of(*of, readers);
    if (worth_dividing(*of, pieces, threads ? threads->threads() : 1)) read_divided(threads, *of, pieces);
    else read_whole(threads, *of, pieces);
}

SW_API void sw_attention_write(void* pool, const sw::paged::Writing* of) {
    using namespace sw;
    const auto kernel = attention_kernels_of().write;
    each(static_cast<Pool*>(pool), (of->tokens + SOME_TOKENS - 1) / SOME_TOKENS, [&](int64_t piece, int) {
        const int64_t first = piece * SOME_TOKENS, end = first + SOME_TOKENS;
        kernel(*of, first, end < of->tokens ? end : of->tokens);
    });
}

// Both as one call, of a layer that is the same step by step but for these: q and k as `Writing` has them, out as `Reading`.
SW_API void sw_attend(void* pool, const sw::paged::Writing* write, const sw::paged::Reading* read, float* q, float* k, const float* v,
                      float* out) {
    sw::paged::Writing writing = *write;
    writing.q = q, writing.k = k, writing.v = v;
    sw_attention_write(pool, &writing);
    sw::paged::Reading reading = *read;
    reading.q = q, reading.out = out;
    sw_attention_read(pool, &reading);
}
