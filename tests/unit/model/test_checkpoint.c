#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <sys/stat.h>

#include "base/clock.h"
#include "model/checkpoint.h"
#include "model/shard_index.h"
#include "tests/unit/model/scratch_folder.h"

#define A "{\"a\":{\"dtype\":\"U8\",\"shape\":[4],\"data_offsets\":[0,4]}}"
#define BC                                                                                         \
    "{\"c\":{\"dtype\":\"BF16\",\"shape\":[3],\"data_offsets\":[0,6]},"                            \
    "\"b\":{\"dtype\":\"U8\",\"shape\":[2],\"data_offsets\":[6,8]}}"
#define ONE "model-00001-of-00002.safetensors"
#define TWO "model-00002-of-00002.safetensors"

static void
refused(int code, const char *message)
{
    struct err err = ERR_INIT;
    struct checkpoint *checkpoint = NULL;
    assert_int_equal(checkpoint_open(&checkpoint, scratch_folder, &err), code);
    assert_null(checkpoint);
    if (!strstr(err.text, message))
        fail_msg("\"%s\" does not say \"%s\"", err.text, message);
}

static void
index_of(const char *map)
{
    char text[1000];
    (void)snprintf(text, sizeof text, "{\"metadata\":{\"total_size\":12},\"weight_map\":%s}", map);
    assert_int_equal(scratch_write_text("model.safetensors.index.json", text), 0);
}

static void
two_shards(void)
{
    assert_int_equal(scratch_write_safetensors(ONE, A, 4), 0);
    assert_int_equal(scratch_write_safetensors(TWO, BC, 8), 0);
    index_of("{\"b\":\"" TWO "\",\"a\":\"" ONE "\",\"c\":\"" TWO "\"}");
}

static void
a_single_file_opens_and_reads(void **state)
{
    assert_int_equal(scratch_write_safetensors("model.safetensors", BC, 8), 0);
    struct err err = ERR_INIT;
    struct checkpoint *checkpoint;
    assert_int_equal(checkpoint_open(&checkpoint, scratch_folder, &err), 0);
    assert_int_equal(checkpoint_n_tensors(checkpoint), 2);
    assert_string_equal(checkpoint_tensor(checkpoint, 0)->name, "b");
    assert_string_equal(checkpoint_tensor(checkpoint, 1)->name, "c");
    assert_null(checkpoint_find(checkpoint, "a"));
    const struct tensor *b = checkpoint_find(checkpoint, "b");
    assert_ptr_equal(b, checkpoint_tensor(checkpoint, 0));
    uint8_t got[8] = {0};
    assert_int_equal(checkpoint_read(checkpoint, b, 0, got, 2, &err), 0);
    assert_int_equal(got[0], 6);
    assert_int_equal(got[1], 7);
    assert_int_equal(checkpoint_read(checkpoint, b, 1, got, 1, &err), 0);
    assert_int_equal(got[0], 7);
    assert_int_equal(checkpoint_read(checkpoint, b, 2, got, 0, &err), 0);
    assert_int_equal(checkpoint_read(checkpoint, b, 0, got, 3, &err), -EINVAL);
    assert_int_equal(checkpoint_read(checkpoint, b, 3, got, 0, NULL), -EINVAL);
    assert_int_equal(checkpoint_read(checkpoint, b, UINT64_MAX, got, 2, NULL), -EINVAL);
    assert_int_equal(checkpoint_n_files(checkpoint), 1);
    assert_string_equal(checkpoint_file_path(checkpoint, 0), scratch_path("model.safetensors"));
    struct stat st;
    assert_int_equal(fstat(checkpoint_file_fd(checkpoint, 0), &st), 0);
    assert_int_equal(checkpoint_file_size(checkpoint, 0), st.st_size);
    assert_int_equal(fcntl(checkpoint_file_fd(checkpoint, 0), F_GETFL) & O_NONBLOCK, 0);
    assert_int_equal(fcntl(checkpoint_file_fd(checkpoint, 0), F_GETFD), FD_CLOEXEC);
    assert_null(checkpoint_close(checkpoint));
    assert_null(checkpoint_close(NULL));
}

