// What Python calls: plain C, pointers and numbers. Shapes were checked by the caller.

#include "api.h"

#include "cpu.h"
#include "pool.h"


SW_API int sw_best() { return sw::best(); }
SW_API int sw_active() { return sw::active(); }
SW_API int sw_use(int isa) { return sw::use(static_cast<sw::Isa>(isa)); }

SW_API void* sw_pool(int threads, int crowded) { return new sw::Pool(threads, crowded != 0); }
SW_API void sw_pool_end(void* pool) { delete static_cast<sw::Pool*>(pool); }
