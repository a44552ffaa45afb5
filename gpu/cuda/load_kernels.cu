/* load_kernels: kernels are on the device before the first step.
 *
 * CUDA puts a kernel on the device when it is first named. Within a step that costs a request milliseconds, and behind
 * a kernel that waits for the host it may wait for that one. CUDA_MODULE_LOADING=EAGER would end it, and would
 * bring every kernel of cuBLASLt too: seconds, and device memory that is no longer there for tiers. What cuBLASLt needs
 * comes with the products that are tried before serving (cuda_warm_up). Thread: whoever opens the device. */
#include <cudaTypedefs.h>
#include <stdlib.h>

#include "gpu/cuda/driver.h"

int
cuda_load_kernels(const void *kernel)
{
    PFN_cuKernelGetLibrary_v12050 library_of =
        (PFN_cuKernelGetLibrary_v12050)cuda_driver_function("cuKernelGetLibrary", 12050);
    PFN_cuLibraryGetKernelCount_v12040 count =
        (PFN_cuLibraryGetKernelCount_v12040)cuda_driver_function("cuLibraryGetKernelCount", 12040);
    PFN_cuLibraryEnumerateKernels_v12040 list =
        (PFN_cuLibraryEnumerateKernels_v12040)cuda_driver_function("cuLibraryEnumerateKernels", 12040);
    PFN_cuKernelGetFunction_v12000 function_of =
        (PFN_cuKernelGetFunction_v12000)cuda_driver_function("cuKernelGetFunction", 12000);
    PFN_cuFuncLoad_v12040 load = (PFN_cuFuncLoad_v12040)cuda_driver_function("cuFuncLoad", 12040);
    cudaKernel_t known = NULL;
    CUlibrary library = NULL;
    unsigned n = 0;
    int loaded = 0;

    if (!library_of || !count || !list || !function_of || !load ||
        cudaGetKernel(&known, kernel) != cudaSuccess ||
        library_of(&library, (CUkernel)known) != CUDA_SUCCESS ||
        count(&n, library) != CUDA_SUCCESS || n == 0) {
        (void)cudaGetLastError();
        return 0;
    }
    CUkernel *all = (CUkernel *)calloc(n, sizeof *all);
    if (all && list(all, n, library) == CUDA_SUCCESS)
        for (unsigned i = 0; i < n; i++) {
            CUfunction function = NULL;

            loaded +=
                function_of(&function, all[i]) == CUDA_SUCCESS && load(function) == CUDA_SUCCESS;
        }
    free(all);
    return loaded;
}
