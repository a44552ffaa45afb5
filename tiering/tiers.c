/* tiers: see tiers.h. The work of a step; creation and end are in tiers_new.c. */
#include "tiering/tiers.h"

#include "base/check.h"
#include "tiering/tiers_state.h"

enum {
    /* Bundles of HBM that one request may displace: so many, and one in so many of its look-ups. A
     * displacement costs the resolver more than a look-up, and a long prefill is a scan. */
    DISPLACE_LEAST = 8,
    DISPLACE_SHARE = 64,
    PLANNED_SHARE =
        8, /* one part in so many of the RAM store for bundles planned and not yet used */
};

static const struct bundle_address no_address = {NULL, NULL};

static struct step_range
running_steps(const struct tiers *tiers)
{
    return (struct step_range){(uint32_t)(tiers->done_step + 1),
                               (uint32_t)(tiers->begun_step - tiers->done_step)};
}

struct open_step *
tiers_find_step(struct tiers *tiers, uint64_t step)
{
    for (int i = 0; i < tiers->options.steps_in_flight; i++)
        if (tiers->open[i].open && tiers->open[i].step == step)
            return &tiers->open[i];
    return NULL;
}

static void
give_staged(struct tiers *tiers, struct open_step *open)
{
    staging_give_many(&tiers->staging, open->staged, open->n_staged);
    open->n_staged = 0;
}

/* Ends a step: its HBM slots become readable (T2), or free. */
static void
close_step(struct tiers *tiers, struct open_step *open, bool filled)
{
    uint32_t at = open->promoted;
    while (at != NODE_NONE) {
        uint32_t next = slot_store_slot(&tiers->hbm, at)->next;
        if (filled)
            slot_store_settle(&tiers->hbm, at, ARRIVAL_DEMAND);
        else
            slot_store_drop(&tiers->hbm, at);
        at = next;
    }
    give_staged(tiers, open);
    open->open = false;
}

static void
begin_step(struct tiers *tiers, uint64_t step)
{
    if (!tiers->any_step) { /* 0 is no step: fetch.last_step says so */
        ASSERT(step > 0);
        tiers->any_step = true;
        tiers->begun_step = tiers->done_step = step - 1;
    }
    ASSERT(step > tiers->done_step);
    if (step > tiers->begun_step) {
        const struct chunk_ops *hbm = &tiers->options.hbm_memory, *ram = &tiers->options.ram_memory;

        tiers->begun_step = step;
        if (hbm->begin)
            hbm->begin(hbm->arg, step);
        if (ram->begin)
            ram->begin(ram->arg, step);
    }
    if (tiers_find_step(tiers, step))
        return;
    struct open_step *place = NULL;
    for (int i = 0; i < tiers->options.steps_in_flight; i++) {
        struct open_step *open = &tiers->open[i];
        if (!open->open) {
            place = open;
            break;
        }
        /* Over, but never reported: what it promoted is not known to be there. */
        if (open->step <= tiers->done_step && (!place || open->step < place->step))
            place = open;
    }
    ASSERT(place); /* more steps in flight than tiers_new was told */
    if (place->open)
        close_step(tiers, place, false);
    *place = (struct open_step){
        .open = true, .step = step, .promoted = NODE_NONE, .staged = place->staged};
}

void *
tiers_promote(struct tiers *tiers, uint64_t step, const struct look_up *look_up, uint64_t mix,
              int visits)
{
    struct slot_store *hbm = &tiers->hbm;
    if (step != tiers->begun_step || hbm->budget_bytes == 0)
        return NULL;
    bool room = slot_store_make_room(hbm);
    if ((!room && (visits < TIERS_PROMOTE_VISITS || tiers->displacements == 0)) ||
        slot_store_find(hbm, look_up->hash, look_up->set, mix) != NODE_NONE)
        return NULL;
    struct open_step *open = tiers_find_step(tiers, step);
    if (!open)
        return NULL;
    struct step_range keep = {(uint32_t)step, 1};
    uint32_t at = slot_store_take(hbm, look_up->set, mix, keep, ARRIVAL_DEMAND, true);
    if (at == NODE_NONE)
        return NULL;
    tiers->displacements -= !room;
    struct slot *slot = slot_store_slot(hbm, at);
    slot->last_step = (uint32_t)step;
    slot->next = open->promoted;
    open->promoted = at;
    tiers_count(&tiers->count[TIER_HBM][look_up->set].promotions, 1);
    return slot_store_address(hbm, at);
}

