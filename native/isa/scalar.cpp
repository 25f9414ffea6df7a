// The path of every CPU: plain C++.
#define SW_ISA scalar
#define SW_LEVEL 0
#include "kernels.h"

