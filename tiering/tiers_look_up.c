/* tiers_look_up: a request's look-ups in the HBM store, by one thread or by several. Thread: resolver. */
#include <string.h>

#include "base/check.h"
#include "tiering/tiers_state.h"

enum {
    /* Parts for each thread: one that comes late, or whose CPU does something else, leaves its share to
     * the others. */
    PARTS_A_THREAD = 8,
    PART_GRAIN = 16, /* rows; of a part that is answered by itself, too */
};

static const struct bundle_address no_address = {NULL, NULL};

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
    /* The line of a bundle that is hit often stays in the caches of all threads. */
    if (__atomic_load_n(&slot->last_step, __ATOMIC_RELAXED) != (uint32_t)request->step)
        __atomic_store_n(&slot->last_step, (uint32_t)request->step, __ATOMIC_RELAXED);
    request->address[look_up->cell] =
        (struct bundle_address){slot_store_address(hbm, look_up->at), NULL};
    return true;
}

/* The row behind a part's last. */
static int
part_end(const struct tiers *tiers, const struct tiers_request *request, uint32_t number)
{
    int end = (int)((number + 1) * tiers->part_rows);

    return end < request->n_rows ? end : request->n_rows;
}

/* Lists the cells of a part. */
static void
list_cells(struct tiers *tiers, const struct tiers_request *request, uint32_t number)
{
    int begin = (int)(number * tiers->part_rows), end = part_end(tiers, request, number);
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

void
tiers_look_up_part(struct tiers *tiers, const struct tiers_request *request, uint32_t number)
{
    const struct bundle_address in_place = {BUNDLE_IN_PLACE, NULL};
    const struct slot_store hbm = tiers->hbm; /* a copy, which no store to an address can change */
    const struct bundle_index *index = &hbm.index;
    const uint64_t *mix = request->mix;
    struct look_up *look_up = tiers->look_up;
    int first = (int)(number * tiers->part_rows) * tiers->n_orders;
    int last = part_end(tiers, request, number) * tiers->n_orders;
    uint8_t first_set = (uint8_t)(request->table * tiers->n_orders);
    struct look_up_part now_part = {0};

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
            now_part.hits[now.set - first_set]++;
        } else {
            request->address[now.cell] = in_place;
            look_up[(uint32_t)first + now_part.n_missed++] = now;
            now_part.misses[now.set - first_set]++;
        }
    }
    tiers->part[number] = now_part;
}

/* Equal misses get one bundle. */
static void
find_bundles(struct tiers *tiers, const struct tiers_request *request, uint32_t number)
{
    struct look_up_part *part = &tiers->part[number];
    uint32_t first = number * tiers->part_rows * (uint32_t)tiers->n_orders, n_bundles = 0;
    struct look_up *look_up = tiers->look_up + first;
    uint8_t first_set = (uint8_t)(request->table * tiers->n_orders);

    for (uint32_t i = 0; i < part->n_missed && i < TIERS_AHEAD; i++)
        resident_ask(&tiers->resident, look_up[i].hash);
    for (uint32_t i = 0; i < part->n_missed; i++) {
        if (i + TIERS_AHEAD < part->n_missed)
            resident_ask(&tiers->resident, look_up[i + TIERS_AHEAD].hash);
        look_up[i].at = resident_bundle(&tiers->resident, look_up[i].hash,
                                        (uint32_t)(look_up[i].set - first_set),
                                        request->mix[look_up[i].cell], first + n_bundles);
        n_bundles += look_up[i].at == first + n_bundles;
    }
    part->n_bundles = n_bundles;
}

struct find {
    struct tiers *tiers;
    const struct tiers_request *request;
    bool bundles;
    _Atomic uint32_t next; /* part; relaxed: the pool orders what is in it */
};

static void
find_part(const struct find *find, uint32_t number)
{
    list_cells(find->tiers, find->request, number);
    tiers_look_up_part(find->tiers, find->request, number);
    if (find->bundles)
        find_bundles(find->tiers, find->request, number);
}

static void
run_find(void *arg, int part, int n_parts)
{
    struct find *find = arg;
    uint32_t number;

    while ((number = atomic_fetch_add_explicit(&find->next, 1, memory_order_relaxed)) <
           find->tiers->n_parts)
        find_part(find, number);
}

static void
set_parts(struct tiers *tiers, int n_rows, int rows)
{
    tiers->part_rows = (uint32_t)rows;
    tiers->n_parts = (uint32_t)((n_rows + rows - 1) / rows);
}

/* One part for a thread alone: its look-ups need no other beside them. */
static void
divide(struct tiers *tiers, int n_rows, int n_threads)
{
    int parts = n_threads > 1 ? n_threads * PARTS_A_THREAD : 1;
    int rows = n_rows > 0 ? n_rows : 1;

    if (parts > LOOK_UP_PARTS_MAX)
        parts = LOOK_UP_PARTS_MAX;
    if (parts > 1)
        rows = ((n_rows + parts - 1) / parts + PART_GRAIN - 1) / PART_GRAIN * PART_GRAIN;
    set_parts(tiers, n_rows, rows);
}

uint32_t
tiers_look_up_hbm(struct tiers *tiers, const struct tiers_request *request, uint32_t bundles)
{
    struct pool *pool = request->n_rows >= TIERS_FIND_TOGETHER ? tiers->resident.pool : NULL;
    uint32_t n_cells = (uint32_t)(request->n_rows * tiers->n_orders);
    struct find find = {.tiers = tiers, .request = request};

    divide(tiers, request->n_rows, pool ? pool_threads(pool) : 1);
    if (bundles > 0 && n_cells >= bundles)
        resident_begin(&tiers->resident, n_cells);
    if (tiers->n_parts > 1) {
        find.bundles = bundles > 0 && n_cells >= bundles;
        pool_run(pool, run_find, &find);
    } else if (tiers->n_parts == 1) {
        find_part(&find, 0);
        if (bundles > 0 && tiers->part[0].n_missed >= bundles)
            find_bundles(tiers, request, 0);
    }
    return tiers_count_parts(tiers, request);
}

void
tiers_begin_parts(struct tiers *tiers, const struct tiers_request *request)
{
    const struct bundle_index *index = &tiers->hbm.index;
    int n_cells = request->n_rows * tiers->n_orders;

    set_parts(tiers, request->n_rows, PART_GRAIN);
    for (uint32_t p = 0; p < tiers->n_parts; p++)
        list_cells(tiers, request, p);
    for (int i = 0; index->count > 0 && i < n_cells; i++)
        bundle_index_ask(index, tiers->look_up[i].hash);
}

uint32_t
tiers_count_parts(struct tiers *tiers, const struct tiers_request *request)
{
    uint32_t n_missed = 0;

    for (uint32_t p = 0; p < tiers->n_parts; p++) {
        const struct look_up_part *part = &tiers->part[p];

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

void
tiers_join_parts(struct tiers *tiers)
{
    uint32_t n_missed = 0;

    for (uint32_t p = 0; p < tiers->n_parts; p++) {
        memmove(tiers->look_up + n_missed,
                tiers->look_up + p * tiers->part_rows * (uint32_t)tiers->n_orders,
                tiers->part[p].n_missed * sizeof *tiers->look_up);
        n_missed += tiers->part[p].n_missed;
    }
}

struct pool *
tiers_pool(const struct tiers *tiers)
{
    return tiers->resident.pool;
}
