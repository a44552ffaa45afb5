/* arena: see arena.h. A list of blocks; the first is the one that small requests are cut from. */
#include "base/arena.h"

#include <stdalign.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ARENA_ALIGN_BYTES = 16, ARENA_FIRST_BYTES = 4096, ARENA_MOST_BYTES = 1 << 18 };

/* Under AddressSanitizer every request gets its own block, so that running past its end is seen. */
#if defined(__SANITIZE_ADDRESS__)
#define ARENA_ONE_BLOCK_EACH 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define ARENA_ONE_BLOCK_EACH 1
#endif
#endif
#ifndef ARENA_ONE_BLOCK_EACH
#define ARENA_ONE_BLOCK_EACH 0
#endif

struct arena_block {
    struct arena_block *next;
    size_t size_bytes, used_bytes;
    alignas(ARENA_ALIGN_BYTES) char data[];
};

struct arena {
    struct arena_block *blocks;
    size_t limit_bytes, used_bytes, next_block_bytes;
};

struct arena *
arena_new(size_t limit_bytes)
{
    struct arena *arena = calloc(1, sizeof *arena);
    if (!arena)
        return NULL;
    arena->limit_bytes = limit_bytes;
    arena->next_block_bytes = ARENA_FIRST_BYTES;
    return arena;
}

static struct arena_block *
arena_block_new(size_t size_bytes)
{
    struct arena_block *block = calloc(1, sizeof *block + size_bytes);
    if (block)
        block->size_bytes = size_bytes;
    return block;
}

void *
arena_alloc(struct arena *arena, size_t size_bytes)
{
    if (size_bytes > SIZE_MAX / 2)
        return NULL;
    size_t rounded = (size_bytes + ARENA_ALIGN_BYTES - 1) & ~(size_t)(ARENA_ALIGN_BYTES - 1);
    if (rounded == 0)
        rounded = ARENA_ALIGN_BYTES; /* every result is a distinct address */
    if (arena->limit_bytes && rounded > arena->limit_bytes - arena->used_bytes)
        return NULL;
    if (rounded > SIZE_MAX - arena->used_bytes)
        return NULL;

    struct arena_block *block = arena->blocks;
    if (ARENA_ONE_BLOCK_EACH || rounded > ARENA_MOST_BYTES / 4) {
        /* Behind the first block, whose rest stays in use. */
        struct arena_block *own = arena_block_new(ARENA_ONE_BLOCK_EACH ? size_bytes : rounded);
        if (!own)
            return NULL;
        own->used_bytes = own->size_bytes;
        own->next = block ? block->next : NULL;
        if (block)
            block->next = own;
        else
            arena->blocks = own;
        arena->used_bytes += rounded;
        return own->data;
    }
    if (!block || rounded > block->size_bytes - block->used_bytes) {
        size_t wanted = arena->next_block_bytes > rounded ? arena->next_block_bytes : rounded;
        size_t allowed = arena->limit_bytes ? arena->limit_bytes - arena->used_bytes : SIZE_MAX / 2;
        struct arena_block *fresh = arena_block_new(wanted < allowed ? wanted : allowed);
        if (!fresh)
            return NULL;
        fresh->next = block;
        arena->blocks = block = fresh;
        if (arena->next_block_bytes < ARENA_MOST_BYTES)
            arena->next_block_bytes *= 2;
    }
    void *result = block->data + block->used_bytes;
    block->used_bytes += rounded;
    arena->used_bytes += rounded;
    return result;
}

void *
arena_array(struct arena *arena, size_t count, size_t size_bytes)
{
    size_t total;
    if (__builtin_mul_overflow(count, size_bytes, &total))
        return NULL;
    return arena_alloc(arena, total);
}

char *
arena_strndup(struct arena *arena, const char *text, size_t length_bytes)
{
    if (length_bytes == SIZE_MAX)
        return NULL;
    char *copy = arena_alloc(arena, length_bytes + 1);
    if (copy && length_bytes)
        memcpy(copy, text, length_bytes);
    return copy;
}

size_t
arena_used_bytes(const struct arena *arena)
{
    return arena->used_bytes;
}

struct arena *
arena_free(struct arena *arena)
{
    if (!arena)
        return NULL;
    for (struct arena_block *block = arena->blocks; block;) {
        struct arena_block *next = block->next;
        free(block);
        block = next;
    }
    free(arena);
    return NULL;
}
