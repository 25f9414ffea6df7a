// Sixteen floats as one value, in whatever registers the path has. Kernels are written once over it, inside `namespace SW_ISA`.
//
// Included once per path, after SW_ISA and SW_LEVEL are defined and the compiler was told which instructions it may use. Sums
// over lanes are taken in one fixed order, so a result does not depend on where in a matrix it was computed.

#include <cmath>
#include <cstdint>
#include <cstring>

#if SW_LEVEL >= 1
#include <immintrin.h>
#endif

namespace sw {
namespace SW_ISA {

constexpr int LANES = 16;

#if SW_LEVEL >= 2

struct F {
    __m512 v;
    static F load(const float* p) { return {_mm512_loadu_ps(p)}; }
    static F all(float x) { return {_mm512_set1_ps(x)}; }
    // The first `n` of 16, zeros behind.
    static F load(const float* p, int n) { return {_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << n) - 1), p)}; }
    void store(float* p) const { _mm512_storeu_ps(p, v); }
    void store(float* p, int n) const { _mm512_mask_storeu_ps(p, static_cast<__mmask16>((1u << n) - 1), v); }
    static F bf16(const uint16_t* p) {
        return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))), 16))};
    }
    static F f16(const uint16_t* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))}; }
    static F i8(const int8_t* p) {
        return {_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))))};
    }
};
inline F operator+(F a, F b) { return {_mm512_add_ps(a.v, b.v)}; }
inline F operator-(F a, F b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline F operator*(F a, F b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline F operator/(F a, F b) { return {_mm512_div_ps(a.v, b.v)}; }
inline F fma(F a, F b, F c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
// Of two the greater; the second where either is a NaN.
inline F max(F a, F b) { return {_mm512_max_ps(a.v, b.v)}; }
inline F min(F a, F b) { return {_mm512_min_ps(a.v, b.v)}; }
inline F abs(F a) { return {_mm512_abs_ps(a.v)}; }
inline F sqrt(F a) { return {_mm512_sqrt_ps(a.v)}; }
inline F round(F a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// a · 2^n for whole n.
inline F scale2(F a, F n) { return {_mm512_scalef_ps(a.v, n.v)}; }
inline float sum(F a) {
    const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float greatest(F a) { return _mm512_reduce_max_ps(a.v); }

#elif SW_LEVEL == 1

struct F {
    __m256 a, b;
    static F load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
    static F all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
    static F load(const float* p, int n) {
        float t[16] = {};
        std::memcpy(t, p, static_cast<size_t>(n) * sizeof(float));
        return load(t);
    }
    void store(float* p) const {
        _mm256_storeu_ps(p, a);
        _mm256_storeu_ps(p + 8, b);
    }
    void store(float* p, int n) const {
        float t[16];
        store(t);
        std::memcpy(p, t, static_cast<size_t>(n) * sizeof(float));
    }
    static __m256 bf16_8(const uint16_t* p) {
        return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))), 16));
    }
    static F bf16(const uint16_t* p) { return {bf16_8(p), bf16_8(p + 8)}; }
    static F f16(const uint16_t* p) {
        return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))),
                _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p + 8)))};
    }
    static __m256 i8_8(const int8_t* p) {
        return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
    }
    static F i8(const int8_t* p) { return {i8_8(p), i8_8(p + 8)}; }
};
inline F operator+(F x, F y) { return {_mm256_add_ps(x.a, y.a), _mm256_add_ps(x.b, y.b)}; }
inline F operator-(F x, F y) { return {_mm256_sub_ps(x.a, y.a), _mm256_sub_ps(x.b, y.b)}; }
inline F operator*(F x, F y) { return {_mm256_mul_ps(x.a, y.a), _mm256_mul_ps(x.b, y.b)}; }
inline F operator/(F x, F y) { return {_mm256_div_ps(x.a, y.a), _mm256_div_ps(x.b, y.b)}; }
inline F fma(F x, F y, F z) { return {_mm256_fmadd_ps(x.a, y.a, z.a), _mm256_fmadd_ps(x.b, y.b, z.b)}; }
inline F max(F x, F y) { return {_mm256_max_ps(x.a, y.a), _mm256_max_ps(x.b, y.b)}; }
inline F min(F x, F y) { return {_mm256_min_ps(x.a, y.a), _mm256_min_ps(x.b, y.b)}; }
inline F abs(F x) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, x.a), _mm256_andnot_ps(sign, x.b)};
}
inline F sqrt(F x) { return {_mm256_sqrt_ps(x.a), _mm256_sqrt_ps(x.b)}; }
inline F round(F x) {
    constexpr int how = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    return {_mm256_round_ps(x.a, how), _mm256_round_ps(x.b, how)};
}
inline __m256 power2(__m256 n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23));
}
// In two halves, so that both stay within the range of an exponent.
inline F scale2(F x, F n) {
    const F half = round(n * F::all(0.5f)), rest = n - half;
    return {_mm256_mul_ps(_mm256_mul_ps(x.a, power2(half.a)), power2(rest.a)),
            _mm256_mul_ps(_mm256_mul_ps(x.b, power2(half.b)), power2(rest.b))};
}
inline float sum(F x) {
    const __m256 half = _mm256_add_ps(x.a, x.b);
    __m128 q = _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
    q = _mm_add_ps(q, _mm_movehl_ps(q, q));
    return _mm_cvtss_f32(_mm_add_ss(q, _mm_movehdup_ps(q)));
}
inline float greatest(F x) {
    float t[16], most;
    x.store(t);
    most = t[0];
    for (int i = 1; i < 16; i++) most = t[i] > most ? t[i] : most;
    return most;
}

