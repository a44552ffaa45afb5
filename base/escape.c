/* escape: see escape.h. */
#include "base/escape.h"

#include <stdbool.h>
#include <string.h>

#include "base/check.h"

size_t
escape_utf8_length(const char *text, size_t length_bytes)
{
    const unsigned char *b = (const unsigned char *)text;
    if (length_bytes == 0)
        return 0;
    if (b[0] < 0x80)
        return 1;
    size_t need = b[0] >= 0xF0 ? 4 : b[0] >= 0xE0 ? 3 : 2;
    if (b[0] < 0xC2 || b[0] > 0xF4 || length_bytes < need)
        return 0;
    for (size_t i = 1; i < need; i++)
        if ((b[i] & 0xC0) != 0x80)
            return 0;
    /* Over-long forms, surrogates and values past U+10FFFF show in the second byte. */
    if ((b[0] == 0xE0 && b[1] < 0xA0) || (b[0] == 0xED && b[1] > 0x9F) ||
        (b[0] == 0xF0 && b[1] < 0x90) || (b[0] == 0xF4 && b[1] > 0x8F))
        return 0;
    return need;
}

static size_t
escape_one(char piece[4], unsigned char byte)
{
    static const char hex[] = "0123456789abcdef";
    char letter = byte == '\n' ? 'n' : byte == '\t' ? 't' : byte == '\r' ? 'r' : 0;
    piece[0] = '\\';
    if (letter) {
        piece[1] = letter;
        return 2;
    }
    piece[1] = 'x';
    piece[2] = hex[byte >> 4];
    piece[3] = hex[byte & 15];
    return 4;
}

size_t
escape_text(char *out, size_t out_size, const char *text, size_t length_bytes)
{
    ASSERT(out_size >= 1);
    size_t written = 0;
    for (size_t at = 0; at < length_bytes;) {
        unsigned char byte = (unsigned char)text[at];
        size_t taken = escape_utf8_length(text + at, length_bytes - at);
        bool c1 = taken == 2 && byte == 0xC2 && (unsigned char)text[at + 1] < 0xA0;
        char piece[8];
        size_t size;
        if (c1) { /* U+0080..U+009F: terminals take some of them as commands */
            size = escape_one(piece, byte);
            size += escape_one(piece + size, (unsigned char)text[at + 1]);
        } else if (taken == 0 || byte < 0x20 || byte == 0x7F) {
            size = escape_one(piece, byte);
            taken = 1;
        } else {
            memcpy(piece, text + at, taken);
            size = taken;
        }
        if (size > out_size - 1 - written)
            break;
        memcpy(out + written, piece, size);
        written += size;
        at += taken;
    }
    out[written] = '\0';
    return written;
}
