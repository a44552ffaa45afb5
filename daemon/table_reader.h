/* table_reader: bytes of the N-gram tables from the checkpoint's files, past the page cache: a table
 * that is held in memory is not to be there twice. O_DIRECT into a buffer of the caller's thread and a
 * copy from there, since tensors do not begin at a block; where a file system refuses, a plain read
 * whose pages are given up behind it. Thread: table_reader_read any, several at a time. */
#ifndef DAEMON_TABLE_READER_H
#define DAEMON_TABLE_READER_H

#include <stdbool.h>

#include "model/checkpoint.h"

enum { TABLE_READER_PIECE_BYTES = 8 << 20, TABLE_READER_ALIGN = 4096 };

struct table_reader;

/* checkpoint: borrowed. */
int table_reader_new(struct table_reader **ret_reader, const struct checkpoint *checkpoint,
                     bool direct, struct err *err);
struct table_reader *table_reader_free(
    struct table_reader *reader); /* accepts NULL, returns NULL */
/* size_bytes of the tensor, TABLE_READER_PIECE_BYTES at most. buffer: NULL, or
 * TABLE_READER_PIECE_BYTES + 2 * TABLE_READER_ALIGN bytes, aligned to TABLE_READER_ALIGN. */
int table_reader_read(struct table_reader *reader, const struct tensor *tensor,
                      uint64_t offset_bytes, void *dst, size_t size_bytes, void *buffer,
                      struct err *err);

#endif
