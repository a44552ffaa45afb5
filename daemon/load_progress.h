/* load_progress: tells people how far the weights are. On a terminal one line, drawn again and
 * again and wiped at the end; elsewhere log lines, one when 5 s and 10 % have passed since the one
 * before. Either way a last log line has size, time and rate.
 * Thread: the one that loads. */
#ifndef DAEMON_LOAD_PROGRESS_H
#define DAEMON_LOAD_PROGRESS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct load_figures {
    uint64_t done_bytes, total_bytes;
    double bytes_per_s; /* 0: not known yet */
};

/* One line without an end, of at most `columns` characters, the less important parts left out when
 * they do not fit: "weights  [#####.....]  43 %  6.9 / 16.1 GiB  2.1 GiB/s  eta 5 s". Pure; returns
 * out. */
const char *load_progress_bar(const struct load_figures *figures, int columns, char *out,
                              size_t out_size);
/* The same for a log: "weights: 43 %, 6.9 / 16.1 GiB, 2.1 GiB/s, eta 5 s". */
const char *load_progress_text(const struct load_figures *figures, char *out, size_t out_size);
/* "16.1 GiB in 7.6 s, 2.1 GiB/s". */
const char *load_progress_summary(uint64_t bytes, uint64_t duration_ns, char *out, size_t out_size);

struct load_progress {
    bool terminal; /* standard error is one that can be drawn on */
    bool started, drawn, ended;
    uint64_t start_ns;
    uint64_t shown_ns; /* when a line was last drawn or logged, */
    int shown_percent; /* and what it said */
    struct load_figures figures;
    uint64_t rated_ns, rated_bytes; /* the rate is known up to here */
};

struct load_progress load_progress_open(void);
/* The step that has all bytes is the last. */
void load_progress_step(struct load_progress *progress, uint64_t done_bytes, uint64_t total_bytes,
                        uint64_t now_ns);
/* Loading is over, well or not: wipes the line. Further steps are not told; twice does no harm. */
void load_progress_end(struct load_progress *progress);

#endif
