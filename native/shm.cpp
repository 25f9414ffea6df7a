// Why no rank ever reads what is half written, or writes what is still read.
//
// A rank's calls are a sequence of rounds, numbered from 0 and equal on all ranks. In round k it
//   (1) writes its slot k mod 2,                      (2) raises its own `posted` to k + 1, releasing,
//   (3) waits until every `posted` is at least k + 1, acquiring,      (4) reads the others' slots k mod 2.
// No rank writes a slot or a `posted` of another rank.
//
// Read after write: (4) of rank b reads what (1) of rank a wrote in the same round. a's (1) comes before a's (2), which b's (3)
// has acquired; so it happens before b's (4). Where b finds a greater count than k + 1, a later release of a stands for the
// earlier one: a's stores to `posted` are in a's order.
// Nothing newer is read: a writes that slot again in its round k + 2, after its (3) of round k + 1, which acquired b's (2) of
// round k + 1, which comes after b's (4) of round k. So b's reading happens before a's next writing. Two slots are enough, and one
// is not: without the round between, a could be at (1) again while b is at (4).
// Digests lie beside `posted`, two of them, and are written and read as slots are; relaxed, for the same releases order them.
// Counts wrap around after 2^32 rounds; they are compared by their difference, which never exceeds 1.
//
// Letters from a to b: a writes place n mod 2 when `taken` >= n - 1 (acquired: b's reading of letter n - 2 happens before),
// raises `sent` to n + 1, releasing; b waits for that, acquiring, reads, and raises `taken` to n + 1, releasing.
//
// No wake-up is lost: who waits raises `asleep`, then has the kernel compare the count and sleep in one step; who raises the
// count looks at `asleep` afterwards. All four are sequentially consistent, so one of the two sees the other. Failure and
// leaving raise no count and may be missed by one who is just falling asleep; nobody sleeps longer than LOOK_NS.
//
// tests/comm/shm_model.py goes through every interleaving of this for 2 and 3 ranks, with control faults.
#include "shm.h"

#include <cstring>
#include <fcntl.h>

#include "paths.h"
#include "sum.h"
#include "wait.h"

