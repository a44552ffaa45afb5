#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include "model/safetensors.h"
#include "tests/unit/model/scratch_folder.h"

#define A "\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}"
#define B "\"b\":{\"dtype\":\"F8_E4M3\",\"shape\":[5],\"data_offsets\":[24,29]}"

/* The result of a header in front of data_bytes bytes. */
static int
check(const char *header, size_t data_bytes, struct err *err)
{
    size_t size;
    uint8_t *bytes = safetensors_bytes(header, data_bytes, &size);
    int r = safetensors_check(bytes, size, size, err);
    free(bytes);
    return r;
}

static void
accepted(const char *header, size_t data_bytes)
{
    struct err err = ERR_INIT;
    if (check(header, data_bytes, &err) != 0)
        fail_msg("%s: %s", header, err.text);
    assert_string_equal(err.text, "");
}

static void
refused(const char *header, size_t data_bytes, const char *message)
{
    struct err err = ERR_INIT;
    assert_int_equal(check(header, data_bytes, &err), -EBADMSG);
    if (!strstr(err.text, message))
        fail_msg("%s: \"%s\" does not say \"%s\"", header, err.text, message);
}

static void
a_header_gives_its_tensors_in_the_order_of_their_data(void **state)
{
    static const char header[] = "{" B ",\"__metadata__\":{\"format\":\"pt\"}," A "}   ";
    struct arena *arena = arena_new(0);
    struct tensor *tensor;
    int count;
    size_t size = sizeof header - 1;
    assert_int_equal(
        safetensors_parse(header, size, 8 + size + 29, 7, arena, &tensor, &count, NULL), 0);
    assert_int_equal(count, 2);
    assert_string_equal(tensor[0].name, "a");
    assert_int_equal(tensor[0].dtype, DTYPE_F32);
    assert_int_equal(tensor[0].rank, 2);
    assert_int_equal(tensor[0].dim[0], 2);
    assert_int_equal(tensor[0].dim[1], 3);
    assert_int_equal(tensor[0].offset_bytes, 8 + size);
    assert_int_equal(tensor[0].size_bytes, 24);
    assert_int_equal(tensor[0].file, 7);
    assert_string_equal(tensor[1].name, "b");
    assert_int_equal(tensor[1].dtype, DTYPE_F8_E4M3);
    assert_int_equal(tensor[1].offset_bytes, 8 + size + 24);
    assert_int_equal(tensor[1].size_bytes, 5);
    assert_null(arena_free(arena));
}

static void
unusual_but_valid_headers_are_accepted(void **state)
{
    accepted("{}", 0);
    accepted("{\"__metadata__\":{}}", 0);
    accepted("{" A "," B "}", 29);
    accepted("{" B ",\n\t" A "}    \n", 29);
    /* scalars, and tensors without elements at the start, between and at the end */
    accepted("{\"s\":{\"dtype\":\"BF16\",\"shape\":[],\"data_offsets\":[0,2]}}", 2);
    accepted("{\"z\":{\"dtype\":\"I64\",\"shape\":[0,9],\"data_offsets\":[0,0]}," A
             ",\"y\":{\"dtype\":\"I8\",\"shape\":[0],\"data_offsets\":[24,24]}," B
             ",\"x\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[29,29]}}",
             29);
    accepted("{\"r\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,2],\"data_offsets\":[0,2]}}", 2);
    accepted("{\"\\u0061\\ud83d\\ude00\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}",
             1);
}

static void
tensors_must_cover_the_data_exactly(void **state)
{
    refused("{" A "," B "}", 28, "truncated");
    refused("{" A "," B "}", 30, "1 bytes behind the last tensor");
    refused("{" B "}", 29, "a hole of 24 bytes before tensor b");
    refused("{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[6],\"data_offsets\":[23,29]}}", 29,
            "tensor b overlaps tensor a");
    refused("{" A ",\"b\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,24]}}", 24,
            "tensor b overlaps tensor a");
    refused("{" A ",\"b\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[7,7]}}", 24,
            "overlaps");
    refused("{}", 1, "1 bytes behind");
}

static void
offsets_must_be_honest(void **state)
{
    static const char *const offsets[] = {
        "[24,0]",
        "[0,25]",
        "[-8,16]",
        "[0.0,24.0]",
        "[\"0\",24]",
        "[0]",
        "[0,24,24]",
        "[0,1e2]",
        "{}",
        "null",
        "24",
        "[null,24]",
        "[false,24]",
        "[0,-1]",
        "[0,9223372036854775807]",
        "[9223372036854775806,9223372036854775807]",
    };
    char header[200];
    for (size_t i = 0; i < sizeof offsets / sizeof offsets[0]; i++) {
        (void)snprintf(header, sizeof header,
                       "{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":%s}}",
                       offsets[i]);
        refused(header, 24, "tensor a: data_offsets");
    }
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,9223372036854775808]}}",
            24, "too big integer");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[0,23]}}", 23,
            "tensor a: data_offsets span 23 bytes, dtype and shape 24");
}