static void
shards_are_found_through_the_index(void **state)
{
    two_shards();
    struct checkpoint *checkpoint;
    struct err err = ERR_INIT;
    assert_int_equal(checkpoint_open(&checkpoint, scratch_folder, &err), 0);
    assert_int_equal(checkpoint_n_tensors(checkpoint), 3);
    assert_int_equal(checkpoint_n_files(checkpoint), 2);
    const struct tensor *a = checkpoint_find(checkpoint, "a"),
                        *b = checkpoint_find(checkpoint, "b");
    assert_string_equal(checkpoint_file_path(checkpoint, a->file), scratch_path(ONE));
    assert_string_equal(checkpoint_file_path(checkpoint, b->file), scratch_path(TWO));
    uint8_t got[2];
    assert_int_equal(checkpoint_read(checkpoint, b, 0, got, 2, &err), 0);
    assert_int_equal(got[0], 6);
    assert_null(checkpoint_close(checkpoint));
}

static void
a_symbolic_link_to_a_file_is_followed(void **state)
{
    assert_int_equal(scratch_write_safetensors("blob", A, 4), 0);
    assert_int_equal(symlink("blob", scratch_path("model.safetensors")), 0);
    struct checkpoint *checkpoint;
    assert_int_equal(checkpoint_open(&checkpoint, scratch_folder, NULL), 0);
    assert_null(checkpoint_close(checkpoint));
}

static void
a_missing_checkpoint_is_named(void **state)
{
    refused(-ENOENT, "model.safetensors: No such file");
    index_of("{\"a\":\"" ONE "\"}");
    refused(-ENOENT, ONE ": No such file");
    struct err err = ERR_INIT;
    struct checkpoint *checkpoint;
    assert_int_equal(checkpoint_open(&checkpoint, "/nonexistent", &err), -ENOENT);
    char *deep = malloc(5001);
    memset(deep, 'd', 5000);
    deep[5000] = '\0';
    assert_int_equal(checkpoint_open(&checkpoint, deep, NULL), -ENAMETOOLONG);
    free(deep);
}

static void
a_file_and_an_index_are_ambiguous(void **state)
{
    two_shards();
    assert_int_equal(scratch_write_safetensors("model.safetensors", A, 4), 0);
    refused(-EBADMSG, "has both");
}

static void
things_that_are_not_regular_files_are_refused(void **state)
{
    assert_int_equal(mkfifo(scratch_path("model.safetensors"), 0600), 0);
    refused(-EBADMSG, "not a regular file"); /* and does not wait for a writer */
    assert_int_equal(unlink(scratch_path("model.safetensors")), 0);
    assert_int_equal(mkdir(scratch_path("model.safetensors"), 0700), 0);
    refused(-EBADMSG, "not a regular file");
    assert_int_equal(mkfifo(scratch_path("model.safetensors.index.json"), 0600), 0);
    assert_int_equal(rmdir(scratch_path("model.safetensors")), 0);
    refused(-EBADMSG, "not a regular file");
}

static void
shard_names_stay_in_the_folder(void **state)
{
    static const char *const name[] = {"\"../x\"", "\"/etc/passwd\"", "\"a/b\"", "\"..\"", "\".\"",
                                       "\"\"",     "\".hidden\"",     "1",       "null",   "[]"};
    char map[100];
    for (size_t i = 0; i < sizeof name / sizeof name[0]; i++) {
        (void)snprintf(map, sizeof map, "{\"a\":%s}", name[i]);
        index_of(map);
        refused(-EBADMSG, "weight_map.a is not a plain file name");
    }
}

static void
index_and_shards_must_agree(void **state)
{
    two_shards();
    index_of("{\"b\":\"" TWO "\",\"a\":\"" ONE "\"}");
    refused(-EBADMSG, "tensor c is not in");
    index_of("{\"b\":\"" TWO "\",\"a\":\"" ONE "\",\"c\":\"" TWO "\",\"d\":\"" ONE "\"}");
    refused(-EBADMSG, "tensor d is not in " ONE);
    index_of("{\"b\":\"" ONE "\",\"a\":\"" ONE "\",\"c\":\"" TWO "\"}");
    refused(-EBADMSG, "tensor b is in");
    index_of("{\"b\":\"" TWO "\",\"a\":\"" ONE "\",\"c\":\"" TWO "\",\"c\":\"" TWO "\"}");
    refused(-EBADMSG, "duplicate");
    index_of("{}");
    refused(-EBADMSG, "weight_map is missing, empty");
    index_of("[]");
    refused(-EBADMSG, "weight_map is missing, empty");
    assert_int_equal(scratch_write_text("model.safetensors.index.json", "{}"), 0);
    refused(-EBADMSG, "weight_map is missing");
    assert_int_equal(scratch_write_text("model.safetensors.index.json", "[1"), 0);
    refused(-EBADMSG, "model.safetensors.index.json:1:");
    assert_int_equal(scratch_write_text("model.safetensors.index.json", ""), 0);
    refused(-EBADMSG, "model.safetensors.index.json");
}

