/* What is refused in a tokenizer.json, and how it is named. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "tests/unit/model/tokenizer_fixture.h"

static void
check_refusal(const struct fixture_parts *parts, int code, const char *named)
{
    struct tokenizer *tokenizer = NULL;
    struct err err = ERR_INIT;
    int r = fixture_parse(&tokenizer, parts, 1000, &err);
    if (r != code || !strstr(err.text, named))
        fail_msg("%d, \"%s\", where %d and %s were expected", r, err.text, code, named);
    assert_null(tokenizer);
}

#define REFUSE(code, named, ...) check_refusal(&(struct fixture_parts){__VA_ARGS__}, code, named)

static void
what_is_not_understood_is_refused_by_name(void **state)
{
    REFUSE(-ENOTSUP, "dropout", .model_extra = ",\"dropout\":0.1");
    REFUSE(-ENOTSUP, "fuse_unk", .model_extra = ",\"fuse_unk\":true");
    REFUSE(-ENOTSUP, "byte_fallback", .model_extra = ",\"byte_fallback\":true");
    REFUSE(-ENOTSUP, "continuing_subword_prefix",
           .model_extra = ",\"continuing_subword_prefix\":\"##\"");
    REFUSE(-ENOTSUP, "end_of_word_suffix", .model_extra = ",\"end_of_word_suffix\":\"</w>\"");
    REFUSE(-ENOTSUP, "end_of_word_suffix", .model_extra = ",\"end_of_word_suffix\":7");
    REFUSE(-ENOTSUP, "colour", .model_extra = ",\"colour\":1");
    REFUSE(-ENOTSUP, "Unigram", .model_extra = ",\"type\":\"Unigram\"");
    REFUSE(-EBADMSG, "ignore_merges", .model_extra = ",\"ignore_merges\":\"yes\"");
    REFUSE(-ENOTSUP, "sauce", .extra = ",\"sauce\":{}");
    REFUSE(-ENOTSUP, "2.0", .extra = ",\"version\":\"2.0\"");
    REFUSE(-ENOTSUP, "Lowercase", .normalizer = "{\"type\":\"Lowercase\"}");
    REFUSE(-ENOTSUP, "Metaspace", .pre_tokenizer = "{\"type\":\"Metaspace\"}");
    REFUSE(-EBADMSG, "pre_tokenizer is null", .pre_tokenizer = "null");
    REFUSE(-EBADMSG, "decoder is null", .decoder = "null");
    REFUSE(-ENOTSUP, "WordPiece", .decoder = "{\"type\":\"WordPiece\"}");
    REFUSE(-ENOTSUP, "decoder", .decoder = "{\"type\":\"Sequence\",\"decoders\":[]}");
    REFUSE(-ENOTSUP, "Fuse",
           .decoder = "{\"type\":\"Sequence\",\"decoders\":[{\"type\":\"Fuse\"}]}");
    REFUSE(-ENOTSUP, "BertProcessing", .post_processor = "{\"type\":\"BertProcessing\"}");
}

static void
an_unknown_token_needs_every_byte_to_be_known(void **state)
{
    static const char json[] =
        "{\"pre_tokenizer\":" FIXTURE_BYTES ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{"
        "\"vocab\":{\"a\":0,\"<unk>\":1},\"merges\":[],\"unk_token\":\"<unk>\"}}";
    struct tokenizer *tokenizer = NULL;
    struct err err = ERR_INIT;
    assert_int_equal(tokenizer_parse(&tokenizer, json, sizeof json - 1, 10, &err), -ENOTSUP);
    assert_non_null(strstr(err.text, "unk_token"));
}

static void
lying_vocabularies_are_refused_with_the_token_named(void **state)
{
    REFUSE(-EBADMSG, "\"zz\" has id 1000", .vocab = ",\"zz\":1000");
    REFUSE(-EBADMSG, "\"zz\" has id -1", .vocab = ",\"zz\":-1");
    REFUSE(-EBADMSG, "\"zz\" has id 1099511627776", .vocab = ",\"zz\":1099511627776");
    REFUSE(-EBADMSG, "99999999999999999999", .vocab = ",\"zz\":99999999999999999999");
    REFUSE(-EBADMSG, "\"zz\" has 1.5", .vocab = ",\"zz\":1.5");
    REFUSE(-EBADMSG, "\"zz\" has \"1\"", .vocab = ",\"zz\":\"1\"");
    REFUSE(-EBADMSG, "\"zz\" has null", .vocab = ",\"zz\":null");
    REFUSE(-EBADMSG, "id 97 has two tokens", .vocab = ",\"zz\":97");
    REFUSE(-EBADMSG, "two ids, 97 and 300", .vocab = ",\"a\":300");
    REFUSE(-EBADMSG, "\"a\" is there twice", .vocab = ",\"a\":97");
    REFUSE(-EBADMSG, "empty string", .vocab = ",\"\":300");
}

static void
lying_merges_are_refused_with_the_merge_named(void **state)
{
    REFUSE(-EBADMSG, "merge \"a b\" needs the token \"ab\"", .merges = "\"a b\"");
    REFUSE(-EBADMSG, "merge \"zz b\" needs the token \"zz\"", .merges = "\"zz b\"");
    REFUSE(-EBADMSG, "merge [\"a\",\"zz\"] needs the token \"zz\"", .merges = "[\"a\",\"zz\"]");
    REFUSE(-EBADMSG, "is not two strings", .merges = "\"ab\"");
    REFUSE(-EBADMSG, "is not two strings", .merges = "\"a b c\"");
    REFUSE(-EBADMSG, "is not two strings", .merges = "\"a \"");
    REFUSE(-EBADMSG, "needs the token \"\"", .merges = "\" a\"");
    REFUSE(-EBADMSG, "merge 7 is not", .merges = "7");
    REFUSE(-EBADMSG, "merge [] is not", .merges = "[]");
    REFUSE(-EBADMSG, "is not two strings", .merges = "[\"a\"]");
    REFUSE(-EBADMSG, "is not two strings", .merges = "[\"a\",\"b\",\"c\"]");
    REFUSE(-EBADMSG, "is not two strings", .merges = "[\"a\",7]");
    /* A token of the added ones is none of the model's. */
    REFUSE(-EBADMSG, "needs the token", .merges = "\"a b\"",
           .added = "{\"id\":300,\"content\":\"ab\"}");
}

