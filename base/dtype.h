/* dtype: element types of checkpoint tensors, and conversions to float that are exact.
 * F8_E4M3 is the "fn" flavour (0x7F and 0xFF are NaN, no infinities); F8_E8M0 is 2^(b-127).   */
#ifndef BASE_DTYPE_H
#define BASE_DTYPE_H

#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum dtype { DTYPE_F32, DTYPE_F16, DTYPE_BF16, DTYPE_F8_E4M3, DTYPE_F8_E8M0, DTYPE_I64, DTYPE_I32,
             DTYPE_I8, DTYPE_U8, DTYPE_BOOL, DTYPE_F64, DTYPE_COUNT };

size_t dtype_size_bytes(enum dtype dtype);
const char *dtype_name(enum dtype dtype);             /* safetensors spelling: "F32", "BF16", ... */
int dtype_from_name(const char *name, size_t length); /* enum dtype, or -EINVAL */

extern const float dtype_e4m3_table[256]; /* NaN for 0x7F and 0xFF */
float dtype_e8m0(uint8_t bits);
float dtype_f16(uint16_t bits);

static inline float
dtype_bf16(uint16_t bits)
{
    uint32_t wide = (uint32_t)bits << 16;
    float value;
    memcpy(&value, &wide, sizeof value);
    return value;
}
/* Round to nearest even; NaN stays NaN. */
uint16_t dtype_to_bf16(float value);

#endif
