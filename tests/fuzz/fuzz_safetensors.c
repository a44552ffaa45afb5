/* fuzz_safetensors: bytes as a safetensors file, and as a header alone in front of as much data as
 * its largest number says, so that a change of the text's length does not end at the length prefix.
 * Whatever is accepted must be what the format promises: tensors that cover the data exactly. */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"
#include "model/safetensors.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static uint64_t
largest_number(const uint8_t *text, size_t size)
{
    uint64_t largest = 0, number = 0;
    for (size_t i = 0; i < size; i++) {
        int digit = text[i] >= '0' && text[i] <= '9';
        number = digit && number < (uint64_t)1 << 58 ? number * 10 + (uint64_t)(text[i] - '0') : 0;
        if (number > largest)
            largest = number;
    }
    return largest;
}

static void
check_tensors(const struct tensor *tensor, int count, uint64_t begin, uint64_t file_size)
{
    for (int i = 0; i < count; i++) {
        ASSERT(tensor[i].name && tensor[i].name[0]);
        ASSERT(strlen(tensor[i].name) <= SAFETENSORS_MAX_NAME_BYTES);
        ASSERT(tensor[i].dtype >= 0 && tensor[i].dtype < DTYPE_COUNT);
        ASSERT(tensor[i].rank >= 0 && tensor[i].rank <= TENSOR_MAX_RANK);
        ASSERT(tensor[i].offset_bytes == begin);
        unsigned __int128 bytes = dtype_size_bytes(tensor[i].dtype);
        for (int d = 0; d < tensor[i].rank; d++) {
            ASSERT(tensor[i].dim[d] >= 0);
            bytes *= (uint64_t)tensor[i].dim[d];
            ASSERT(bytes <= INT64_MAX);
        }
        ASSERT(bytes == tensor[i].size_bytes);
        begin += tensor[i].size_bytes;
    }
    ASSERT(begin == file_size);
}

static void
run_header(const uint8_t *text, size_t size, uint64_t data_bytes)
{
    uint64_t file_size = SAFETENSORS_PREFIX_BYTES + size + data_bytes;
    struct arena *arena = arena_new(0);
    struct tensor *tensor = NULL;
    int count = -1;
    struct err err = ERR_INIT;
    ASSERT(arena);
    int r = safetensors_parse((const char *)text, size, file_size, 0, arena, &tensor, &count, &err);
    ASSERT(r == 0 || (r == -EBADMSG && err.text[0] && count == -1));
    if (r == 0)
        check_tensors(tensor, count, SAFETENSORS_PREFIX_BYTES + size, file_size);
    (void)arena_free(arena);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    int r = safetensors_check(data, size, size, NULL);
    ASSERT(r == 0 || r == -EBADMSG);
    run_header(data, size, largest_number(data, size));
    if (size > SAFETENSORS_PREFIX_BYTES)
        run_header(
            data + SAFETENSORS_PREFIX_BYTES, size - SAFETENSORS_PREFIX_BYTES,
            largest_number(data + SAFETENSORS_PREFIX_BYTES, size - SAFETENSORS_PREFIX_BYTES));
    return 0;
}
