#include "pool.h"

#include "wait.h"

namespace sw {
namespace {

// How long a worker looks for the next task before it sleeps: about what lies between two kernels of a step, not more, for
// what it burns another process may need.
constexpr int64_t SPIN_NS = 50000, CROWDED_SPIN_NS = 2000;
constexpr int64_t SLEEP_NS = 1000000000;
constexpr int PAUSES = 32;  // between two looks at the clock
// How often the caller looks whether the last pieces are done before it offers its core.
constexpr int LOOKS = 2000, CROWDED_LOOKS = 50;

}  // namespace

Pool::Pool(int threads, bool crowded)
    : spin_ns_(crowded ? CROWDED_SPIN_NS : SPIN_NS), looks_(crowded ? CROWDED_LOOKS : LOOKS) {
    for (int i = 1; i < threads; i++) workers_.emplace_back([this, i] { work(i); });
}

Pool::~Pool() {
    over_.store(true, std::memory_order_relaxed);
    turn_.fetch_add(1, std::memory_order_release);
    wake_all(turn_, false);
    for (auto& worker : workers_) worker.join();
}

void Pool::run(Piece piece, const void* task, int64_t pieces) {
    piece_.store(piece, std::memory_order_relaxed);
    task_.store(task, std::memory_order_relaxed);
    pieces_.store(pieces, std::memory_order_relaxed);
    done_.store(0, std::memory_order_relaxed);
    const uint32_t turn = turn_.load(std::memory_order_relaxed) + 1;
    // From here on pieces can be taken: whoever takes one acquires what was stored above.
    next_.store(static_cast<uint64_t>(turn) << 32, std::memory_order_release);
    // Ordered against a worker's last look before it sleeps: it sees the turn, or we see it asleep.
    turn_.store(turn, std::memory_order_seq_cst);
    if (asleep_.load(std::memory_order_seq_cst)) wake_all(turn_, false);
    while (take_one(turn, 0)) {
    }
    for (int looks = 0; done_.load(std::memory_order_acquire) < pieces; looks++) {
        // A worker in the midst of a piece may have lost its core to another process, or be waiting for this one.
        if (looks < looks_) pause(); else sched_yield();
    }
}

bool Pool::take_one(uint32_t turn, int thread) {
    uint64_t next = next_.load(std::memory_order_acquire);
    for (;;) {
        if (static_cast<uint32_t>(next >> 32) != turn) return false;
        const Piece piece = piece_.load(std::memory_order_relaxed);
        const void* task = task_.load(std::memory_order_relaxed);
        const int64_t pieces = pieces_.load(std::memory_order_relaxed), mine = static_cast<uint32_t>(next);
        if (mine >= pieces) return false;
        // The turn cannot end before a piece that was taken is done, so after this the task stays what was read.
        if (next_.compare_exchange_weak(next, next + 1, std::memory_order_acq_rel, std::memory_order_acquire)) {
            piece(task, mine, thread);
            done_.fetch_add(1, std::memory_order_release);
            return true;
        }
    }
}

void Pool::work(int thread) {
    uint32_t seen = 0;
    for (;;) {
        const int64_t until = now_ns() + spin_ns_;
        uint32_t turn;
        while ((turn = turn_.load(std::memory_order_acquire)) == seen) {
            for (int i = 0; i < PAUSES; i++) pause();
            if (now_ns() < until) continue;
            asleep_.fetch_add(1, std::memory_order_seq_cst);
            while ((turn = turn_.load(std::memory_order_seq_cst)) == seen) sleep_on(turn_, seen, SLEEP_NS, false);
            asleep_.fetch_sub(1, std::memory_order_relaxed);
            break;
        }
        if (over_.load(std::memory_order_relaxed)) return;
        seen = turn;
        while (take_one(turn, thread)) {
        }
    }
}

}  // namespace sw
