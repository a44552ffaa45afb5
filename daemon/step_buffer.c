#include "daemon/step_buffer.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

static int
orders(const struct model_shape *shape)
{
    return shape->engram.n_layers ? shape->engram.max_order - 1 : 0;
}

int
step_buffer_init(struct step_buffer *b, struct device *device, const struct model_shape *shape,
                 const struct forward_limits *limits, int max_pages, struct err *err)
{
    const struct device_ops *ops = device->ops;
    size_t rows = (size_t)limits->max_rows, outputs = (size_t)limits->max_outputs;

    *b = (struct step_buffer){.max_rows = limits->max_rows,
                              .max_sequences = limits->max_sequences,
                              .max_outputs = limits->max_outputs,
                              .max_pages = max_pages};
    b->token = ops->alloc_shared(device, rows * sizeof *b->token);
    b->position = ops->alloc_shared(device, rows * sizeof *b->position);
    b->row_seq = ops->alloc_shared(device, rows * sizeof *b->row_seq);
    b->seq = ops->alloc_shared(device, (size_t)limits->max_sequences * sizeof *b->seq);
    b->pages = ops->alloc_shared(device, (size_t)max_pages * sizeof *b->pages);
    b->results = ops->alloc_shared(device, outputs * sizeof *b->results);
    b->report = ops->alloc_shared(device, sizeof *b->report);
    b->ready = ops->alloc_shared(device, SHAPE_MAX_ENGRAM_LAYERS * sizeof *b->ready);
    b->outputs = calloc(outputs, sizeof *b->outputs);
    bool ok = b->token && b->position && b->row_seq && b->seq && b->pages && b->results &&
              b->outputs && b->report && b->ready;

    if (orders(shape)) {
        size_t cells = rows * (size_t)orders(shape);

        b->ngram_ids = calloc(rows * (size_t)shape->engram.max_order, sizeof *b->ngram_ids);
        b->awaits = calloc(rows, sizeof *b->awaits);
        b->skip = calloc(rows, 1);
        ok = ok && b->ngram_ids && b->awaits && b->skip;
        for (int t = 0; t < shape->engram.n_layers; t++) {
            b->address[t] = ops->alloc_shared(device, cells * sizeof *b->address[t]);
            b->mix[t] = ops->alloc_shared(device, cells * sizeof *b->mix[t]);
            b->failed[t] = calloc(rows, 1);
            ok = ok && b->address[t] && b->mix[t] && b->failed[t];
        }
    }
    if (!ok) {
        step_buffer_fini(b, device, shape);
        return err_set(err, ENOMEM, "no memory for the buffers of a step of %d rows",
                       limits->max_rows);
    }
    return 0;
}

void
step_buffer_fini(struct step_buffer *b, struct device *device, const struct model_shape *shape)
{
    const struct device_ops *ops = device->ops;
    size_t rows = (size_t)b->max_rows, cells = rows * (size_t)orders(shape);

    ops->free_shared(device, b->token, rows * sizeof *b->token);
    ops->free_shared(device, b->position, rows * sizeof *b->position);
    ops->free_shared(device, b->row_seq, rows * sizeof *b->row_seq);
    ops->free_shared(device, b->seq, (size_t)b->max_sequences * sizeof *b->seq);
    ops->free_shared(device, b->pages, (size_t)b->max_pages * sizeof *b->pages);
    ops->free_shared(device, b->results, (size_t)b->max_outputs * sizeof *b->results);
    ops->free_shared(device, b->report, sizeof *b->report);
    ops->free_shared(device, b->ready, SHAPE_MAX_ENGRAM_LAYERS * sizeof *b->ready);
    free(b->outputs);
    free(b->ngram_ids);
    free(b->awaits);
    free(b->skip);
    for (int t = 0; t < shape->engram.n_layers; t++) {
        ops->free_shared(device, b->address[t], cells * sizeof *b->address[t]);
        ops->free_shared(device, b->mix[t], cells * sizeof *b->mix[t]);
        free(b->failed[t]);
    }
    *b = (struct step_buffer){0};
}
