// Which instructions this CPU has, as one of a few paths. Knows no kernel.
#pragma once

namespace sw {

enum Isa { SCALAR = 0, AVX2 = 1, AVX512 = 2, AVX512_VNNI = 3, AMX = 4 };

// The best path that CPU and operating system allow.
Isa best();

// The path in use: `best` until `use` takes another one.
Isa active();

// Takes a path, for tests and comparisons; false, and nothing is changed, where this CPU lacks it.
bool use(Isa isa);

}  // namespace sw
