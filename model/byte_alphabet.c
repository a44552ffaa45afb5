/* byte_alphabet: see byte_alphabet.h. */
#include "model/byte_alphabet.h"

#include "base/utf8_scan.h"

/* The bytes that do not stand for themselves are three ranges: 0..32, 127..160 and 173. */
enum { FIRST_STANDIN = 0x100, LAST_STANDIN = 0x143 };

uint32_t
byte_alphabet_char(uint8_t byte)
{
    if (byte <= 32)
        return FIRST_STANDIN + (uint32_t)byte;
    if (byte >= 127 && byte <= 160)
        return FIRST_STANDIN + 33 + (uint32_t)(byte - 127);
    if (byte == 173)
        return LAST_STANDIN;
    return byte;
}

int
byte_alphabet_byte(uint32_t cp)
{
    if (cp <= 0xFF)
        return byte_alphabet_char((uint8_t)cp) == cp ? (int)cp : -1;
    if (cp > LAST_STANDIN)
        return -1;
    if (cp == LAST_STANDIN)
        return 173;
    uint32_t n = cp - FIRST_STANDIN;
    return n < 33 ? (int)n : (int)(n - 33 + 127);
}

int64_t
byte_alphabet_decode(const char *text, size_t size_bytes, char *out)
{
    size_t used = 0;
    for (size_t at = 0; at < size_bytes;) {
        uint32_t cp;
        int length = utf8_next(text + at, size_bytes - at, &cp);
        int byte = length > 0 ? byte_alphabet_byte(cp) : -1;
        if (byte < 0)
            return -1;
        out[used++] = (char)byte;
        at += (size_t)length;
    }
    return (int64_t)used;
}

size_t
byte_alphabet_encode(const char *bytes, size_t size_bytes, char *out)
{
    size_t used = 0;
    for (size_t i = 0; i < size_bytes; i++) {
        char one[4];
        int length = utf8_put(byte_alphabet_char((uint8_t)bytes[i]), one);
        out[used++] = one[0];
        if (length == 2)
            out[used++] = one[1];
    }
    return used;
}
