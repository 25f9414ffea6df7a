// How numbers lie in memory that kernels widen to floats while they read them.
#pragma once

namespace sw {

enum Stored { FLOAT32 = 0, BFLOAT16 = 1, FLOAT16 = 2 };

}  // namespace sw
