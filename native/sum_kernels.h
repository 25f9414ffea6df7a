// Included once per path by isa/*.cpp, after vector.h and wide.h.

namespace sw {
namespace SW_ISA {

void sum_parts(const void* const* parts, int count, float* out, int64_t n) {
    const auto part = [&](int p) { return static_cast<const float*>(parts[p]); };
    int64_t i = 0;
    for (; i + 2 * LANES <= n; i += 2 * LANES) {
        F a = F::load(part(0) + i), b = F::load(part(0) + i + LANES);
        for (int p = 1; p < count; p++) {
            a = a + F::load(part(p) + i);
            b = b + F::load(part(p) + i + LANES);
        }
        a.store(out + i);
        b.store(out + i + LANES);
    }
    for (; i < n; i += LANES) {
        const int rest = n - i < LANES ? static_cast<int>(n - i) : LANES;
        if (rest == LANES) {
            F a = F::load(part(0) + i);
            for (int p = 1; p < count; p++) a = a + F::load(part(p) + i);
            a.store(out + i);
        } else {
            F a = F::load(part(0) + i, rest);
            for (int p = 1; p < count; p++) a = a + F::load(part(p) + i, rest);
            a.store(out + i, rest);
        }
    }
}

inline void put(F64 a, double* out) { a.store(out); }
inline void put(F64 a, float* out) { a.narrow().store(out); }

// Of doubles; N is what the sums are stored as.
template <class N>
void sum_doubles(const void* const* parts, int count, N* out, int64_t n) {
    const auto part = [&](int p) { return static_cast<const double*>(parts[p]); };
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        F64 a = F64::load(part(0) + i);
        for (int p = 1; p < count; p++) a = a + F64::load(part(p) + i);
        put(a, out + i);
    }
    for (; i < n; i++) {
        double a = part(0)[i];
        for (int p = 1; p < count; p++) a += part(p)[i];
        out[i] = static_cast<N>(a);
    }
}

extern const SumKernels sum_kernels = {sum_parts, sum_doubles<double>, sum_doubles<float>};

}  // namespace SW_ISA
}  // namespace sw
