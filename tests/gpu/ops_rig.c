#include "tests/gpu/ops_rig.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "daemon/cuda_plugin.h"
#include "gpu/host/host_device.h"

struct ops_options ops_options;
static int n_failures, n_cases;
static const char *const side_name[SIDES] = {"host", "cuda"};

/* ------------------------------------------------------------------ devices */

static void *
cleared(size_t n, size_t size)
{
    void *memory = calloc(n ? n : 1, size);

    ASSERT(memory);
    return memory;
}

void
rig_open(struct rig *rig, const struct model_shape *shape, const struct device_limits *limits)
{
    struct host_device_options options = {.n_threads = 0, .isa = "auto"};
    struct err err = ERR_INIT;

    memset(rig, 0, sizeof *rig);
    rig->shape = *shape;
    rig->limits = *limits;
    rig->seed = 0x5eed;
    if (host_device_open(&rig->side[HOST].dev, &options, &err) < 0 ||
        cuda_plugin_open(&rig->side[CUDA].dev, ops_options.ordinal, &err) < 0) {
        printf("%s\n", err.text);
        ASSERT(!"a device can be opened");
    }
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];

        side->report = side->dev->ops->alloc_shared(side->dev, sizeof *side->report);
        side->results = side->dev->ops->alloc_shared(side->dev, (size_t)limits->max_outputs *
                                                                    sizeof *side->results);
        ASSERT(side->report && side->results);
        ASSERT(side->dev->ops->reserve(side->dev, shape, limits) == 0);
    }
    rig->token = cleared((size_t)limits->max_rows, sizeof *rig->token);
    rig->position = cleared((size_t)limits->max_rows, sizeof *rig->position);
    rig->row_seq = cleared((size_t)limits->max_rows, sizeof *rig->row_seq);
    rig->seq = cleared((size_t)limits->max_sequences, sizeof *rig->seq);
}

void
rig_drop(struct rig *rig, int n_twins)
{
    for (; rig->n_twins > n_twins; rig->n_twins--)
        for (int s = 0; s < SIDES; s++) {
            struct device *dev = rig->side[s].dev;
            const struct twin *last = &rig->twin[rig->n_twins - 1];
            dev->ops->free(dev, last->at[s], last->bytes[s]);
        }
}

void
rig_reset(struct rig *rig)
{
    rig_drop(rig, 0);
    for (int i = 0; i < rig->n_shared; i++) {
        struct device *dev = rig->side[rig->shared[i].side].dev;
        dev->ops->free_shared(dev, rig->shared[i].at, rig->shared[i].bytes);
    }
    rig->n_shared = 0;
}

void
rig_close(struct rig *rig)
{
    rig_reset(rig);
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        struct device *dev = side->dev;

        dev->ops->free_shared(dev, side->report, sizeof *side->report);
        dev->ops->free_shared(dev, side->results,
                              (size_t)rig->limits.max_outputs * sizeof *side->results);
        (void)dev->ops->close(dev);
    }
    free(rig->token);
    free(rig->position);
    free(rig->row_seq);
    free(rig->seq);
}

void
rig_did(struct rig *rig, int side, int status)
{
    if (status >= 0 || rig->status < 0)
        return;
    rig->status = status;
    rig->status_side = side;
}

/* ------------------------------------------------------------------ values */

uint32_t
rig_bits(struct rig *rig)
{
    rig->seed = rig->seed * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(rig->seed >> 32);
}

float
rig_random(struct rig *rig, float scale)
{
    return (float)(int32_t)rig_bits(rig) / 2147483648.0f * scale;
}

static size_t
element_bytes(enum content content, int side)
{
    if (content == CONTENT_MATRIX || (content == CONTENT_ACTIVATION && side == CUDA))
        return sizeof(uint16_t);
    return sizeof(float);
}

/* n values as they lie on a side. */
static void
encode(void *out, const float *values, size_t n, size_t bytes)
{
    uint16_t *half = out;

    if (bytes == sizeof(float)) {
        memcpy(out, values, n * bytes);
        return;
    }
    for (size_t i = 0; i < n; i++)
        half[i] = dtype_to_bf16(values[i]);
}

