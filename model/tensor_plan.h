/* tensor_plan: which tensor of the checkpoint plays which role, and that all of them are there.
 *
 * Checks every tensor against the shape: a missing one, one of another shape or dtype, and one the
 * architecture does not expect are errors that name it. (Known harmless extras, such as
 * rotary_emb.inv_freq and a tied lm_head, are skipped.) */
#ifndef MODEL_TENSOR_PLAN_H
#define MODEL_TENSOR_PLAN_H

#include "base/shape.h"
#include "base/tensor_role.h"
#include "model/checkpoint.h"

struct tensor_use {
    enum tensor_role role; /* below ROLE_COUNT */
    int layer;             /* decoder layer, -1 for the roles that have none */
    const struct tensor *tensor;
};

struct tensor_plan {
    int n_uses;
    struct tensor_use *uses;
    /* Per Engram layer, in order of shape->engram.table: the tensors that stay on disk. */
    const struct tensor *table[SHAPE_MAX_ENGRAM_LAYERS];
    const struct tensor *scale[SHAPE_MAX_ENGRAM_LAYERS]; /* NULL without scales */
};

int tensor_plan_make(struct tensor_plan *ret_plan, const struct model_shape *shape,
                     const struct checkpoint *checkpoint, struct err *err);
void tensor_plan_free(struct tensor_plan *plan);

#endif
