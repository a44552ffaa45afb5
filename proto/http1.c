#include "proto/http1.h"

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "proto/http_head.h"

/* What the next byte belongs to.
 *
 *   HEAD --empty line--> LENGTH --last byte--------------------------+
 *    ^  |                                                            |
 *    |  +-------------> FRAME <--> DATA    FRAME --last chunk--------+
 *    |                                                               |
 *    +--------------------------------------- request complete <-----+
 *                                             (CLOSED when the client said so)
 *
 * P1  Bytes of a head are judged one by one before llhttp sees any: line ends are CR LF and nothing
 *     else, there are no other control characters and no folded lines. Where a head ends is
 * therefore not a matter of opinion between us, llhttp, and whatever stands in front of us. P2
 * llhttp sees framing bytes of a chunked body one at a time, after the same check, and data bytes
 *     only up to the end of their chunk. Hence the result never depends on how input was split.
 * P3  Nothing is allocated for a body before its bytes arrive, past the first 64 KiB.            */
enum state { STATE_HEAD, STATE_LENGTH, STATE_FRAME, STATE_DATA, STATE_CLOSED, STATE_FAILED };

/* Which line of a chunked body's framing. */
enum frame_line { FRAME_SIZE, FRAME_EXTENSION, FRAME_DATA_END, FRAME_TRAILER };

enum { BODY_FIRST_BYTES = 65536, HEAD_FIRST_BYTES = 1024, FRAME_BYTES_PER_BODY_BYTE = 16 };

struct http_parser {
    llhttp_t llhttp; /* first: the callbacks find the parser by it */
    llhttp_settings_t settings;
    struct http_limits limits;
    enum state state;
    struct api_error error; /* of STATE_FAILED */

    char *head; /* bytes of the head so far */
    size_t head_bytes, head_capacity_bytes;
    size_t blank_bytes; /* line ends before a request line */
    size_t line_bytes;  /* of the line being read, without its end */
    int lines;
    char last; /* byte before this one, in a head or in framing; 0 at the start */

    struct http_request *request; /* from the end of its head on */
    char *body;
    size_t body_bytes, body_capacity_bytes;
    uint64_t left_bytes; /* of the body, or of the chunk */

    enum frame_line frame;
    uint64_t frame_bytes; /* framing and trailers so far */
    bool chunk_began, message_ended, too_large, no_memory;
};

const char *
http_request_header(const struct http_request *request, const char *lower_name)
{
    for (int i = 0; i < request->n_headers; i++)
        if (strcmp(request->headers[i].name, lower_name) == 0)
            return request->headers[i].value;
    return NULL;
}

struct http_request *
http_request_free(struct http_request *request)
{
    if (!request)
        return NULL;
    if (request->body_size)
        free((char *)request->body);
    arena_free(request->arena); /* the request is in it */
    return NULL;
}

/* Room for one byte more than the body, so that it can be NUL-terminated. */
static bool
body_append(struct http_parser *parser, const char *data, size_t size)
{
    size_t need = parser->body_bytes + size + 1;

    if (need > parser->body_capacity_bytes) {
        size_t capacity = parser->body_capacity_bytes;
        char *body;

        if (!capacity) {
            /* A known length within the first step is met exactly. */
            capacity = BODY_FIRST_BYTES;
            if (parser->state == STATE_LENGTH && parser->left_bytes < capacity)
                capacity = (size_t)parser->left_bytes + 1;
        }
        while (capacity < need)
            capacity *= 2;
        if (capacity > parser->limits.max_body_bytes + 1)
            capacity = parser->limits.max_body_bytes + 1; /* need fits: the limit was checked */
        body = realloc(parser->body, capacity);
        if (!body)
            return false;
        parser->body = body;
        parser->body_capacity_bytes = capacity;
    }
    memcpy(parser->body + parser->body_bytes, data, size);
    parser->body_bytes += size;
    return true;
}

