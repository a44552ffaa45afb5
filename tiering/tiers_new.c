/* tiers_new: creation and end of the tiers, whose work is in tiers.c. */
#include <stdlib.h>
#include <time.h>

#include "tiering/tiers_state.h"

enum { STEPS_MAX = 64, DEMAND_MAX = 1 << 26 };

/* Sizes and offsets come from a checkpoint: nothing about them is believed. */
static int
check_options(const struct tiers_options *options, struct err *err)
{
    const struct engram_shape *engram = &options->engram;
    if (engram->n_layers < 1 || engram->n_layers > SHAPE_MAX_ENGRAM_LAYERS ||
        engram->max_order < 2 || engram->max_order > SHAPE_MAX_ORDER || engram->heads < 1 ||
        engram->heads > SHAPE_MAX_HEADS_PER_NGRAM || engram->head_dim < 1 ||
        engram->head_dim > COLD_READ_MAX || engram->scale_group < 0 ||
        engram_row_weight_bytes(engram) > COLD_READ_MAX)
        return err_set(err, EINVAL,
                       "Engram of %d layers, order %d, %d heads of %d elements is out of range",
                       engram->n_layers, engram->max_order, engram->heads, engram->head_dim);
    if (options->max_step_rows < 1 || options->steps_in_flight < 1 ||
        options->steps_in_flight > STEPS_MAX ||
        (int64_t)options->max_step_rows * options->steps_in_flight * engram->n_layers *
                (engram->max_order - 1) >
            DEMAND_MAX)
        return err_set(err, EINVAL, "%d steps of %d rows in flight are out of range",
                       options->steps_in_flight, options->max_step_rows);
    if (options->in_place_below < 0)
        return err_set(err, EINVAL, "%d bundles read in place are out of range",
                       options->in_place_below);
    if (!(options->row_share >= 0 && options->row_share <= 1))
        return err_set(err, EINVAL, "row share %g is not from 0 to 1", options->row_share);
    for (int t = 0; t < engram->n_layers; t++) {
        const struct engram_table_shape *shape = &engram->table[t];
        const struct tier_table *table = &options->table[t];
        for (int o = 0; o < engram->max_order - 1; o++)
            for (int j = 0; j < engram->heads; j++)
                if (shape->prime[o][j] < 1 || shape->row_base[o][j] < 0 ||
                    shape->row_base[o][j] > shape->rows - shape->prime[o][j])
                    return err_set(err, EINVAL,
                                   "table %d: rows of order %d, head %d lie outside its %lld rows",
                                   t, o + 2, j, (long long)shape->rows);
        const struct tier_resident *resident = &options->resident[t];
        if (resident->weights && (resident->scales != NULL) != (engram->scale_group != 0))
            return err_set(err, EINVAL, "table %d: resident weights, but scales %s", t,
                           resident->scales ? "of nothing" : "are not");
        if (options->reserved_bytes[t] && (resident->weights || !options->may_become_resident))
            return err_set(err, EINVAL, "table %d: memory is reserved for what does not come", t);
        uint64_t bytes, end;
        if (table->weight_file < 0 || table->scale_file < 0 ||
            __builtin_mul_overflow((uint64_t)shape->rows, (uint64_t)engram_row_weight_bytes(engram),
                                   &bytes) ||
            __builtin_add_overflow(bytes, table->weight_offset_bytes, &end) || end > INT64_MAX ||
            __builtin_add_overflow(bytes, table->scale_offset_bytes, &end) || end > INT64_MAX)
            return err_set(err, EINVAL, "table %d: its place in the files is out of range", t);
    }
    return 0;
}

static int
make_staged_lists(struct tiers *tiers, struct err *err)
{
    tiers->max_staged = (uint32_t)(tiers->options.max_step_rows * tiers->n_sets);
    for (int i = 0; i < tiers->options.steps_in_flight; i++) {
        tiers->open[i].staged = calloc(tiers->max_staged, sizeof *tiers->open[i].staged);
        if (!tiers->open[i].staged)
            return err_set(err, ENOMEM, "no memory for the tiers");
    }
    return 0;
}

