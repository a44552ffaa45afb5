/* fetch: see fetch.h. */
#include "tiering/fetch.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum {
    IO_BYTES_MAX = 2 << 20, /* memory for the reads of fetches in flight */
    IO_MIN = 32,
    IO_MAX = 1024,
    PLANNED_IO = 24, /* planned bundles in flight: about what keeps a disk busy */
    REAP_MAX = 256,
    INDEX_HEADS_MAX = 16384,
};

static struct fetch_io *
io_at(const struct fetches *fetches, uint32_t io)
{
    return (struct fetch_io *)(fetches->io + io * fetches->io_bytes);
}

static void
list_add(struct fetches *fetches, struct fetch_list *list, uint32_t at)
{
    struct fetch *fetch = fetches_at(fetches, at);
    fetch->next = NODE_NONE;
    fetch->prev = list->count ? list->last : NODE_NONE;
    if (list->count++)
        fetches_at(fetches, list->last)->next = at;
    else
        list->first = at;
    list->last = at;
}

static void
list_remove(struct fetches *fetches, struct fetch_list *list, uint32_t at)
{
    struct fetch *fetch = fetches_at(fetches, at);
    ASSERT(list->count > 0);
    list->count--;
    if (fetch->prev != NODE_NONE)
        fetches_at(fetches, fetch->prev)->next = fetch->next;
    else
        list->first = fetch->next;
    if (fetch->next != NODE_NONE)
        fetches_at(fetches, fetch->next)->prev = fetch->prev;
    else
        list->last = fetch->prev;
}

int
fetches_init(struct fetches *fetches, const struct engram_shape *engram,
             const struct tier_table *table, struct cold_store *cold, struct row_slice *slice,
             uint32_t n_demand_max, uint32_t n_planned_max, struct err *err)
{
    memset(fetches, 0, sizeof *fetches);
    fetches->engram = engram;
    fetches->table = table;
    fetches->cold = cold;
    fetches->slice = slice;
    fetches->n_orders = engram->max_order - 1;
    fetches->weight_bytes = (uint32_t)engram_row_weight_bytes(engram);
    fetches->scale_bytes = (uint32_t)engram_row_scale_bytes(engram);

    uint32_t reads = (uint32_t)engram->heads * (fetches->scale_bytes ? 2 : 1);
    fetches->io_bytes = sizeof(struct fetch_io) + reads * sizeof(struct cold_read);
    uint32_t n_io = (uint32_t)(IO_BYTES_MAX / fetches->io_bytes);
    fetches->n_io = n_io < IO_MIN ? IO_MIN : n_io < IO_MAX ? n_io : IO_MAX;
    fetches->max_batch = REAP_MAX > (int)reads ? REAP_MAX : (int)reads;
    fetches->n_fetches = n_demand_max + n_planned_max;
    fetches->n_waiters = n_demand_max;

    fetches->block = calloc(fetches->n_fetches, sizeof(struct fetch));
    fetches->waiter = calloc(fetches->n_waiters, sizeof *fetches->waiter);
    fetches->io = calloc(fetches->n_io, fetches->io_bytes);
    fetches->batch = calloc((size_t)fetches->max_batch, sizeof *fetches->batch);
    fetches->space = (struct node_space){
        .block = &fetches->block, .shift = 31, .node_bytes = sizeof(struct fetch)};
    bundle_index_init(&fetches->index, &fetches->space);
    uint32_t heads =
        fetches->n_fetches < INDEX_HEADS_MAX ? fetches->n_fetches : (uint32_t)INDEX_HEADS_MAX;
    if (!fetches->block || !fetches->waiter || !fetches->io || !fetches->batch ||
        bundle_index_reserve(&fetches->index, heads) < 0) {
        fetches_free(fetches);
        return err_set(err, ENOMEM, "no memory for %u fetches", n_demand_max + n_planned_max);
    }
    for (uint32_t i = 0; i < fetches->n_fetches; i++)
        list_add(fetches, &fetches->free, i);
    fetches->free_waiters = fetches->free_io = fetches->whole_io = NODE_NONE;
    for (uint32_t i = fetches->n_waiters; i-- > 0;) {
        fetches->waiter[i].next = fetches->free_waiters;
        fetches->free_waiters = i;
    }
    for (uint32_t i = fetches->n_io; i-- > 0;) {
        io_at(fetches, i)->next_free = fetches->free_io;
        fetches->free_io = i;
    }
    return 0;
}

