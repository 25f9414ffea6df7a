// Included once per path by attention_kernels.h: how the numbers of the cache become floats, and floats numbers of the cache.
//
// Keys are turned over, so that sixteen of them lie side by side: each score is then one chain of products over a head's
// elements, whatever else is computed, and no sum over lanes is needed.

namespace sw {
namespace SW_ISA {
namespace attending {

using paged::Kept;
using paged::PAGE;
using paged::Piece;
using paged::Reading;
using paged::SPLIT;
using paged::TILE;
using paged::Writing;
using paged::lanes;
using paged::own_floats;
using paged::part_floats;
using paged::query_floats;
using paged::rows_of;
using paged::seen_from;
using paged::tile_floats;

template <class T>
inline T bits_of(const void* p) {
    T x;
    std::memcpy(&x, p, sizeof x);
    return x;
}

// A kind of number in a row of the cache, and the bytes behind its elements.
template <class T, F (*LOAD)(const T*), int64_t TAIL = 0>
struct Of {
    static constexpr int64_t size = sizeof(T), tail = TAIL;
    static F load(const uint8_t* row, int64_t i) { return LOAD(reinterpret_cast<const T*>(row) + i); }
};
using OfFloat32 = Of<float, F::load>;
using OfBfloat16 = Of<uint16_t, F::bf16>;
using OfFloat16 = Of<uint16_t, F::f16>;
using OfInt8 = Of<int8_t, F::i8, 4>;

template <class K>
inline int64_t row_bytes(int64_t dim) {
    return dim * K::size + K::tail;
}

// Elements i to i + 16 of a row of `dim`, zeros beyond.
template <class K>
inline F element(const uint8_t* row, int64_t i, int64_t dim) {
    F x;
    if (i + LANES <= dim) {
        x = K::load(row, i);
    } else {
        alignas(64) uint8_t some[LANES * 4] = {};
        std::memcpy(some, row + i * K::size, static_cast<size_t>((dim - i) * K::size));
        x = K::load(some, 0);
    }
    return K::tail ? x * F::all(bits_of<float>(row + dim * K::size)) : x;
}

#if SW_LEVEL >= 2

// Sixteen rows of floats become columns, `stride` floats apart.
inline void turned_over(const F (&rows)[LANES], float* to, int64_t stride) {
    __m512 a[LANES];
    for (int i = 0; i < LANES; i++) a[i] = rows[i].v;
    turn_over(a);
    for (int i = 0; i < LANES; i++) _mm512_storeu_ps(to + i * stride, a[i]);
}

// Elements d to d + 32 of sixteen rows of bfloat16: turned over in pairs, then taken apart.
inline void turned_over_pairs(const uint8_t* const (&rows)[LANES], int64_t d, float* to, int64_t stride) {
    __m512 a[LANES];
    for (int i = 0; i < LANES; i++) a[i] = _mm512_loadu_ps(rows[i] + 2 * d);
    turn_over(a);
    for (int i = 0; i < LANES; i++) {
        const __m512i both = _mm512_castps_si512(a[i]);
        _mm512_storeu_ps(to + 2 * i * stride, _mm512_castsi512_ps(_mm512_slli_epi32(both, 16)));
        _mm512_storeu_ps(to + (2 * i + 1) * stride, _mm512_castsi512_ps(_mm512_and_si512(both, _mm512_set1_epi32(-65536))));
    }
}

#elif SW_LEVEL == 1

inline void turned_over_8(__m256 (&r)[8], float* to, int64_t stride) {
    __m256 a[8], b[8];
    for (int i = 0; i < 8; i += 2) {
        a[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        a[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    for (int g = 0; g < 8; g += 4) {
        for (int j = 0; j < 2; j++) {
            b[g + 2 * j] = _mm256_shuffle_ps(a[g + j], a[g + 2 + j], 0x44);
            b[g + 2 * j + 1] = _mm256_shuffle_ps(a[g + j], a[g + 2 + j], 0xee);
        }
    }
    for (int64_t i = 0; i < 8; i++)
        _mm256_storeu_ps(to + i * stride, i < 4 ? _mm256_permute2f128_ps(b[i], b[i + 4], 0x20) : _mm256_permute2f128_ps(b[i - 4], b[i], 0x31));
}

inline void turned_over(const F (&rows)[LANES], float* to, int64_t stride) {
    for (int64_t half = 0; half < 2; half++) {
        __m256 r[8];
        for (int64_t i = 0; i < 8; i++) r[i] = rows[8 * half + i].a;
        turned_over_8(r, to + 8 * half, stride);
        for (int64_t i = 0; i < 8; i++) r[i] = rows[8 * half + i].b;
        turned_over_8(r, to + 8 * half + 8 * stride, stride);
    }
}

#else

inline void turned_over(const F (&rows)[LANES], float* to, int64_t stride) {
    for (int64_t i = 0; i < LANES; i++)
        for (int j = 0; j < LANES; j++) to[i * stride + j] = rows[j].v[i];
}

#endif

// The keys of a page as columns of `to` [lanes(dim), TILE]. Those outside of [low, high) are never read: others stand for them.
template <class K>
inline void pack_keys(const uint8_t* page, int64_t stride, int64_t low, int64_t high, int64_t dim, float* to) {
    const uint8_t* rows[PAGE];
    for (int64_t i = 0; i < PAGE; i++) rows[i] = page + (i < low ? low : i < high ? i : high - 1) * stride;
    int64_t d = 0;
#if SW_LEVEL >= 2
    if (std::is_same<K, OfBfloat16>::value)
        for (; d + 2 * LANES <= dim; d += 2 * LANES) turned_over_pairs(rows, d, to + d * TILE, TILE);
#endif
    for (; d < dim; d += LANES) {
        F some[LANES];
        for (int i = 0; i < LANES; i++) some[i] = element<K>(rows[i], d, dim);
        turned_over(some, to + d * TILE, TILE);
    }
}

// The page of the tile after this: keys and values are asked for row by row, while others are in use.
struct Next {
    const uint8_t *keys, *values;
    int64_t stride, bytes;

    void fetch(int64_t row) const {
        for (int64_t at = row * stride; at < row * stride + bytes; at += 64) {
            __builtin_prefetch(keys + at, 0, 2);
            __builtin_prefetch(values + at, 0, 2);
        }
    }
};

// The values [low, high) of a page as rows of `to` [PAGE, lanes(dim)].
template <class K>
inline void pack_values(const uint8_t* page, int64_t stride, int64_t low, int64_t high, int64_t dim, const Next& next, float* to) {
    for (int64_t i = low; i < high; i++) {
        next.fetch(i);
        for (int64_t d = 0; d < dim; d += LANES) element<K>(page + i * stride, d, dim).store(to + i * lanes(dim) + d);
    }
}

// --- to the cache -----------------------------------------------------------------------------------------------------

// To the nearest, ties to even; as torch does, but for the bits of a NaN.
inline uint16_t to_bf16(float x) {
    const uint32_t bits = bits_of<uint32_t>(&x);
    if (std::isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40u);
    return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

inline uint16_t to_f16(float x) {
#if SW_LEVEL >= 1
    return static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT));
#else
    const uint32_t bits = bits_of<uint32_t>(&x), sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);
    if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more
    // Below the smallest normal number: units of 2^-24.
    if (size < 0x38800000u) return static_cast<uint16_t>(sign | static_cast<uint32_t>(std::nearbyint(std::fabs(x) * 0x1p24f)));
    return static_cast<uint16_t>(sign | ((size - 0x38000000u + 0xfffu + ((size >> 13) & 1u)) >> 13));
#endif
}

inline void keep_int8(const float* x, int64_t dim, uint8_t* to) {
    F most = F::all(0.0f);
    bool finite = true;
    for (int64_t i = 0; i < dim; i++) finite &= std::isfinite(x[i]);
    for (int64_t i = 0; i < dim; i += LANES) most = max(abs(i + LANES <= dim ? F::load(x + i) : F::load(x + i, static_cast<int>(dim - i))), most);
    // Zeros by a scale that is no number: all of the head is none then, as it would be in floats.
    const float peak = finite ? greatest(most) : NAN, scale = peak / 127.0f, factor = peak > 1e-30f ? 127.0f / peak : 0.0f;
    for (int64_t i = 0; i < dim; i++) {
        const float one = std::nearbyint(finite ? x[i] * factor : 0.0f);
        to[i] = static_cast<uint8_t>(static_cast<int8_t>(one > 127.0f ? 127.0f : one < -127.0f ? -127.0f : one));
    }
    std::memcpy(to + dim, &scale, sizeof scale);
}

inline void keep(const float* x, int64_t dim, Kept kept, uint8_t* to) {
    if (kept == Kept::FLOAT32) {
        std::memcpy(to, x, static_cast<size_t>(dim) * sizeof(float));
    } else if (kept == Kept::INT8) {
        keep_int8(x, dim, to);
    } else {
        for (int64_t i = 0; i < dim; i++) {
            const uint16_t one = kept == Kept::BFLOAT16 ? to_bf16(x[i]) : to_f16(x[i]);
            std::memcpy(to + 2 * i, &one, 2);
        }
    }
}

}  // namespace attending
}  // namespace SW_ISA
}  // namespace sw
