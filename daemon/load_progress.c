#include "daemon/load_progress.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include "base/log.h"

enum { BAR_CELLS = 30, BAR_LEAST_CELLS = 10, COLUMNS_UNKNOWN = 80, TEXT_BYTES = 160 };

static const uint64_t draw_ns = 100000000, log_ns = 5000000000, rate_ns = 500000000;
static const int log_percent = 10;

struct unit {
    const char *name;
    double bytes;
};

static struct unit
unit_of(double bytes)
{
    return bytes >= 0x1p40   ? (struct unit){"TiB", 0x1p40}
           : bytes >= 0x1p30 ? (struct unit){"GiB", 0x1p30}
           : bytes >= 0x1p20 ? (struct unit){"MiB", 0x1p20}
           : bytes >= 0x1p10 ? (struct unit){"KiB", 0x1p10}
                             : (struct unit){"B", 1};
}

/* Rounded down: 100 only when all is there. Nothing to do is done. */
static int
percent(const struct load_figures *f)
{
    if (f->done_bytes >= f->total_bytes)
        return 100;
    return (int)((double)f->done_bytes * 100 / (double)f->total_bytes);
}

struct parts {
    char size[64], rate[32], eta[32]; /* "": not known */
};

static void
make_parts(const struct load_figures *f, struct parts *ret_parts)
{
    struct unit unit = unit_of((double)f->total_bytes), speed = unit_of(f->bytes_per_s);
    uint64_t rest = f->total_bytes > f->done_bytes ? f->total_bytes - f->done_bytes : 0;
    int digits = unit.bytes > 1 ? 1 : 0;

    *ret_parts = (struct parts){{0}, {0}, {0}};
    snprintf(ret_parts->size, sizeof ret_parts->size, "%.*f / %.*f %s", digits,
             (double)f->done_bytes / unit.bytes, digits, (double)f->total_bytes / unit.bytes,
             unit.name);
    if (!(f->bytes_per_s >= 1))
        return;
    snprintf(ret_parts->rate, sizeof ret_parts->rate, "%.1f %s/s", f->bytes_per_s / speed.bytes,
             speed.name);
    double seconds = (double)rest / f->bytes_per_s;

    if (seconds < 100)
        snprintf(ret_parts->eta, sizeof ret_parts->eta, "eta %.0f s", seconds);
    else if (seconds < 6000)
        snprintf(ret_parts->eta, sizeof ret_parts->eta, "eta %.0f min", seconds / 60);
    else
        snprintf(ret_parts->eta, sizeof ret_parts->eta, "eta %.0f h", seconds / 3600);
}

/* Adds gap and text when both fit into `room`, the end of the string not counted. */
static void
add(char *out, size_t room, const char *gap, const char *text)
{
    size_t used = strlen(out);

    if (text[0] && used + strlen(gap) + strlen(text) <= room)
        snprintf(out + used, room + 1 - used, "%s%s", gap, text);
}

const char *
load_progress_bar(const struct load_figures *f, int columns, char *out, size_t out_size)
{
    size_t room = columns < (int)out_size ? (size_t)(columns > 0 ? columns : 0) : out_size - 1;
    char after[TEXT_BYTES], number[16], bar[BAR_CELLS + 8] = "";
    int done = percent(f);
    struct parts parts;

    make_parts(f, &parts);
    snprintf(number, sizeof number, "%3d %%", done);
    snprintf(after, sizeof after, "  %s", number);
    add(after, sizeof after - 1, "  ", parts.size);
    add(after, sizeof after - 1, "  ", parts.rate);
    add(after, sizeof after - 1, "  ", parts.eta);
    /* The bar takes what the rest leaves; when that is little, the rest goes in its order. */
    size_t taken = strlen("weights  []") + strlen(after);
    int cells = room > taken + BAR_CELLS ? BAR_CELLS : (int)room - (int)taken;

    if (cells >= BAR_LEAST_CELLS) {
        bar[0] = '[';
        memset(bar + 1, '.', (size_t)cells);
        memset(bar + 1, '#', (size_t)(cells * done / 100));
        bar[cells + 1] = ']';
    }
    out[0] = 0;
    add(out, room, "", "weights");
    add(out, room, "  ", bar);
    add(out, room, "  ", number);
    add(out, room, "  ", parts.size);
    add(out, room, "  ", parts.rate);
    add(out, room, "  ", parts.eta);
    return out;
}