void
fetches_free(struct fetches *fetches)
{
    ASSERT(fetches->n_reading == 0); /* F3 */
    bundle_index_free(&fetches->index);
    free(fetches->block);
    free(fetches->waiter);
    free(fetches->io);
    free(fetches->batch);
    memset(fetches, 0, sizeof *fetches);
}

uint32_t
fetches_new(struct fetches *fetches, uint8_t set, uint64_t mix, enum fetch_kind kind, uint32_t slot,
            void *dst, uint64_t deadline_ns, bool planned)
{
    if (fetches->free.count == 0)
        return NODE_NONE;
    uint32_t at = fetches->free.last; /* the one used last is still in the cache */
    list_remove(fetches, &fetches->free, at);
    struct fetch *fetch = fetches_at(fetches, at);
    *fetch = (struct fetch){
        .bundle = {.mix = mix, .set = set, .state = FETCH_QUEUED, .visits = kind, .queue = planned},
        .dst = dst,
        .deadline_ns = deadline_ns,
        .slot = slot,
        .waiters = NODE_NONE,
    };
    bundle_index_insert(&fetches->index, at);
    list_add(fetches, planned ? &fetches->planned : &fetches->demanded, at);
    fetches->n_planned += planned;
    return at;
}

void
fetches_demand(struct fetches *fetches, uint32_t at, uint64_t deadline_ns)
{
    struct fetch *fetch = fetches_at(fetches, at);
    ASSERT(fetch->bundle.queue);
    fetch->bundle.queue = false;
    fetch->deadline_ns = deadline_ns;
    fetches->n_planned--;
    if (fetch->bundle.state == FETCH_QUEUED) {
        list_remove(fetches, &fetches->planned, at);
        list_add(fetches, &fetches->demanded, at);
    } else {
        fetches->n_planned_reading--;
    }
}

void
fetches_wait(struct fetches *fetches, uint32_t at, uint32_t request, uint32_t cell)
{
    struct fetch *fetch = fetches_at(fetches, at);
    ASSERT(fetch->bundle.state == FETCH_QUEUED || fetch->bundle.state == FETCH_READING); /* F2 */
    uint32_t waiter = fetches->free_waiters;
    ASSERT(waiter != NODE_NONE); /* as many as cells of all requests */
    fetches->free_waiters = fetches->waiter[waiter].next;
    fetches->waiter[waiter] = (struct fetch_waiter){request, cell, fetch->waiters};
    fetch->waiters = waiter;
}

bool
fetches_next_waiter(struct fetches *fetches, uint32_t at, uint32_t *ret_request, uint32_t *ret_cell)
{
    struct fetch *fetch = fetches_at(fetches, at);
    uint32_t waiter = fetch->waiters;
    if (waiter == NODE_NONE)
        return false;
    *ret_request = fetches->waiter[waiter].request;
    *ret_cell = fetches->waiter[waiter].cell;
    fetch->waiters = fetches->waiter[waiter].next;
    fetches->waiter[waiter].next = fetches->free_waiters;
    fetches->free_waiters = waiter;
    return true;
}

static void
submit_batch(struct fetches *fetches)
{
    if (fetches->n_batch)
        fetches->cold->ops->submit(fetches->cold, fetches->batch, fetches->n_batch);
    fetches->n_batch = 0;
}

static void
add_read(struct fetches *fetches, struct fetch_io *io, int file, uint64_t offset, uint32_t size,
         void *dst)
{
    struct cold_read *read = &io->read[io->pending++];
    *read = (struct cold_read){.file = file,
                               .offset_bytes = offset,
                               .size_bytes = size,
                               .dst = dst,
                               .deadline_ns = fetches_at(fetches, io->fetch)->deadline_ns,
                               .owner = io};
    fetches->batch[fetches->n_batch++] = read;
}

