/* nvme_store: the part of the NVMe store that only tests and benchmarks use; the rest is in
 * cold_store.h. */
#ifndef TIERING_NVME_STORE_H
#define TIERING_NVME_STORE_H

#include <stdbool.h>

#include "tiering/cold_store.h"

/* nvme_store_open; use_uring false takes the path of machines that refuse io_uring. */
int nvme_store_open_with(struct cold_store **ret_store, const struct nvme_file *files, int n_files,
                         const struct nvme_options *options, bool use_uring, struct err *err);

#endif