static void
fail_cell(struct tiers *tiers, const struct tiers_request *request, uint32_t cell, uint8_t set)
{
    request->address[cell] = no_address;
    request->failed[cell / (uint32_t)tiers->n_orders] = 1;
    tiers_count(&tiers->count[TIER_NVME][set].misses, 1);
}

/* Nobody has the bundle: a fetch of its own, to a RAM slot or through staging. NODE_NONE: no
 * memory. */
static uint32_t
start_fetch(struct tiers *tiers, const struct tiers_request *request, uint8_t set, uint64_t mix)
{
    enum fetch_kind kind = FETCH_TO_RAM;
    uint32_t slot =
        slot_store_take(&tiers->ram, set, mix, running_steps(tiers), ARRIVAL_DEMAND, false);
    void *dst;
    if (slot != NODE_NONE) {
        dst = slot_store_address(&tiers->ram, slot);
    } else {
        kind = FETCH_TO_STAGING;
        slot = staging_take(&tiers->staging);
        if (slot == NODE_NONE)
            return NODE_NONE;
        dst = staging_address(&tiers->staging, slot);
    }
    uint32_t fetch =
        fetches_new(&tiers->fetches, set, mix, kind, slot, dst, request->deadline_ns, false);
    ASSERT(fetch != NODE_NONE); /* there are as many as cells of all requests */
    return fetch;
}

/* The row slice has the whole bundle: a copy in staging, for as long as the steps that read it.
 * NODE_NONE: no memory. */
static uint32_t
copy_sliced(struct tiers *tiers, const struct tiers_request *request, uint8_t set, uint64_t mix)
{
    uint32_t slot = staging_take(&tiers->staging);
    if (slot == NODE_NONE)
        return NODE_NONE;
    uint32_t fetch =
        fetches_new(&tiers->fetches, set, mix, FETCH_FROM_SLICE, slot,
                    staging_address(&tiers->staging, slot), request->deadline_ns, false);
    ASSERT(fetch != NODE_NONE); /* there are as many as cells of all requests */
    fetches_copy(&tiers->fetches, fetch);
    return fetch;
}

/* The look-up of one cell once HBM is known not to have it. True: it waits. */
static bool
look_below(struct tiers *tiers, uint32_t number, const struct look_up *look_up)
{
    const struct tiers_request *request = &tiers->requests[number].request;
    uint32_t cell = look_up->cell, hash = look_up->hash;
    uint8_t set = look_up->set;
    uint64_t mix = request->mix[cell];
    struct bundle_address *address = &request->address[cell];
    uint32_t at = slot_store_find(&tiers->ram, hash, set, mix);
    if (at != NODE_NONE) {
        struct slot *slot = slot_store_slot(&tiers->ram, at);
        tiers_count(&tiers->count[TIER_RAM][set].hits, 1);
        tiers_count(&tiers->count[TIER_RAM][set].bytes, tiers->bundle_bytes);
        if (tiers->ram.policy->ops->touch(tiers->ram.policy, slot))
            tiers_count(&tiers->prefetch_used, 1);
        slot->last_step = (uint32_t)request->step;
        *address = (struct bundle_address){
            slot_store_address(&tiers->ram, at),
            tiers_promote(tiers, request->step, look_up, mix, slot->bundle.visits)};
        /* Once HBM answers for the bundle, its copy here is the next to go. */
        if (address->promote)
            slot->bundle.visits = 0;
        return false;
    }
    at = bundle_index_find(&tiers->fetches.index, hash, set, mix);
    if (at == NODE_NONE && fetches_sliced(&tiers->fetches, set, mix))
        at = copy_sliced(tiers, request, set, mix);
    else if (at == NODE_NONE)
        at = start_fetch(tiers, request, set, mix);
    bool sliced =
        at != NODE_NONE && fetches_at(&tiers->fetches, at)->bundle.visits == FETCH_FROM_SLICE;
    if (sliced) {
        tiers_count(&tiers->count[TIER_RAM][set].hits, 1);
        tiers_count(&tiers->count[TIER_RAM][set].bytes, tiers->bundle_bytes);
    } else {
        tiers_count(&tiers->count[TIER_RAM][set].misses, 1);
    }
    if (at == NODE_NONE) {
        fail_cell(tiers, request, cell, set);
        return false;
    }
    struct fetch *fetch = fetches_at(&tiers->fetches, at);
    if (request->step > fetch->last_step)
        fetch->last_step = request->step;
    if (fetch->bundle.state == FETCH_STAGED) {
        if (!sliced)
            tiers_count(&tiers->count[TIER_NVME][set].hits, 1);
        int visits = sliced ? tiers_visits(tiers, hash) : TIERS_PROMOTE_VISITS;
        *address = (struct bundle_address){
            fetch->dst, tiers_promote(tiers, request->step, look_up, mix, visits)};
        return false;
    }
    if (fetch->bundle.queue) { /* planned */
        fetches_demand(&tiers->fetches, at, request->deadline_ns);
        tiers_count(&tiers->prefetch_late, 1);
    }
    *address = no_address;
    fetches_wait(&tiers->fetches, at, number, cell);
    return true;
}

