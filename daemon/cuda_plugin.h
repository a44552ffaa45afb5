/* cuda_plugin: finding and opening libengram-cuda.so, so that one package runs with and without
 * NVIDIA's libraries.
 *
 * Looked for beside the program, in the folder the package installs it to, then by the
 * dynamic linker's own search. Once loaded it stays. Thread: any one at a time, before serving. */
#ifndef DAEMON_CUDA_PLUGIN_H
#define DAEMON_CUDA_PLUGIN_H

#include "gpu/device.h"

/* -ENODEV: err says what was looked for and what was found. */
int cuda_plugin_open(struct device **ret_device, int ordinal, struct err *err);
/* Number of GPUs; -ENODEV with the reason when the plugin or the driver is missing. */
int cuda_plugin_count(struct err *err);
/* "NVIDIA H200, compute 9.0, ..." */
const char *cuda_plugin_describe(const struct device *device);
/* A function the plugin exports, or NULL. */
void *cuda_plugin_symbol(const char *name);

#endif
