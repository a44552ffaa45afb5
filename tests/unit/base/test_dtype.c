#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <errno.h>
#include <math.h>

#include "base/dtype.h"

static void
every_e4m3_code_has_the_value_of_the_formula(void **state)
{
    for (int code = 0; code < 256; code++) {
        int exponent = code >> 3 & 15, mantissa = code & 7;
        float value = dtype_e4m3_table[code];
        if (exponent == 15 && mantissa == 7) {
            assert_true(isnan(value));
            continue;
        }
        double magnitude = exponent ? ldexp(1 + mantissa / 8.0, exponent - 7) : ldexp(mantissa, -9);
        assert_true((double)fabsf(value) == magnitude);
        assert_int_equal(!!signbit(value), code >> 7);
    }
    assert_true(dtype_e4m3_table[0x7E] == 448.0f);
    assert_true(dtype_e4m3_table[0x38] == 1.0f);
    assert_true(dtype_e4m3_table[0x01] == 0x1p-9f);
    assert_true(dtype_e4m3_table[0x08] == 0x1p-6f);
}

static void
every_e8m0_code_is_a_power_of_two(void **state)
{
    for (int code = 0; code < 255; code++)
        assert_true((double)dtype_e8m0((uint8_t)code) == ldexp(1, code - 127));
    assert_true(isnan(dtype_e8m0(255)));
}

static void
every_half_has_the_value_of_the_formula(void **state)
{
    for (int code = 0; code < 65536; code++) {
        int exponent = code >> 10 & 31, mantissa = code & 1023;
        float value = dtype_f16((uint16_t)code);
        assert_int_equal(!!signbit(value), code >> 15);
        if (exponent == 31 && mantissa)
            assert_true(isnan(value));
        else if (exponent == 31)
            assert_true(isinf(value));
        else
            assert_true((double)fabsf(value) ==
                        (exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24)));
    }
}

static void
bf16_goes_to_float_and_back_unchanged(void **state)
{
    for (int code = 0; code < 65536; code++) {
        float value = dtype_bf16((uint16_t)code);
        uint16_t back = dtype_to_bf16(value);
        if (isnan(value))
            assert_true(isnan(dtype_bf16(back)));
        else
            assert_int_equal(back, code);
    }
}

static float
float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static void
rounding_to_bf16_goes_to_the_nearest_and_at_ties_to_even(void **state)
{
    static const struct {
        uint32_t bits;
        uint16_t rounded;
    } rows[] = {
        {0x3F800000, 0x3F80}, {0x3F807FFF, 0x3F80}, {0x3F808000, 0x3F80}, {0x3F808001, 0x3F81},
        {0x3F818000, 0x3F82}, {0x3F817FFF, 0x3F81}, {0x7F7FFFFF, 0x7F80}, /* to infinity */
        {0xFF7F7FFF, 0xFF7F}, {0x7F800000, 0x7F80}, {0x80000000, 0x8000}, {0x00008001, 0x0001},
    };
    for (size_t i = 0; i < sizeof rows / sizeof *rows; i++)
        assert_int_equal(dtype_to_bf16(float_of(rows[i].bits)), rows[i].rounded);
    /* NaNs whose payload is only in the bits that are cut */
    assert_true(isnan(dtype_bf16(dtype_to_bf16(float_of(0x7F800001)))));
    assert_true(isnan(dtype_bf16(dtype_to_bf16(float_of(0xFFFFFFFF)))));
}

static void
names_lead_to_types_and_back(void **state)
{
    for (int dtype = 0; dtype < DTYPE_COUNT; dtype++) {
        const char *name = dtype_name((enum dtype)dtype);
        assert_int_equal(dtype_from_name(name, strlen(name)), dtype);
        assert_int_equal(dtype_from_name(name, strlen(name) - 1) == dtype, 0);
        assert_true(dtype_size_bytes((enum dtype)dtype) >= 1);
    }
    assert_int_equal(dtype_from_name("F8_E5M2", 7), -EINVAL);
    assert_int_equal(dtype_from_name("", 0), -EINVAL);
    assert_int_equal(dtype_size_bytes(DTYPE_BF16), 2);
    assert_int_equal(dtype_size_bytes(DTYPE_F64), 8);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_e4m3_code_has_the_value_of_the_formula),
        cmocka_unit_test(every_e8m0_code_is_a_power_of_two),
        cmocka_unit_test(every_half_has_the_value_of_the_formula),
        cmocka_unit_test(bf16_goes_to_float_and_back_unchanged),
        cmocka_unit_test(rounding_to_bf16_goes_to_the_nearest_and_at_ties_to_even),
        cmocka_unit_test(names_lead_to_types_and_back),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