static int
on_body(llhttp_t *llhttp, const char *at, size_t size)
{
    struct http_parser *parser = (struct http_parser *)llhttp;

    if (size && !body_append(parser, at, size)) {
        parser->no_memory = true;
        return HPE_USER;
    }
    return 0;
}

static int
on_chunk_header(llhttp_t *llhttp)
{
    struct http_parser *parser = (struct http_parser *)llhttp;

    if (llhttp->content_length > parser->limits.max_body_bytes - parser->body_bytes) {
        parser->too_large = true;
        return -1;
    }
    parser->left_bytes = llhttp->content_length;
    parser->chunk_began = true;
    return 0;
}

static int
on_message_complete(llhttp_t *llhttp)
{
    ((struct http_parser *)llhttp)->message_ended = true;
    return 0;
}

struct http_parser *
http_parser_new(const struct http_limits *limits)
{
    struct http_parser *parser = calloc(1, sizeof *parser);

    if (!parser)
        return NULL;
    ASSERT(limits->max_head_bytes > 0 && limits->max_headers > 0);
    ASSERT(limits->max_body_bytes < SIZE_MAX / 4);
    parser->limits = *limits;
    http_head_settings(&parser->settings);
    parser->settings.on_body = on_body;
    parser->settings.on_chunk_header = on_chunk_header;
    parser->settings.on_message_complete = on_message_complete;
    return parser;
}

struct http_parser *
http_parser_free(struct http_parser *parser)
{
    if (!parser)
        return NULL;
    http_request_free(parser->request);
    free(parser->body);
    free(parser->head);
    free(parser);
    return NULL;
}

bool
http_parser_idle(const struct http_parser *parser)
{
    return parser->state == STATE_HEAD && parser->head_bytes == 0;
}

static int
out_of_memory(struct http_parser *parser)
{
    return api_error_set(&parser->error, 503, "out_of_memory", NULL,
                         "The server is out of memory.");
}

static int
malformed(struct http_parser *parser, const char *what)
{
    return api_error_set(&parser->error, 400, "malformed_http", NULL,
                         "The HTTP request is malformed: %s.", what);
}

static int
body_too_large(struct http_parser *parser)
{
    return api_error_set(&parser->error, 413, "request_too_large", NULL,
                         "The request body is larger than %zu bytes.",
                         parser->limits.max_body_bytes);
}

/* Line ends are CR LF; a lone CR or LF ends a line for some readers and not for others. */
static int
check_byte(struct http_parser *parser, char c)
{
    if ((c == '\n') != (parser->last == '\r'))
        return malformed(parser, "a line does not end in CR LF");
    if ((unsigned char)c == 0x7F ||
        ((unsigned char)c < 0x20 && c != '\r' && c != '\n' && c != '\t'))
        return malformed(parser, "a control character");
    return 0;
}

/* The request line is judged as soon as it is there, so that a client of another protocol gets its
 * answer without an empty line. head ends with the CR. */
static int
check_request_line(struct http_parser *parser)
{
    static const char version[] = " HTTP/";
    size_t size = parser->head_bytes - 1; /* without the CR */
    const char *end = parser->head + size;

    if (size < 9 || memcmp(end - 9, version, 6) != 0 || end[-2] != '.')
        return malformed(parser, "the first line is not an HTTP request");
    if (end[-3] != '1' || (end[-1] != '0' && end[-1] != '1'))
        return api_error_set(&parser->error, 505, "malformed_http", NULL,
                             "Only HTTP/1.1 and HTTP/1.0 are spoken here.");
    return 0;
}

