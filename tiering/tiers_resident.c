/* tiers_resident: look-ups of tables that are resident as a whole; nothing is read from disk for
 * them, and their answers are complete when tiers_resolve returns. Thread: resolver. */
#include "base/check.h"
#include "tiering/cache_hint.h"
#include "tiering/tiers_state.h"

/* The whole table is in device memory: where it is, is known without a look. */
static void
answer_in_place(struct tiers *tiers, const struct tiers_request *request)
{
    const struct bundle_address in_place = {BUNDLE_IN_PLACE, NULL}, none = {NULL, NULL};
    struct bundle_address *address = request->address;
    uint64_t n_rows = 0;

    for (int row = 0; row < request->n_rows; row++) {
        bool skipped = request->skip && request->skip[row];

        for (int o = 0; o < tiers->n_orders; o++)
            *address++ = skipped ? none : in_place;
        n_rows += !skipped;
    }
    tiers_raise(request);
    for (int o = 0; o < tiers->n_orders; o++) {
        struct set_counts *count = &tiers->count[TIER_HBM][request->table * tiers->n_orders + o];

        tiers_count(&count->hits, n_rows);
        tiers_count(&count->bytes, n_rows * tiers->bundle_bytes);
    }
}

enum {
    SPLIT = 4,     /* pieces of a part that are gathered at a time: rows take longer than look-ups */
    TOGETHER = 64, /* bundles: fewer are copied sooner than the other threads are awake */
};

/* Bundles in the order of the parts, without those that are left to the device, get the slots in turn:
 * where a bundle goes follows from its number, and nobody has to wait for anybody to know it. */
struct gather {
    struct tiers *tiers;
    const struct tiers_request *request;
    const uint32_t *slot; /* [n_slots] of staging */
    uint32_t n_slots;
    bool shared;           /* one in TIERS_IN_PLACE_SHARE is left to the device */
    _Atomic uint32_t next; /* piece; relaxed: the pool orders what is in it */
};

/* NULL: it is read in place. */
static uint8_t *
destination(const struct gather *gather, uint32_t number)
{
    const struct tiers *tiers = gather->tiers;
    uint32_t part_cells = tiers->part_rows * (uint32_t)tiers->n_orders;
    uint32_t turn = tiers->part[number / part_cells].before + number % part_cells;

    if (gather->shared) {
        if (turn % TIERS_IN_PLACE_SHARE == 0)
            return NULL;
        turn -= turn / TIERS_IN_PLACE_SHARE + 1;
    }
    return turn < gather->n_slots ? staging_address(&tiers->staging, gather->slot[turn]) : NULL;
}

static void
gather_piece(const struct gather *gather, uint32_t piece)
{
    struct tiers *tiers = gather->tiers;
    struct resident *resident = &tiers->resident;
    uint32_t number = piece / SPLIT, nth = piece % SPLIT;
    const struct look_up_part *part = &tiers->part[number];
    uint32_t first = number * tiers->part_rows * (uint32_t)tiers->n_orders;
    uint32_t begin = first + part->n_bundles * nth / SPLIT;
    uint32_t end = first + part->n_bundles * (nth + 1) / SPLIT;

    for (uint32_t i = begin; i < end; i++)
        resident->bundle[i].dst = destination(gather, i);
    resident_gather(resident, gather->request->table, begin, end);
    begin = first + part->n_missed * nth / SPLIT;
    end = first + part->n_missed * (nth + 1) / SPLIT;
    for (uint32_t i = begin; i < end; i++) {
        const void *source = destination(gather, tiers->look_up[i].at);

        if (source)
            gather->request->address[tiers->look_up[i].cell].source = source;
    }
}

static void
run_gather(void *arg, int part, int n_parts)
{
    struct gather *gather = arg;
    uint32_t piece, n_pieces = gather->tiers->n_parts * SPLIT;

    while ((piece = atomic_fetch_add_explicit(&gather->next, 1, memory_order_relaxed)) < n_pieces)
        gather_piece(gather, piece);
}

/* Slots for n_bundles, as far as there are any; the others are read in place. */
static void
take_staging(struct gather *gather, uint32_t n_bundles)
{
    struct tiers *tiers = gather->tiers;
    struct open_step *open = tiers_find_step(tiers, gather->request->step);

    ASSERT(open);
    gather->shared = n_bundles >= TIERS_SHARED_FROM;
    if (gather->shared)
        n_bundles -= (n_bundles + TIERS_IN_PLACE_SHARE - 1) / TIERS_IN_PLACE_SHARE;
    uint32_t room = tiers->max_staged - open->n_staged;
    gather->slot = open->staged + open->n_staged;
    gather->n_slots = staging_take_many(&tiers->staging, n_bundles < room ? n_bundles : room,
                                        open->staged + open->n_staged);
    open->n_staged += gather->n_slots;
}

/* Promotions of what HBM lacks of a part, in the order of the cells. */
static void
promote_missed(struct tiers *tiers, const struct tiers_request *request, uint32_t number)
{
    const struct look_up *look_up =
        tiers->look_up + number * tiers->part_rows * (uint32_t)tiers->n_orders;
    uint32_t n = tiers->part[number].n_missed;

    for (uint32_t i = 0; i < n && i < TIERS_AHEAD; i++)
        cache_hint(tiers_seen(tiers, look_up[i].hash));
    for (uint32_t i = 0; i < n; i++) {
        if (i + TIERS_AHEAD < n)
            cache_hint(tiers_seen(tiers, look_up[i + TIERS_AHEAD].hash));
        int visits = tiers_visits(tiers, look_up[i].hash);
        uint32_t cell = look_up[i].cell;

        if (visits > 0 || !slot_store_is_full(&tiers->hbm))
            request->address[cell].promote =
                tiers_promote(tiers, request->step, &look_up[i], request->mix[cell], visits);
    }
}

