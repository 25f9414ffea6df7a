// Products with one input, and what comes before them, as one call: in Python a call costs as much as a small kernel.
#include "calls.h"
#include "pool.h"

namespace sw {
namespace {

enum Before { NOTHING = 0, RMS_NORM = 1, LAYER_NORM = 2, SILU_TIMES = 3 };

// One weight: plain numbers of `stored` where `bits` is 0, else packed ones with their scales.
struct Weight {
    void *numbers, *scale;
    const void* bias;
    int64_t outputs, bits, stored, bias_stored;
};

constexpr int MOST = 3;  // queries, keys and values

}  // namespace

// As nn/kernels/joint.py makes it, once for all calls. `group` is that of the packed weights, 0 where there are none.
struct Joint {
    const void *norm, *norm_bias;
    int64_t before, norm_stored, columns, group, sums, count;
    Weight weights[MOST];
    float eps, offset;
};

namespace {

constexpr int64_t LINE = 64;
constexpr int64_t FEW_ROWS = 32;
constexpr int64_t SOME_ROWS = 8;  // what is made of so many is still near when it is rounded

int64_t float_bytes(const Joint& of, int64_t m) {
    return of.before == NOTHING ? 0 : (m * of.columns * static_cast<int64_t>(sizeof(float)) + LINE - 1) / LINE * LINE;
}

// What the products take: x itself, or what is made of it in `out`.
const float* prepared(void* pool, const Joint& of, const float* x, const float* up, int64_t m, float* out) {
    const int stored = static_cast<int>(of.norm_stored);
    switch (of.before) {
        case RMS_NORM: sw_rms_norm(pool, x, of.norm, stored, out, m, of.columns, of.eps, of.offset); return out;
        case LAYER_NORM: sw_layer_norm(pool, x, of.norm, of.norm_bias, stored, out, m, of.columns, of.eps); return out;
        case SILU_TIMES: sw_silu_times(pool, x, up, out, m * of.columns); return out;
        default: return x;
    }
}

bool all_packed(const Joint& of) {
    bool all = true;
    for (int64_t i = 0; i < of.count; i++) all = all && of.weights[i].bits;
    return all;
}

// What the products take, and that rounded. Many rows are gone through a few at a time, each thread with its own place in `out`,
// if none of the products takes numbers that are not rounded.
const float* round_prepared(Pool* pool, const Joint& of, const float* x, const float* up, int64_t m, float* out, char* rounded) {
    const int group = static_cast<int>(of.group);
    const int64_t columns = of.columns, threads = pool ? pool->threads() : 1;
    if (of.before == NOTHING || m <= FEW_ROWS || threads * SOME_ROWS > m || !all_packed(of)) {
        const float* in = prepared(pool, of, x, up, m, out);
        if (group) sw_quantise_rows(pool, in, rounded, m, columns, group);
        return in;
    }
    each(pool, (m + SOME_ROWS - 1) / SOME_ROWS, [&](int64_t piece, int thread) {
        const int64_t first = piece * SOME_ROWS, count = first + SOME_ROWS < m ? SOME_ROWS : m - first, from = first * columns;
        const float* in = prepared(nullptr, of, x + from, up ? up + from : nullptr, count, out + thread * SOME_ROWS * columns);
        sw_quantise_some(in, rounded, first, count, m, columns, group);
    });
    return nullptr;
}

}  // namespace
}  // namespace sw

// What `sw_joint` needs of scratch memory for m rows.
SW_API int64_t sw_joint_bytes(const sw::Joint* of, int64_t m) {
    const int64_t rounded = of->group ? sw_rounded_bytes(m, of->columns, static_cast<int>(of->group)) : 0;
    return sw::float_bytes(*of, m) + rounded;
}

// The products of m rows: a, b, c [m, outputs], as many as there are weights. `up` is the other factor of a gate. `scratch`, at a
// cache line, has room as `sw_joint_bytes` says.
SW_API void sw_joint(void* pool, const sw::Joint* of, const float* x, const float* up, int64_t m, char* scratch, void* a, void* b,
                     void* c) {
    using namespace sw;
    const int group = static_cast<int>(of->group);
    float* const floats = reinterpret_cast<float*>(scratch);
    char* const rounded = scratch + float_bytes(*of, m);
    const float* in = round_prepared(static_cast<Pool*>(pool), *of, x, up, m, floats, rounded);
    void* const out[] = {a, b, c};
    for (int64_t i = 0; i < of->count; i++) {
        const Weight& w = of->weights[i];
        if (w.bits) {
            sw_quantised_linear(pool, nullptr, rounded, static_cast<uint8_t*>(w.numbers), static_cast<uint16_t*>(w.scale),
                                static_cast<const float*>(w.bias), out[i], m, w.outputs, of->columns, group,
                                static_cast<int>(w.bits), static_cast<int>(of->sums));
        } else {
            sw_linear(pool, in, w.numbers, static_cast<int>(w.stored), w.bias, static_cast<int>(w.bias_stored),
                      static_cast<float*>(out[i]), m, of->columns, w.outputs);
        }
    }
}
