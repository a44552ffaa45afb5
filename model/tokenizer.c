/* tokenizer: see tokenizer.h. */
#include "model/tokenizer.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/check.h"
#include "model/tokenizer_parts.h"
#include "base/utf8_scan.h"

enum { FILE_MAX_BYTES = 256 << 20 };

int
tokenizer_parse(struct tokenizer **ret_tokenizer, const char *json, size_t size, int vocab,
                struct err *err)
{
    if (size > FILE_MAX_BYTES)
        return err_set(err, EBADMSG, "%zu bytes are more than a tokenizer may have (%d)", size,
                       FILE_MAX_BYTES);
    struct tokenizer *tokenizer = calloc(1, sizeof *tokenizer);
    if (!tokenizer)
        return err_errno(err, ENOMEM, "a tokenizer");
    int r = tokenizer_json_read(tokenizer, json, size, vocab, err);
    if (r < 0) {
        tokenizer = tokenizer_free(tokenizer);
        return r;
    }
    *ret_tokenizer = tokenizer;
    return 0;
}

/* Reads size bytes; a file that shrinks meanwhile is an error, what grows behind them is not looked
 * at. */
static int
read_whole(int fd, char *data, size_t size, struct err *err)
{
    for (size_t done = 0; done < size;) {
        ssize_t n = read(fd, data + done, size - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return err_errno(err, errno, "read");
        if (n == 0)
            return err_set(err, EBADMSG, "the file ends at byte %zu of %zu", done, size);
        done += (size_t)n;
    }
    return 0;
}

static int
load_fd(struct tokenizer **ret_tokenizer, int fd, int vocab, struct err *err)
{
    struct stat st;
    if (fstat(fd, &st) < 0)
        return err_errno(err, errno, "stat");
    if (!S_ISREG(st.st_mode))
        return err_set(err, EBADMSG, "not a regular file");
    if (st.st_size > FILE_MAX_BYTES)
        return err_set(err, EBADMSG, "%lld bytes are more than a tokenizer may have (%d)",
                       (long long)st.st_size, FILE_MAX_BYTES);
    size_t size = (size_t)st.st_size;
    char *data = malloc(size + 1);
    if (!data)
        return err_errno(err, ENOMEM, "%zu bytes", size);
    int r = read_whole(fd, data, size, err);
    if (r == 0)
        r = tokenizer_parse(ret_tokenizer, data, size, vocab, err);
    free(data);
    return r;
}

int
tokenizer_load(struct tokenizer **ret_tokenizer, const char *path, int vocab, struct err *err)
{
    /* O_NONBLOCK: a FIFO in the place of the file must not hang the start. */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return err_errno(err, errno, "%s", path);
    int r = load_fd(ret_tokenizer, fd, vocab, err);
    (void)close(fd);
    if (r < 0)
        (void)err_context(err, "%s", path);
    return r;
}

struct tokenizer *
tokenizer_free(struct tokenizer *tokenizer)
{
    if (tokenizer) {
        token_table_release(&tokenizer->table);
        added_tokens_release(&tokenizer->added);
        pretokenizer_release(&tokenizer->pretokenizer);
        bpe_release(&tokenizer->bpe);
        free(tokenizer->before.id);
        free(tokenizer->after.id);
        free(tokenizer);
    }
    return NULL;
}

/* One text on its way. */
struct encode_run {
    const struct tokenizer *tokenizer;
    struct split_matcher *matcher;
    struct token_ids ids;
};

static int
encode_piece(void *arg, const char *piece, size_t size_bytes, struct err *err)
{
    struct encode_run *run = arg;
    return bpe_encode(&run->tokenizer->bpe, &run->tokenizer->table, piece, size_bytes, &run->ids,
                      err);
}

/* What lies between the added tokens of the normalised text, or one of them. */
static int
encode_normal_part(void *arg, int32_t id, const char *text, size_t size_bytes, struct err *err)
{
    struct encode_run *run = arg;
    if (id >= 0)
        return token_ids_append(&run->ids, id, err);
    return pretokenizer_run(&run->tokenizer->pretokenizer, run->matcher, text, size_bytes,
                            encode_piece, run, err);
}

/* The same of the raw text. Each part is normalised by itself: nothing reaches across an added
 * token. */
static int
encode_raw_part(void *arg, int32_t id, const char *text, size_t size_bytes, struct err *err)
{
    struct encode_run *run = arg;
    const struct tokenizer *tokenizer = run->tokenizer;
    char *changed = NULL;
    if (id >= 0)
        return token_ids_append(&run->ids, id, err);
    int r = text_normalize(&tokenizer->normalizer, text, size_bytes, &changed, &size_bytes, err);
    if (r == 0)
        r = added_tokens_split(&tokenizer->added, &tokenizer->added.normalized,
                               changed ? changed : text, size_bytes, encode_normal_part, run, err);
    free(changed);
    return r;
}

int64_t
tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t size_bytes,
                 size_t max_tokens, int32_t **ret_ids, struct err *err)
{
    struct encode_run run = {.tokenizer = tokenizer, .ids = {.limit = max_tokens}};
    char *repaired = NULL;
    *ret_ids = NULL;
    if (size_bytes > INT32_MAX / 4)
        return err_set(err, E2BIG, "a text of %zu bytes", size_bytes);
    int r = utf8_repair(text, size_bytes, &repaired, &size_bytes);
    if (r < 0)
        return err_errno(err, ENOMEM, "a text of %zu bytes", size_bytes);
    r = split_matcher_new(&run.matcher, err);
    if (r == 0)
        r = added_tokens_split(&tokenizer->added, &tokenizer->added.raw, repaired ? repaired : text,
                               size_bytes, encode_raw_part, &run, err);
    run.matcher = split_matcher_free(run.matcher);
    free(repaired);
    if (r == 0 && !run.ids.id) {
        /* No token at all: callers may rely on a pointer to free and to compare. */
        run.ids.id = malloc(sizeof *run.ids.id);
        if (!run.ids.id)
            r = err_errno(err, ENOMEM, "no tokens");
    }
    if (r < 0) {
        free(run.ids.id);
        return r;
    }
    *ret_ids = run.ids.id;
    return (int64_t)run.ids.count;
}

void
tokenizer_template(const struct tokenizer *tokenizer, const int32_t **ret_before, int *ret_n_before,
                   const int32_t **ret_after, int *ret_n_after)
{
    *ret_before = tokenizer->before.id;
    *ret_n_before = (int)tokenizer->before.count;
    *ret_after = tokenizer->after.id;
    *ret_n_after = (int)tokenizer->after.count;
}

int
tokenizer_size(const struct tokenizer *tokenizer)
{
    return tokenizer->table.size;
}

const char *
tokenizer_bytes(const struct tokenizer *tokenizer, int id, size_t *ret_size)
{
    return token_table_bytes(&tokenizer->table, id, ret_size);
}

bool
tokenizer_is_special(const struct tokenizer *tokenizer, int id)
{
    return token_table_has(&tokenizer->table, id) &&
           (tokenizer->table.entry[id].flags & TOKEN_SPECIAL);
}

int
tokenizer_find(const struct tokenizer *tokenizer, const char *content, size_t size)
{
    return token_table_find(&tokenizer->table, content, size);
}