namespace sw {
SW_PATHS(SumKernels, sum_kernels)

namespace {

constexpr int64_t LINE_BYTES = 128, TEXT_BYTES = 4096;
// What one rank puts into its slot at a time: half of what it and what is read beside it fill a core's own cache with.
constexpr int64_t PIECE_BYTES = 1 << 18;
// An all_reduce takes two rounds instead of one where that saves each rank from reading more than this.
constexpr int64_t DIRECT_BYTES = 1 << 17;
// How long a rank looks for the others before it gives its core to whoever wants it, and then before it sleeps. Where ranks
// share cores, the awaited one may be waiting for this one's.
constexpr int64_t SPIN_NS = 100000, YIELD_NS = 1000000, CROWDED_SPIN_NS = 2000, CROWDED_YIELD_NS = 200000;
constexpr int PAUSES = 16;  // between two looks at the clock
// How often one who waits looks whether the awaited rank lives.
constexpr int64_t LOOK_NS = 50000000;
constexpr int64_t ALIGNED = 4096;

int64_t up(int64_t bytes, int64_t to) { return (bytes + to - 1) / to * to; }

template <class N>
constexpr int64_t BYTES = static_cast<int64_t>(sizeof(N));

template <class N>
void copy(N* to, const N* from, int64_t n) {
    if (n) std::memcpy(to, from, static_cast<size_t>(n) * sizeof(N));
}

void sum(const void* const* parts, int count, float* out, int64_t n) { sum_kernels_of().sum(parts, count, out, n); }
void sum(const void* const* parts, int count, double* out, int64_t n) { sum_kernels_of().sum_wide(parts, count, out, n); }
// Which of the two it is of, who calls says.
template <class N, class M>
void sum_of(const void* const* parts, int count, M* out, int64_t n) {
    if constexpr (sizeof(N) == sizeof(M)) sum(parts, count, out, n);
    else sum_kernels_of().sum_narrow(parts, count, out, n);
}

bool reached(uint32_t count, uint32_t goal) { return static_cast<int32_t>(count - goal) >= 0; }

}  // namespace

Places::Places(int size, int64_t slot_bytes, int64_t letter_bytes)
    : size(size), slot_bytes(slot_bytes), letter_bytes(letter_bytes) {
    slots = up(text(size), ALIGNED);
    post = slots + 2 * size * slot_bytes;
    bytes = up(letters(size, 0), ALIGNED);
}

int64_t Places::line(int rank) const { return LINE_BYTES + rank * static_cast<int64_t>(sizeof(Line)); }
int64_t Places::text(int rank) const { return line(size) + rank * TEXT_BYTES; }
int64_t Places::slot(int rank, uint32_t round) const { return slots + (2 * rank + (round & 1)) * slot_bytes; }
int64_t Places::letters(int from, int to) const {
    return post + (static_cast<int64_t>(from) * size + to) * (static_cast<int64_t>(sizeof(Letters)) + 2 * letter_bytes);
}
int64_t Places::letter(int from, int to, uint32_t number) const {
    return letters(from, to) + static_cast<int64_t>(sizeof(Letters)) + (number & 1) * letter_bytes;
}

Group::Group(char* memory, const Places& places, int rank, bool crowded, int64_t deadline_ns, int lock, int64_t lock_at)
    : memory_(memory),
      places_(places),
      rank_(rank),
      size_(places.size),
      spin_ns_(crowded ? CROWDED_SPIN_NS : SPIN_NS),
      yield_ns_(crowded ? CROWDED_YIELD_NS : YIELD_NS),
      deadline_ns_(deadline_ns),
      lock_(lock),
      lock_at_(lock_at),
      parts_(static_cast<size_t>(places.size)) {}

int Group::round(uint64_t digest) {
    if (broken().load(std::memory_order_acquire)) return BROKEN;
    Signal& own = line(rank_).posted;
    own.digest[next_ & 1].store(digest, std::memory_order_relaxed);
    raise(own, next_ + 1);
    bool alike = true;
    for (int peer = 0; peer < size_; peer++) {
        if (peer == rank_) continue;
        Signal& posted = line(peer).posted;
        const int outcome = reach(posted, next_ + 1, peer);
        if (outcome != DONE) return outcome;
        alike = alike && posted.digest[next_ & 1].load(std::memory_order_relaxed) == digest;
    }
    if (!alike) return DIFFER;
    next_++;
    return DONE;
}

template <class N, class M>
int Group::all_reduce(uint64_t digest, const N* x, M* out, int64_t n) {
    // Read of each other rank: all it has, or a part of that and its part of the sums.
    const int64_t saved = n * (size_ - 1) * (size_ * BYTES<N> - BYTES<N> - BYTES<M>) / size_;
    const bool whole = saved <= DIRECT_BYTES;
    const int64_t most = PIECE_BYTES < places_.slot_bytes ? PIECE_BYTES : places_.slot_bytes;
    const int64_t step = (whole ? most : places_.slot_bytes) / BYTES<N>;
    int64_t at = 0;
    do {  // one round also for nothing, so that ranks which disagree are told so
        const int64_t count = n - at < step ? n - at : step;
        const int outcome = whole ? direct(digest, x + at, out + at, count) : divided(digest, x + at, out + at, count);
        if (outcome != DONE) return outcome;
        at += count;
    } while (at < n);
    return DONE;
}

template int Group::all_reduce(uint64_t digest, const float* x, float* out, int64_t n);
template int Group::all_reduce(uint64_t digest, const double* x, double* out, int64_t n);
template int Group::all_reduce(uint64_t digest, const double* x, float* out, int64_t n);

// Where all ranks' numbers of the round that is about to be `next_ - 1` lie, from the one with number `from` on.
template <class N>
const void* const* Group::parts(const N* own, int64_t from) {
    for (int r = 0; r < size_; r++)
        parts_[static_cast<size_t>(r)] =
            r == rank_ ? own + from : reinterpret_cast<const N*>(memory_ + places_.slot(r, next_ - 1)) + from;
    return parts_.data();
}

// Every rank shows all it has, and sums all of that.
template <class N, class M>
int Group::direct(uint64_t digest, const N* x, M* out, int64_t n) {
    copy(numbers<N>(rank_), x, n);
    const int outcome = round(digest);
    if (outcome == DONE) sum_of<N>(parts(x, 0), size_, out, n);
    return outcome;
}

// Every rank shows what is not its own to sum, sums its own part, and shows that.
template <class N, class M>
int Group::divided(uint64_t digest, const N* x, M* out, int64_t n) {
    const int64_t each = up((n + size_ - 1) / size_, 16);
    const auto begin = [&](int r) { return r * each < n ? r * each : n; };
    const int64_t from = begin(rank_), count = begin(rank_ + 1) - from;
    N* shown = numbers<N>(rank_);
    copy(shown, x, from);
    copy(shown + from + count, x + from + count, n - from - count);
    int outcome = round(digest);
    if (outcome != DONE) return outcome;
    // Into the slot of the next round: that of this one is being read.
    M* sums = numbers<M>(rank_);
    sum_of<N>(parts(x, from), size_, sums + from, count);
    copy(out + from, sums + from, count);
    outcome = round(digest);
    if (outcome != DONE) return outcome;
    for (int r = 0; r < size_; r++)
        if (r != rank_) {
            const M* theirs = reinterpret_cast<const M*>(memory_ + places_.slot(r, next_ - 1));
            copy(out + begin(r), theirs + begin(r), begin(r + 1) - begin(r));
        }
    return DONE;
}

int64_t Group::letter(int from, int to) const {
    const Letters& both = letters(from, to);
    // Each end reads the count that it alone raises.
    const Signal& own = rank_ == from ? both.sent : both.taken;
    return places_.letter(from, to, own.count.load(std::memory_order_relaxed));
}

int Group::room(int to) {
    if (broken().load(std::memory_order_acquire)) return BROKEN;
    Letters& both = letters(rank_, to);
    return reach(both.taken, both.sent.count.load(std::memory_order_relaxed) - 1, to);
}

void Group::send(int to, uint64_t digest) {
    Signal& sent = letters(rank_, to).sent;
    const uint32_t number = sent.count.load(std::memory_order_relaxed);
    sent.digest[number & 1].store(digest, std::memory_order_relaxed);
    raise(sent, number + 1);
}

int Group::receive(int from, uint64_t digest) {
    if (broken().load(std::memory_order_acquire)) return BROKEN;
    Letters& both = letters(from, rank_);
    const uint32_t number = both.taken.count.load(std::memory_order_relaxed);
    const int outcome = reach(both.sent, number + 1, from);
    if (outcome != DONE) return outcome;
    culprit_ = from;
    return both.sent.digest[number & 1].load(std::memory_order_relaxed) == digest ? DONE : DIFFER;
}

void Group::take(int from) {
    Signal& taken = letters(from, rank_).taken;
    raise(taken, taken.count.load(std::memory_order_relaxed) + 1);
}

void Group::raise(Signal& signal, uint32_t count) {
    signal.count.store(count, std::memory_order_seq_cst);
    if (signal.asleep.load(std::memory_order_seq_cst)) wake_all(signal.count, true);
}

int Group::reach(Signal& signal, uint32_t goal, int peer) {
    return reached(signal.count.load(std::memory_order_acquire), goal) ? DONE : wait(signal, goal, peer);
}

int Group::wait(Signal& signal, uint32_t goal, int peer) {
    const int64_t began = now_ns(), until = began + deadline_ns_;
    int64_t now = began, looked = began;
    for (;; now = now_ns()) {
        if (now - began >= spin_ns_) sched_yield();
        for (int i = 0; i < PAUSES; i++) {
            if (reached(signal.count.load(std::memory_order_acquire), goal)) return DONE;
            if (now - began >= spin_ns_) break;
            pause();
        }
        if (now - began >= spin_ns_ + yield_ns_) break;
    }
    signal.asleep.fetch_add(1, std::memory_order_seq_cst);
    int outcome = DONE;
    for (uint32_t seen; !reached(seen = signal.count.load(std::memory_order_seq_cst), goal); now = now_ns()) {
        outcome = trouble(peer, now, until, looked);
        if (outcome != DONE) break;
        sleep_on(signal.count, seen, until - now < LOOK_NS ? until - now : LOOK_NS, true);
    }
    signal.asleep.fetch_sub(1, std::memory_order_relaxed);
    if (outcome == DONE) return DONE;
    // Who left, died or was late may have come before, or may have done so because the group was broken.
    if (outcome != BROKEN && reached(signal.count.load(std::memory_order_acquire), goal)) return DONE;
    if (broken().load(std::memory_order_acquire)) return BROKEN;
    culprit_ = peer;
    return outcome;
}

int Group::trouble(int peer, int64_t now, int64_t until, int64_t& looked) {
    if (broken().load(std::memory_order_acquire)) return BROKEN;
    if (line(peer).left.load(std::memory_order_acquire)) return LEFT;
    if (now >= until) return LATE;
    if (now - looked >= LOOK_NS / 2) {
        looked = now;
        if (!alive(peer)) return DEAD;
    }
    return DONE;
}

bool Group::alive(int peer) const {
    if (lock_ < 0) return true;
    struct flock found {};
    found.l_type = F_WRLCK;
    found.l_whence = SEEK_SET;
    found.l_start = lock_at_ + peer;
    found.l_len = 1;
    return fcntl(lock_, F_OFD_GETLK, &found) != 0 || found.l_type != F_UNLCK;
}

bool Group::behind(int rank) const {
    return !reached(line(rank).posted.count.load(std::memory_order_acquire), next_ + 1);
}

int Group::fail() {
    uint32_t found = 0;
    const uint32_t mine = static_cast<uint32_t>(rank_) + 1;
    if (!broken().compare_exchange_strong(found, mine, std::memory_order_seq_cst)) return static_cast<int>(found) - 1;
    wake(rank_);
    return rank_;
}

void Group::end() {
    uint32_t found = 0;
    broken().compare_exchange_strong(found, static_cast<uint32_t>(size_) + 1, std::memory_order_seq_cst);
    for (int r = 0; r < size_; r++) wake(r);
}

void Group::leave() {
    line(rank_).left.store(1, std::memory_order_seq_cst);
    wake(rank_);
}

// Whoever may be waiting for `rank`, or for another one that waits for it.
void Group::wake(int rank) {
    const auto one = [](Signal& signal) {
        if (signal.asleep.load(std::memory_order_seq_cst)) wake_all(signal.count, true);
    };
    for (int r = 0; r < size_; r++) {
        one(line(r).posted);
        one(letters(rank, r).sent);
        one(letters(r, rank).taken);
    }
}

}  // namespace sw
