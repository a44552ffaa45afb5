/* row_slice: see row_slice.h. */
#include "tiering/row_slice.h"

#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum { RECORD_BYTES = sizeof(uint8_t *) + 1 }; /* of one block, in block and ready */

static int
add_region(struct row_slice *slice, int file, uint64_t offset, uint64_t rows, uint32_t row_bytes)
{
    struct slice_region *r = &slice->region[slice->n_regions];

    *r = (struct slice_region){.file = file,
                               .row_bytes = row_bytes,
                               .rows_per_block = SLICE_BLOCK_BYTES / row_bytes,
                               .offset_bytes = offset,
                               .rows = rows,
                               .first_block = slice->n_blocks};
    r->n_blocks = (rows + r->rows_per_block - 1) / r->rows_per_block;
    slice->n_blocks += r->n_blocks;
    return slice->n_regions++;
}

void
row_slice_init(struct row_slice *slice, const struct engram_shape *engram,
               const struct tier_table *table, const struct tier_resident *resident,
               struct cold_store *cold, const struct chunk_ops *memory)
{
    uint32_t weight_bytes = (uint32_t)engram_row_weight_bytes(engram),
             scale_bytes = (uint32_t)engram_row_scale_bytes(engram);

    memset(slice, 0, sizeof *slice);
    slice->cold = cold;
    slice->memory = *memory;
    slice->n_tables = engram->n_layers;
    slice->has_scales = scale_bytes > 0;
    for (int t = 0; t < engram->n_layers && scale_bytes; t++)
        slice->scale_region[t] = add_region(slice, table[t].scale_file, table[t].scale_offset_bytes,
                                            (uint64_t)engram->table[t].rows, scale_bytes);
    for (int t = 0; t < engram->n_layers; t++)
        slice->weight_region[t] =
            add_region(slice, table[t].weight_file, table[t].weight_offset_bytes,
                       (uint64_t)engram->table[t].rows, weight_bytes);
    for (int t = 0; t < engram->n_layers; t++)
        if (resident[t].weights)
            row_slice_leave_out(slice, t, true);
}

static const struct slice_region *
region_of(const struct row_slice *slice, uint64_t block)
{
    const struct slice_region *r = slice->region;

    while (block >= r->first_block + r->n_blocks)
        r++;
    return r;
}

static uint32_t
block_bytes(const struct row_slice *slice, uint64_t block)
{
    const struct slice_region *r = region_of(slice, block);
    uint64_t first_row = (block - r->first_block) * r->rows_per_block;
    uint64_t rows =
        r->rows - first_row < r->rows_per_block ? r->rows - first_row : r->rows_per_block;

    return (uint32_t)(rows * r->row_bytes);
}

static void
show_used(struct row_slice *slice)
{
    atomic_store_explicit(&slice->used_shown, row_slice_used(slice), memory_order_relaxed);
}

static void
free_block(struct row_slice *slice, void *memory, uint32_t bytes)
{
    slice->memory.free(slice->memory.arg, memory, bytes);
    slice->used_bytes -= bytes;
}

/* The load that writes the block, or NULL. */
static struct slice_load *
load_of(struct row_slice *slice, uint64_t block)
{
    for (int i = 0; i < SLICE_LOADS; i++)
        if (slice->load[i].busy && slice->load[i].block == block)
            return &slice->load[i];
    return NULL;
}

static void
drop_blocks(struct row_slice *slice, uint64_t from, uint64_t end)
{
    for (uint64_t b = from; b < end; b++) {
        /* L2: a load in flight keeps its memory and finds the block gone. */
        if (slice->block[b] && !load_of(slice, b))
            free_block(slice, slice->block[b], block_bytes(slice, b));
        slice->block[b] = NULL;
        slice->ready[b] = 0;
    }
}

void
row_slice_free(struct row_slice *slice)
{
    ASSERT(slice->n_loading == 0);
    drop_blocks(slice, 0, slice->n_target);
    free(slice->block);
    free(slice->ready);
    memset(slice, 0, sizeof *slice);
}

static void
leave_out_region(struct row_slice *slice, struct slice_region *r, bool left_out)
{
    uint64_t first = r->first_block, end = first + r->n_blocks, bytes = 0;

    if (r->left_out == left_out)
        return;
    r->left_out = left_out;
    if (end > slice->n_target)
        end = slice->n_target;
    for (uint64_t b = first; b < end; b++)
        bytes += block_bytes(slice, b);
    if (left_out) {
        slice->need_bytes -= bytes;
        if (first < end)
            drop_blocks(slice, first, end);
        return;
    }
    slice->need_bytes += bytes;
    if (slice->n_asked > first)
        slice->n_asked = first;
}

void
row_slice_leave_out(struct row_slice *slice, int table, bool left_out)
{
    if (slice->has_scales)
        leave_out_region(slice, &slice->region[slice->scale_region[table]], left_out);
    leave_out_region(slice, &slice->region[slice->weight_region[table]], left_out);
    show_used(slice);
}

/* Blocks that fit the budget, in order of need, and what they take. Those left out take their records
 * only, and nothing behind the last that are not. */