/* Row of head j: row_base[j] + mix mod prime[j] (engram-paper.md, 2). */
static uint64_t
row_of(const struct fetches *fetches, uint8_t set, uint64_t mix, int head)
{
    const struct engram_table_shape *shape = &fetches->engram->table[set / fetches->n_orders];
    int order = set % fetches->n_orders;

    return (uint64_t)shape->row_base[order][head] + mix % (uint64_t)shape->prime[order][head];
}

/* Copies one row out of the slice; false: it is not there. */
static bool
copy_row(const struct fetches *fetches, int region, uint64_t row, uint8_t *dst)
{
    const uint8_t *src = row_slice_find(fetches->slice, region, row);

    if (src)
        memcpy(dst, src, fetches->slice->region[region].row_bytes);
    return src != NULL;
}

bool
fetches_sliced(const struct fetches *fetches, uint8_t set, uint64_t mix)
{
    const struct row_slice *slice = fetches->slice;
    int table = set / fetches->n_orders;

    if (slice->n_target == 0)
        return false;
    for (int j = 0; j < fetches->engram->heads; j++) {
        uint64_t row = row_of(fetches, set, mix, j);

        if (!row_slice_find(slice, slice->weight_region[table], row) ||
            (fetches->scale_bytes && !row_slice_find(slice, slice->scale_region[table], row)))
            return false;
    }
    return true;
}

void
fetches_copy(struct fetches *fetches, uint32_t at)
{
    struct fetch *fetch = fetches_at(fetches, at);
    const struct row_slice *slice = fetches->slice;
    int table = fetch->bundle.set / fetches->n_orders, heads = fetches->engram->heads;
    uint8_t *weights = fetch->dst, *scales = weights + (size_t)heads * fetches->weight_bytes;
    bool whole = true;

    ASSERT(fetch->bundle.state == FETCH_QUEUED && !fetch->bundle.queue);
    for (int j = 0; j < heads; j++) {
        uint64_t row = row_of(fetches, fetch->bundle.set, fetch->bundle.mix, j);

        whole = copy_row(fetches, slice->weight_region[table], row,
                         weights + (size_t)j * fetches->weight_bytes) &&
                whole;
        if (fetches->scale_bytes)
            whole = copy_row(fetches, slice->scale_region[table], row,
                             scales + (size_t)j * fetches->scale_bytes) &&
                    whole;
    }
    ASSERT(whole);
    list_remove(fetches, &fetches->demanded, at);
    fetch->bundle.state = FETCH_STAGED;
    list_add(fetches, &fetches->staged, at);
}

/* Layout: base/shape.h, all weight rows, then all scale rows. Rows the slice has are copied at
 * once. */
static void
issue_one(struct fetches *fetches, uint32_t at)
{
    struct fetch *fetch = fetches_at(fetches, at);
    uint32_t number = fetches->free_io;
    struct fetch_io *io = io_at(fetches, number);
    fetches->free_io = io->next_free;
    *io = (struct fetch_io){.fetch = at};
    fetch->bundle.state = FETCH_READING;
    fetches->n_reading++;
    fetches->n_planned_reading += fetch->bundle.queue;

    int table = fetch->bundle.set / fetches->n_orders, heads = fetches->engram->heads;
    if (fetches->n_batch + (int)((fetches->io_bytes - sizeof *io) / sizeof *io->read) >
        fetches->max_batch)
        submit_batch(fetches);
    const struct tier_table *place = &fetches->table[table];
    const struct row_slice *slice = fetches->slice;
    uint8_t *weights = fetch->dst;
    uint8_t *scales = weights + (size_t)heads * fetches->weight_bytes;
    for (int j = 0; j < heads; j++) {
        uint64_t row = row_of(fetches, fetch->bundle.set, fetch->bundle.mix, j);
        uint8_t *weight = weights + (size_t)j * fetches->weight_bytes;
        uint8_t *scale = scales + (size_t)j * fetches->scale_bytes;
        if (!copy_row(fetches, slice->weight_region[table], row, weight))
            add_read(fetches, io, place->weight_file,
                     place->weight_offset_bytes + row * fetches->weight_bytes,
                     fetches->weight_bytes, weight);
        if (fetches->scale_bytes && !copy_row(fetches, slice->scale_region[table], row, scale))
            add_read(fetches, io, place->scale_file,
                     place->scale_offset_bytes + row * fetches->scale_bytes, fetches->scale_bytes,
                     scale);
    }
    if (io->pending == 0) { /* a plan whose rows have all become resident since */
        io->next_free = fetches->whole_io;
        fetches->whole_io = number;
    }
}

