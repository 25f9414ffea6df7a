// Sixteen stored numbers as floats. Included once per path by isa/*.cpp, after vector.h.

namespace sw {
namespace SW_ISA {

// A type for each way to store a number, for templates: `number` is what a pointer steps by.
struct Float32 {
    using number = float;
    static F load(const float* p) { return F::load(p); }
    static F load(const float* p, int n) { return F::load(p, n); }
};

template <F (*WIDEN)(const uint16_t*)>
struct Sixteen {
    using number = uint16_t;
    static F load(const uint16_t* p) { return WIDEN(p); }
    static F load(const uint16_t* p, int n) {
        uint16_t t[LANES] = {};
        std::memcpy(t, p, static_cast<size_t>(n) * sizeof(uint16_t));
        return WIDEN(t);
    }
};
using Bfloat16 = Sixteen<F::bf16>;
using Float16 = Sixteen<F::f16>;

// f(type) with the type that `stored` names.
template <class Call>
inline void with(Stored stored, const Call& f) {
    if (stored == FLOAT32) f(Float32());
    else if (stored == BFLOAT16) f(Bfloat16());
    else f(Float16());
}

}  // namespace SW_ISA
}  // namespace sw
