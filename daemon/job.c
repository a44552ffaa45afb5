#include "daemon/job.h"

#include <stdlib.h>

struct job *
job_free(struct job *job)
{
    if (job == NULL)
        return NULL;
    free(job->prompt);
    free(job->bias);
    free(job->prompt_scores);
    free(job->replay);
    free(job);
    return NULL;
}
