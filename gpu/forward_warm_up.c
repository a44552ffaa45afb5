/* forward_warm_up: a device that chooses and loads things when it first meets them does so before the
 * first step. */
#include "gpu/forward_state.h"

int
forward_warm_up(struct forward *f, struct err *err)
{
    struct device *dev = f->device;
    const struct model_shape *s = &f->shape;
    const struct forward_scratch *sc = &f->scratch;
    struct wide_sizes sizes = forward_wide_sizes(dev, s, f->limits.max_rows);
    char *rows = sc->wide, *key = rows + sizes.rows, *value = key + sizes.vector;

    if (!dev->ops->warm_up)
        return 0;
    struct step_products products = {
        .qkv = forward_qkv_weights(f, 0),
        .o = f->layer[0][ROLE_O],
        .feed_forward = forward_feed_forward_weights(f, 0),
        .head = forward_head(f),
        .attended = (char *)sc->wide + sizes.q,
        .rows = rows,
        .x = sc->x,
        .logits = sc->logits,
        .logit_rows = sc->logit_rows,
    };
    if (s->engram.n_layers > 0) {
        const struct weight *w = f->layer[s->engram.table[0].layer];

        products.engram[0] = (struct matmul_part){key, w[ROLE_ENGRAM_KEY], w[ROLE_ENGRAM_KEY_BIAS]};
        products.engram[1] =
            (struct matmul_part){value, w[ROLE_ENGRAM_VALUE], w[ROLE_ENGRAM_VALUE_BIAS]};
    }
    int result = dev->ops->warm_up(dev, &products, NULL);
    return result < 0 ? err_errno(err, -result, "the device failed while it warmed up") : result;
}