const char *
load_progress_text(const struct load_figures *f, char *out, size_t out_size)
{
    struct parts parts;

    make_parts(f, &parts);
    snprintf(out, out_size, "weights: %d %%, %s%s%s%s%s", percent(f), parts.size,
             parts.rate[0] ? ", " : "", parts.rate, parts.eta[0] ? ", " : "", parts.eta);
    return out;
}

const char *
load_progress_summary(uint64_t bytes, uint64_t duration_ns, char *out, size_t out_size)
{
    struct unit size = unit_of((double)bytes);
    double seconds = (double)duration_ns * 1e-9;
    double per_s = duration_ns ? (double)bytes / seconds : 0;
    struct unit speed = unit_of(per_s);
    int used = snprintf(out, out_size, "%.*f %s in %.*f s", size.bytes > 1,
                        (double)bytes / size.bytes, size.name, seconds < 10 ? 2 : 1, seconds);

    if (per_s >= 1 && used >= 0 && (size_t)used < out_size)
        snprintf(out + used, out_size - (size_t)used, ", %.1f %s/s", per_s / speed.bytes,
                 speed.name);
    return out;
}

struct load_progress
load_progress_open(void)
{
    const char *kind = getenv("TERM");

    return (struct load_progress){.terminal = isatty(STDERR_FILENO) && kind && kind[0] &&
                                              strcmp(kind, "dumb") != 0};
}

/* A terminal that cannot be written to is no reason to stop loading. */
static void
write_line(const char *text)
{
    ssize_t written = write(STDERR_FILENO, text, strlen(text));

    (void)written;
}

/* The cursor stays at the line's begin: a log line from elsewhere takes the place of this one. */
static void
draw(struct load_progress *p)
{
    struct winsize size = {0};
    char bar[TEXT_BYTES], line[TEXT_BYTES + 16];
    int columns =
        ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col ? size.ws_col : COLUMNS_UNKNOWN;

    snprintf(line, sizeof line, "\r%s\033[K\r",
             load_progress_bar(&p->figures, columns - 1, bar, sizeof bar));
    write_line(line);
    p->drawn = true;
}

/* The rate of late, of some two seconds: a disk that gets slower is seen, one hiccup is not. */
static void
rate(struct load_progress *p, uint64_t done_bytes, uint64_t now_ns)
{
    double seconds = (double)(now_ns - p->rated_ns) * 1e-9;

    if (now_ns - p->rated_ns < rate_ns)
        return;
    double now = (double)(done_bytes - p->rated_bytes) / seconds, share = seconds / (seconds + 2);
    double before = p->figures.bytes_per_s;

    p->figures.bytes_per_s = before > 0 ? before + share * (now - before) : now;
    p->rated_ns = now_ns;
    p->rated_bytes = done_bytes;
}

void
load_progress_step(struct load_progress *p, uint64_t done_bytes, uint64_t total_bytes,
                   uint64_t now_ns)
{
    char text[TEXT_BYTES];

    if (p->ended)
        return;
    if (!p->started) {
        p->started = true;
        p->start_ns = p->shown_ns = p->rated_ns = now_ns;
    }
    rate(p, done_bytes, now_ns);
    p->figures.done_bytes = done_bytes;
    p->figures.total_bytes = total_bytes;
    int done = percent(&p->figures);

    if (done_bytes >= total_bytes) {
        load_progress_end(p);
        log_info("weights: %s",
                 load_progress_summary(total_bytes, now_ns - p->start_ns, text, sizeof text));
    } else if (p->terminal && (!p->drawn || now_ns - p->shown_ns >= draw_ns)) {
        draw(p);
        p->shown_ns = now_ns;
    } else if (!p->terminal && now_ns - p->shown_ns >= log_ns &&
               done - p->shown_percent >= log_percent) {
        log_info("%s", load_progress_text(&p->figures, text, sizeof text));
        p->shown_ns = now_ns;
        p->shown_percent = done;
    }
}

void
load_progress_end(struct load_progress *p)
{
    if (p->drawn)
        write_line("\r\033[K");
    p->drawn = false;
    p->ended = true;
}
