// Sixteen doubles as one value, for sums whose last bits must not decide anything. Included once per path, after vector.h.
//
// All paths get the same numbers: a product and a sum are rounded once, together, also where a CPU cannot.

namespace sw {
namespace SW_ISA {

#if SW_LEVEL >= 2

struct F64 {
    __m512d a, b;
    static F64 load(const double* p) { return {_mm512_loadu_pd(p), _mm512_loadu_pd(p + 8)}; }
    static F64 all(double x) { return {_mm512_set1_pd(x), _mm512_set1_pd(x)}; }
    static F64 whole(__m256i low, __m256i high) { return {_mm512_cvtepi32_pd(low), _mm512_cvtepi32_pd(high)}; }
    static F64 wide(F x) {
        return {_mm512_cvtps_pd(_mm512_castps512_ps256(x.v)), _mm512_cvtps_pd(_mm512_extractf32x8_ps(x.v, 1))};
    }
    F narrow() const {
        return {_mm512_insertf32x8(_mm512_castps256_ps512(_mm512_cvtpd_ps(a)), _mm512_cvtpd_ps(b), 1)};
    }
    void store(double* p) const {
        _mm512_storeu_pd(p, a);
        _mm512_storeu_pd(p + 8, b);
    }
};
inline F64 operator+(F64 x, F64 y) { return {_mm512_add_pd(x.a, y.a), _mm512_add_pd(x.b, y.b)}; }
inline F64 operator*(F64 x, F64 y) { return {_mm512_mul_pd(x.a, y.a), _mm512_mul_pd(x.b, y.b)}; }
inline F64 fma(F64 x, F64 y, F64 z) { return {_mm512_fmadd_pd(x.a, y.a, z.a), _mm512_fmadd_pd(x.b, y.b, z.b)}; }

#elif SW_LEVEL == 1

struct F64 {
    __m256d v[4];
    template <class G>
    static F64 make(const G& g) {
        return {{g(0), g(1), g(2), g(3)}};
    }
    static F64 load(const double* p) { return make([&](int i) { return _mm256_loadu_pd(p + 4 * i); }); }
    static F64 all(double x) { return make([&](int) { return _mm256_set1_pd(x); }); }
    static F64 whole(__m256i low, __m256i high) {
        return {{_mm256_cvtepi32_pd(_mm256_castsi256_si128(low)), _mm256_cvtepi32_pd(_mm256_extracti128_si256(low, 1)),
                 _mm256_cvtepi32_pd(_mm256_castsi256_si128(high)), _mm256_cvtepi32_pd(_mm256_extracti128_si256(high, 1))}};
    }
    static F64 wide(F x) {
        return {{_mm256_cvtps_pd(_mm256_castps256_ps128(x.a)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.a, 1)),
                 _mm256_cvtps_pd(_mm256_castps256_ps128(x.b)), _mm256_cvtps_pd(_mm256_extractf128_ps(x.b, 1))}};
    }
    static __m256 joined(__m256d low, __m256d high) { return _mm256_set_m128(_mm256_cvtpd_ps(high), _mm256_cvtpd_ps(low)); }
    F narrow() const { return {joined(v[0], v[1]), joined(v[2], v[3])}; }
    void store(double* p) const {
        for (int i = 0; i < 4; i++) _mm256_storeu_pd(p + 4 * i, v[i]);
    }
};
inline F64 operator+(F64 x, F64 y) { return F64::make([&](int i) { return _mm256_add_pd(x.v[i], y.v[i]); }); }
inline F64 operator*(F64 x, F64 y) { return F64::make([&](int i) { return _mm256_mul_pd(x.v[i], y.v[i]); }); }
inline F64 fma(F64 x, F64 y, F64 z) { return F64::make([&](int i) { return _mm256_fmadd_pd(x.v[i], y.v[i], z.v[i]); }); }

#else

struct F64 {
    double v[16];
    template <class G>
    static F64 make(const G& g) {
        F64 r;
        for (int i = 0; i < 16; i++) r.v[i] = g(i);
        return r;
    }
    static F64 load(const double* p) { return make([&](int i) { return p[i]; }); }
    static F64 all(double x) { return make([&](int) { return x; }); }
    static F64 whole(const int32_t* p) { return make([&](int i) { return static_cast<double>(p[i]); }); }
    static F64 wide(const F& x) { return make([&](int i) { return static_cast<double>(x.v[i]); }); }
    F narrow() const { return F::make([&](int i) { return static_cast<float>(v[i]); }); }
    void store(double* p) const { std::memcpy(p, v, sizeof v); }
};
inline F64 operator+(const F64& x, const F64& y) { return F64::make([&](int i) { return x.v[i] + y.v[i]; }); }
inline F64 operator*(const F64& x, const F64& y) { return F64::make([&](int i) { return x.v[i] * y.v[i]; }); }
inline F64 fma(const F64& x, const F64& y, const F64& z) {
    return F64::make([&](int i) { return std::fma(x.v[i], y.v[i], z.v[i]); });
}

#endif

// The first `n` of 16.
inline void store(F64 x, double* p, int n) {
    double t[16];
    x.store(t);
    std::memcpy(p, t, static_cast<size_t>(n) * sizeof(double));
}

}  // namespace SW_ISA
}  // namespace sw
