// Included once per path by isa/*.cpp, after vector.h.

namespace sw {
namespace SW_ISA {

void rms_norm(const float* x, const float* w, float* y, int64_t rows, int64_t size, float eps, float offset) {
    const F shift = F::all(offset);
    for (int64_t r = 0; r < rows; r++, x += size, y += size) {
        F squares = F::all(0.0f);
        int64_t i = 0;
        for (; i + LANES <= size; i += LANES) {
            const F a = F::load(x + i);
            squares = fma(a, a, squares);
        }
        const int rest = static_cast<int>(size - i);
        if (rest) {
            const F a = F::load(x + i, rest);
            squares = fma(a, a, squares);
        }
        const F scale = F::all(1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + eps));
        for (i = 0; i + LANES <= size; i += LANES) (F::load(x + i) * scale * (F::load(w + i) + shift)).store(y + i);
        if (rest) (F::load(x + i, rest) * scale * (F::load(w + i, rest) + shift)).store(y + i, rest);
    }
}

extern const StepKernels step_kernels = {rms_norm};

}  // namespace SW_ISA
}  // namespace sw
