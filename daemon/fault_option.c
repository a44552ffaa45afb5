#include "daemon/fault_option.h"

#include <stdbool.h>
#include <stdio.h>
#include <string.h>

/* One "key=value" of the list. */
static bool
parse_item(const char *item, struct fault_option *o)
{
    unsigned long long a, b;
    int file, end = 0;
    char unit[4] = "";

    if (sscanf(item, "delay=%llu%3[a-z]%n", &a, unit, &end) == 2 && item[end] == 0) {
        o->delay_ns = a * (strcmp(unit, "us") == 0   ? 1000ull
                           : strcmp(unit, "ms") == 0 ? 1000000ull
                           : strcmp(unit, "s") == 0  ? 1000000000ull
                                                     : 0);
        return o->delay_ns > 0 && a < 1000000;
    }
    if (sscanf(item, "fail=1/%llu%n", &a, &end) == 1 && item[end] == 0) {
        o->plan.every_nth = a;
        o->faulty = true;
        return a > 0;
    }
    if (sscanf(item, "fail-from=%llu%n", &a, &end) == 1 && item[end] == 0) {
        o->plan.fail_from = a;
        if (o->plan.every_nth == 0)
            o->plan.every_nth = 1;
        o->faulty = true;
        return true;
    }
    if (sscanf(item, "bad=%d:%llu-%llu%n", &file, &a, &b, &end) == 3 && item[end] == 0) {
        o->plan.bad_file = file;
        o->plan.bad_begin = a;
        o->plan.bad_end = b;
        o->faulty = true;
        return a < b;
    }
    return false;
}

int
fault_option_parse(const char *text, struct fault_option *ret_option, struct err *err)
{
    struct fault_option option = {0};
    char copy[256], *rest = copy;

    if (strlen(text) >= sizeof copy)
        return err_set(err, EINVAL, "tier.nvme.fault: longer than %zu bytes", sizeof copy - 1);
    memcpy(copy, text, strlen(text) + 1);
    for (char *item; (item = strsep(&rest, ",")) != NULL && *text;)
        if (!parse_item(item, &option))
            return err_set(err, EINVAL,
                           "tier.nvme.fault: '%s' is none of delay=5ms, fail=1/N, fail-from=N, "
                           "bad=FILE:BEGIN-END",
                           item);
    *ret_option = option;
    return 0;
}
