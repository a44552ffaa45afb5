/* arena: memory with one lifetime, dropped whole. Zeroed on allocation, 16-byte aligned.
 * Thread: owned by whoever holds it; no locking. Fails with NULL only past the limit given at
 * creation or when malloc does.                                                             */
#ifndef BASE_ARENA_H
#define BASE_ARENA_H

#include <stddef.h>

struct arena;

/* limit_bytes bounds everything the arena may hold; 0 means no bound. */
struct arena *arena_new(size_t limit_bytes);
void *arena_alloc(struct arena *arena, size_t size_bytes); /* NULL when over the limit */
void *arena_array(struct arena *arena, size_t count, size_t size_bytes); /* overflow-checked */
char *arena_strndup(struct arena *arena, const char *text, size_t length_bytes);
size_t arena_used_bytes(const struct arena *arena);
struct arena *arena_free(struct arena *arena); /* accepts NULL, returns NULL */

#endif
