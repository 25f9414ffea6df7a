// How weights are rounded and laid out, and read again. Included once per path by isa/*.cpp, after quantised_lanes.h.

namespace sw {
namespace SW_ISA {

// `n` of sixteen values from place i on, zeros behind.
inline F read(const void* values, int dtype, int64_t i, int n) {
    F found;
    with(static_cast<Stored>(dtype), [&](auto type) {
        const auto* p = static_cast<const typename decltype(type)::number*>(values) + i;
        found = n >= LANES ? type.load(p) : type.load(p, n);
    });
    return found;
}

// The nearest float16, ties to even.
inline uint16_t narrow(float x) {
#if SW_LEVEL >= 1
    return static_cast<uint16_t>(_cvtss_sh(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
#else
    uint32_t bits;
    std::memcpy(&bits, &x, 4);
    const uint32_t sign = (bits >> 16) & 0x8000u, size = bits & 0x7fffffffu;
    if (size > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);  // a NaN
    if (size >= 0x477ff000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65520 and more: infinity
    if (size < 0x38800000u) {  // below 2^-14: whole multiples of 2^-24
        const float steps = std::nearbyint(std::fabs(x) * 0x1p24f);
        return static_cast<uint16_t>(sign | static_cast<uint32_t>(steps));
    }
    const uint32_t rounded = size + 0xfffu + ((size >> 13) & 1u);
    return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
#endif
}

constexpr uint16_t NOT_A_NUMBER = 0x7e00, ENDLESS = 0x7c00;

// The sixteen-bit scale of a group with these extremes: of 8 bits, the greatest size becomes 127; of 4, it becomes -8.
inline uint16_t scale_of(float high, float low, int bits) {
    const float wide = bits == 8 ? (high > -low ? high : -low) / 127.0f : (high > -low ? high : low) / -8.0f;
    const uint16_t scale = narrow(wide + 0.0f);  // + 0: no negative zero
    return (scale & ENDLESS) == ENDLESS ? NOT_A_NUMBER : scale;
}

// One group of one row, `count` values from place `from` on, as bytes q; its scale comes back.
inline uint16_t round_weights(const void* values, int dtype, int64_t from, int count, const PackedWeight& w, int8_t* q) {
    F parts[8], high = F::all(-INFINITY), low = F::all(-INFINITY), poison = F::all(0.0f);
    const int vectors = w.group / LANES;
    for (int i = 0; i < vectors; i++) {
        const int there = count - i * LANES;
        parts[i] = read(values, dtype, from + i * LANES, there > 0 ? there : 0);
        high = max(parts[i], high);
        low = max(F::all(0.0f) - parts[i], low);
        poison = fma(parts[i], F::all(0.0f), poison);
    }
    const bool finite = sum(poison) == 0.0f;
    const uint16_t scale = finite ? scale_of(greatest(high), -greatest(low), w.bits) : NOT_A_NUMBER;
    alignas(32) uint16_t same[LANES];
    for (uint16_t& one : same) one = scale;
    float wide[LANES];
    F::f16(same).store(wide);
    const bool counts = wide[0] != 0.0f && scale != NOT_A_NUMBER;
    const F inverse = F::all(counts ? 1.0f / wide[0] : 0.0f);
    const F least = F::all(w.bits == 8 ? -127.0f : -8.0f), most = F::all(w.bits == 8 ? 127.0f : 7.0f);
    for (int i = 0; i < vectors; i++) {
        const F whole = counts ? max(least, min(most, round(parts[i] * inverse))) : F::all(0.0f);
        store_bytes(whole, q + i * LANES);
    }
    return scale;
}

// One group of one row to its place in the tile: `q` of all its columns, four at a time.
inline void place(const int8_t* q, int group, int bits, int lane, uint8_t* tile) {
    uint32_t word, next;
    for (int k = 0; k < group; k += 32 / bits, tile += 64) {
        std::memcpy(&word, q + k, 4);
        if (bits == 8) {
            word ^= 0x80808080u;
        } else {
            std::memcpy(&next, q + k + 4, 4);
            // q + 8 in four bits: the lowest three bits, and the sign turned over.
            word = ((word ^ 0x08080808u) & 0x0f0f0f0fu) | (((next ^ 0x08080808u) & 0x0f0f0f0fu) << 4);
        }
        std::memcpy(tile + 4 * lane, &word, 4);
    }
}

void pack(const void* values, int dtype, int64_t stride, int64_t count, const PackedWeight& w, int64_t first) {
    const int64_t bytes = w.bytes(), tile = first / TILE;
    const int64_t end = first + count == w.rows ? (tile + 1) * TILE : first + count;
    alignas(64) int8_t q[128];
    for (int64_t g = 0; g < w.groups; g++) {
        const int64_t start = g * w.group, rest = w.columns - start;
        uint8_t* there = w.weight + (tile * w.groups + g) * bytes;
        uint16_t* scales = w.scale + (tile * w.groups + g) * TILE;
        for (int64_t row = first; row < end; row++) {
            uint16_t scale = 0;
            if (row < first + count) {
                const int columns = static_cast<int>(rest < w.group ? rest : w.group);
                scale = round_weights(values, dtype, (row - first) * stride + start, columns, w, q);
            } else {
                std::memset(q, 0, sizeof q);
            }
            place(q, w.group, w.bits, static_cast<int>(row % TILE), there);
            scales[row % TILE] = scale;
        }
    }
}

// One row of a packed weight as floats.
void unpack_row(const PackedWeight& w, int64_t row, float* y) {
    const int64_t tile = row / TILE, lane = row % TILE;
    for (int64_t g = 0; g < w.groups; g++) {
        float scales[LANES];
        F::f16(w.scale + (tile * w.groups + g) * TILE).store(scales);
        const uint8_t* p = w.weight + (tile * w.groups + g) * w.bytes() + 4 * lane;
        const int64_t start = g * w.group, rest = w.columns - start, count = rest < w.group ? rest : w.group;
        for (int64_t k = 0; k < count; k++) {
            // Four inputs side by side, 64 bytes on the next; of 4 bits, eight.
            int q;
            if (w.bits == 8) q = p[k / 4 * 64 + k % 4] - 128;
            else q = ((p[k / 8 * 64 + k % 4] >> (k & 4)) & 15) - 8;
            y[start + k] = static_cast<float>(q) * scales[lane];
        }
    }
}

}  // namespace SW_ISA
}  // namespace sw
