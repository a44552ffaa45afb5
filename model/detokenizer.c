/* detokenizer: see tokenizer.h. The pending bytes are always the proper beginning of a character.
 */
#include <string.h>

#include "base/check.h"
#include "model/tokenizer.h"
#include "base/utf8_scan.h"

/* Takes one character or broken part off the front of text: copies it or U+FFFD to out. 0 when what
 * is left could still become a character. */
static size_t
take_character(const char *text, size_t size_bytes, char *out, size_t *ret_written)
{
    uint32_t cp;
    int length = utf8_next(text, size_bytes, &cp);
    *ret_written = 0;
    if (length > 0) {
        memcpy(out, text, (size_t)length);
        *ret_written = (size_t)length;
        return (size_t)length;
    }
    if (length == 0)
        return 0;
    memcpy(out, UTF8_REPLACEMENT, 3);
    *ret_written = 3;
    return (size_t)-length;
}

size_t
detokenizer_push(struct detokenizer *d, int id, char *out, size_t out_size)
{
    size_t size_bytes, used = 0, at = 0, written;
    const char *bytes = tokenizer_bytes(d->tokenizer, id, &size_bytes);
    if (!bytes || (d->skip_special && tokenizer_is_special(d->tokenizer, id)))
        return 0;
    ASSERT(out_size >= detokenizer_bound(size_bytes));
    /* The pending bytes and as many new ones as a character could still want. A broken part of the
     * two ends within the pending bytes or at their end, so the rest is found where it lies. */
    while (d->n_pending > 0 && at < size_bytes) {
        char joined[sizeof d->pending];
        size_t pending = (size_t)d->n_pending, more = size_bytes - at < 3 ? size_bytes - at : 3;
        memcpy(joined, d->pending, pending);
        memcpy(joined + pending, bytes + at, more);
        size_t taken = take_character(joined, pending + more, out + used, &written);
        used += written;
        if (taken == 0) {
            /* Still not whole, so all there is was too little. */
            memcpy(d->pending, joined, pending + more);
            d->n_pending += (int)more;
            return used;
        }
        if (taken < pending) {
            memmove(d->pending, d->pending + taken, pending - taken);
            d->n_pending -= (int)taken;
        } else {
            at += taken - pending;
            d->n_pending = 0;
        }
    }
    while (at < size_bytes) {
        size_t taken = take_character(bytes + at, size_bytes - at, out + used, &written);
        used += written;
        if (taken == 0) {
            d->n_pending = (int)(size_bytes - at);
            memcpy(d->pending, bytes + at, size_bytes - at);
            break;
        }
        at += taken;
    }
    return used;
}

size_t
detokenizer_flush(struct detokenizer *d, char *out, size_t out_size)
{
    if (d->n_pending == 0)
        return 0;
    ASSERT(out_size >= 3);
    memcpy(out, UTF8_REPLACEMENT, 3);
    d->n_pending = 0;
    return 3;
}