/* The stages of a find in an index that may change between them: hints, and the find of number
 * `at` begins anew. at begins at -3 * TIERS_AHEAD. */
static inline void
prefetch(const struct bundle_index *index, const struct look_up *look_up, const uint64_t *mix,
         int at, int n)
{
    if (index->count == 0)
        return;
    if (at + 3 * TIERS_AHEAD < n)
        bundle_index_ask(index, look_up[at + 3 * TIERS_AHEAD].hash);
    if (at >= -2 * TIERS_AHEAD && at + 2 * TIERS_AHEAD < n)
        (void)bundle_index_first(index, look_up[at + 2 * TIERS_AHEAD].hash);
    if (at >= -TIERS_AHEAD && at + TIERS_AHEAD < n) {
        const struct look_up *next = &look_up[at + TIERS_AHEAD];
        (void)bundle_index_next(index, *bundle_index_head(index, next->hash), next->set,
                                mix[next->cell]);
    }
}

static uint32_t
take_request(struct tiers *tiers, const struct tiers_request *request)
{
    for (uint32_t i = 0; i < tiers->n_requests; i++) {
        if (tiers->requests[i].pending == 0) {
            tiers->requests[i] = (struct pending_request){.request = *request, .pending = 1};
            return i;
        }
    }
    ASSERT(!"more requests wait than steps_in_flight allows");
    return NODE_NONE;
}

void
tiers_raise(const struct tiers_request *request)
{
    if (request->unfinished == NULL || --*request->unfinished == 0)
        flag_raise(request->ready, request->ready_value);
}

void
tiers_raise_rows(const struct tiers_request *request, uint32_t n)
{
    if (request->rows_from)
        flag_raise(request->ready, request->rows_from + n);
}

/* T5 */
static void
one_less_pending(struct pending_request *pending)
{
    ASSERT(pending->pending > 0);
    if (--pending->pending == 0)
        tiers_raise(&pending->request);
}

void
tiers_resolve(struct tiers *tiers, const struct tiers_request *request)
{
    ASSERT_THREAD(THREAD_RESOLVER);
    ASSERT(request->table >= 0 && request->table < tiers->options.engram.n_layers);
    ASSERT(request->n_rows >= 0 && request->n_rows <= tiers->options.max_step_rows);
    begin_step(tiers, request->step);
    tiers->displacements =
        DISPLACE_LEAST + (uint32_t)(request->n_rows * tiers->n_orders) / DISPLACE_SHARE;
    if (request->resident && /* T7 */
        request->resident == tiers->options.resident[request->table].weights) {
        tiers_resolve_resident(tiers, request);
        (void)tiers_poll(tiers);
        return;
    }
    uint32_t number = take_request(tiers, request); /* pending 1: ours, while cells are looked up */
    struct pending_request *pending = &tiers->requests[number];
    int n = (int)tiers_look_up_hbm(tiers, request, 0);
    tiers_join_parts(tiers);
    for (int i = -3 * TIERS_AHEAD; i < n; i++) {
        prefetch(&tiers->ram.index, tiers->look_up, request->mix, i, n);
        if (i >= 0)
            pending->pending += look_below(tiers, number, &tiers->look_up[i]);
    }
    fetches_issue(&tiers->fetches);
    one_less_pending(pending);
    (void)tiers_poll(tiers);
}

