// Ranks as threads on one piece of memory, and a pool's threads: what ThreadSanitizer can watch. Built and run by test_shm_races.py.
//
//     shm_races [ranks] [rounds] [fault]
//
// Exit code 1 where a sum is wrong. With `fault`, what the ranks read is also written without asking: the sanitizer must see it.
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <thread>
#include <vector>

#include "../../native/pool.h"
#include "../../native/shm.h"

namespace {

// A number for each call and rank that all ranks can work out: sums of a few are exact.
float value(int64_t call, int rank, int64_t i) { return static_cast<float>((call * 31 + rank * 7 + i) % 1000); }

bool live(sw::Group& group, int rank, int ranks, int64_t calls) {
    const int64_t sizes[] = {1, 37, 1024, 5000, 0, 66000};
    std::vector<float> x(66000), out(66000);
    for (int64_t call = 0; call < calls; call++) {
        const int64_t n = sizes[call % 6];
        for (int64_t i = 0; i < n; i++) x[static_cast<size_t>(i)] = value(call, rank, i);
        if (group.all_reduce(static_cast<uint64_t>(n), x.data(), out.data(), n) != sw::DONE) return false;
        for (int64_t i = 0; i < n; i++) {
            float sum = 0;
            for (int r = 0; r < ranks; r++) sum += value(call, r, i);
            if (out[static_cast<size_t>(i)] != sum) return false;
        }
        const int to = (rank + 1) % ranks, from = (rank + ranks - 1) % ranks;
        if (group.room(to) != sw::DONE) return false;
        std::memcpy(group.memory() + group.letter(rank, to), &call, sizeof call);
        group.send(to, 1);
        if (group.receive(from, 1) != sw::DONE) return false;
        int64_t came;
        std::memcpy(&came, group.memory() + group.letter(from, rank), sizeof came);
        group.take(from);
        if (came != call) return false;
    }
    return true;
}

bool pooled(int64_t tasks) {
    sw::Pool pool(3);
    for (int64_t task = 0; task < tasks; task++) {
        std::vector<int64_t> done(static_cast<size_t>(task % 17));
        sw::each(&pool, static_cast<int64_t>(done.size()), [&](int64_t i, int) { done[static_cast<size_t>(i)] += i + task; });
        for (size_t i = 0; i < done.size(); i++)
            if (done[i] != static_cast<int64_t>(i) + task) return false;
    }
    return true;
}

}  // namespace

int main(int count, char** given) {
    const int ranks = count > 1 ? std::atoi(given[1]) : 3;
    const int64_t calls = count > 2 ? std::atoll(given[2]) : 200;
    const sw::Places places(ranks, 1 << 16, 4096);
    void* memory = std::aligned_alloc(4096, static_cast<size_t>(places.bytes));
    std::memset(memory, 0, static_cast<size_t>(places.bytes));
    std::vector<std::thread> threads;
    std::vector<char> good(static_cast<size_t>(ranks));
    for (int rank = 0; rank < ranks; rank++)
        threads.emplace_back([&, rank] {
            sw::Group group(static_cast<char*>(memory), places, rank, true, 60000000000LL, -1, 0);
            if (count > 3) *reinterpret_cast<int*>(static_cast<char*>(memory) + places.slot(0, 1)) = rank;
            good[static_cast<size_t>(rank)] = live(group, rank, ranks, calls);
        });
    for (auto& thread : threads) thread.join();
    std::free(memory);
    bool all = pooled(calls * 10);
    for (const char each : good) all = all && each;
    std::printf("%s\n", all ? "right" : "wrong");
    return all ? 0 : 1;
}