static void
shapes_must_be_honest(void **state)
{
    static const char *const shapes[] = {"[2,-3]", "[2,3.0]", "[\"2\",3]", "[[2,3]]", "[2,null]"};
    char header[200];
    for (size_t i = 0; i < sizeof shapes / sizeof shapes[0]; i++) {
        (void)snprintf(header, sizeof header,
                       "{\"a\":{\"dtype\":\"F32\",\"shape\":%s,\"data_offsets\":[0,24]}}",
                       shapes[i]);
        refused(header, 24, "tensor a: shape[");
    }
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":6,\"data_offsets\":[0,24]}}", 24, "not an array");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[1,1,1,1,1,1,1,1,2],\"data_offsets\":[0,2]}}", 2,
            "rank 9 is more than 8");
    /* products past 2^63 and past 2^64 (which would wrap to 0), also when a zero follows */
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,2147483648],\"data_offsets\":[0,0]}}",
            0, "overflows");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296],\"data_offsets\":[0,0]}}",
            0, "overflows");
    refused("{\"a\":{\"dtype\":\"F64\",\"shape\":[2305843009213693952],\"data_offsets\":[0,0]}}", 0,
            "overflows");
    refused("{\"a\":{\"dtype\":\"U8\",\"shape\":[4294967296,4294967296,0],\"data_offsets\":[0,0]}}",
            0, "overflows");
}

static void
fields_must_be_the_known_ones(void **state)
{
    refused("{\"a\":{\"dtype\":\"F31\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype F31");
    refused("{\"a\":{\"dtype\":\"f32\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype f32");
    refused("{\"a\":{\"dtype\":\"\",\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype");
    refused("{\"a\":{\"dtype\":4,\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype is missing");
    refused("{\"a\":{\"shape\":[1],\"data_offsets\":[0,4]}}", 4, "dtype is missing");
    refused("{\"a\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}", 4, "shape is missing");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1]}}", 4, "data_offsets");
    refused("{\"a\":{\"dtype\":\"F32\",\"shape\":[1],\"data_offsets\":[0,4],\"stride\":[1]}}", 4,
            "tensor a: unknown field stride");
    refused("{\"a\":4}", 4, "tensor a: not an object");
    refused("{\"__metadata__\":{\"n\":4}}", 0, "__metadata__.n");
    refused("{\"__metadata__\":[]}", 0, "__metadata__");
    refused("{\"\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1,
            "name has 0 bytes");
}

static void
text_that_is_not_strict_json_is_refused(void **state)
{
    refused("{" A "," A "}", 24, "duplicate");
    refused(" {" A "}", 24, "does not begin with {");
    refused("[1]", 0, "does not begin with {");
    refused("{" A ",}", 24, "JSON");
    refused("{" A "} {}", 24, "JSON");
    refused("{" A, 24, "JSON");
    refused("{\"\\u0000\":1}", 0, "JSON");
    refused("{\"\xc0\xaf\":1}", 0, "JSON");
    refused("{\"\xff\":1}", 0, "JSON");
}

