// All kernels of one path: included once by each file beside this one.
#include "../vector.h"
#include "../stored.h"
#include "../stored_kernels.h"
// One family a line, in the order of need.
#include "../step.h"
#include "../step_kernels.h"
#include "../dense.h"
#include "../dense_kernels.h"
#include "../attention.h"
#include "../attention_kernels.h"
