/* The bytes of a tensor, whatever its place in the file and whatever way they are read. */
#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "daemon/table_reader.h"
#include "tests/unit/model/scratch_folder.h"

/* A tensor of 10 MiB and some bytes behind one of a few, so that it begins at no block and ends at
 * the end of the file. */
enum { BYTES = (10 << 20) + 777, BEFORE = 24, HEADER = 256 };

static uint8_t file[8 + HEADER + BEFORE + BYTES], got[TABLE_READER_PIECE_BYTES];
static const uint8_t *const tensor_bytes = file + 8 + HEADER + BEFORE;
static struct checkpoint *checkpoint;
static const struct tensor *tensor;

static int
set_up(void **state)
{
    uint64_t header = HEADER;
    struct err err = ERR_INIT;

    memcpy(file, &header, 8);
    int n = snprintf((char *)file + 8, HEADER,
                     "{\"a\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[0,%d]},"
                     "\"b\":{\"dtype\":\"U8\",\"shape\":[%d],\"data_offsets\":[%d,%d]}}",
                     BEFORE, BEFORE, BYTES, BEFORE, BEFORE + BYTES);
    memset(file + 8 + n, ' ', HEADER - (size_t)n);
    for (size_t i = 0; i < BEFORE + BYTES; i++)
        file[8 + HEADER + i] = (uint8_t)((i * 2654435761u) >> 13);
    if (scratch_make(state) < 0 || scratch_write("model.safetensors", file, sizeof file) < 0)
        return -1;
    if (checkpoint_open(&checkpoint, scratch_folder, &err) < 0)
        fail_msg("%s", err.text);
    tensor = checkpoint_find(checkpoint, "b");
    return tensor ? 0 : -1;
}

static int
tear_down(void **state)
{
    checkpoint = checkpoint_close(checkpoint);
    return scratch_remove(state);
}

static void *
new_buffer(void)
{
    void *buffer =
        aligned_alloc(TABLE_READER_ALIGN, TABLE_READER_PIECE_BYTES + 2 * TABLE_READER_ALIGN);

    assert_non_null(buffer);
    return buffer;
}

static void
every_piece_has_its_bytes(void **state)
{
    static const struct {
        uint64_t at;
        size_t size;
    } piece[] = {{0, 1},
                 {0, TABLE_READER_PIECE_BYTES},
                 {TABLE_READER_PIECE_BYTES, BYTES - TABLE_READER_PIECE_BYTES},
                 {BYTES - TABLE_READER_PIECE_BYTES, TABLE_READER_PIECE_BYTES},
                 {BYTES - 1, 1},
                 {4095, 4097},
                 {12345, 100000}};

    for (int way = 0; way < 4; way++) {
        struct table_reader *reader;
        struct err err = ERR_INIT;
        void *buffer = way & 1 ? new_buffer() : NULL;

        assert_int_equal(table_reader_new(&reader, checkpoint, way & 2, &err), 0);
        for (size_t i = 0; i < sizeof piece / sizeof *piece; i++) {
            memset(got, 0, piece[i].size);
            assert_int_equal(table_reader_read(reader, tensor, piece[i].at, got, piece[i].size,
                                               buffer, &err),
                             0);
            assert_memory_equal(got, tensor_bytes + piece[i].at, piece[i].size);
        }
        free(buffer);
        table_reader_free(reader);
    }
}

static void
a_file_that_has_become_shorter_is_an_error(void **state)
{
    void *buffer = new_buffer();
    struct table_reader *reader;

    assert_int_equal(truncate(scratch_path("model.safetensors"), (off_t)sizeof file - 100), 0);
    for (int direct = 0; direct < 2; direct++) {
        struct err err = ERR_INIT;

        assert_int_equal(table_reader_new(&reader, checkpoint, direct, &err), 0);
        assert_int_equal(table_reader_read(reader, tensor, 0, got, 4096, buffer, &err), 0);
        assert_int_equal(table_reader_read(reader, tensor, BYTES - 5000, got, 5000, buffer, &err),
                         -EIO);
        assert_int_equal(table_reader_read(reader, tensor, BYTES - 50, got, 50, buffer, &err), -EIO);
        table_reader_free(reader);
    }
    free(buffer);
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_piece_has_its_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_file_that_has_become_shorter_is_an_error, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