#else

inline float widen_f16(uint16_t h) {
    const uint32_t sign = (h & 0x8000u) << 16, exponent = (h >> 10) & 31, fraction = h & 1023u;
    uint32_t bits = sign | (exponent == 31 ? 0x7f800000u | (fraction << 13) : ((exponent + 112) << 23) | (fraction << 13));
    float x;
    if (exponent == 0) {
        x = static_cast<float>(fraction) * 0x1p-24f;
        return sign ? -x : x;
    }
    std::memcpy(&x, &bits, 4);
    return x;
}

struct F {
    float v[16];
    template <class G>
    static F make(const G& g) {
        F r;
        for (int i = 0; i < 16; i++) r.v[i] = g(i);
        return r;
    }
    static F load(const float* p) { return make([&](int i) { return p[i]; }); }
    static F load(const float* p, int n) { return make([&](int i) { return i < n ? p[i] : 0.0f; }); }
    static F all(float x) { return make([&](int) { return x; }); }
    void store(float* p) const { std::memcpy(p, v, sizeof v); }
    void store(float* p, int n) const { std::memcpy(p, v, static_cast<size_t>(n) * sizeof(float)); }
    static F bf16(const uint16_t* p) {
        return make([&](int i) {
            const uint32_t bits = static_cast<uint32_t>(p[i]) << 16;
            float x;
            std::memcpy(&x, &bits, 4);
            return x;
        });
    }
    static F f16(const uint16_t* p) { return make([&](int i) { return widen_f16(p[i]); }); }
    static F i8(const int8_t* p) { return make([&](int i) { return static_cast<float>(p[i]); }); }
};
inline F operator+(F x, F y) { return F::make([&](int i) { return x.v[i] + y.v[i]; }); }
inline F operator-(F x, F y) { return F::make([&](int i) { return x.v[i] - y.v[i]; }); }
inline F operator*(F x, F y) { return F::make([&](int i) { return x.v[i] * y.v[i]; }); }
inline F operator/(F x, F y) { return F::make([&](int i) { return x.v[i] / y.v[i]; }); }
inline F fma(F x, F y, F z) { return F::make([&](int i) { return x.v[i] * y.v[i] + z.v[i]; }); }
inline F max(F x, F y) { return F::make([&](int i) { return x.v[i] > y.v[i] ? x.v[i] : y.v[i]; }); }
inline F min(F x, F y) { return F::make([&](int i) { return x.v[i] < y.v[i] ? x.v[i] : y.v[i]; }); }
inline F abs(F x) { return F::make([&](int i) { return std::fabs(x.v[i]); }); }
inline F sqrt(F x) { return F::make([&](int i) { return std::sqrt(x.v[i]); }); }
inline F round(F x) { return F::make([&](int i) { return std::nearbyint(x.v[i]); }); }
inline F scale2(F x, F n) {
    return F::make([&](int i) { return std::isnan(n.v[i]) ? n.v[i] : std::ldexp(x.v[i], static_cast<int>(n.v[i])); });
}
inline float sum(F x) {
    for (int width = 8; width; width /= 2)
        for (int i = 0; i < width; i++) x.v[i] += x.v[i + width];
    return x.v[0];
}
inline float greatest(F x) {
    float most = x.v[0];
    for (int i = 1; i < 16; i++) most = x.v[i] > most ? x.v[i] : most;
    return most;
}

#endif

// e^x within 2 ulp, 0 below -104, infinity above 88.8, NaN for a NaN. Range reduction by ln 2 in two parts and a polynomial of
// degree 5, as Cephes' expf has them.
inline F exp(F x) {
    // The bound first: max and min give their second argument where one of the two is a NaN.
    const F within = min(F::all(89.0f), max(F::all(-104.0f), x));
    const F n = round(within * F::all(1.44269504f));
    const F r = fma(n, F::all(2.12194440e-4f), fma(n, F::all(-0.693359375f), within));
    F p = F::all(1.9875691500e-4f);
    p = fma(p, r, F::all(1.3981999507e-3f));
    p = fma(p, r, F::all(8.3334519073e-3f));
    p = fma(p, r, F::all(4.1665795894e-2f));
    p = fma(p, r, F::all(1.6666665459e-1f));
    p = fma(p, r, F::all(5.0000001201e-1f));
    return scale2(fma(p, r * r, r + F::all(1.0f)), n);
}

}  // namespace SW_ISA
}  // namespace sw
