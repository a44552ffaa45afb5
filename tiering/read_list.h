/* read_list: finished (or submitted) cold reads on their way from one thread to another.
 *
 * A lock-free stack: any thread pushes a chain, one thread takes the whole of it. Reads are linked
 * through cold_read.next, so handing one over allocates nothing. The push of a chain is the release
 * that makes the bytes in its reads' dst visible to whoever takes it. */
#ifndef TIERING_READ_LIST_H
#define TIERING_READ_LIST_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>

#include "tiering/cold_store.h"

struct read_list {
    _Atomic(struct cold_read *) head; /* pairs push (release) with take (acquire) */
};

/* A private chain, in order, that grows at its end. */
struct read_chain {
    struct cold_read *first, *last;
};

static inline void
read_chain_add(struct read_chain *chain, struct cold_read *read)
{
    read->next = NULL;
    if (chain->last)
        chain->last->next = read;
    else
        chain->first = read;
    chain->last = read;
}

static inline struct cold_read *
read_chain_pop(struct read_chain *chain)
{
    struct cold_read *read = chain->first;
    if (read) {
        chain->first = read->next;
        if (!chain->first)
            chain->last = NULL;
        read->next = NULL;
    }
    return read;
}

/* Hands the chain over and empties it. True when the list was empty: its taker may be asleep.
 * Sequentially consistent, because the taker's "am I going to sleep" flag is the other half of
 * that question (nvme_store). */
static inline bool
read_list_push(struct read_list *list, struct read_chain *chain)
{
    struct cold_read *first = chain->first, *last = chain->last;
    if (!first)
        return false;
    *chain = (struct read_chain){0};
    /* The list is last in, first out and read_list_take turns it round, so the chain goes in
     * turned. */
    struct cold_read *turned = NULL, *read = first;
    while (read) {
        struct cold_read *next = read->next;
        read->next = turned;
        turned = read;
        read = next;
    }
    struct cold_read *head = atomic_load_explicit(&list->head, memory_order_relaxed);
    do {
        first->next = head;
    } while (!atomic_compare_exchange_weak(&list->head, &head, last));
    return head == NULL;
}

/* Appends everything in the list to chain, oldest first. */
static inline void
read_list_take(struct read_list *list, struct read_chain *chain)
{
    struct cold_read *read = atomic_exchange(&list->head, NULL), *turned = NULL;
    while (read) {
        struct cold_read *next = read->next;
        read->next = turned;
        turned = read;
        read = next;
    }
    while (turned) {
        struct cold_read *next = turned->next;
        read_chain_add(chain, turned);
        turned = next;
    }
}

static inline bool
read_list_empty(struct read_list *list)
{
    return atomic_load(&list->head) == NULL;
}

#endif