static void
a_tensor_in_two_shards_is_refused(void **state)
{
    two_shards();
    assert_int_equal(scratch_write_safetensors(TWO, A, 4), 0);
    refused(-EBADMSG, "tensor a is both in");
}

static void
a_truncated_shard_is_named(void **state)
{
    two_shards();
    struct stat st;
    assert_int_equal(stat(scratch_path(TWO), &st), 0);
    for (off_t size = 0; size < st.st_size; size++) {
        assert_int_equal(scratch_write_safetensors(TWO, BC, 8), 0);
        assert_int_equal(truncate(scratch_path(TWO), size), 0);
        refused(-EBADMSG, TWO);
    }
}

static void
a_file_that_shrinks_after_opening_gives_an_error_not_zeros(void **state)
{
    assert_int_equal(scratch_write_safetensors("model.safetensors", BC, 8), 0);
    struct checkpoint *checkpoint;
    struct err err = ERR_INIT;
    uint8_t got[6];
    assert_int_equal(checkpoint_open(&checkpoint, scratch_folder, &err), 0);
    const struct tensor *c = checkpoint_find(checkpoint, "c");
    assert_int_equal(truncate(scratch_path("model.safetensors"), (off_t)c->offset_bytes + 5), 0);
    assert_int_equal(checkpoint_read(checkpoint, c, 0, got, 5, &err), 0);
    assert_int_equal(checkpoint_read(checkpoint, c, 0, got, 6, &err), -EIO);
    assert_non_null(strstr(err.text, "model.safetensors: the file ends within tensor c"));
    assert_null(checkpoint_close(checkpoint));
}

/* DeepSeek-V4.1-Flash has 96,000 tensors; a quadratic step would take minutes here. */
static void
a_hundred_thousand_tensors_open_fast(void **state)
{
    enum { N = 100000 };
    char *header = malloc((size_t)N * 120), *at = header, name[64];
    *at++ = '{';
    for (int i = 0; i < N; i++)
        at += sprintf(at,
                      "%s\"layers.%d.ffn.experts.%d.w1.weight\":{\"dtype\":\"U8\",\"shape\":[1],"
                      "\"data_offsets\":[%d,%d]}",
                      i ? "," : "", i % 40, i / 40, i, i + 1);
    strcpy(at, "}");
    assert_int_equal(scratch_write_safetensors("model.safetensors", header, N), 0);
    free(header);
    struct checkpoint *checkpoint;
    uint64_t start = clock_now_ns();
    assert_int_equal(checkpoint_open(&checkpoint, scratch_folder, NULL), 0);
    assert_true(clock_now_ns() - start < 20000000000u);
    print_message("opened in %.0f ms\n", (double)(clock_now_ns() - start) / 1e6);
    assert_int_equal(checkpoint_n_tensors(checkpoint), N);
    for (int i = 0; i < N; i++) {
        (void)snprintf(name, sizeof name, "layers.%d.ffn.experts.%d.w1.weight", i % 40, i / 40);
        uint8_t got;
        const struct tensor *tensor = checkpoint_find(checkpoint, name);
        assert_non_null(tensor);
        assert_int_equal(checkpoint_read(checkpoint, tensor, 0, &got, 1, NULL), 0);
        assert_int_equal(got, i & 255);
    }
    assert_null(checkpoint_close(checkpoint));
}

#define SCRATCH(test) cmocka_unit_test_setup_teardown(test, scratch_make, scratch_remove)

int
main(void)
{
    const struct CMUnitTest tests[] = {
        SCRATCH(a_single_file_opens_and_reads),
        SCRATCH(shards_are_found_through_the_index),
        SCRATCH(a_symbolic_link_to_a_file_is_followed),
        SCRATCH(a_missing_checkpoint_is_named),
        SCRATCH(a_file_and_an_index_are_ambiguous),
        SCRATCH(things_that_are_not_regular_files_are_refused),
        SCRATCH(shard_names_stay_in_the_folder),
        SCRATCH(index_and_shards_must_agree),
        SCRATCH(a_tensor_in_two_shards_is_refused),
        SCRATCH(a_truncated_shard_is_named),
        SCRATCH(a_file_that_shrinks_after_opening_gives_an_error_not_zeros),
        SCRATCH(a_hundred_thousand_tensors_open_fast),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
