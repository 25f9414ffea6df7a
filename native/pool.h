// The threads of one rank: a caller and some workers that share the pieces of a task. Knows no kernel.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <vector>

namespace sw {

// Pieces are taken one by one, so a worker that has lost its core holds up one piece, and not its share of the whole.
class Pool {
public:
    // `threads` in all, the caller among them: threads - 1 are started. `crowded`: they share cores with others that compute.
    explicit Pool(int threads, bool crowded = false);
    ~Pool();
    Pool(const Pool&) = delete;
    Pool& operator=(const Pool&) = delete;

    int threads() const { return static_cast<int>(workers_.size()) + 1; }

    using Piece = void (*)(const void* task, int64_t piece, int thread);

    // Calls `piece(task, i, thread)` for each i of [0, pieces), on any of the threads (0 is the caller), and returns when all
    // are done. One caller at a time.
    void run(Piece piece, const void* task, int64_t pieces);

private:
    void work(int thread);
    bool take_one(uint32_t turn, int thread);

    // The task of a turn. Read before a piece is taken; a piece can only be taken while the turn lasts, so what was read is
    // that turn's. Relaxed atomics: a late reader may see the next turn's, and then takes nothing.
    std::atomic<Piece> piece_{nullptr};
    std::atomic<const void*> task_{nullptr};
    std::atomic<int64_t> pieces_{0};
    // The turn in the upper half, the next piece in the lower.
    alignas(64) std::atomic<uint64_t> next_{0};
    alignas(64) std::atomic<int64_t> done_{0};
    alignas(64) std::atomic<uint32_t> turn_{0};
    std::atomic<int> asleep_{0};
    std::atomic<bool> over_{false};
    const int64_t spin_ns_;
    const int looks_;
    std::vector<std::thread> workers_;
};

// `run` with a callable: f(piece, thread). A null pool, or a single piece, runs on the caller.
template <class F>
void each(Pool* pool, int64_t pieces, const F& f) {
    if (!pool || pieces <= 1 || pool->threads() == 1) {
        for (int64_t i = 0; i < pieces; i++) f(i, 0);
        return;
    }
    pool->run([](const void* task, int64_t i, int thread) { (*static_cast<const F*>(task))(i, thread); }, &f, pieces);
}

}  // namespace sw
