/* kv_pages: which KV pages are free, and how many sequences share each. Bookkeeping only.
 * Thread: engine.                                                                               */
#ifndef GPU_KV_PAGES_H
#define GPU_KV_PAGES_H

#include <stdint.h>

struct kv_pages;

struct kv_pages *kv_pages_new(int n_pages);
struct kv_pages *kv_pages_free(struct kv_pages *pages);
/* Takes n pages or none: 0, -ENOSPC. */
int kv_pages_take(struct kv_pages *pages, int n, int32_t *ret_pages);
void kv_pages_share(struct kv_pages *pages, int32_t page); /* one more owner */
void kv_pages_give(struct kv_pages *pages, int32_t page);  /* one owner less; free at none */
int kv_pages_owners(const struct kv_pages *pages, int32_t page);
int kv_pages_n_free(const struct kv_pages *pages);
int kv_pages_n(const struct kv_pages *pages);

#endif
