/* byte_alphabet: the 256 printable characters that stand for the 256 bytes in byte-level
 * vocabularies.
 *
 * Printable ASCII and Latin-1 stand for themselves; the 68 others are U+0100.. in byte order
 * (GPT-2). Thread: none; pure functions. */
#ifndef MODEL_BYTE_ALPHABET_H
#define MODEL_BYTE_ALPHABET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

uint32_t byte_alphabet_char(uint8_t byte);
/* The byte that cp stands for; -1 when cp is not in the alphabet. */
int byte_alphabet_byte(uint32_t cp);
/* Turns a vocabulary string (well-formed UTF-8) into bytes, in out (size_bytes of room). Returns
 * the bytes written; -1 when a character is outside the alphabet, out is then undefined. */
int64_t byte_alphabet_decode(const char *text, size_t size_bytes, char *out);
/* Bytes to vocabulary string; out holds 2 * size_bytes. Returns the bytes written. */
size_t byte_alphabet_encode(const char *bytes, size_t size_bytes, char *out);

#endif