int
tiers_new(struct tiers **ret_tiers, const struct tiers_options *options, struct err *err)
{
    int code = check_options(options, err);
    if (code < 0)
        return code;
    struct tiers *tiers = calloc(1, sizeof *tiers);
    if (!tiers)
        return err_set(err, ENOMEM, "no memory for the tiers");
    const struct engram_shape *engram = &tiers->options.engram;
    tiers->options = *options;
    if (tiers->options.in_place_below == 0)
        tiers->options.in_place_below = TIERS_IN_PLACE_BELOW;
    tiers->n_orders = engram->max_order - 1;
    tiers->n_sets = tiers->n_orders * engram->n_layers;
    tiers->bundle_bytes = (uint32_t)engram_bundle_bytes(engram);
    for (int t = 0; t < engram->n_layers; t++)
        tiers->table_bytes +=
            (uint64_t)engram->table[t].rows *
            (uint64_t)(engram_row_weight_bytes(engram) + engram_row_scale_bytes(engram));
    uint32_t demand = (uint32_t)(options->max_step_rows * options->steps_in_flight * tiers->n_sets);
    tiers->n_requests = (uint32_t)(2 * options->steps_in_flight * engram->n_layers);
    tiers->requests = calloc(tiers->n_requests, sizeof *tiers->requests);
    tiers->open = calloc((size_t)options->steps_in_flight, sizeof *tiers->open);
    tiers->seen = calloc(TIERS_SEEN_TAGS, sizeof *tiers->seen);
    row_slice_init(&tiers->slice, engram, tiers->options.table, options->resident, options->cold,
                   &options->ram_memory);
    uint64_t reserved = 0;
    for (int t = 0; t < engram->n_layers; t++) {
        tiers->reserved_bytes[t] = options->reserved_bytes[t];
        reserved += options->reserved_bytes[t];
        if (options->reserved_bytes[t])
            row_slice_leave_out(&tiers->slice, t, true);
    }
    atomic_store_explicit(&tiers->reserved_shown, reserved, memory_order_relaxed);
    tiers->look_up =
        calloc((size_t)options->max_step_rows * (size_t)tiers->n_orders, sizeof *tiers->look_up);
    tiers->part = calloc(LOOK_UP_PARTS_MAX, sizeof *tiers->part);
    if (!tiers->requests || !tiers->open || !tiers->seen || !tiers->look_up || !tiers->part)
        code = err_set(err, ENOMEM, "no memory for the tiers");
    if (code == 0)
        code = slot_store_init(&tiers->hbm, tiers->bundle_bytes, &options->hbm_memory, 0, err);
    if (code == 0)
        code = slot_store_init(&tiers->ram, tiers->bundle_bytes, &options->ram_memory, 0, err);
    if (code == 0)
        code =
            staging_init(&tiers->staging, tiers->ram.slot_bytes, demand, &options->ram_memory, err);
    if (code == 0)
        code = fetches_init(&tiers->fetches, engram, tiers->options.table, options->cold,
                            &tiers->slice, demand, TIERS_PLANNED_FETCHES, err);
    if (code == 0)
        code =
            resident_init(&tiers->resident, engram, options->resident, options->may_become_resident,
                          options->max_step_rows, options->gather_threads, err);
    if (code == 0 && tiers->resident.pool)
        code = make_staged_lists(tiers, err);
    if (code < 0) {
        (void)tiers_free(tiers);
        return code;
    }
    /* Last: the slice begins to load at once, and only now is everybody there who takes reads back.
     */
    tiers_set_budgets(tiers, options->hbm_budget_bytes, options->ram_budget_bytes);
    /* Memory that comes later is too late for a step, and pinning takes longer than one has: all that
     * steps may want, or what the largest one gathers. */
    if (options->ram_memory.later)
        staging_reserve(&tiers->staging, demand);
    else if (tiers->resident.max_bundles >= (uint32_t)tiers->options.in_place_below)
        staging_reserve(&tiers->staging, tiers->resident.max_bundles);
    *ret_tiers = tiers;
    return 0;
}

struct tiers *
tiers_free(struct tiers *tiers)
{
    if (!tiers)
        return NULL;
    tiers->closing = true;
    tiers->slice.n_asked = tiers->slice.n_target; /* no more loads */
    while (tiers->fetches.n_reading > 0 || tiers->slice.n_loading > 0) {
        struct timespec pause = {.tv_nsec = 100000};
        if (fetches_reap(&tiers->fetches, tiers_fetch_landed, tiers) == 0)
            (void)nanosleep(&pause, NULL);
    }
    fetches_free(&tiers->fetches);
    row_slice_free(&tiers->slice);
    resident_free(&tiers->resident);
    free(tiers->seen);
    free(tiers->look_up);
    free(tiers->part);
    for (int i = 0; tiers->open && i < tiers->options.steps_in_flight; i++)
        free(tiers->open[i].staged);
    staging_free(&tiers->staging);
    slot_store_free(&tiers->ram);
    slot_store_free(&tiers->hbm);
    free(tiers->requests);
    free(tiers->open);
    free(tiers);
    return NULL;
}
