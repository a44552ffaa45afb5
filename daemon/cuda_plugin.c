#include "daemon/cuda_plugin.h"

#include <dlfcn.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "gpu/cuda/plugin.h"

static const char file_name[] = "libengram-cuda.so";

static struct {
    void *library;
    int (*count)(struct err *err);
    int (*open)(struct device **ret_device, int ordinal, struct err *err);
    const char *(*describe)(const struct device *device);
} plugin;

/* The folder of the running program, with its slash. */
static int
program_folder(char *folder, size_t size)
{
    ssize_t n = readlink("/proc/self/exe", folder, size - 1);

    if (n <= 0)
        return -ENOENT;
    folder[n] = 0;
    char *slash = strrchr(folder, '/');
    if (slash)
        slash[1] = 0;
    return slash ? 0 : -ENOENT;
}

/* Tries one place. *tried gathers what each said. */
static void *
try_place(const char *path, char *tried, size_t size)
{
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);

    if (!library) {
        const char *why = dlerror();
        size_t used = strlen(tried);

        /* dlerror names the path in most of its texts, but not in all. */
        if (access(path, F_OK) == 0 || !strchr(path, '/'))
            snprintf(tried + used, size - used, "%s%s", used ? "; " : "", why ? why : path);
        else
            snprintf(tried + used, size - used, "%s%s: no such file", used ? "; " : "", path);
    }
    return library;
}

static int
load(struct err *err)
{
    char folder[4096], path[sizeof folder + sizeof file_name], tried[400] = "";

    if (plugin.library)
        return 0;
    void *library = NULL;
    if (program_folder(folder, sizeof folder) == 0) {
        snprintf(path, sizeof path, "%s%s", folder, file_name);
        library = try_place(path, tried, sizeof tried);
    }
    if (!library)
        library = try_place(ENGRAMD_PLUGIN_FOLDER "/libengram-cuda.so", tried, sizeof tried);
    if (!library)
        library = try_place(file_name, tried, sizeof tried);
    if (!library)
        return err_set(err, ENODEV, "the CUDA plugin cannot be loaded: %s", tried);
    const int *abi = dlsym(library, "engram_cuda_abi");
    plugin.count = (int (*)(struct err *))dlsym(library, "engram_cuda_count");
    plugin.open = (int (*)(struct device **, int, struct err *))dlsym(library, "engram_cuda_open");
    plugin.describe =
        (const char *(*)(const struct device *))dlsym(library, "engram_cuda_describe");
    if (!abi || *abi != ENGRAM_CUDA_ABI || !plugin.count || !plugin.open || !plugin.describe) {
        (void)dlclose(library);
        return err_set(err, ENODEV, "the CUDA plugin is of another version: %d, this is %d",
                       abi ? *abi : 0, ENGRAM_CUDA_ABI);
    }
    plugin.library = library;
    return 0;
}

int
cuda_plugin_count(struct err *err)
{
    int status = load(err);

    return status < 0 ? status : plugin.count(err);
}

int
cuda_plugin_open(struct device **ret_device, int ordinal, struct err *err)
{
    int status = load(err);

    return status < 0 ? status : plugin.open(ret_device, ordinal, err);
}

const char *
cuda_plugin_describe(const struct device *device)
{
    return plugin.describe ? plugin.describe(device) : "";
}

void *
cuda_plugin_symbol(const char *name)
{
    return plugin.library ? dlsym(plugin.library, name) : NULL;
}
