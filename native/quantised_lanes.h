// Sixteen sums of products of whole numbers: four weights of each of sixteen rows by the same four activations.
//
// W is a vector of 16 x 4 weights, X the four activations, D the sixteen sums. Included once per path, before
// quantised_kernels.h. All paths get the same numbers, exactly.

namespace sw {
namespace SW_ISA {

#if SW_LEVEL >= 3

// Weights stay unsigned (q + 128 or q + 8), as the instruction wants them; the sums begin with what that adds too much.
struct X {
    __m512i v;
    static X load(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        return {_mm512_set1_epi32(four)};
    }
};
struct W {
    __m512i v;
    static W whole(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
    static void halves(const uint8_t* p, W& low, W& high) {
        const __m512i both = _mm512_loadu_si512(p), four = _mm512_set1_epi8(15);
        low.v = _mm512_and_si512(both, four);
        high.v = _mm512_and_si512(_mm512_srli_epi16(both, 4), four);
    }
};
struct D {
    __m512i v;
    template <int BITS>
    static D start(int32_t eighths) { return {_mm512_set1_epi32(BITS == 8 ? eighths * 16 : eighths)}; }
    void add(W w, X x) { v = _mm512_dpbusd_epi32(v, w.v, x.v); }
    F real() const { return {_mm512_cvtepi32_ps(v)}; }
    F64 wide() const { return F64::whole(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)); }
};

#elif SW_LEVEL == 2

// Two products of bytes are added in 16 bits: |x| times a weight with x's sign is at most 127 · 127, so that twice fits.
struct X {
    __m512i size;
    __mmask64 negative;
    static X load(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        const __m512i v = _mm512_set1_epi32(four);
        return {_mm512_abs_epi8(v), _mm512_movepi8_mask(v)};
    }
};
struct W {
    __m512i v;
    static W whole(const uint8_t* p) { return {_mm512_xor_si512(_mm512_loadu_si512(p), _mm512_set1_epi8(-128))}; }
    static void halves(const uint8_t* p, W& low, W& high) {
        const __m512i both = _mm512_loadu_si512(p), four = _mm512_set1_epi8(15), eight = _mm512_set1_epi8(8);
        low.v = _mm512_sub_epi8(_mm512_and_si512(both, four), eight);
        high.v = _mm512_sub_epi8(_mm512_and_si512(_mm512_srli_epi16(both, 4), four), eight);
    }
};
struct D {
    __m512i v;
    template <int BITS>
    static D start(int32_t) { return {_mm512_setzero_si512()}; }
    void add(W w, X x) {
        const __m512i turned = _mm512_mask_sub_epi8(w.v, x.negative, _mm512_setzero_si512(), w.v);
        const __m512i pairs = _mm512_maddubs_epi16(x.size, turned);
        v = _mm512_add_epi32(v, _mm512_madd_epi16(pairs, _mm512_set1_epi16(1)));
    }
    F real() const { return {_mm512_cvtepi32_ps(v)}; }
    F64 wide() const { return F64::whole(_mm512_castsi512_si256(v), _mm512_extracti64x4_epi64(v, 1)); }
};

#elif SW_LEVEL == 1

// As above, in halves.
struct X {
    __m256i v, size;
    static X load(const int8_t* p) {
        int32_t four;
        std::memcpy(&four, p, 4);
        const __m256i v = _mm256_set1_epi32(four);
        return {v, _mm256_abs_epi8(v)};
    }
};
inline __m256i half(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
struct W {
    __m256i a, b;
    static W whole(const uint8_t* p) {
        const __m256i top = _mm256_set1_epi8(-128);
        return {_mm256_xor_si256(half(p), top), _mm256_xor_si256(half(p + 32), top)};
    }
    static __m256i low_of(__m256i both) {
        return _mm256_sub_epi8(_mm256_and_si256(both, _mm256_set1_epi8(15)), _mm256_set1_epi8(8));
    }
    static void halves(const uint8_t* p, W& low, W& high) {
        const __m256i a = half(p), b = half(p + 32);
        low = {low_of(a), low_of(b)};
        high = {low_of(_mm256_srli_epi16(a, 4)), low_of(_mm256_srli_epi16(b, 4))};
    }
};
struct D {
    __m256i a, b;
    template <int BITS>
    static D start(int32_t) { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
    static __m256i more(__m256i sums, __m256i w, X x) {
        const __m256i pairs = _mm256_maddubs_epi16(x.size, _mm256_sign_epi8(w, x.v));
        return _mm256_add_epi32(sums, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
    }
    void add(W w, X x) {
        a = more(a, w.a, x);
        b = more(b, w.b, x);
    }
    F real() const { return {_mm256_cvtepi32_ps(a), _mm256_cvtepi32_ps(b)}; }
    F64 wide() const { return F64::whole(a, b); }
};

#else

struct X {
    int32_t v[4];
    static X load(const int8_t* p) { return {{p[0], p[1], p[2], p[3]}}; }
};
struct W {
    int8_t v[64];
    static W whole(const uint8_t* p) {
        W w;
        for (int i = 0; i < 64; i++) w.v[i] = static_cast<int8_t>(p[i] - 128);
        return w;
    }
    static void halves(const uint8_t* p, W& low, W& high) {
        for (int i = 0; i < 64; i++) {
            low.v[i] = static_cast<int8_t>((p[i] & 15) - 8);
            high.v[i] = static_cast<int8_t>((p[i] >> 4) - 8);
        }
    }
};
struct D {
    int32_t v[16];
    template <int BITS>
    static D start(int32_t) { return {}; }
    void add(const W& w, const X& x) {
        for (int i = 0; i < 16; i++)
            for (int j = 0; j < 4; j++) v[i] += w.v[4 * i + j] * x.v[j];
    }
    F real() const { return F::make([&](int i) { return static_cast<float>(v[i]); }); }
    F64 wide() const { return F64::whole(v); }
};

#endif

// How a kernel adds up groups: in floats, or in doubles, where the product of two scales is exact.
template <class N>
struct Sums;

template <>
struct Sums<float> {
    using V = F;
    static F all(float x) { return F::all(x); }
    static F of(F x) { return x; }
    static F of(const D& dots) { return dots.real(); }
};

template <>
struct Sums<double> {
    using V = F64;
    static F64 all(float x) { return F64::all(static_cast<double>(x)); }
    static F64 of(F x) { return F64::wide(x); }
    static F64 of(const D& dots) { return dots.wide(); }
};

// The sixteen whole numbers of `a`, all in -128..127, as bytes.
inline void store_bytes(F a, int8_t* p) {
#if SW_LEVEL >= 2
    _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(a.v)));
#else
    float t[16];
    a.store(t);
    for (int i = 0; i < 16; i++) p[i] = static_cast<int8_t>(t[i]);
#endif
}

}  // namespace SW_ISA
}  // namespace sw
