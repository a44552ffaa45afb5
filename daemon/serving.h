/* serving: everything that serves one model, made in order and freed in reverse: checkpoint,
 * tokenizer, device, weights, stores, resolver, engine. serving_load runs on a background thread
 * while the loop already answers 503; afterwards the parts are read-only for the loop, but for what
 * their headers allow.                                        */
#ifndef DAEMON_SERVING_H
#define DAEMON_SERVING_H

#include "conf/conf.h"
#include "daemon/chunk_pool.h"
#include "daemon/engine.h"
#include "daemon/residence.h"
#include "daemon/table_reader.h"
#include "model/checkpoint.h"
#include "model/model_config.h"
#include "model/tensor_plan.h"
#include "model/tokenizer.h"

struct serving {
    const struct conf *conf;
    struct metrics *metrics;
    char *name; /* of the model in the API */
    int64_t created;
    struct model_config config;
    struct checkpoint *checkpoint;
    struct tensor_plan plan;
    struct tokenizer *tokenizer;
    int32_t *compressed; /* [vocab]; NULL without Engram */
    struct device *device;
    struct forward *forward;
    struct forward_limits limits;
    int max_context; /* tokens of prompt and completion together */
    struct resolver *resolver;
    struct cold_store *cold;
    struct table_reader *table_reader;      /* NULL without residence */
    struct residence *residence;            /* NULL: no table will be in memory as a whole */
    struct chunk_pool *hbm_pool, *ram_pool; /* NULL on a device whose memory is the host's */
    struct engine *engine;
    uint64_t n_params, weight_bytes, table_bytes;
};

struct serving_hooks {
    /* Loading: what is being done and how far, in bytes (0 of 0: not measured). Background thread.
     * Negative: give up with that status. */
    int (*progress)(void *arg, const char *phase, uint64_t done_bytes, uint64_t total_bytes);
    void (*heartbeat)(void *arg); /* engine thread, see engine.h */
    uint64_t heartbeat_ns;
    void *arg;
};

/* err says what failed; the status tells the exit code (serving_exit_code). */
int serving_load(struct serving **ret_serving, const struct conf *conf, struct metrics *metrics,
                 const struct serving_hooks *hooks, struct err *err);
/* Ends the engine's work: 0, or -errno of the device, which has failed or does not end what it was
 * given. Then nothing of `serving` may be freed: whoever frees memory of such a device may wait for it
 * for ever (gpu/device.h, close), and so may the end of the process by exit. */
int serving_stop(struct serving *serving);
struct serving *serving_free(struct serving *serving); /* accepts NULL, returns NULL */

/* sysexits: 65 a checkpoint that lies, 78 what the configuration names is not there or cannot be,
 * 69 the device is missing, 71 the system refused memory or threads. */
int serving_exit_code(int status);

#endif
