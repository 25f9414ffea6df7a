// How a function is shown to Python: plain C, and nothing else of the library is visible.
#pragma once

#include <cstdint>

#define SW_API extern "C" __attribute__((visibility("default")))