static void
names_are_bounded(void **state)
{
    char name[SAFETENSORS_MAX_NAME_BYTES + 2], header[700];
    memset(name, 'n', sizeof name);
    name[SAFETENSORS_MAX_NAME_BYTES] = '\0';
    (void)snprintf(header, sizeof header,
                   "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
    accepted(header, 1);
    name[SAFETENSORS_MAX_NAME_BYTES] = 'n';
    name[SAFETENSORS_MAX_NAME_BYTES + 1] = '\0';
    (void)snprintf(header, sizeof header,
                   "{\"%s\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", name);
    refused(header, 1, "name has 513 bytes");
}

static void
a_truncated_file_is_refused_at_every_length(void **state)
{
    size_t size;
    uint8_t *bytes = safetensors_bytes("{" A "," B "}", 29, &size);
    assert_int_equal(safetensors_check(bytes, size, size, NULL), 0);
    for (size_t n = 0; n < size; n++) {
        struct err err = ERR_INIT;
        /* An exact copy, so that reading one byte past the end is seen by the sanitizer. */
        uint8_t *part = malloc(n ? n : 1);
        memcpy(part, bytes, n);
        assert_int_equal(safetensors_check(part, n, n, &err), -EBADMSG);
        assert_true(err.text[0] != '\0');
        free(part);
    }
    /* Only the header is at hand, the file is longer. */
    assert_int_equal(safetensors_check(bytes, size - 29, size, NULL), 0);
    assert_int_equal(safetensors_check(bytes, size - 30, size, NULL), -EBADMSG);
    assert_int_equal(safetensors_check(bytes, size, size - 1, NULL), -EBADMSG);
    free(bytes);
}

static void
a_lying_header_length_is_refused(void **state)
{
    size_t size;
    uint8_t *bytes = safetensors_bytes("{" A "}", 24, &size);
    uint64_t honest = size - 8 - 24;
    uint64_t lie[] = {
        0,         1,         honest - 1, honest + 1,        size - 8,       size - 7,  size,
        100000000, 100000001, UINT32_MAX, (uint64_t)1 << 63, UINT64_MAX - 7, UINT64_MAX};
    for (size_t i = 0; i < sizeof lie / sizeof lie[0]; i++) {
        for (int b = 0; b < 8; b++)
            bytes[b] = (uint8_t)(lie[i] >> 8 * b);
        assert_int_equal(safetensors_check(bytes, size, size, NULL), -EBADMSG);
    }
    /* The limit itself is a length like any other: the file is just too short for it. */
    struct err err = ERR_INIT;
    uint8_t prefix[8];
    size_t got;
    for (int b = 0; b < 8; b++)
        prefix[b] = (uint8_t)((uint64_t)SAFETENSORS_MAX_HEADER_BYTES >> 8 * b);
    assert_int_equal(safetensors_header_size(prefix, 100000008, &got, &err), 0);
    assert_int_equal(got, 100000000);
    prefix[0]++;
    assert_int_equal(safetensors_header_size(prefix, 200000000, &got, &err), -EBADMSG);
    free(bytes);
}

/* A mutation may still be valid (a letter of a name, spaces); then what it says must still hold. */
static void
every_single_byte_mutation_is_refused_or_consistent(void **state)
{
    size_t size;
    static const char header[] = "{\"__metadata__\":{\"f\":\"pt\"}," A "," B "} ";
    uint8_t *bytes = safetensors_bytes(header, 29, &size);
    int valid = 0;
    for (size_t at = 0; at < size - 29; at++) {
        uint8_t before = bytes[at];
        for (int value = 0; value < 256; value++) {
            bytes[at] = (uint8_t)value;
            size_t header_bytes;
            if (safetensors_header_size(bytes, size, &header_bytes, NULL) < 0)
                continue;
            struct arena *arena = arena_new(0);
            struct tensor *tensor;
            int count;
            if (safetensors_parse((const char *)bytes + 8, header_bytes, size, 0, arena, &tensor,
                                  &count, NULL) == 0) {
                uint64_t end = 8 + header_bytes;
                for (int i = 0; i < count; i++) {
                    assert_int_equal(tensor[i].offset_bytes, end);
                    end += tensor[i].size_bytes;
                }
                assert_int_equal(end, size);
                valid++;
            }
            (void)arena_free(arena);
        }
        bytes[at] = before;
    }
    assert_in_range(valid, 50, 3000);
    free(bytes);
}

static void
a_header_of_nothing_but_punctuation_is_refused_before_it_is_parsed(void **state)
{
    size_t length = 6000000;
    char *header = malloc(length + 1);
    memset(header, ',', length);
    memcpy(header, "{\"a\":[0", 7);
    header[length] = '\0';
    refused(header, 0, "more than");
    memset(header, '[', length);
    memcpy(header, "{\"a\":", 5);
    refused(header, 0, "more than");
    header[3000] = '\0';
    refused(header, 0, "JSON"); /* too deep */
    free(header);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_header_gives_its_tensors_in_the_order_of_their_data),
        cmocka_unit_test(unusual_but_valid_headers_are_accepted),
        cmocka_unit_test(tensors_must_cover_the_data_exactly),
        cmocka_unit_test(offsets_must_be_honest),
        cmocka_unit_test(shapes_must_be_honest),
        cmocka_unit_test(fields_must_be_the_known_ones),
        cmocka_unit_test(text_that_is_not_strict_json_is_refused),
        cmocka_unit_test(names_are_bounded),
        cmocka_unit_test(a_truncated_file_is_refused_at_every_length),
        cmocka_unit_test(a_lying_header_length_is_refused),
        cmocka_unit_test(every_single_byte_mutation_is_refused_or_consistent),
        cmocka_unit_test(a_header_of_nothing_but_punctuation_is_refused_before_it_is_parsed),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
