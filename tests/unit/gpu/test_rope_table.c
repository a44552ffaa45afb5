/* Rotary frequencies against a separate transcription of transformers' modeling_rope_utils in
 * Python (double precision); the golden models check YaRN and llama3 end to end. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "gpu/rope_table.h"

static void
check(const struct rope_shape *rope, int dim, const double *want, double want_scale)
{
    double inv_freq[256], scale;
    struct err err = ERR_INIT;

    if (rope_table_make(rope, dim, inv_freq, &scale, &err) < 0)
        fail_msg("%s", err.text);
    for (int i = 0; i < dim / 2; i++)
        if (!(fabs(inv_freq[i] - want[i]) <= 2e-7 * want[i]))
            fail_msg("frequency %d is %.9g, expected %.9g", i, inv_freq[i], want[i]);
    assert_true(fabs(scale - want_scale) < 1e-12);
}

static void
plain_and_linear_frequencies_are_powers_of_theta(void **state)
{
    static const double plain[] = {1, 0.1, 0.01, 0.001}, linear[] = {0.25, 0.025, 0.0025, 0.00025};

    check(&(struct rope_shape){.kind = ROPE_DEFAULT, .theta = 10000}, 8, plain, 1);
    check(&(struct rope_shape){.kind = ROPE_LINEAR, .theta = 10000, .factor = 4}, 8, linear, 1);
}

static void
llama3_blends_between_its_two_wavelengths(void **state)
{
    static const double want[] = {1,
                                  0.440366603,
                                  0.193922745,
                                  0.0853971003,
                                  0.0376060309,
                                  0.0165604401,
                                  0.00729266474,
                                  0.00321144599,
                                  0.000524846161,
                                  7.78465527e-05,
                                  3.4281022e-05,
                                  1.50962172e-05,
                                  6.64786987e-06,
                                  2.92749987e-06,
                                  1.28917317e-06,
                                  5.6770881e-07};

    check(&(struct rope_shape){.kind = ROPE_LLAMA3,
                               .theta = 500000,
                               .factor = 8,
                               .original_max_position = 8192,
                               .low_freq_factor = 1,
                               .high_freq_factor = 4},
          32, want, 1);
}

static void
yarn_ramps_between_two_dimensions(void **state)
{
    static const double want[] = {1,
                                  0.421696503,
                                  0.177827941,
                                  0.0749894209,
                                  0.0316227766,
                                  0.0133352143,
                                  0.00477990126,
                                  0.00165996159,
                                  0.00055,
                                  0.000168678601,
                                  4.44569853e-05,
                                  1.87473552e-05,
                                  7.90569415e-06,
                                  3.33380358e-06,
                                  1.40585331e-06,
                                  5.92843426e-07};
    static const double untruncated[] = {1,
                                         0.562341325,
                                         0.316227766,
                                         0.177827941,
                                         0.1,
                                         0.0562341325,
                                         0.0277108585,
                                         0.0127031442,
                                         0.00552406298,
                                         0.00219573089,
                                         0.000722638342,
                                         0.000118387732,
                                         2.5e-05,
                                         1.40585331e-05,
                                         7.90569415e-06,
                                         4.44569853e-06};
    struct rope_shape rope = {.kind = ROPE_YARN,
                              .theta = 1000000,
                              .factor = 4,
                              .original_max_position = 32768,
                              .truncate = true};

    check(&rope, 32, want, 1.138629436111989);
    rope.beta_fast = 32; /* the defaults, spelled out */
    rope.beta_slow = 1;
    check(&rope, 32, want, 1.138629436111989);
    rope.attention_factor = 1.5;
    check(&rope, 32, want, 1.5);
    rope = (struct rope_shape){.kind = ROPE_YARN,
                               .theta = 10000,
                               .factor = 40,
                               .original_max_position = 4096,
                               .mscale = 0.707,
                               .mscale_all_dim = 1};
    check(&rope, 32, untruncated, 0.9210423553163399);
    rope.mscale = 1;
    rope.mscale_all_dim = 0.5;
    check(&rope, 32, untruncated, 1.1557219901962608);
    rope.mscale_all_dim = 0; /* one alone does not count: 0.1 ln 40 + 1 */
    check(&rope, 32, untruncated, 0.1 * log(40) + 1);
    rope.mscale_all_dim = rope.mscale = 0;
    check(&rope, 32, untruncated, 0.1 * log(40) + 1);
}

static void
a_ramp_without_width_does_not_divide_by_zero(void **state)
{
    static const double want[] = {1, 0.025, 0.0025, 0.00025};

    check(&(struct rope_shape){.kind = ROPE_YARN,
                               .theta = 10000,
                               .factor = 4,
                               .original_max_position = 16,
                               .truncate = true},
          8, want, 0.1 * log(4) + 1);
}

static void
parameters_without_a_finite_frequency_are_refused_by_name(void **state)
{
    static const struct {
        struct rope_shape rope;
        int dim;
        const char *word;
    } bad[] = {
        {{.theta = 10000}, 7, "head_dim"},
        {{.theta = 10000}, 0, "head_dim"},
        {{.theta = 0}, 8, "rope_theta"},
        {{.theta = 1}, 8, "rope_theta"},
        {{.theta = NAN}, 8, "rope_theta"},
        {{.kind = ROPE_LINEAR, .theta = 10000}, 8, "factor"},
        {{.kind = ROPE_LINEAR, .theta = 10000, .factor = NAN}, 8, "factor"},
        {{.kind = ROPE_YARN, .theta = 10000, .factor = 4}, 8, "original_max_position"},
        {{.kind = ROPE_LLAMA3,
          .theta = 10000,
          .factor = 4,
          .original_max_position = 64,
          .low_freq_factor = 4,
          .high_freq_factor = 4},
         8,
         "high_freq_factor"},
        {{.kind = ROPE_LINEAR, .theta = 10000, .factor = 1e-300}, 8, "finite"},
        {{.kind = ROPE_YARN,
          .theta = 10000,
          .factor = 4,
          .original_max_position = 64,
          .attention_factor = INFINITY},
         8,
         "finite"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        double inv_freq[8], scale;
        struct err err = ERR_INIT;
        assert_int_equal(rope_table_make(&bad[i].rope, bad[i].dim, inv_freq, &scale, &err),
                         -EINVAL);
        if (!strstr(err.text, bad[i].word))
            fail_msg("case %zu: \"%s\" does not name %s", i, err.text, bad[i].word);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(plain_and_linear_frequencies_are_powers_of_theta),
        cmocka_unit_test(llama3_blends_between_its_two_wavelengths),
        cmocka_unit_test(yarn_ramps_between_two_dimensions),
        cmocka_unit_test(a_ramp_without_width_does_not_divide_by_zero),
        cmocka_unit_test(parameters_without_a_finite_frequency_are_refused_by_name),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
