#include "cpu.h"

#include <atomic>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace sw {
namespace {

#if defined(__x86_64__)
struct Leaf {
    unsigned a = 0, b = 0, c = 0, d = 0;
    Leaf(unsigned leaf, unsigned sub) { __get_cpuid_count(leaf, sub, &a, &b, &c, &d); }
};

bool has(unsigned word, int bit) { return (word >> bit) & 1u; }

// What the operating system saves and restores of the registers.
unsigned long long saved() {
    unsigned low, high;
    __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    return (static_cast<unsigned long long>(high) << 32) | low;
}

// Linux gives the tile registers only to a process that asks (arch_prctl(2), ARCH_REQ_XCOMP_PERM = 0x1023, XTILEDATA = 18).
bool tiles_allowed() {
#if defined(__linux__) && defined(SYS_arch_prctl)
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
#else
    return false;
#endif
}

Isa found() {
    Leaf one(1, 0), seven(7, 0);
    if (!has(one.c, 27)) return SCALAR;  // OSXSAVE
    const unsigned long long state = saved();
    const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
    const bool avx2 = ymm && has(seven.b, 5) && has(one.c, 12) && has(one.c, 29);  // AVX2, FMA, F16C
    if (!avx2) return SCALAR;
    const bool avx512 = zmm && has(seven.b, 16) && has(seven.b, 17) && has(seven.b, 30) && has(seven.b, 31);  // F, DQ, BW, VL
    if (!avx512) return AVX2;
    if (!has(seven.c, 11)) return AVX512;  // VNNI
    const bool amx = tiles && has(seven.d, 22) && has(seven.d, 24) && has(seven.d, 25);  // AMX-BF16, -TILE, -INT8
    return amx && tiles_allowed() ? AMX : AVX512_VNNI;
}
#else
Isa found() { return SCALAR; }
#endif

std::atomic<int> chosen{-1};

}  // namespace

Isa best() {
    static const Isa isa = found();
    return isa;
}

Isa active() {
    const int isa = chosen.load(std::memory_order_relaxed);
    return isa < 0 ? best() : static_cast<Isa>(isa);
}

bool use(Isa isa) {
    if (isa < SCALAR || isa > best()) return false;
    chosen.store(isa, std::memory_order_relaxed);
    return true;
}

}  // namespace sw