static int
head_append(struct http_parser *parser, char c)
{
    if (parser->head_bytes == parser->limits.max_head_bytes)
        return api_error_set(&parser->error, 431, "request_too_large", NULL,
                             "The head of the request is larger than %zu bytes.",
                             parser->limits.max_head_bytes);
    if (parser->head_bytes == parser->head_capacity_bytes) {
        size_t capacity =
            parser->head_capacity_bytes ? parser->head_capacity_bytes * 2 : HEAD_FIRST_BYTES;
        char *head = realloc(parser->head, capacity);

        if (!head)
            return out_of_memory(parser);
        parser->head = head;
        parser->head_capacity_bytes = capacity;
    }
    parser->head[parser->head_bytes++] = c;
    return 0;
}

/* One byte of a head: 1 when it ended the head, 0 when not, else a negated status. */
static int
head_byte(struct http_parser *parser, char c)
{
    int bad = check_byte(parser, c);

    if (bad < 0)
        return bad;
    parser->last = c;
    if (parser->head_bytes == 0 && (c == '\r' || c == '\n')) {
        /* Some clients end a body with a line end that is no part of it. */
        if (++parser->blank_bytes > parser->limits.max_head_bytes)
            return malformed(parser, "line ends without a request");
        return 0;
    }
    if (parser->line_bytes == 0 && (c == ' ' || c == '\t'))
        return malformed(parser, "a line that begins with a space");
    bad = head_append(parser, c);
    if (bad < 0)
        return bad;
    if (c == '\r') {
        if (parser->lines == 0)
            bad = check_request_line(parser);
        return bad;
    }
    if (c != '\n') {
        parser->line_bytes++;
        return 0;
    }
    if (parser->line_bytes == 0)
        return 1;
    parser->lines++;
    parser->line_bytes = 0;
    return 0;
}

static void
head_reset(struct http_parser *parser)
{
    parser->head_bytes = parser->blank_bytes = parser->line_bytes = 0;
    parser->lines = 0;
    parser->last = 0;
    /* A connection that idles for long keeps no more than the first step. */
    if (parser->head_capacity_bytes > HEAD_FIRST_BYTES) {
        free(parser->head);
        parser->head = NULL;
        parser->head_capacity_bytes = 0;
    }
}

/* The head is complete: read it, and say what follows. */
static int
begin_request(struct http_parser *parser, bool *ret_wants_continue)
{
    struct http_framing framing;
    int bad;

    llhttp_init(&parser->llhttp, LLHTTP_KIND_REQUEST, &parser->settings);
    bad = http_head_parse(&parser->llhttp, parser->head, parser->head_bytes, &parser->limits,
                          &parser->request, &framing, &parser->error);
    if (bad < 0)
        return bad;
    head_reset(parser);
    if (framing.length_bytes > parser->limits.max_body_bytes)
        return body_too_large(parser);
    *ret_wants_continue = framing.expect_continue && (framing.chunked || framing.length_bytes);
    parser->left_bytes = framing.length_bytes;
    parser->message_ended = parser->chunk_began = false;
    parser->frame = FRAME_SIZE;
    parser->frame_bytes = 0;
    parser->state = framing.chunked ? STATE_FRAME : STATE_LENGTH;
    return 0;
}

/* Hands llhttp bytes of a chunked body. */
static int
chunked_feed(struct http_parser *parser, const char *data, size_t size)
{
    llhttp_errno_t failure = llhttp_execute(&parser->llhttp, data, size);

    if (parser->no_memory)
        return out_of_memory(parser);
    if (parser->too_large)
        return body_too_large(parser);
    if (failure != HPE_OK && !(failure == HPE_PAUSED_UPGRADE && parser->message_ended))
        return http_llhttp_error(&parser->llhttp, failure, &parser->error);
    return 0;
}

static bool
is_hex(char c)
{
    return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f') || (c >= 'A' && c <= 'F');
}

