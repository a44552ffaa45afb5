#include "gpu/kv_pages.h"

#include <errno.h>
#include <stdlib.h>

#include "base/check.h"

struct kv_pages {
    int n, n_free;
    int32_t *free;   /* stack of free pages, [n] */
    int32_t *owners; /* [n]; 0: free */
};

struct kv_pages *
kv_pages_new(int n_pages)
{
    struct kv_pages *pages = calloc(1, sizeof *pages);

    if (!pages || n_pages < 0)
        return kv_pages_free(pages);
    pages->n = pages->n_free = n_pages;
    pages->free = calloc((size_t)n_pages + 1, sizeof *pages->free);
    pages->owners = calloc((size_t)n_pages + 1, sizeof *pages->owners);
    if (!pages->free || !pages->owners)
        return kv_pages_free(pages);
    for (int i = 0; i < n_pages; i++)
        pages->free[i] = n_pages - 1 - i;
    return pages;
}

struct kv_pages *
kv_pages_free(struct kv_pages *pages)
{
    if (pages) {
        free(pages->free);
        free(pages->owners);
        free(pages);
    }
    return NULL;
}

int
kv_pages_take(struct kv_pages *pages, int n, int32_t *ret_pages)
{
    ASSERT_THREAD(THREAD_ENGINE);
    if (n > pages->n_free)
        return -ENOSPC;
    for (int i = 0; i < n; i++) {
        ret_pages[i] = pages->free[--pages->n_free];
        ASSERT(pages->owners[ret_pages[i]] == 0);
        pages->owners[ret_pages[i]] = 1;
    }
    return 0;
}

void
kv_pages_share(struct kv_pages *pages, int32_t page)
{
    ASSERT_THREAD(THREAD_ENGINE);
    ASSERT(page >= 0 && page < pages->n);
    ASSERT(pages->owners[page] > 0 && pages->owners[page] < INT32_MAX);
    pages->owners[page]++;
}

void
kv_pages_give(struct kv_pages *pages, int32_t page)
{
    ASSERT_THREAD(THREAD_ENGINE);
    ASSERT(page >= 0 && page < pages->n && pages->owners[page] > 0);
    if (--pages->owners[page] == 0)
        pages->free[pages->n_free++] = page;
}

int
kv_pages_owners(const struct kv_pages *pages, int32_t page)
{
    ASSERT(page >= 0 && page < pages->n);
    return pages->owners[page];
}

int
kv_pages_n_free(const struct kv_pages *pages)
{
    return pages->n_free;
}

int
kv_pages_n(const struct kv_pages *pages)
{
    return pages->n;
}