struct twin *
rig_twin(struct rig *rig, enum content content, int64_t rows, int64_t cols, float scale,
         float offset)
{
    size_t n = (size_t)rows * (size_t)cols;
    float *values = cleared(n, sizeof *values);

    ASSERT(rig->n_twins < RIG_TWINS);
    struct twin *twin = &rig->twin[rig->n_twins++];
    *twin = (struct twin){.content = content, .rows = rows, .cols = cols};
    for (size_t i = 0; i < n && (scale != 0 || offset != 0); i++) {
        values[i] = rig_random(rig, scale) + offset;
        if (content != CONTENT_F32)
            values[i] = dtype_bf16(dtype_to_bf16(values[i]));
    }
    for (int s = 0; s < SIDES; s++) {
        struct device *dev = rig->side[s].dev;
        size_t bytes = element_bytes(content, s);
        void *encoded = cleared(n, bytes);

        twin->bytes[s] = n * bytes;
        twin->at[s] = dev->ops->alloc(dev, n * bytes);
        ASSERT(twin->at[s]);
        encode(encoded, values, n, bytes);
        ASSERT(dev->ops->upload(dev, twin->at[s], encoded, n * bytes) == 0);
        free(encoded);
    }
    free(values);
    return twin;
}

float *
twin_values(struct rig *rig, const struct twin *twin, int s)
{
    size_t n = (size_t)twin->rows * (size_t)twin->cols, bytes = element_bytes(twin->content, s);
    struct device *dev = rig->side[s].dev;
    void *raw = cleared(n, bytes);
    float *values = cleared(n, sizeof *values);

    ASSERT(dev->ops->synchronize(dev, NULL) == 0);
    ASSERT(dev->ops->download(dev, raw, twin->at[s], n * bytes) == 0);
    for (size_t i = 0; i < n; i++)
        values[i] = bytes == sizeof(float) ? ((float *)raw)[i] : dtype_bf16(((uint16_t *)raw)[i]);
    free(raw);
    return values;
}

void
twin_upload(struct rig *rig, struct twin *twin)
{
    struct device *dev = rig->side[CUDA].dev;
    size_t n = (size_t)twin->rows * (size_t)twin->cols, bytes = element_bytes(twin->content, CUDA);
    float *values = twin_values(rig, twin, HOST);
    void *encoded = cleared(n, bytes);

    encode(encoded, values, n, bytes);
    ASSERT(dev->ops->upload(dev, twin->at[CUDA], encoded, n * bytes) == 0);
    free(encoded);
    free(values);
}

struct weight
twin_rows(const struct twin *twin, int side, int first, int n)
{
    bool matrix = twin->content == CONTENT_MATRIX;
    size_t row_bytes = (size_t)twin->cols * element_bytes(twin->content, side);

    return (struct weight){(const char *)twin->at[side] + (size_t)first * row_bytes,
                           matrix ? DTYPE_BF16 : DTYPE_F32, n, (int)twin->cols};
}

struct weight
twin_weight(const struct twin *twin, int side)
{
    return twin ? twin_rows(twin, side, 0, (int)twin->rows) : (struct weight){0};
}

void *
rig_shared(struct rig *rig, int side, size_t bytes)
{
    struct device *dev = rig->side[side].dev;
    void *memory = dev->ops->alloc_shared(dev, bytes);

    ASSERT(memory && rig->n_shared < RIG_SHARED);
    rig->shared[rig->n_shared].at = memory;
    rig->shared[rig->n_shared].bytes = bytes;
    rig->shared[rig->n_shared++].side = side;
    return memory;
}

/* ------------------------------------------------------------------ steps */

void
rig_batch(struct rig *rig, const struct ops_seq *seqs, int n_seqs, int n_decode)
{
    int row = 0;

    ASSERT(n_seqs <= rig->limits.max_sequences);
    for (int i = 0; i < n_seqs; i++) {
        rig->seq[i] = (struct batch_seq){.first_row = row,
                                         .n_rows = seqs[i].n_rows,
                                         .context = seqs[i].context,
                                         .state_slot = seqs[i].slot,
                                         .engram_off = seqs[i].engram_off,
                                         .n_pages = seqs[i].n_pages,
                                         .pages = seqs[i].pages};
        for (int r = 0; r < seqs[i].n_rows; r++, row++) {
            ASSERT(row < rig->limits.max_rows);
            rig->token[row] = (int32_t)(rig_bits(rig) % (uint32_t)rig->shape.vocab);
            rig->position[row] = seqs[i].context + r;
            rig->row_seq[row] = i;
        }
    }
    rig->n_rows = row;
    rig->n_seqs = n_seqs;
    rig->n_decode = n_decode;
}

void
rig_plain_batch(struct rig *rig, int n_rows, bool decode)
{
    int n_seqs = decode ? n_rows : 1;
    struct ops_seq *seqs = cleared((size_t)n_seqs, sizeof *seqs);

    for (int i = 0; i < n_seqs; i++)
        seqs[i] = (struct ops_seq){.n_rows = decode ? 1 : n_rows, .context = decode ? 3 * i : 0};
    rig_batch(rig, seqs, n_seqs, decode ? n_seqs : 0);
    free(seqs);
}

