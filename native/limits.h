// How fast memory can be read: what every speed is held against. Nothing that a model computes with.
#pragma once

#include <cstdint>

namespace sw {

struct LimitKernels {
    // The sum of `count` floats, in no order that means anything: what is wanted is the time it takes.
    float (*stream)(const float* x, int64_t count);
};

}  // namespace sw