static void
missing_and_mistyped_parts_are_refused(void **state)
{
    static const struct {
        const char *json, *named;
    } bad[] = {
        {"", "JSON ends early"},
        {"{}", "pre_tokenizer is nothing"},
        {"[]", "the file is an array"},
        {"null", "the file is null"},
        {"{\"pre_tokenizer\":" FIXTURE_BYTES "}", "decoder is nothing"},
        {"{\"pre_tokenizer\":" FIXTURE_BYTES ",\"decoder\":{\"type\":\"ByteLevel\"}}",
         "\"model\" is nothing"},
        {"{\"pre_tokenizer\":" FIXTURE_BYTES ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":[]}",
         "\"model\" is an array"},
        {"{\"pre_tokenizer\":" FIXTURE_BYTES
         ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":[],\"merges\":[]}}",
         "\"vocab\" is an array"},
        {"{\"pre_tokenizer\":" FIXTURE_BYTES
         ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":{},\"merges\":{}}}",
         "\"merges\" is an object"},
        {"{\"pre_tokenizer\":" FIXTURE_BYTES
         ",\"decoder\":{\"type\":\"ByteLevel\"},\"model\":{\"vocab\":{}}}",
         "\"merges\" is nothing"},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        struct tokenizer *tokenizer = NULL;
        struct err err = ERR_INIT;
        assert_int_equal(tokenizer_parse(&tokenizer, bad[i].json, strlen(bad[i].json), 10, &err),
                         -EBADMSG);
        if (!strstr(err.text, bad[i].named))
            fail_msg("%s: %s", bad[i].json, err.text);
    }
    REFUSE(-EBADMSG, "an added token is a number", .added = "7");
    REFUSE(-EBADMSG, "\"id\"", .added = "{\"content\":\"x\"}");
    REFUSE(-EBADMSG, "\"content\"", .added = "{\"id\":300,\"content\":7}");
    REFUSE(-EBADMSG, "lstrip", .added = "{\"id\":300,\"content\":\"<x>\",\"lstrip\":1}");
    REFUSE(-ENOTSUP, "glow", .added = "{\"id\":300,\"content\":\"<x>\",\"glow\":1}");
    REFUSE(-EBADMSG, "\"<x>\" has id 1000", .added = "{\"id\":1000,\"content\":\"<x>\"}");
    REFUSE(-EBADMSG, "two ids, 97 and 300", .added = "{\"id\":300,\"content\":\"a\"}");
    REFUSE(-EBADMSG, "id 97 has two tokens", .added = "{\"id\":97,\"content\":\"<x>\"}");
    REFUSE(-EBADMSG, "empty", .added = "{\"id\":300,\"content\":\"\"}");
}

