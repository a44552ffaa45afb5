/* utf8_scan: see utf8_scan.h. */
#include "base/utf8_scan.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

int
utf8_next(const char *text, size_t size_bytes, uint32_t *ret_cp)
{
    const uint8_t *s = (const uint8_t *)text;
    uint8_t lead = s[0], low = 0x80, high = 0xBF; /* bounds of the second byte */
    int length;
    uint32_t cp;
    if (lead < 0x80) {
        *ret_cp = lead;
        return 1;
    }
    if (lead < 0xC2 || lead > 0xF4)
        return -1;
    if (lead < 0xE0) {
        length = 2;
        cp = lead & 0x1F;
    } else if (lead < 0xF0) {
        length = 3;
        cp = lead & 0x0F;
        if (lead == 0xE0)
            low = 0xA0; /* shorter forms exist */
        else if (lead == 0xED)
            high = 0x9F; /* surrogates */
    } else {
        length = 4;
        cp = lead & 0x07;
        if (lead == 0xF0)
            low = 0x90;
        else if (lead == 0xF4)
            high = 0x8F; /* past U+10FFFF */
    }
    for (int i = 1; i < length; i++) {
        if ((size_t)i == size_bytes)
            return 0;
        if (s[i] < low || s[i] > high)
            return -i;
        cp = cp << 6 | (s[i] & 0x3F);
        low = 0x80;
        high = 0xBF;
    }
    *ret_cp = cp;
    return length;
}

int
utf8_previous(const char *text, size_t size_bytes, uint32_t *ret_cp)
{
    size_t at = size_bytes - 1;
    while (at > 0 && size_bytes - at < 4 && ((uint8_t)text[at] & 0xC0) == 0x80)
        at--;
    return utf8_next(text + at, size_bytes - at, ret_cp);
}

int
utf8_put(uint32_t cp, char out[4])
{
    if (cp < 0x80) {
        out[0] = (char)cp;
        return 1;
    }
    if (cp < 0x800) {
        out[0] = (char)(0xC0 | cp >> 6);
        out[1] = (char)(0x80 | (cp & 0x3F));
        return 2;
    }
    if (cp < 0x10000) {
        out[0] = (char)(0xE0 | cp >> 12);
        out[1] = (char)(0x80 | (cp >> 6 & 0x3F));
        out[2] = (char)(0x80 | (cp & 0x3F));
        return 3;
    }
    ASSERT(cp <= 0x10FFFF);
    out[0] = (char)(0xF0 | cp >> 18);
    out[1] = (char)(0x80 | (cp >> 12 & 0x3F));
    out[2] = (char)(0x80 | (cp >> 6 & 0x3F));
    out[3] = (char)(0x80 | (cp & 0x3F));
    return 4;
}

/* Bytes from the start of text that are well-formed. */
static size_t
utf8_valid_prefix(const char *text, size_t size_bytes)
{
    size_t at = 0;
    uint32_t cp;
    while (at < size_bytes) {
        uint64_t word;
        if (size_bytes - at >= sizeof word) {
            memcpy(&word, text + at, sizeof word);
            if ((word & 0x8080808080808080) == 0) {
                at += sizeof word;
                continue;
            }
        }
        int length = utf8_next(text + at, size_bytes - at, &cp);
        if (length <= 0)
            break;
        at += (size_t)length;
    }
    return at;
}

int
utf8_step(const char *text, size_t size_bytes)
{
    uint32_t cp;
    int length = utf8_next(text, size_bytes, &cp);

    return length ? length : -(int)size_bytes;
}

bool
utf8_valid(const char *text, size_t size_bytes)
{
    return utf8_valid_prefix(text, size_bytes) == size_bytes;
}

int
utf8_repair(const char *text, size_t size_bytes, char **ret_text, size_t *ret_size_bytes)
{
    size_t good = utf8_valid_prefix(text, size_bytes);
    *ret_text = NULL;
    *ret_size_bytes = size_bytes;
    if (good == size_bytes)
        return 0;
    size_t bound;
    if (__builtin_mul_overflow(size_bytes, (size_t)3, &bound))
        return -ENOMEM;
    char *out = malloc(bound);
    if (!out)
        return -ENOMEM;
    size_t used = 0, at = 0;
    while (at < size_bytes) {
        memcpy(out + used, text + at, good);
        used += good;
        at += good;
        if (at < size_bytes) {
            uint32_t cp;
            int length = utf8_next(text + at, size_bytes - at, &cp);
            memcpy(out + used, UTF8_REPLACEMENT, 3);
            used += 3;
            at += length ? (size_t)-length : size_bytes - at;
            good = utf8_valid_prefix(text + at, size_bytes - at);
        }
    }
    *ret_text = out;
    *ret_size_bytes = used;
    return 0;
}

bool
utf8_is_white_space(uint32_t cp)
{
    return (cp >= 0x09 && cp <= 0x0D) || cp == 0x20 || cp == 0x85 || cp == 0xA0 || cp == 0x1680 ||
           (cp >= 0x2000 && cp <= 0x200A) || cp == 0x2028 || cp == 0x2029 || cp == 0x202F ||
           cp == 0x205F || cp == 0x3000;
}
