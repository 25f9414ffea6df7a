// Included once per path by isa/*.cpp, after vector.h.

namespace sw {
namespace SW_ISA {

float stream(const float* x, int64_t count) {
    // Eight sums at once: additions then wait for memory, and never for one another.
    constexpr int SUMS = 8;
    F sums[SUMS];
    for (F& each : sums) each = F::all(0.0f);
    int64_t i = 0;
    for (; i + SUMS * LANES <= count; i += SUMS * LANES) {
        for (int k = 0; k < SUMS; k++) sums[k] = sums[k] + F::load(x + i + k * LANES);
    }
    for (int k = 1; k < SUMS; k++) sums[0] = sums[0] + sums[k];
    float rest = sum(sums[0]);
    for (; i < count; i++) rest += x[i];
    return rest;
}

extern const LimitKernels limit_kernels = {stream};

}  // namespace SW_ISA
}  // namespace sw
