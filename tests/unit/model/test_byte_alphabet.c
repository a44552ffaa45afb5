#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/byte_alphabet.h"

static void
bytes_and_characters_go_back_and_forth(void **state)
{
    bool seen[0x144] = {false};
    for (int byte = 0; byte < 256; byte++) {
        uint32_t cp = byte_alphabet_char((uint8_t)byte);
        assert_in_range(cp, '!', 0x143);
        assert_false(seen[cp]);
        seen[cp] = true;
        assert_int_equal(byte_alphabet_byte(cp), byte);
    }
    int others = 0;
    for (uint32_t cp = 0; cp < 0x110000; cp++)
        others += byte_alphabet_byte(cp) < 0;
    assert_int_equal(others, 0x110000 - 256);
}

static void
known_characters_stand_for_known_bytes(void **state)
{
    assert_int_equal(byte_alphabet_char(' '), 0x120);
    assert_int_equal(byte_alphabet_char('\n'), 0x10A);
    assert_int_equal(byte_alphabet_char('a'), 'a');
    assert_int_equal(byte_alphabet_char(0x7F), 0x121);
    assert_int_equal(byte_alphabet_char(0xA0), 0x142);
    assert_int_equal(byte_alphabet_char(0xAD), 0x143);
    assert_int_equal(byte_alphabet_char(0xE4), 0xE4);
}

static void
strings_decode_or_are_refused_whole(void **state)
{
    char out[16];
    assert_int_equal(byte_alphabet_decode("\xc4\xa0the", 5, out), 4);
    assert_memory_equal(out, " the", 4);
    assert_int_equal(byte_alphabet_decode("the end", 7, out), -1); /* a space is not in it */
    assert_int_equal(byte_alphabet_decode("\xe4\xb8\xad", 3, out), -1);
    assert_int_equal(byte_alphabet_decode("a\xff", 2, out), -1);
    assert_int_equal(byte_alphabet_decode("", 0, out), 0);
    assert_int_equal(byte_alphabet_encode(" \xe4!", 3, out), 5);
    assert_memory_equal(out, "\xc4\xa0\xc3\xa4!", 5);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(bytes_and_characters_go_back_and_forth),
        cmocka_unit_test(known_characters_stand_for_known_bytes),
        cmocka_unit_test(strings_decode_or_are_refused_whole),
    };
    return cmocka_run_group_tests_name("byte_alphabet", tests, NULL, NULL);
}
