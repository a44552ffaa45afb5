/* nvme_queue: which pages to read next, and who wants them.
 *
 * Pure state: no I/O, no clock. The unit is the extent, a run of whole pages of one file that
 * becomes one device read. A read that is added joins an extent that covers its pages, waiting or
 * in flight; else it widens a waiting neighbour, up to max_pages; else it opens an extent of its
 * own. Extents are popped by earliest deadline, equal deadlines in order of arrival.
 *
 *     add --> WAITING --pop--> IN FLIGHT --remove--> gone
 *
 * Q1  a read is in the list of exactly one extent, whose pages cover it.
 * Q2  an extent is in the heap iff it is WAITING; its pages stop changing when it leaves the heap.
 * Q3  a page of the map points to an extent that covers it; extents may overlap, the map names one.
 * Q4  a read joins an extent in flight only in front of the point up to which that has been served.
 *
 * Thread: ring. */
#ifndef TIERING_NVME_QUEUE_H
#define TIERING_NVME_QUEUE_H

#include <stdbool.h>
#include <stdint.h>

#include "tiering/cold_store.h"
#include "tiering/read_list.h"

struct extent {
    int file;
    uint32_t n_pages;
    uint64_t first_page;
    uint64_t deadline_ns, order; /* order: of arrival */
    struct read_chain reads;
    /* The ring thread's while in flight. */
    uint64_t served_bytes; /* file offset up to which reads have been answered */
    uint64_t started_ns;
    int tries;
    bool careful; /* reads page by page, so that a bad page fails nobody else's read */
    /* The queue's. */
    int heap_place; /* -1: in flight */
    struct extent *next_free;
};

struct nvme_queue;

/* page_bytes: a power of two. max_pages: of an extent that several reads share. */
struct nvme_queue *nvme_queue_new(uint32_t page_bytes, uint32_t max_pages); /* NULL: no memory */
struct nvme_queue *nvme_queue_free(struct nvme_queue *queue); /* must be empty; accepts NULL */
/* 1: joined an extent that another read opened. 0: opened its own. -ENOMEM: not taken. */
int nvme_queue_add(struct nvme_queue *queue, struct cold_read *read);
struct extent *nvme_queue_pop(struct nvme_queue *queue); /* NULL: none is waiting */
/* The extent's list must be empty. */
void nvme_queue_remove(struct nvme_queue *queue, struct extent *extent);
bool nvme_queue_waiting(const struct nvme_queue *queue);

/* buffer holds the file's bytes [served, served + size): gives every read of the extent its part.
 * Those that are complete move to finished, with result 0. */
void extent_deliver(struct extent *extent, const uint8_t *buffer, uint64_t size_bytes,
                    struct read_chain *finished);
/* Reads of the extent that need a byte before file offset `end` move to finished with this result.
 */
void extent_fail(struct extent *extent, uint64_t end, int result, struct read_chain *finished);

#endif
