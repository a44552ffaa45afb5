/* safetensors: the header of one safetensors file, checked.
 *
 * The format: 8 bytes, little-endian, length of the header; the header, a JSON object that may be
 * padded with spaces; then the data, which the tensors cover without hole or overlap up to the end
 * of the file.
 * `{"name": {"dtype": "F32", "shape": [2, 3], "data_offsets": [0, 24]}, "__metadata__": {"k":
 * "v"}}` Pure: bytes in, tensors out. */
#ifndef MODEL_SAFETENSORS_H
#define MODEL_SAFETENSORS_H

#include "base/arena.h"
#include "model/checkpoint.h"

enum {
    SAFETENSORS_PREFIX_BYTES = 8,
    SAFETENSORS_MAX_HEADER_BYTES = 100000000, /* the format's own limit */
    SAFETENSORS_MAX_TENSORS = 1 << 18,        /* of one file */
    SAFETENSORS_MAX_NAME_BYTES = 512,
};

/* Length of the header from the first 8 bytes of a file of file_size bytes. -EBADMSG. */
int safetensors_header_size(const uint8_t prefix[SAFETENSORS_PREFIX_BYTES], uint64_t file_size,
                            size_t *ret_size_bytes, struct err *err);

/* Parses the header (without the prefix). *ret_tensors: *ret_count tensors in the order of their
 * data, file number `file`, offsets from the start of the file; array and names are allocated in
 * `arena`. -EBADMSG, -ENOMEM. */
int safetensors_parse(const char *header, size_t header_bytes, uint64_t file_size, int file,
                      struct arena *arena, struct tensor **ret_tensors, int *ret_count,
                      struct err *err);

#endif