static void
answer_waiters(struct tiers *tiers, uint32_t at, int result)
{
    struct fetch *fetch = fetches_at(&tiers->fetches, at);
    uint8_t set = fetch->bundle.set;
    uint32_t number, cell;
    bool may_promote = true;
    while (fetches_next_waiter(&tiers->fetches, at, &number, &cell)) {
        if (tiers->closing)
            continue;
        struct pending_request *pending = &tiers->requests[number];
        const struct tiers_request *request = &pending->request;
        if (result < 0) {
            fail_cell(tiers, request, cell, set);
        } else {
            struct look_up look_up = {cell, bundle_hash(set, fetch->bundle.mix), NODE_NONE, set};
            void *slot = may_promote
                             ? tiers_promote(tiers, request->step, &look_up, fetch->bundle.mix, 0)
                             : NULL;
            may_promote = may_promote && !slot;
            request->address[cell] = (struct bundle_address){fetch->dst, slot};
            tiers_count(&tiers->count[TIER_NVME][set].hits, 1);
        }
        one_less_pending(pending);
    }
}

void
tiers_fetch_landed(void *arg, uint32_t at, int result)
{
    struct tiers *tiers = arg;
    struct fetch *fetch = fetches_at(&tiers->fetches, at);
    uint8_t set = fetch->bundle.set;
    bool planned = fetch->bundle.queue, to_ram = fetch->bundle.visits == FETCH_TO_RAM;
    if (result >= 0)
        tiers_count(&tiers->count[TIER_NVME][set].bytes, tiers->bundle_bytes);
    if (result >= 0 && to_ram) {
        slot_store_settle(&tiers->ram, fetch->slot, planned ? ARRIVAL_PLANNED : ARRIVAL_DEMAND);
        if (fetch->last_step)
            slot_store_slot(&tiers->ram, fetch->slot)->last_step = (uint32_t)fetch->last_step;
        tiers_count(&tiers->count[TIER_RAM][set].promotions, 1);
    }
    answer_waiters(tiers, at, result);
    if (result < 0 && to_ram)
        slot_store_drop(&tiers->ram, fetch->slot);
    if (!to_ram && result >= 0 && fetch->last_step > tiers->done_step && !tiers->closing) {
        fetches_stay(&tiers->fetches, at);
        return;
    }
    if (!to_ram)
        staging_give(&tiers->staging, fetch->slot);
    fetches_release(&tiers->fetches, at);
}

/* T6: bundles and resident rows share the RAM budget that reserved tables leave. What one of them is
 * to give up goes when reads and steps in flight let it, and the other may not have it before. */
void
tiers_balance_ram(struct tiers *tiers)
{
    struct row_slice *slice = &tiers->slice;
    uint64_t reserved = atomic_load_explicit(&tiers->reserved_shown, memory_order_relaxed);
    uint64_t total = tiers->ram_budget_bytes > reserved ? tiers->ram_budget_bytes - reserved : 0;
    uint64_t wanted = (uint64_t)((double)total * tiers->options.row_share);
    if (wanted > total)
        wanted = total; /* rounded up */
    uint64_t need = row_slice_need(slice, wanted);
    if (need < slice->need_bytes)
        row_slice_resize(slice, wanted);
    uint64_t rows = row_slice_used(slice) > need ? row_slice_used(slice) : need;
    slot_store_resize(&tiers->ram, total > rows ? total - rows : 0, running_steps(tiers));
    uint64_t bundles = slot_store_used(&tiers->ram);
    uint64_t room = total > bundles ? total - bundles : 0;
    if (need > slice->need_bytes)
        row_slice_resize(slice, wanted < room ? wanted : room);
    tiers->ram_unsettled = rows > need || slice->need_bytes < need;
}

static void
tidy(struct tiers *tiers)
{
    slot_store_tidy(&tiers->hbm, running_steps(tiers));
    slot_store_tidy(&tiers->ram, running_steps(tiers));
    if (tiers->ram_unsettled)
        tiers_balance_ram(tiers);
}

int
tiers_poll(struct tiers *tiers)
{
    ASSERT_THREAD(THREAD_RESOLVER);
    int total = 0, n;
    do {
        n = fetches_reap(&tiers->fetches, tiers_fetch_landed, tiers);
        total += n;
        if (n > 0)
            fetches_issue(&tiers->fetches);
    } while (n > 0);
    if (total > 0)
        tidy(tiers);
    if (tiers->options.ram_memory.later && tiers->slice.n_asked < tiers->slice.n_target)
        row_slice_pump(&tiers->slice); /* memory may have come */
    return total;
}

/* The first step that still pins something: the oldest open one behind the last that was done. */
static void
release_pins(struct tiers *tiers)
{
    uint64_t over = tiers->begun_step;
    for (int i = 0; i < tiers->options.steps_in_flight; i++) {
        const struct open_step *open = &tiers->open[i];
        if (open->open && open->step > tiers->done_step && open->step <= over)
            over = open->step - 1;
    }
    tiers->done_step = over;
}

