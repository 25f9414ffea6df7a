// The path of CPUs with avx2, fma, f16c, avx512f, avx512dq, avx512bw, avx512vl, avx512vnni, amx-tile, amx-int8, amx-bf16.
#if defined(__x86_64__)
// The standard library first: what it has must not be compiled for this path, or the linker might keep that copy for all.
#include "../plain.h"
#if defined(__clang__)
#pragma clang attribute push(__attribute__((target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8,amx-bf16"))), apply_to = function)
#else
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c,avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,amx-tile,amx-int8,amx-bf16")
#endif
#define SW_ISA amx
#define SW_LEVEL 4
#include "kernels.h"
#if defined(__clang__)
#pragma clang attribute pop
#else
#pragma GCC pop_options
#endif
#endif

