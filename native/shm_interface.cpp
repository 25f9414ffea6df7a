// What Python calls of shared memory groups. Descriptors, sizes and ranks were checked by the caller.
#include <sys/mman.h>

#include "api.h"
#include "shm.h"

using sw::Group;
using sw::Places;

namespace {
Group& of(void* group) { return *static_cast<Group*>(group); }
}  // namespace

SW_API int64_t sw_shm_bytes(int size, int64_t slot_bytes, int64_t letter_bytes) { return Places(size, slot_bytes, letter_bytes).bytes; }

// Maps the group's memory, which begins at `offset` of the file `fd`; null where there is no room. `fd` stays open until the end.
SW_API void* sw_shm_open(int fd, int64_t offset, int rank, int size, int64_t slot_bytes, int64_t letter_bytes, int crowded,
                         int64_t deadline_ns, int64_t lock_at) {
    const Places places(size, slot_bytes, letter_bytes);
    void* memory = mmap(nullptr, static_cast<size_t>(places.bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, offset);
    if (memory == MAP_FAILED) return nullptr;
    return new Group(static_cast<char*>(memory), places, rank, crowded != 0, deadline_ns, fd, lock_at);
}

SW_API void sw_shm_close(void* group) {
    munmap(of(group).memory(), static_cast<size_t>(of(group).places().bytes));
    delete static_cast<Group*>(group);
}

// For who is none of the group's ranks: breaks it, and wakes all who wait. The file is long enough.
SW_API void sw_shm_end(int fd, int64_t offset, int size, int64_t slot_bytes, int64_t letter_bytes) {
    if (void* group = sw_shm_open(fd, offset, 0, size, slot_bytes, letter_bytes, 0, 0, 0)) {
        of(group).end();
        sw_shm_close(group);
    }
}

SW_API void* sw_shm_memory(void* group) { return of(group).memory(); }
// Places in that memory: of a rank's text, of a rank's slot in this rank's next round, or in the one that it was the last to end.
SW_API int64_t sw_shm_text(void* group, int rank) { return of(group).places().text(rank); }
SW_API int64_t sw_shm_slot(void* group) { return of(group).slot(); }
SW_API int64_t sw_shm_shown(void* group, int rank) { return of(group).shown(rank); }
SW_API int64_t sw_shm_letter(void* group, int from, int to) { return of(group).letter(from, to); }

// These give an Outcome.
SW_API int sw_shm_all_reduce(void* group, uint64_t digest, const float* x, float* out, int64_t n) {
    return of(group).all_reduce(digest, x, out, n);
}
SW_API int sw_shm_all_reduce_wide(void* group, uint64_t digest, const double* x, double* out, int64_t n) {
    return of(group).all_reduce(digest, x, out, n);
}
SW_API int sw_shm_all_reduce_narrow(void* group, uint64_t digest, const double* x, float* out, int64_t n) {
    return of(group).all_reduce(digest, x, out, n);
}
SW_API int sw_shm_round(void* group, uint64_t digest) { return of(group).round(digest); }
SW_API int sw_shm_room(void* group, int to) { return of(group).room(to); }
SW_API int sw_shm_receive(void* group, int from, uint64_t digest) { return of(group).receive(from, digest); }

SW_API void sw_shm_send(void* group, int to, uint64_t digest) { of(group).send(to, digest); }
SW_API void sw_shm_take(void* group, int from) { of(group).take(from); }
SW_API void sw_shm_arrive(void* group) { of(group).arrive(); }
SW_API int sw_shm_here(void* group, int rank) { return of(group).here(rank); }
SW_API void sw_shm_leave(void* group) { of(group).leave(); }

SW_API int sw_shm_fail(void* group) { return of(group).fail(); }
SW_API int sw_shm_breaker(void* group) { return of(group).breaker(); }
SW_API int sw_shm_culprit(void* group) { return of(group).culprit(); }
SW_API int sw_shm_behind(void* group, int rank) { return of(group).behind(rank); }
SW_API uint64_t sw_shm_digest(void* group, int rank) { return of(group).digest(rank); }
