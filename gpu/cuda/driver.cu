/* driver: see driver.h. */
#include "gpu/cuda/driver.h"

#include <cudaTypedefs.h>

void *
cuda_driver_function(const char *name, unsigned version)
{
    cudaDriverEntryPointQueryResult found = cudaDriverEntryPointSymbolNotFound;
    void *function = NULL;

    if (cudaGetDriverEntryPointByVersion(name, &function, version, cudaEnableDefault, &found) !=
        cudaSuccess) {
        (void)cudaGetLastError();
        return NULL;
    }
    return found == cudaDriverEntryPointSuccess ? function : NULL;
}

bool
cuda_map_boxes(const struct cuda_device *cuda, CUtensorMap *ret_map, const void *at, int n_dims,
               const cuuint64_t *sizes, const cuuint64_t *strides, const cuuint32_t *box)
{
    const cuuint32_t one[5] = {1, 1, 1, 1, 1};
    PFN_cuTensorMapEncodeTiled_v12000 encode =
        (PFN_cuTensorMapEncodeTiled_v12000)cuda->encode_tensor_map;

    return encode(ret_map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, (cuuint32_t)n_dims, (void *)at, sizes,
                  strides, box, one, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                  CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) == CUDA_SUCCESS;
}
