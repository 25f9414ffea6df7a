// Ranks of one host that talk through memory they share: who has come to which round, and where each puts what the others read.
// Knows floats and doubles where they are summed, and else only bytes.
#pragma once

#include <atomic>
#include <cstdint>
#include <vector>

namespace sw {

// How a call ended.
enum Outcome { DONE = 0, BROKEN = 1, LEFT = 2, DEAD = 3, LATE = 4, DIFFER = 5 };

// A count that one rank raises and others wait for. Lines are 128 bytes apart: processors fetch them in pairs.
struct alignas(128) Signal {
    std::atomic<uint32_t> count;
    std::atomic<uint32_t> asleep;
    // What the call of the last two rounds was, by the lowest bit of their number: equal on all ranks, or they disagree.
    std::atomic<uint64_t> digest[2];
};

// All of it is zeros at first, and says so: nobody has come, nobody has left, nothing is broken.
struct Line {
    Signal posted;
    std::atomic<uint32_t> here, left;
};

struct Letters {
    Signal sent;   // raised by the sender
    Signal taken;  // raised by the receiver
};

// Where things lie in the memory of a group, in bytes from its start.
struct Places {
    Places(int size, int64_t slot_bytes, int64_t letter_bytes);
    int64_t line(int rank) const;
    int64_t text(int rank) const;
    int64_t slot(int rank, uint32_t round) const;
    int64_t letters(int from, int to) const;
    int64_t letter(int from, int to, uint32_t number) const;

    int size;
    int64_t slot_bytes, letter_bytes, slots, post, bytes;
};

// One rank's end. One thread at a time uses it.
class Group {
public:
    // `lock`: a file whose byte `lock_at + rank` each living rank holds a lock on; -1 where nobody can die alone.
    Group(char* memory, const Places& places, int rank, bool crowded, int64_t deadline_ns, int lock, int64_t lock_at);

    void arrive() { line(rank_).here.store(1, std::memory_order_release); }
    bool here(int rank) const { return line(rank).here.load(std::memory_order_acquire) != 0; }

    // One round: what this rank put into `slot` of this round is shown, and what the others put into theirs may be read.
    int round(uint64_t digest);
    // Of floats or doubles. Sums of doubles may be given out as floats: each is rounded once, and its bits go to all ranks.
    template <class N, class M>
    int all_reduce(uint64_t digest, const N* x, M* out, int64_t n);

    // A letter: `room` waits until its place is free, `send` shows it; `receive` waits for one, `take` gives its place back.
    int room(int to);
    void send(int to, uint64_t digest);
    int receive(int from, uint64_t digest);
    void take(int from);

    // Breaks the group, unless it is broken; returns who broke it.
    int fail();
    // The same from outside, by who is none of its ranks: the group is broken by rank `size`.
    void end();
    int breaker() const { return static_cast<int>(broken().load(std::memory_order_acquire)) - 1; }
    void leave();
    // Whether `rank` has not come to this rank's round yet.
    bool behind(int rank) const;
    uint64_t digest(int rank) const { return line(rank).posted.digest[next_ & 1].load(std::memory_order_relaxed); }

    char* memory() const { return memory_; }
    const Places& places() const { return places_; }
    int64_t slot() const { return places_.slot(rank_, next_); }
    int64_t shown(int rank) const { return places_.slot(rank, next_ - 1); }
    int64_t letter(int from, int to) const;
    int culprit() const { return culprit_; }

private:
    Line& line(int rank) const { return *reinterpret_cast<Line*>(memory_ + places_.line(rank)); }
    Letters& letters(int from, int to) const { return *reinterpret_cast<Letters*>(memory_ + places_.letters(from, to)); }
    std::atomic<uint32_t>& broken() const { return *reinterpret_cast<std::atomic<uint32_t>*>(memory_); }
    template <class N>
    N* numbers(int rank) const { return reinterpret_cast<N*>(memory_ + places_.slot(rank, next_)); }

    template <class N, class M>
    int direct(uint64_t digest, const N* x, M* out, int64_t n);
    template <class N, class M>
    int divided(uint64_t digest, const N* x, M* out, int64_t n);
    template <class N>
    const void* const* parts(const N* own, int64_t from);
    int reach(Signal& signal, uint32_t goal, int peer);
    int wait(Signal& signal, uint32_t goal, int peer);
    int trouble(int peer, int64_t now, int64_t until, int64_t& looked);
    bool alive(int peer) const;
    void raise(Signal& signal, uint32_t count);
    void wake(int rank);

    char* const memory_;
    const Places places_;
    const int rank_, size_;
    const int64_t spin_ns_, yield_ns_, deadline_ns_;
    const int lock_;
    const int64_t lock_at_;
    uint32_t next_ = 0;  // the number of the next round
    int culprit_ = -1;
    std::vector<const void*> parts_;
};

}  // namespace sw
