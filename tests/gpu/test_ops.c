/* Every operation of device.h on a GPU against the CPU device: one line each, exit status 1 when
 * one is beyond its bound, 77 where there is no GPU. How it is run: tests/gpu/README.md. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "daemon/cuda_plugin.h"
#include "tests/gpu/ops_rig.h"

enum { SKIPPED = 77 };

static int
usage(void)
{
    printf("test_ops [--quick] [--only OPERATION] [--device cuda:N]\n");
    return 2;
}

static int
read_options(int argc, char **argv)
{
    for (int i = 1; i < argc; i++) {
        const char *value = i + 1 < argc ? argv[i + 1] : NULL;

        if (strcmp(argv[i], "--quick") == 0) {
            ops_options.quick = true;
        } else if (strcmp(argv[i], "--only") == 0 && value) {
            ops_options.only = value;
            i++;
        } else if (strcmp(argv[i], "--device") == 0 && value && strncmp(value, "cuda:", 5) == 0) {
            ops_options.ordinal = (int)strtol(value + 5, NULL, 10);
            i++;
        } else {
            return usage();
        }
    }
    return 0;
}

int
main(int argc, char **argv)
{
    struct err err = ERR_INIT;
    int result = read_options(argc, argv);

    if (result)
        return result;
    int n = cuda_plugin_count(&err);
    if (n <= 0) {
        printf("skipped: %s\n", n < 0 ? err.text : "the driver shows no GPU");
        return SKIPPED;
    }
    ops_rows();
    ops_matmul();
    ops_attention();
    ops_engram();
    ops_sample();
    ops_fused();
    ops_neighbours();
    printf("%d cases, %d failed\n", ops_cases(), ops_failures());
    return ops_failures() || ops_cases() == 0 ? 1 : 0;
}
