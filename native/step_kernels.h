// Included once per path by isa/*.cpp, after stored_kernels.h.

namespace sw {
namespace SW_ISA {

// f(i, n) for each sixteen of `size`: n is 0 for all of them, else how many there are of the last.
template <class Call>
inline void sixteens(int64_t size, const Call& f) {
    int64_t i = 0;
    for (; i + LANES <= size; i += LANES) f(i, 0);
    if (i < size) f(i, static_cast<int>(size - i));
}

template <class W>
inline F some(const typename W::number* p, int n) {
    return n ? W::load(p, n) : W::load(p);
}

inline void put(F x, float* p, int n) {
    if (n) x.store(p, n);
    else x.store(p);
}

template <class W>
inline void rms_norm_of(const float* x, const typename W::number* w, float* y, int64_t rows, int64_t size, float eps, float offset) {
    const F shift = F::all(offset);
    for (int64_t r = 0; r < rows; r++, x += size, y += size) {
        F squares = F::all(0.0f);
        sixteens(size, [&](int64_t i, int n) {
            const F a = some<Float32>(x + i, n);
            squares = fma(a, a, squares);
        });
        const F scale = F::all(1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps));
        sixteens(size, [&](int64_t i, int n) { put(some<Float32>(x + i, n) * scale * (some<W>(w + i, n) + shift), y + i, n); });
    }
}

void rms_norm(const float* x, const void* w, Stored stored, float* y, int64_t rows, int64_t size, float eps, float offset) {
    with(stored, [&](auto type) {
        using W = decltype(type);
        rms_norm_of<W>(x, static_cast<const typename W::number*>(w), y, rows, size, eps, offset);
    });
}

template <class W>
inline void layer_norm_of(const float* x, const typename W::number* w, const typename W::number* bias, float* y, int64_t rows,
                          int64_t size, float eps) {
    for (int64_t r = 0; r < rows; r++, x += size, y += size) {
        F total = F::all(0.0f), squares = F::all(0.0f), rest = F::all(0.0f);
        sixteens(size, [&](int64_t i, int n) { total = total + some<Float32>(x + i, n); });
        const F mean = F::all(sum(total) / static_cast<float>(size));
        sixteens(size, [&](int64_t i, int n) {
            // What stands in for the lanes that are not there: the mean, so that they add nothing.
            float t[LANES];
            if (n) {
                mean.store(t);
                std::memcpy(t, x + i, static_cast<size_t>(n) * sizeof(float));
            }
            const F a = (n ? F::load(t) : F::load(x + i)) - mean;
            squares = fma(a, a, squares);
            rest = rest + a;
        });
        // What the mean was rounded by: much, beside numbers that lie close together and far from zero.
        const float off = sum(rest) / static_cast<float>(size);
        const float variance = sum(squares) / static_cast<float>(size) - off * off;
        const F scale = F::all(1.0f / std::sqrt((variance > 0.0f ? variance : 0.0f) + eps)), missed = F::all(off);
        sixteens(size, [&](int64_t i, int n) {
            const F a = (some<Float32>(x + i, n) - mean - missed) * scale * some<W>(w + i, n);
            put(bias ? a + some<W>(bias + i, n) : a, y + i, n);
        });
    }
}

void layer_norm(const float* x, const void* w, const void* bias, Stored stored, float* y, int64_t rows, int64_t size, float eps) {
    with(stored, [&](auto type) {
        using number = const typename decltype(type)::number*;
        layer_norm_of<decltype(type)>(x, static_cast<number>(w), static_cast<number>(bias), y, rows, size, eps);
    });
}

void silu_times(const float* gate, const float* up, float* y, int64_t count) {
    const F one = F::all(1.0f), zero = F::all(0.0f);
    sixteens(count, [&](int64_t i, int n) {
        const F a = some<Float32>(gate + i, n);
        put(a / (one + exp(zero - a)) * some<Float32>(up + i, n), y + i, n);
    });
}

void best(const float* x, double* y, int64_t rows, int64_t size) {
    constexpr int64_t BLOCK = 16 * LANES;
    for (int64_t r = 0; r < rows; r++, x += size, y += 2) {
        F poison = F::all(0.0f);
        float top = -INFINITY;
        int64_t at = 0;
        // Where it is, is looked for once: in the first block that has it.
        for (int64_t first = 0; first < size; first += BLOCK) {
            const int64_t count = size - first < BLOCK ? size - first : BLOCK;
            F most = F::all(-INFINITY);
            int64_t i = first;
            for (; i + LANES <= first + count; i += LANES) {
                const F a = F::load(x + i);
                most = max(a, most);
                poison = fma(a, F::all(0.0f), poison);
            }
            float here = greatest(most);
            for (; i < first + count; i++) {
                here = x[i] > here ? x[i] : here;
                poison = poison + F::all(x[i] * 0.0f);
            }
            if (here > top) top = here, at = first;
        }
        const bool finite = sum(poison) == 0.0f;
        while (finite && size && x[at] != top) at++;
        y[0] = finite ? top : NAN;
        y[1] = finite ? static_cast<double>(at) : 0.0;
    }
}

extern const StepKernels step_kernels = {rms_norm, layer_norm, silu_times, best};

}  // namespace SW_ISA
}  // namespace sw