/* One byte of chunk sizes, extensions, line ends after data, or trailers. */
static int
frame_byte(struct http_parser *parser, char c)
{
    int bad = check_byte(parser, c);

    if (bad < 0)
        return bad;
    parser->last = c;
    /* Extensions and trailers carry nothing for us; let them be short. */
    if (++parser->frame_bytes >
        parser->limits.max_head_bytes + parser->body_bytes * FRAME_BYTES_PER_BODY_BYTE)
        return api_error_set(&parser->error, 431, "request_too_large", NULL,
                             "The chunk extensions and trailers of the request are too large.");
    if (parser->frame == FRAME_SIZE && c == ';')
        parser->frame = FRAME_EXTENSION;
    else if (parser->frame == FRAME_SIZE && !is_hex(c) && c != '\r' && c != '\n')
        return malformed(parser, "a bad chunk size");
    bad = chunked_feed(parser, &c, 1);
    if (bad < 0)
        return bad;
    if (parser->chunk_began) {
        parser->chunk_began = false;
        parser->last = 0;
        parser->frame = parser->left_bytes ? FRAME_DATA_END : FRAME_TRAILER;
        parser->state = parser->left_bytes ? STATE_DATA : STATE_FRAME;
    } else if (parser->frame == FRAME_DATA_END && c == '\n') {
        parser->frame = FRAME_SIZE;
        parser->last = 0;
    }
    return 0;
}

/* Bytes of a body: at most size of them; returns how many, or a negated status. */
static long long
body_feed(struct http_parser *parser, const char *data, size_t size)
{
    size_t part = parser->left_bytes < size ? (size_t)parser->left_bytes : size;
    int bad = 0;

    if (parser->state == STATE_FRAME) {
        bad = frame_byte(parser, *data);
        return bad < 0 ? bad : 1;
    }
    if (parser->state == STATE_DATA)
        bad = chunked_feed(parser, data, part);
    else if (!body_append(parser, data, part))
        bad = out_of_memory(parser);
    if (bad < 0)
        return bad;
    parser->left_bytes -= part;
    if (parser->state == STATE_DATA && parser->left_bytes == 0)
        parser->state = STATE_FRAME;
    return (long long)part;
}

static bool
request_complete(const struct http_parser *parser)
{
    return parser->state == STATE_LENGTH ? parser->left_bytes == 0
                                         : parser->state == STATE_FRAME && parser->message_ended;
}

static void
give_request(struct http_parser *parser, struct http_request **ret_request)
{
    struct http_request *request = parser->request;

    if (parser->body_bytes) {
        parser->body[parser->body_bytes] = '\0';
        request->body = parser->body;
        request->body_size = parser->body_bytes;
        parser->body = NULL;
        parser->body_bytes = parser->body_capacity_bytes = 0;
    }
    parser->request = NULL;
    /* Nothing after a request that said "close" is a request. */
    parser->state = request->keep_alive ? STATE_HEAD : STATE_CLOSED;
    parser->last = 0;
    *ret_request = request;
}

enum http_event
http_parser_feed(struct http_parser *parser, const char *data, size_t size, size_t *ret_consumed,
                 struct http_request **ret_request, struct api_error *ret_error)
{
    size_t at = 0;

    while (at < size && parser->state != STATE_CLOSED && parser->state != STATE_FAILED) {
        bool wants_continue = false;
        long long step = 1;

        if (parser->state == STATE_HEAD) {
            int end = head_byte(parser, data[at]);

            step = end > 0 ? begin_request(parser, &wants_continue) : end;
            step = step < 0 ? step : 1;
        } else {
            step = body_feed(parser, data + at, size - at);
        }
        if (step < 0) {
            parser->state = STATE_FAILED;
            break;
        }
        at += (size_t)step;
        if (wants_continue) {
            *ret_consumed = at;
            return HTTP_CONTINUE;
        }
        if (parser->state != STATE_HEAD && request_complete(parser)) {
            give_request(parser, ret_request);
            *ret_consumed = at;
            return HTTP_REQUEST;
        }
    }
    *ret_consumed = size;
    if (parser->state != STATE_FAILED)
        return HTTP_MORE;
    *ret_error = parser->error;
    return HTTP_FAILED;
}