static uint64_t
blocks_within(const struct row_slice *slice, uint64_t budget_bytes, uint64_t *ret_need_bytes)
{
    uint64_t n = 0, need = 0, useful = 0;

    *ret_need_bytes = 0;
    for (int i = 0; i < slice->n_regions; i++) {
        const struct slice_region *r = &slice->region[i];
        uint64_t rows = (uint64_t)r->rows_per_block * r->row_bytes;
        uint64_t whole = (r->left_out ? 0 : rows) + RECORD_BYTES;
        uint64_t fit = (budget_bytes - need) / whole;
        bool fits = fit >= r->n_blocks - 1;

        if (fits)
            fit = r->n_blocks - 1;
        n += fit;
        need += fit * whole;
        /* often a short one */
        uint64_t last = (r->left_out || !fits ? 0 : block_bytes(slice, n)) + RECORD_BYTES;
        fits = fits && last <= budget_bytes - need;
        n += fits;
        need += fits ? last : 0;
        if (!r->left_out) {
            useful = n;
            *ret_need_bytes = need;
        }
        if (!fits)
            break;
    }
    return useful;
}

uint64_t
row_slice_need(const struct row_slice *slice, uint64_t budget_bytes)
{
    uint64_t need;

    (void)blocks_within(slice, budget_bytes, &need);
    return need;
}

uint64_t
row_slice_used(const struct row_slice *slice)
{
    return slice->used_bytes + slice->n_target * RECORD_BYTES;
}

void
row_slice_resize(struct row_slice *slice, uint64_t budget_bytes)
{
    uint64_t target = blocks_within(slice, budget_bytes, &slice->need_bytes);

    if (target < slice->n_target)
        drop_blocks(slice, target, slice->n_target);
    if (target != slice->n_target) {
        uint8_t **block = calloc(target + 1, sizeof *block), *ready = calloc(target + 1, 1);
        uint64_t kept = target < slice->n_target ? target : slice->n_target;

        if (block == NULL || ready == NULL) {
            /* Without records for more, what there is stays. */
            free(block);
            free(ready);
            slice->n_target = kept;
        } else {
            if (kept) {
                memcpy(block, slice->block, kept * sizeof *block);
                memcpy(ready, slice->ready, kept);
            }
            free(slice->block);
            free(slice->ready);
            slice->block = block;
            slice->ready = ready;
            slice->n_target = target;
        }
    }
    if (slice->n_asked > slice->n_target)
        slice->n_asked = slice->n_target;
    show_used(slice);
    row_slice_pump(slice);
}

/* Past the blocks that are there or not wanted. */
static void
skip_blocks(struct row_slice *slice)
{
    while (slice->n_asked < slice->n_target) {
        const struct slice_region *r = region_of(slice, slice->n_asked);

        if (r->left_out)
            slice->n_asked = r->first_block + r->n_blocks;
        else if (slice->block[slice->n_asked])
            slice->n_asked++;
        else
            return;
    }
    slice->n_asked = slice->n_target;
}

void
row_slice_pump(struct row_slice *slice)
{
    skip_blocks(slice);
    for (int i = 0; i < SLICE_LOADS && slice->n_asked < slice->n_target; i++) {
        struct slice_load *load = &slice->load[i];
        uint64_t block = slice->n_asked;

        if (load->busy)
            continue;
        /* Given up and wanted again while its old read is still out: wait for that one. */
        if (load_of(slice, block))
            return;
        const struct slice_region *r = region_of(slice, block);
        uint32_t bytes = block_bytes(slice, block);
        uint8_t *memory = slice->memory.alloc(slice->memory.arg, bytes);

        if (memory == NULL && slice->memory.later && slice->memory.later(slice->memory.arg))
            break;
        slice->n_asked++;
        if (memory == NULL) {
            skip_blocks(slice);
            continue; /* its rows come from the disk */
        }
        slice->block[block] = memory;
        slice->used_bytes += bytes;
        *load = (struct slice_load){.block = block, .bytes = bytes, .busy = true};
        load->read = (struct cold_read){
            .file = r->file,
            .offset_bytes = r->offset_bytes +
                            (block - r->first_block) * r->rows_per_block * (uint64_t)r->row_bytes,
            .size_bytes = bytes,
            .dst = memory,
            .deadline_ns = UINT64_MAX, /* behind everything a step or a plan wants */
            .owner = load,
        };
        slice->n_loading++;
        struct cold_read *read = &load->read;

        slice->cold->ops->submit(slice->cold, &read, 1);
        skip_blocks(slice);
    }
    show_used(slice);
}

bool
row_slice_landed(struct row_slice *slice, struct cold_read *read)
{
    struct slice_load *load = read->owner;

    if ((uintptr_t)load < (uintptr_t)slice->load ||
        (uintptr_t)load >= (uintptr_t)(slice->load + SLICE_LOADS))
        return false;
    ASSERT(load->busy);
    load->busy = false;
    slice->n_loading--;
    bool wanted = load->block < slice->n_target && slice->block[load->block] == read->dst;

    if (wanted && read->result >= 0) {
        slice->ready[load->block] = 1; /* L1 */
    } else {
        if (wanted)
            slice->block[load->block] = NULL;
        free_block(slice, read->dst, load->bytes);
    }
    row_slice_pump(slice);
    return true;
}
