#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/cpu_count.h"

static char root[] = "/tmp/test_cpu_count.XXXXXX";

/* Writes cpu.max of a group below root; NULL removes it. */
static void
cpu_max(const char *group, const char *text)
{
    char path[200];
    (void)snprintf(path, sizeof path, "%s%s/cpu.max", root, group);
    if (!text) {
        (void)unlink(path);
        return;
    }
    FILE *file = fopen(path, "w");
    assert_non_null(file);
    assert_true(fputs(text, file) >= 0);
    assert_int_equal(fclose(file), 0);
}

static int
make_groups(void **state)
{
    char path[200];
    if (!mkdtemp(root))
        return -1;
    (void)snprintf(path, sizeof path, "%s/a", root);
    if (mkdir(path, 0700) != 0)
        return -1;
    (void)snprintf(path, sizeof path, "%s/a/b", root);
    return mkdir(path, 0700);
}

static int
remove_groups(void **state)
{
    static const char *const groups[] = {"/a/b", "/a", ""};
    char path[200];
    for (int i = 0; i < 3; i++) {
        cpu_max(groups[i], NULL);
        (void)snprintf(path, sizeof path, "%s%s", root, groups[i]);
        (void)rmdir(path);
    }
    return 0;
}

static void
the_least_quota_of_a_group_and_its_parents_counts(void **state)
{
    static const char self[] = "1:name=systemd:/x\n0::/a/b\n";
    assert_int_equal(cpu_count_quota(root, self), 0);
    cpu_max("/a/b", "max 100000\n");
    assert_int_equal(cpu_count_quota(root, self), 0);
    cpu_max("/a", "150000 100000\n");
    assert_int_equal(cpu_count_quota(root, self), 2); /* rounded up */
    cpu_max("/a/b", "800000 100000\n");
    assert_int_equal(cpu_count_quota(root, self), 2);
    cpu_max("", "50000 100000\n");
    assert_int_equal(cpu_count_quota(root, self), 1);
    assert_int_equal(cpu_count_quota(root, "0::/"), 1);
}

static void
what_is_no_quota_is_none(void **state)
{
    static const char *const texts[] = {
        "", "x", "100000", "0 100000", "100000 0", "-1 -1", "99999999999999999999999 1", "max"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++) {
        cpu_max("/a", texts[i]);
        cpu_max("", NULL);
        cpu_max("/a/b", NULL);
        assert_int_equal(cpu_count_quota(root, "0::/a\n"), 0);
    }
    assert_int_equal(cpu_count_quota(root, ""), 0);
    assert_int_equal(cpu_count_quota(root, "3:cpu:/a"), 0);
    assert_int_equal(cpu_count_quota(root, "0::"), 0);
    assert_int_equal(cpu_count_quota(root, "0::/../../no/such/group\n"), 0);
}

static void
the_affinity_of_the_process_counts(void **state)
{
    cpu_set_t before, one;
    int all = cpu_count();
    assert_true(all >= 1);
    assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
    assert_true(all <= CPU_COUNT(&before));
    CPU_ZERO(&one);
    for (int cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++)
        if (CPU_ISSET(cpu, &before))
            CPU_SET(cpu, &one);
    assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
    assert_int_equal(cpu_count(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_least_quota_of_a_group_and_its_parents_counts),
        cmocka_unit_test(what_is_no_quota_is_none),
        cmocka_unit_test(the_affinity_of_the_process_counts),
    };
    return cmocka_run_group_tests(tests, make_groups, remove_groups);
}
