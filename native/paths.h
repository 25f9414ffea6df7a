// The tables of all paths, and the one in use.
#pragma once

#include "cpu.h"

namespace sw {

// `SW_PATHS(Type, name)` declares the table `name` of each path, and `name##_of()`, that of the path in use.
#if defined(__x86_64__)
#define SW_PATHS(Type, name)                                                                       \
    namespace scalar { extern const Type name; }                                                   \
    namespace avx2 { extern const Type name; }                                                     \
    namespace avx512 { extern const Type name; }                                                   \
    namespace vnni { extern const Type name; }                                                     \
    namespace amx { extern const Type name; }                                                      \
    inline const Type& name##_of() {                                                               \
        const Type* paths[] = {&scalar::name, &avx2::name, &avx512::name, &vnni::name, &amx::name}; \
        return *paths[active()];                                                                   \
    }
#else
#define SW_PATHS(Type, name)                     \
    namespace scalar { extern const Type name; } \
    inline const Type& name##_of() { return scalar::name; }
#endif

}  // namespace sw
