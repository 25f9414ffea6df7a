// Products with one input, and what comes before them, as one call: in Python a call costs as much as a small kernel.
#include "calls.h"

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
    const float* in = prepared(pool, *of, x, up, m, reinterpret_cast<float*>(scratch));
    const int group = static_cast<int>(of->group);
    char* const rounded = scratch + float_bytes(*of, m);
    if (group) sw_quantise_rows(pool, in, rounded, m, of->columns, group);
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
