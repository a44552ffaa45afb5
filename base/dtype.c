/* dtype: see dtype.h. */
#include "base/dtype.h"

#include <errno.h>

#include "base/check.h"

static const struct {
    const char *name;
    size_t size_bytes;
} dtype_rows[DTYPE_COUNT] = {
    [DTYPE_F32] = {"F32", 4},         [DTYPE_F16] = {"F16", 2},         [DTYPE_BF16] = {"BF16", 2},
    [DTYPE_F8_E4M3] = {"F8_E4M3", 1}, [DTYPE_F8_E8M0] = {"F8_E8M0", 1}, [DTYPE_I64] = {"I64", 8},
    [DTYPE_I32] = {"I32", 4},         [DTYPE_I8] = {"I8", 1},           [DTYPE_U8] = {"U8", 1},
    [DTYPE_BOOL] = {"BOOL", 1},       [DTYPE_F64] = {"F64", 8},
};

size_t
dtype_size_bytes(enum dtype dtype)
{
    ASSERT((unsigned)dtype < DTYPE_COUNT);
    return dtype_rows[dtype].size_bytes;
}

const char *
dtype_name(enum dtype dtype)
{
    ASSERT((unsigned)dtype < DTYPE_COUNT);
    return dtype_rows[dtype].name;
}

int
dtype_from_name(const char *name, size_t length)
{
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++)
        if (strlen(dtype_rows[dtype].name) == length &&
            memcmp(dtype_rows[dtype].name, name, length) == 0)
            return dtype;
    return -EINVAL;
}

/* 1 sign, 4 exponent bits with bias 7, 3 mantissa bits (OCP 8-bit floating point, E4M3):
 *   exponent 0: m * 2^-9;  else (1 + m/8) * 2^(e-7) = (8 + m) * 2^e / 1024.
 * Every product here is exact in float. */
#define E4M3_SUBNORMALS(sign)                                                                      \
    sign 0.0f, sign 1 / 512.0f, sign 2 / 512.0f, sign 3 / 512.0f, sign 4 / 512.0f,                 \
        sign 5 / 512.0f, sign 6 / 512.0f, sign 7 / 512.0f
#define E4M3(sign, e, m) sign(8 + (m)) * (float)(1 << (e)) / 1024.0f
#define E4M3_SEVEN(sign, e)                                                                        \
    E4M3(sign, e, 0), E4M3(sign, e, 1), E4M3(sign, e, 2), E4M3(sign, e, 3), E4M3(sign, e, 4),      \
        E4M3(sign, e, 5), E4M3(sign, e, 6)
#define E4M3_EIGHT(sign, e) E4M3_SEVEN(sign, e), E4M3(sign, e, 7)
#define E4M3_HALF(sign)                                                                            \
    E4M3_SUBNORMALS(sign), E4M3_EIGHT(sign, 1), E4M3_EIGHT(sign, 2), E4M3_EIGHT(sign, 3),          \
        E4M3_EIGHT(sign, 4), E4M3_EIGHT(sign, 5), E4M3_EIGHT(sign, 6), E4M3_EIGHT(sign, 7),        \
        E4M3_EIGHT(sign, 8), E4M3_EIGHT(sign, 9), E4M3_EIGHT(sign, 10), E4M3_EIGHT(sign, 11),      \
        E4M3_EIGHT(sign, 12), E4M3_EIGHT(sign, 13), E4M3_EIGHT(sign, 14), E4M3_SEVEN(sign, 15),    \
        __builtin_nanf("")

const float dtype_e4m3_table[256] = {E4M3_HALF(+), E4M3_HALF(-)};

static float
float_of_bits(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float
dtype_e8m0(uint8_t bits)
{
    if (bits == 255)
        return float_of_bits(0x7FC00000u);
    /* 2^-127 is a subnormal float: one bit below the smallest normal one. */
    return float_of_bits(bits == 0 ? 0x00400000u : (uint32_t)bits << 23);
}

float
dtype_f16(uint16_t bits)
{
    uint32_t sign = (uint32_t)(bits & 0x8000u) << 16;
    uint32_t exponent = (bits >> 10) & 31u, mantissa = bits & 0x3FFu;
    if (exponent == 0) { /* zero and subnormals: m * 2^-24 */
        float value = (float)mantissa * 0x1p-24f;
        return sign ? -value : value;
    }
    uint32_t wide = exponent == 31 ? 255u : exponent - 15 + 127;
    return float_of_bits(sign | wide << 23 | mantissa << 13);
}

uint16_t
dtype_to_bf16(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    if ((bits & 0x7FFFFFFFu) > 0x7F800000u)
        return (uint16_t)(bits >> 16 | 0x40u); /* quiet, so that cutting cannot make it infinite */
    bits += 0x7FFFu + (bits >> 16 & 1u);
    return (uint16_t)(bits >> 16);
}
