/* tiers_look_up: a request's look-ups in the HBM store, by one thread or by several. Thread: resolver. */
#include <string.h>

#include "base/check.h"
#include "tiering/tiers_state.h"

enum {
    FIND_TOGETHER = 1024, /* rows from which on several threads find */
    FIND_GRAIN = 64,      /* rows */
};

static const struct bundle_address no_address = {NULL, NULL};

/* A part of a request's rows, by one thread: what is changed for a hit is the hit's own, or does not
 * care who of two threads comes last. */
struct find_part {
    int n_missed; /* the first of its cells in tiers->look_up */
    uint32_t hits[SHAPE_MAX_ORDERS], misses[SHAPE_MAX_ORDERS];
};

/* One cell's look-up is over: a hit is answered. */
static bool
answer_hit(const struct slot_store *hbm, const struct tiers_request *request,
           const struct look_up *look_up)
{
    struct slot *slot = look_up->at != NODE_NONE ? slot_store_slot(hbm, look_up->at) : NULL;

    if (slot == NULL || slot->bundle.state != SLOT_RESIDENT) /* T2 */
        return false;
    if (__atomic_load_n(&slot->bundle.visits, __ATOMIC_RELAXED) != POLICY_VISITS_MAX)
        (void)hbm->policy->ops->touch(hbm->policy, slot);
    __atomic_store_n(&slot->last_step, (uint32_t)request->step, __ATOMIC_RELAXED);
    request->address[look_up->cell] =
        (struct bundle_address){slot_store_address(hbm, look_up->at), NULL};
    return true;
}

/* Lists the cells of rows begin .. end - 1. */
static void
list_cells(struct tiers *tiers, const struct tiers_request *request, int begin, int end)
{
    int n_orders = tiers->n_orders, cell = begin * n_orders;

    for (int row = begin; row < end; row++) {
        bool skipped = request->skip && request->skip[row];
        for (int o = 0; o < n_orders; o++, cell++) {
            uint8_t set = (uint8_t)(request->table * n_orders + o);
            tiers->look_up[cell] =
                (struct look_up){(uint32_t)cell, bundle_hash(set, request->mix[cell]), NODE_NONE,
                                 skipped ? LOOK_UP_SKIPPED : set};
            if (skipped)
                request->address[cell] = no_address;
        }
    }
}

static void
look_up_rows(struct tiers *tiers, const struct tiers_request *request, int begin, int end,
             struct find_part *part)
{
    const struct slot_store hbm = tiers->hbm; /* a copy, which no store to an address can change */
    const struct bundle_index *index = &hbm.index;
    const uint64_t *mix = request->mix;
    struct look_up *look_up = tiers->look_up;
    int first = begin * tiers->n_orders, last = end * tiers->n_orders;
    uint8_t first_set = (uint8_t)(request->table * tiers->n_orders);

    *part = (struct find_part){0};
    list_cells(tiers, request, begin, end);
    for (int i = index->count > 0 ? first - 3 * TIERS_AHEAD : first; i < last; i++) {
        if (index->count > 0) {
            if (i + 3 * TIERS_AHEAD < last)
                bundle_index_ask(index, look_up[i + 3 * TIERS_AHEAD].hash);
            if (i >= first - 2 * TIERS_AHEAD && i + 2 * TIERS_AHEAD < last) {
                struct look_up *now = &look_up[i + 2 * TIERS_AHEAD];
                now->at = bundle_index_first(index, now->hash);
            }
            if (i >= first - TIERS_AHEAD && i + TIERS_AHEAD < last) {
                struct look_up *now = &look_up[i + TIERS_AHEAD];
                now->at = bundle_index_next(index, now->at, now->set, mix[now->cell]);
            }
        }
        if (i < first || look_up[i].set == LOOK_UP_SKIPPED)
            continue;
        struct look_up now = look_up[i];
        now.at = bundle_index_find_from(index, now.at, now.set, mix[now.cell]);
        if (answer_hit(&hbm, request, &now)) {
            part->hits[now.set - first_set]++;
        } else {
            look_up[first + part->n_missed++] = now;
            part->misses[now.set - first_set]++;
        }
    }
}

struct find {
    struct tiers *tiers;
    const struct tiers_request *request;
    struct find_part part[RESIDENT_THREADS_MAX];
};

static void
run_part(void *arg, int part, int n_parts)
{
    struct find *find = arg;
    long begin, end;

    pool_slice(find->request->n_rows, FIND_GRAIN, part, n_parts, &begin, &end);
    look_up_rows(find->tiers, find->request, (int)begin, (int)end, &find->part[part]);
}

int
tiers_look_up_hbm(struct tiers *tiers, const struct tiers_request *request)
{
    struct pool *pool = request->n_rows >= FIND_TOGETHER ? tiers->resident.pool : NULL;
    int n_parts = pool ? pool_threads(pool) : 1, n_missed = 0;
    struct find find = {.tiers = tiers, .request = request};

    if (pool)
        pool_run(pool, run_part, &find);
    else
        look_up_rows(tiers, request, 0, request->n_rows, &find.part[0]);
    for (int p = 0; p < n_parts; p++) {
        const struct find_part *part = &find.part[p];
        long begin, end;

        pool_slice(request->n_rows, FIND_GRAIN, p, n_parts, &begin, &end);
        memmove(tiers->look_up + n_missed, tiers->look_up + begin * tiers->n_orders,
                (size_t)part->n_missed * sizeof *tiers->look_up);
        n_missed += part->n_missed;
        for (int o = 0; o < tiers->n_orders; o++) {
            struct set_counts *count =
                &tiers->count[TIER_HBM][request->table * tiers->n_orders + o];
            tiers_count(&count->hits, part->hits[o]);
            tiers_count(&count->bytes, (uint64_t)part->hits[o] * tiers->bundle_bytes);
            tiers_count(&count->misses, part->misses[o]);
        }
    }
    return n_missed;
}

struct pool *
tiers_pool(const struct tiers *tiers)
{
    return tiers->resident.pool;
}
