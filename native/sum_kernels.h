// Included once per path by isa/*.cpp, after vector.h.

namespace sw {
namespace SW_ISA {

void sum_parts(const float* const* parts, int count, float* out, int64_t n) {
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        F a = F::load(parts[0] + i), b = F::load(parts[0] + i + LANES);
        for (int p = 1; p < count; p++) {
            a = a + F::load(parts[p] + i);
            b = b + F::load(parts[p] + i + LANES);
        }
        a.store(out + i);
        b.store(out + i + LANES);
    }
    for (; i < n; i += LANES) {
        const int rest = n - i < LANES ? static_cast<int>(n - i) : LANES;
        if (rest == LANES) {
            F a = F::load(parts[0] + i);
            for (int p = 1; p < count; p++) a = a + F::load(parts[p] + i);
            a.store(out + i);
        } else {
            F a = F::load(parts[0] + i, rest);
            for (int p = 1; p < count; p++) a = a + F::load(parts[p] + i, rest);
            a.store(out + i, rest);
        }
    }
}

extern const SumKernels sum_kernels = {sum_parts};

}  // namespace SW_ISA
}  // namespace sw
