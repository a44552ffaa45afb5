#include "proto/utf8_scan.h"

int
utf8_step(const char *text, size_t size)
{
    const unsigned char *s = (const unsigned char *)text;
    unsigned char low = 0x80, high = 0xBF; /* what the second byte may be */
    int length;

    if (s[0] < 0x80)
        return 1;
    if (s[0] < 0xC2 || s[0] > 0xF4)
        return -1;
    if (s[0] < 0xE0) {
        length = 2;
    } else if (s[0] < 0xF0) {
        length = 3;
        if (s[0] == 0xE0)
            low = 0xA0; /* overlong */
        else if (s[0] == 0xED)
            high = 0x9F; /* surrogates */
    } else {
        length = 4;
        if (s[0] == 0xF0)
            low = 0x90; /* overlong */
        else if (s[0] == 0xF4)
            high = 0x8F; /* past U+10FFFF */
    }
    if (size < 2 || s[1] < low || s[1] > high)
        return -1;
    for (int i = 2; i < length; i++)
        if (size <= (size_t)i || s[i] < 0x80 || s[i] > 0xBF)
            return -i;
    return length;
}

bool
utf8_valid(const char *text, size_t size)
{
    while (size) {
        int step = utf8_step(text, size);

        if (step < 0)
            return false;
        text += step;
        size -= (size_t)step;
    }
    return true;
}
