// All kernels of one path: included once by each file beside this one.
#include "../vector.h"
#include "../wide.h"
#include "../stored.h"
#include "../stored_kernels.h"
#include "../columns.h"
// One family a line, in the order of need.
#include "../step.h"
#include "../step_kernels.h"
#include "../limits.h"
#include "../limits_kernels.h"
#if SW_LEVEL >= 4
#include "../tile_config.h"
#endif
#include "../dense.h"
#include "../dense_kernels.h"
#include "../quantised.h"
#include "../quantised_lanes.h"
#include "../packing_kernels.h"
#include "../quantised_kernels.h"
#include "../sum.h"
#include "../sum_kernels.h"
#include "../attention.h"
#include "../attention_kernels.h"
