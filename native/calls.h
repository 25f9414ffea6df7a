// Functions of the C interface that others of it are made of. What they do, their own files say.
#pragma once

#include "api.h"

SW_API void sw_rms_norm(void* pool, const float* x, const void* w, int stored, float* y, int64_t rows, int64_t size, float eps,
                        float offset);
SW_API void sw_layer_norm(void* pool, const float* x, const void* w, const void* bias, int stored, float* y, int64_t rows,
                          int64_t size, float eps);
SW_API void sw_silu_times(void* pool, const float* gate, const float* up, float* y, int64_t count);
SW_API int64_t sw_rounded_bytes(int64_t rows, int64_t columns, int group);
SW_API void sw_quantise_rows(void* pool, const float* x, char* scratch, int64_t rows, int64_t columns, int group);
void sw_quantise_some(const float* x, char* scratch, int64_t first, int64_t count, int64_t rows, int64_t columns, int group);
SW_API void sw_quantised_linear(void* pool, const float* x, char* scratch, uint8_t* weight, uint16_t* scale, const float* bias,
                                void* y, int64_t m, int64_t rows, int64_t columns, int group, int bits, int sums);
SW_API void sw_linear(void* pool, const float* x, const void* weight, int stored, const void* bias, int bias_stored, float* y,
                      int64_t rows, int64_t inputs, int64_t outputs);