static void
end_step(struct tiers *tiers, uint64_t step, bool filled)
{
    ASSERT_THREAD(THREAD_RESOLVER);
    struct open_step *open = tiers_find_step(tiers, step);
    if (open)
        close_step(tiers, open, filled);
    if (!tiers->any_step || step > tiers->begun_step)
        tiers->begun_step = step;
    tiers->any_step = true;
    if (filled && step > tiers->done_step)
        tiers->done_step = step;
    for (int i = 0; filled && i < tiers->options.steps_in_flight; i++)
        if (tiers->open[i].open && tiers->open[i].step < step)
            give_staged(tiers, &tiers->open[i]);
    release_pins(tiers);
    for (uint32_t at = tiers->fetches.staged.count ? tiers->fetches.staged.first : NODE_NONE;
         at != NODE_NONE;) {
        const struct fetch *fetch = fetches_at(&tiers->fetches, at);
        uint32_t next = fetch->next;
        if (fetch->last_step <= tiers->done_step) {
            staging_give(&tiers->staging, fetch->slot);
            fetches_release(&tiers->fetches, at);
        }
        at = next;
    }
    tidy(tiers);
}

void
tiers_step_done(struct tiers *tiers, uint64_t step)
{
    end_step(tiers, step, true);
}

void
tiers_step_abort(struct tiers *tiers, uint64_t step)
{
    end_step(tiers, step, false);
}

int
tiers_prefetch(struct tiers *tiers, int table, int order, const uint64_t *mix, int n,
               uint64_t deadline_ns)
{
    ASSERT_THREAD(THREAD_RESOLVER);
    ASSERT(table >= 0 && table < tiers->options.engram.n_layers);
    ASSERT(order >= 2 && order <= tiers->options.engram.max_order);
    uint8_t set = (uint8_t)(table * tiers->n_orders + order - 2);
    struct slot_store *ram = &tiers->ram;
    int started = 0;
    if (tiers_is_resident(tiers, table))
        return 0;
    for (int i = 0; i < n; i++) {
        uint32_t hash = bundle_hash(set, mix[i]);
        if (slot_store_find(&tiers->hbm, hash, set, mix[i]) != NODE_NONE ||
            slot_store_find(ram, hash, set, mix[i]) != NODE_NONE ||
            bundle_index_find(&tiers->fetches.index, hash, set, mix[i]) != NODE_NONE ||
            fetches_sliced(&tiers->fetches, set, mix[i]))
            continue;
        /* How many slots the store has or will have, roughly: it grows as it is used. */
        uint64_t slots = ram->budget_bytes / (ram->slot_bytes + sizeof(struct slot) + 8);
        uint32_t waiting = tiers->fetches.n_planned + ram->policy->ops->planned(ram->policy);
        if (tiers->fetches.n_planned >= TIERS_PLANNED_FETCHES || waiting >= slots / PLANNED_SHARE)
            break;
        uint32_t slot =
            slot_store_take(ram, set, mix[i], running_steps(tiers), ARRIVAL_PLANNED, false);
        if (slot == NODE_NONE)
            break;
        uint32_t fetch = fetches_new(&tiers->fetches, set, mix[i], FETCH_TO_RAM, slot,
                                     slot_store_address(ram, slot), deadline_ns, true);
        ASSERT(fetch != NODE_NONE);
        started++;
    }
    tiers_count(&tiers->prefetched, (uint64_t)started);
    fetches_issue(&tiers->fetches);
    return started;
}

void
tiers_set_budgets(struct tiers *tiers, uint64_t hbm_budget_bytes, uint64_t ram_budget_bytes)
{
    slot_store_resize(&tiers->hbm, hbm_budget_bytes, running_steps(tiers));
    tiers->ram_budget_bytes = ram_budget_bytes;
    atomic_store_explicit(&tiers->ram_budget_shown, ram_budget_bytes, memory_order_relaxed);
    tiers_balance_ram(tiers);
}

void
tiers_resize(struct tiers *tiers, uint64_t hbm_budget_bytes, uint64_t ram_budget_bytes)
{
    ASSERT_THREAD(THREAD_RESOLVER);
    tiers_set_budgets(tiers, hbm_budget_bytes, ram_budget_bytes);
}