void
fetches_issue(struct fetches *fetches)
{
    while (fetches->demanded.count && fetches->free_io != NODE_NONE) {
        uint32_t at = fetches->demanded.first;
        list_remove(fetches, &fetches->demanded, at);
        issue_one(fetches, at);
    }
    while (fetches->planned.count && fetches->free_io != NODE_NONE &&
           fetches->n_planned_reading < PLANNED_IO) {
        uint32_t at = fetches->planned.first;
        list_remove(fetches, &fetches->planned, at);
        issue_one(fetches, at);
    }
    submit_batch(fetches);
}

static void
finish_io(struct fetches *fetches, uint32_t number, fetch_landed_fn landed, void *arg)
{
    struct fetch_io *io = io_at(fetches, number);
    uint32_t at = io->fetch;
    struct fetch *fetch = fetches_at(fetches, at);
    ASSERT(fetch->bundle.state == FETCH_READING); /* F3 */
    fetches->n_reading--;
    fetches->n_planned_reading -= fetch->bundle.queue;
    io->next_free = fetches->free_io;
    fetches->free_io = number;
    landed(arg, at, io->result);
}

int
fetches_reap(struct fetches *fetches, fetch_landed_fn landed, void *arg)
{
    struct cold_read *done[REAP_MAX];
    int n_whole = 0;
    while (fetches->whole_io != NODE_NONE) {
        uint32_t number = fetches->whole_io;
        fetches->whole_io = io_at(fetches, number)->next_free;
        finish_io(fetches, number, landed, arg);
        n_whole++;
    }
    int n = fetches->cold->ops->reap(fetches->cold, done, REAP_MAX);
    for (int i = 0; i < n; i++) {
        if (row_slice_landed(fetches->slice, done[i]))
            continue;
        struct fetch_io *io = done[i]->owner;
        ASSERT(io->pending > 0); /* F3 */
        if (done[i]->result < 0 && io->result == 0)
            io->result = done[i]->result;
        if (--io->pending == 0)
            finish_io(fetches,
                      (uint32_t)((size_t)((uint8_t *)io - fetches->io) / fetches->io_bytes), landed,
                      arg);
    }
    return n + n_whole;
}

void
fetches_stay(struct fetches *fetches, uint32_t at)
{
    struct fetch *fetch = fetches_at(fetches, at);
    ASSERT(fetch->bundle.state == FETCH_READING && !fetch->bundle.queue &&
           fetch->waiters == NODE_NONE); /* F2 */
    fetch->bundle.state = FETCH_STAGED;
    list_add(fetches, &fetches->staged, at);
}

void
fetches_release(struct fetches *fetches, uint32_t at)
{
    struct fetch *fetch = fetches_at(fetches, at);
    ASSERT(fetch->waiters == NODE_NONE); /* F2 */
    if (fetch->bundle.state == FETCH_STAGED)
        list_remove(fetches, &fetches->staged, at);
    else if (fetch->bundle.state == FETCH_QUEUED)
        list_remove(fetches, fetch->bundle.queue ? &fetches->planned : &fetches->demanded, at);
    fetches->n_planned -= fetch->bundle.queue;
    bundle_index_remove(&fetches->index, at);
    fetch->bundle.state = FETCH_FREE;
    list_add(fetches, &fetches->free, at);
}
