/* job: one prompt and its n choices, on its way from the loop through the engine and back.
 *
 *     loop: new --submit--> engine: WAITING -> PREFILL -> DECODE x n --JOB_ENDED event--> loop: free
 *                                      ^----- preempted -----+
 *
 * J1  The engine holds the job from engine_submit until its JOB_ENDED event, which is its last one.
 * J2  Between, the loop touches only `cancelled` and `stop`, which are its messages to the engine.
 * J3  prompt_scores are complete before the first event of the job.
 * Fields are grouped by the thread that writes them. */
#ifndef DAEMON_JOB_H
#define DAEMON_JOB_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "gpu/device.h"

enum { JOB_MAX_CHOICES = 128, JOB_MAX_STOP_IDS = 96 };

struct parked_choice;

enum job_finish { JOB_RUNNING, JOB_STOP, JOB_LENGTH };

struct job {
    /* Loop, before submit; read-only afterwards. */
    void *owner;          /* the exchange it belongs to */
    int index;            /* of the prompt within the request */
    uint64_t received_ns; /* when the request was complete */
    int32_t *prompt;      /* [n_prompt] token ids, owned */
    int n_prompt;
    int n_choices;
    int64_t max_tokens, min_tokens;
    struct sample_params
        params;              /* without draw, forced, counts and banned; bias points to `bias` */
    struct logit_bias *bias; /* owned */
    uint64_t seed[JOB_MAX_CHOICES];
    bool score_prompt; /* log-probabilities of the prompt's tokens are wanted */
    bool engram_off;
    int n_stop_ids; /* tokens that end a choice: the model's own (unless ignored) and the request's
                     */
    int32_t stop_ids[JOB_MAX_STOP_IDS];
    /* NULL, or [max_tokens], owned: the tokens that every choice is given in place of those sampled,
     * once the work is done; for benchmarks. */
    int32_t *replay;

    /* Loop, at any time. */
    _Atomic bool cancelled;             /* pairs with engine's cancel_sweep */
    _Atomic bool stop[JOB_MAX_CHOICES]; /* a stop string was seen: end this choice; same pair */

    /* Engine. */
    struct sample_result *prompt_scores; /* [n_prompt], made by the loop; [0] has no meaning */
    struct job *next;                    /* in the engine's queue */
    int n_cached;                        /* tokens of the prompt that were in the prefix cache */
    int n_running;                       /* choices not ended */
    struct parked_choice *parked;        /* [n_parked] these, while the job is preempted; else NULL */
    int n_parked;
    uint64_t last_token_ns;
};

struct job *job_free(struct job *job); /* accepts NULL, returns NULL */

enum job_event_kind { JOB_TOKEN, JOB_ENDED };

struct job_event {
    struct job *job;
    enum job_event_kind kind;
    int choice;             /* JOB_TOKEN */
    enum job_finish finish; /* JOB_TOKEN: what this token did to its choice */
    bool stop_token;        /* the token is one of stop_ids: not part of the text */
    int error; /* JOB_ENDED: 0, or -errno: -ECANCELED, -EIO, -ETIMEDOUT, -ESHUTDOWN, ... */
    char error_text[160]; /* JOB_ENDED with an error: one line for the client, no path in it */
    int n_cached;                /* JOB_TOKEN, the job's first: n_cached of the job; else 0 */
    struct sample_result result; /* JOB_TOKEN */
};

/* A block of events of one step. Blocks are recycled: the loop gives each back to the engine. */
enum { JOB_BLOCK_EVENTS = 64 };
struct job_block {
    int n_events;
    struct job_event event[JOB_BLOCK_EVENTS];
};

#endif