/* What HBM lacked came from host memory. */
static void
count_misses(struct tiers *tiers, const struct tiers_request *request)
{
    for (uint32_t p = 0; p < tiers->n_parts; p++)
        for (int o = 0; o < tiers->n_orders; o++) {
            struct set_counts *count =
                &tiers->count[TIER_RAM][request->table * tiers->n_orders + o];
            uint32_t misses = tiers->part[p].misses[o];

            tiers_count(&count->hits, misses);
            tiers_count(&count->bytes, (uint64_t)misses * tiers->bundle_bytes);
        }
}

/* So few that none is staged: the device begins with the first rows while the others are looked up. */
static void
answer_by_parts(struct tiers *tiers, const struct tiers_request *request)
{
    tiers_begin_parts(tiers, request);
    for (uint32_t p = 0; p < tiers->n_parts; p++) {
        if (p > 0)
            tiers_raise_rows(request, p * tiers->part_rows);
        tiers_look_up_part(tiers, request, p);
        promote_missed(tiers, request, p);
    }
    tiers_raise(request);
    (void)tiers_count_parts(tiers, request);
    count_misses(tiers, request);
}

static void
answer_from_host(struct tiers *tiers, const struct tiers_request *request)
{
    struct pool *pool = tiers->resident.pool;
    struct gather gather = {.tiers = tiers, .request = request};
    uint32_t below = (uint32_t)tiers->options.in_place_below, n_bundles = 0;
    uint32_t n_missed = tiers_look_up_hbm(tiers, request, below);

    for (uint32_t p = 0; p < tiers->n_parts; p++) {
        tiers->part[p].before = n_bundles;
        n_bundles += tiers->part[p].n_bundles;
    }
    bool gathered = n_missed > 0 && n_bundles >= below, together = gathered && n_bundles >= TOGETHER;
    if (gathered)
        take_staging(&gather, n_bundles);
    if (together)
        pool_begin(pool, run_gather, &gather);
    for (uint32_t p = 0; p < tiers->n_parts; p++)
        promote_missed(tiers, request, p);
    if (together)
        pool_end(pool);
    else if (gathered)
        run_gather(&gather, 0, 1);
    tiers_raise(request);
    count_misses(tiers, request);
}

bool
tiers_is_resident(const struct tiers *tiers, int table)
{
    ASSERT(table >= 0 && table < tiers->options.engram.n_layers);
    return tiers->options.resident[table].weights != NULL;
}

static bool
check_table(const struct tiers *tiers, int table)
{
    ASSERT_THREAD(THREAD_RESOLVER);
    return table >= 0 && table < tiers->options.engram.n_layers;
}

static void
reserve(struct tiers *tiers, int table, uint64_t size_bytes)
{
    uint64_t sum = 0;

    tiers->reserved_bytes[table] = size_bytes;
    for (int t = 0; t < tiers->options.engram.n_layers; t++)
        sum += tiers->reserved_bytes[t];
    atomic_store_explicit(&tiers->reserved_shown, sum, memory_order_relaxed);
}

void
tiers_reserve_table(struct tiers *tiers, int table, uint64_t size_bytes)
{
    ASSERT(check_table(tiers, table));
    ASSERT(size_bytes > 0 && tiers->reserved_bytes[table] == 0);
    ASSERT(!tiers_is_resident(tiers, table));
    reserve(tiers, table, size_bytes);
    row_slice_leave_out(&tiers->slice, table, true);
    tiers_balance_ram(tiers);
}

uint64_t
tiers_set_resident(struct tiers *tiers, int table, const struct tier_resident *resident)
{
    ASSERT(check_table(tiers, table));
    ASSERT(tiers->options.may_become_resident && tiers->reserved_bytes[table] > 0);
    ASSERT(!resident->device && (resident->weights != NULL) != tiers_is_resident(tiers, table));
    ASSERT(!resident->weights ||
           (resident->scales != NULL) == (tiers->options.engram.scale_group != 0));
    tiers->options.resident[table] = tiers->resident.table[table] = *resident;
    return tiers->begun_step;
}

bool
tiers_steps_over(const struct tiers *tiers, uint64_t step)
{
    return tiers->done_step >= step;
}

void
tiers_release_table(struct tiers *tiers, int table)
{
    ASSERT(check_table(tiers, table));
    ASSERT(tiers->reserved_bytes[table] > 0 && !tiers_is_resident(tiers, table));
    reserve(tiers, table, 0);
    row_slice_leave_out(&tiers->slice, table, false);
    tiers_balance_ram(tiers);
    row_slice_pump(&tiers->slice);
}

void
tiers_resolve_resident(struct tiers *tiers, const struct tiers_request *request)
{
    uint32_t n_cells = (uint32_t)(request->n_rows * tiers->n_orders);

    if (tiers->options.resident[request->table].device)
        answer_in_place(tiers, request);
    else if (n_cells < (uint32_t)tiers->options.in_place_below &&
             request->n_rows < TIERS_FIND_TOGETHER)
        answer_by_parts(tiers, request);
    else
        answer_from_host(tiers, request);
}
