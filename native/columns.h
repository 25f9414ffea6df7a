// Rows of a square that become its columns, in registers. Included once per path by isa/kernels.h, after vector.h.

namespace sw {
namespace SW_ISA {

#if SW_LEVEL >= 2

// Sixteen rows of sixteen become columns.
inline void turn_over(__m512 (&a)[LANES]) {
    __m512 b[16];
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_ps(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_ps(a[i], a[i + 1]);
    }
    // Of every four rows, elements j, 4 + j, 8 + j and 12 + j in a[g + j].
    for (int g = 0; g < 16; g += 4) {
        for (int j = 0; j < 2; j++) {
            const __m512d low = _mm512_castps_pd(b[g + j]), high = _mm512_castps_pd(b[g + 2 + j]);
            a[g + 2 * j] = _mm512_castpd_ps(_mm512_unpacklo_pd(low, high));
            a[g + 2 * j + 1] = _mm512_castpd_ps(_mm512_unpackhi_pd(low, high));
        }
    }
    for (int j = 0; j < 4; j++) {
        const __m512 even = _mm512_shuffle_f32x4(a[j], a[4 + j], 0x88), odd = _mm512_shuffle_f32x4(a[j], a[4 + j], 0xdd);
        const __m512 even2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0x88), odd2 = _mm512_shuffle_f32x4(a[8 + j], a[12 + j], 0xdd);
        b[j] = _mm512_shuffle_f32x4(even, even2, 0x88);
        b[8 + j] = _mm512_shuffle_f32x4(even, even2, 0xdd);
        b[4 + j] = _mm512_shuffle_f32x4(odd, odd2, 0x88);
        b[12 + j] = _mm512_shuffle_f32x4(odd, odd2, 0xdd);
    }
    for (int i = 0; i < 16; i++) a[i] = b[i];
}

#endif

}  // namespace SW_ISA
}  // namespace sw
