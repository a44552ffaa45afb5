/* fault_option: the text of tier.nvme.fault:
 * "delay=5ms,fail=1/100,fail-from=500,bad=FILE:BEGIN-END". For tests: stacks the delaying and
 * failing stores on the disk.                                   */
#ifndef DAEMON_FAULT_OPTION_H
#define DAEMON_FAULT_OPTION_H

#include <stdbool.h>

#include "tiering/cold_store.h"

struct fault_option {
    bool faulty; /* any of plan */
    uint64_t delay_ns;
    struct fault_plan plan;
};

int fault_option_parse(const char *text, struct fault_option *ret_option,
                       struct err *err); /* -EINVAL */

#endif
