// All kernels of one path: included once by each file beside this one.
#include "../vector.h"
// One family a line, in the order of need.
#include "../step.h"
#include "../step_kernels.h"
#include "../limits.h"
#include "../limits_kernels.h"