void
rig_begin(struct rig *rig, const struct forward_output *outputs, int n_outputs)
{
    static float not_written; /* `logits` set: no graph */

    rig->steps++;
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];
        struct forward_step *step = &side->step;

        step->step = rig->steps;
        step->report = side->report;
        step->results = side->results;
        step->logits = &not_written;
        step->wait_timeout_ns = 1000000000;
        step->batch = (struct batch){rig->n_rows,   rig->n_seqs,  rig->n_decode, rig->token,
                                     rig->position, rig->row_seq, rig->seq};
        if (s == CUDA && rig->cuda_token)
            step->batch.token = rig->cuda_token;
        step->outputs = outputs;
        step->n_outputs = n_outputs;
        int status = side->dev->ops->begin_step(side->dev, step, &side->view, NULL);
        rig_did(rig, s, status);
        ASSERT(status < 0 || status == STEP_ISSUE);
    }
}

void
rig_end(struct rig *rig)
{
    for (int s = 0; s < SIDES; s++) {
        struct ops_side *side = &rig->side[s];

        rig_did(rig, s, side->dev->ops->end_step(side->dev, &side->step, 0, NULL));
        rig_did(rig, s, side->dev->ops->synchronize(side->dev, NULL));
        if (rig->status == 0 && side->report->done != rig->steps)
            rig_did(rig, s, -EIO);
        rig_did(rig, s, side->report->status);
    }
}

/* ------------------------------------------------------------------ errors */

struct ops_error
ops_error_of(const float *want, const float *have, int64_t rows, int64_t cols)
{
    struct ops_error error = {0, 0};

    for (int64_t r = 0; r < rows; r++) {
        double most = 0, off = 0;

        for (int64_t c = r * cols; c < (r + 1) * cols; c++) {
            double d = fabs((double)have[c] - (double)want[c]);

            most = fmax(most, fabs((double)want[c]));
            if (!(d <= off))
                off = isfinite(d) ? d : INFINITY;
        }
        double rel = off == 0 ? 0 : most > 0 ? off / most : INFINITY;
        error.abs = fmax(error.abs, off);
        error.rel = fmax(error.rel, rel);
    }
    return error;
}

static struct ops_error
compare(struct rig *rig, const struct twin *twin, bool rounded)
{
    int64_t n = twin->rows * twin->cols;
    float *want = twin_values(rig, twin, HOST), *have = twin_values(rig, twin, CUDA);

    for (int64_t i = 0; rounded && i < n; i++)
        want[i] = dtype_bf16(dtype_to_bf16(want[i]));
    struct ops_error error = ops_error_of(want, have, twin->rows, twin->cols);
    free(want);
    free(have);
    return error;
}

struct ops_error
twin_error(struct rig *rig, const struct twin *twin)
{
    return compare(rig, twin, false);
}

struct ops_error
twin_error_rounded(struct rig *rig, const struct twin *twin)
{
    return compare(rig, twin, true);
}

/* The line's end, and the next one starts without a failure. */
static void
conclude(struct rig *rig, bool ok)
{
    bool failed = rig->status < 0;

    n_cases++;
    n_failures += !ok || failed;
    if (failed)
        printf("FAIL: the %s device returned %d (%s)\n", side_name[rig->status_side], rig->status,
               strerror(-rig->status));
    else
        printf("%s\n", ok ? "ok" : "FAIL");
    fflush(stdout);
    rig->status = 0;
}

void
ops_report(struct rig *rig, const char *op, struct ops_error error, double bound, const char *shape,
           ...)
{
    char text[160];
    va_list args;

    va_start(args, shape);
    (void)vsnprintf(text, sizeof text, shape, args);
    va_end(args);
    printf("%-14s %-58s abs %-9.3g rel %-9.3g bound %-7.2g ", op, text, error.abs, error.rel,
           bound);
    conclude(rig, error.rel <= bound);
}

void
ops_report_fact(struct rig *rig, const char *op, bool holds, const char *shape, ...)
{
    char text[160];
    va_list args;

    va_start(args, shape);
    (void)vsnprintf(text, sizeof text, shape, args);
    va_end(args);
    printf("%-14s %-100s ", op, text);
    conclude(rig, holds);
}

bool
ops_wanted(const char *op)
{
    return !ops_options.only || strncmp(op, ops_options.only, strlen(ops_options.only)) == 0;
}

int
ops_failures(void)
{
    return n_failures;
}

int
ops_cases(void)
{
    return n_cases;
}