static void
long_added_tokens_have_a_limit(void **state)
{
    char added[2000] = "{\"id\":300,\"content\":\"";
    size_t head = strlen(added);
    memset(added + head, 'x', 1024);
    strcpy(added + head + 1024, "\"}");
    struct tokenizer *tokenizer;
    assert_int_equal(fixture_parse(&tokenizer, &(struct fixture_parts){.added = added}, 1000, NULL),
                     0);
    tokenizer = tokenizer_free(tokenizer);
    strcpy(added + head + 1024, "x\"}");
    REFUSE(-ENOTSUP, "1025 bytes", .added = added);
}

static void
files_that_are_none_are_refused_with_their_path(void **state)
{
    struct tokenizer *tokenizer = NULL;
    struct err err = ERR_INIT;
    char folder[] = "/tmp/tokenizer_test_XXXXXX", path[100];
    assert_non_null(mkdtemp(folder));
    (void)snprintf(path, sizeof path, "%s/tokenizer.json", folder);
    assert_int_equal(tokenizer_load(&tokenizer, path, 10, &err), -ENOENT);
    assert_non_null(strstr(err.text, path));
    err = ERR_INIT;
    assert_int_equal(tokenizer_load(&tokenizer, folder, 10, &err), -EBADMSG);
    assert_non_null(strstr(err.text, "not a regular file"));
    assert_int_equal(mkfifo(path, 0600), 0);
    assert_int_equal(tokenizer_load(&tokenizer, path, 10, NULL), -EBADMSG);
    assert_int_equal(unlink(path), 0);
    char *json = fixture_json(&(struct fixture_parts){.vocab = NULL});
    size_t size = strlen(json);
    for (size_t cut = 0; cut <= size; cut += cut + 50 < size ? 50 : 1) {
        int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
        assert_int_equal(write(fd, json, cut), cut);
        (void)close(fd);
        err = ERR_INIT;
        assert_int_equal(tokenizer_load(&tokenizer, path, 1000, &err), cut == size ? 0 : -EBADMSG);
        if (cut < size)
            assert_non_null(strstr(err.text, path));
    }
    assert_int_equal(tokenizer_size(tokenizer), 256);
    tokenizer = tokenizer_free(tokenizer);
    free(json);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(folder), 0);
}

#define TEMPLATE(single, tokens)                                                                   \
    "{\"type\":\"TemplateProcessing\",\"single\":" single ",\"special_tokens\":" tokens "}"
#define SPECIAL "{\"SpecialToken\":{\"id\":\"a\"}}"

static void
lying_templates_are_refused(void **state)
{
    REFUSE(-EBADMSG, "\"single\"", .post_processor = TEMPLATE("7", "{}"));
    REFUSE(-ENOTSUP, "without the text", .post_processor = TEMPLATE("[]", "{}"));
    REFUSE(-ENOTSUP, "\"B\"", .post_processor = TEMPLATE("[{\"Sequence\":{\"id\":\"B\"}}]", "{}"));
    REFUSE(-EBADMSG, "\"a\" has no ids", .post_processor = TEMPLATE("[" SPECIAL "]", "{}"));
    REFUSE(-EBADMSG, "has the id 400",
           .post_processor = TEMPLATE("[" SPECIAL "]", "{\"a\":{\"ids\":[400]}}"));
    REFUSE(-EBADMSG, "has the id -1",
           .post_processor = TEMPLATE("[" SPECIAL "]", "{\"a\":{\"ids\":[-1]}}"));
    REFUSE(-EBADMSG, "has the id \"a\"",
           .post_processor = TEMPLATE("[" SPECIAL "]", "{\"a\":{\"ids\":[\"a\"]}}"));
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_not_understood_is_refused_by_name),
        cmocka_unit_test(an_unknown_token_needs_every_byte_to_be_known),
        cmocka_unit_test(lying_vocabularies_are_refused_with_the_token_named),
        cmocka_unit_test(lying_merges_are_refused_with_the_merge_named),
        cmocka_unit_test(missing_and_mistyped_parts_are_refused),
        cmocka_unit_test(long_added_tokens_have_a_limit),
        cmocka_unit_test(files_that_are_none_are_refused_with_their_path),
        cmocka_unit_test(lying_templates_are_refused),
    };
    return cmocka_run_group_tests_name("tokenizer_file", tests, NULL, NULL);
}
