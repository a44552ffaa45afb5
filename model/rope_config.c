#include "model/rope_config.h"

#include <string.h>

#include "model/json_field.h"

static const double THETA_MIN = 1, THETA_MAX = 1e18, FACTOR_MAX = 1e6, POSITION_MAX = 1 << 24;

enum {
    OF_DEFAULT = 1 << ROPE_DEFAULT,
    OF_LINEAR = 1 << ROPE_LINEAR,
    OF_YARN = 1 << ROPE_YARN,
    OF_LLAMA3 = 1 << ROPE_LLAMA3,
    OF_ALL = OF_DEFAULT | OF_LINEAR | OF_YARN | OF_LLAMA3
};

static const char *const kind_names[] = {[ROPE_DEFAULT] = "default",
                                         [ROPE_LINEAR] = "linear",
                                         [ROPE_YARN] = "yarn",
                                         [ROPE_LLAMA3] = "llama3"};
enum { N_KINDS = sizeof kind_names / sizeof kind_names[0] };

static const struct {
    const char *name;
    int kinds;
} fields[] = {
    {"rope_type", OF_ALL},
    {"type", OF_ALL},
    {"rope_theta", OF_ALL},
    {"partial_rotary_factor", OF_ALL},
    {"factor", OF_LINEAR | OF_YARN | OF_LLAMA3},
    {"original_max_position_embeddings", OF_YARN | OF_LLAMA3},
    {"attention_factor", OF_YARN},
    {"beta_fast", OF_YARN},
    {"beta_slow", OF_YARN},
    {"mscale", OF_YARN},
    {"mscale_all_dim", OF_YARN},
    {"truncate", OF_YARN},
    {"low_freq_factor", OF_LLAMA3},
    {"high_freq_factor", OF_LLAMA3},
};

/* The one object that holds the parameters, or NULL; `where` names it in messages. */
static int
find_object(const json_t *config, const json_t **ret_object, const char **ret_where,
            struct err *err)
{
    const json_t *parameters = json_field_get(config, "rope_parameters");
    const json_t *scaling = json_field_get(config, "rope_scaling");
    if (parameters && scaling)
        return err_set(err, EBADMSG, "config.json: both rope_parameters and rope_scaling");
    *ret_object = parameters ? parameters : scaling;
    *ret_where = parameters ? "config.json: rope_parameters." : "config.json: rope_scaling.";
    if (*ret_object && !json_is_object(*ret_object))
        return err_set(err, EBADMSG, "%s: not an object",
                       parameters ? "config.json: rope_parameters" : "config.json: rope_scaling");
    return 0;
}

static int
parse_kind(const json_t *object, const char *where, enum rope_kind *ret_kind, struct err *err)
{
    const char *type, *legacy;
    int r = json_field_text(object, where, "rope_type", &type, err);
    if (r >= 0)
        r = json_field_text(object, where, "type", &legacy, err);
    if (r < 0)
        return r;
    if (type && legacy && strcmp(type, legacy) != 0)
        return err_set(err, EBADMSG, "%srope_type: %s, but type says %s", where, type, legacy);
    if (!type)
        type = legacy ? legacy : kind_names[ROPE_DEFAULT];
    for (int i = 0; i < N_KINDS; i++) {
        if (strcmp(type, kind_names[i]) == 0) {
            *ret_kind = (enum rope_kind)i;
            return 0;
        }
    }
    return err_set(err, EBADMSG,
                   "%srope_type: %s is not supported (default, linear, yarn, llama3 are)", where,
                   type);
}

static int
check_fields(const json_t *object, const char *where, enum rope_kind kind, struct err *err)
{
    const char *name;
    json_t *value;
    json_object_foreach((json_t *)object, name, value)
    {
        size_t i = 0;
        while (i < sizeof fields / sizeof fields[0] && strcmp(fields[i].name, name) != 0)
            i++;
        if (i == sizeof fields / sizeof fields[0])
            return err_set(err, EBADMSG, "%s%s is not understood", where, name);
        if (!json_is_null(value) && !(fields[i].kinds & 1 << kind))
            return err_set(err, EBADMSG, "%s%s does not belong to rope type %s", where, name,
                           kind_names[kind]);
    }
    return 0;
}

/* A real whose absence, null and 0 all mean `fallback`, as Python's `get(...) or fallback`. */
static int
parse_optional(const json_t *object, const char *where, const char *key, double max,
               double fallback, double *ret, struct err *err)
{
    static const double zero = 0;
    int r = json_field_real(object, where, key, 0, max, &zero, ret, err);
    if (r >= 0 && *ret == 0)
        *ret = fallback;
    return r;
}

static int
parse_theta(const json_t *config, const json_t *object, const char *where, struct rope_shape *rope,
            struct err *err)
{
    static const double usual = 10000;
    double outer, inner;
    int r = json_field_real(config, "config.json: ", "rope_theta", THETA_MIN, THETA_MAX, &usual,
                            &outer, err);
    if (r >= 0)
        r = json_field_real(object, where, "rope_theta", THETA_MIN, THETA_MAX, &outer, &inner, err);
    if (r < 0)
        return r;
    if (json_field_get(config, "rope_theta") && inner != outer)
        return err_set(err, EBADMSG, "%srope_theta: %.17g, but rope_theta beside it says %.17g",
                       where, inner, outer);
    rope->theta = inner;
    return 0;
}

/* The length the model was trained on: in the rope object, or (Phi3's way) beside it. */
static int
parse_original(const json_t *config, const json_t *object, const char *where, int max_position,
               struct rope_shape *rope, struct err *err)
{
    static const char key[] = "original_max_position_embeddings";
    double fallback = max_position, outer, inner;
    int r = json_field_real(config, "config.json: ", key, 1, POSITION_MAX, &fallback, &outer, err);
    if (r >= 0)
        r = json_field_real(object, where, key, 1, POSITION_MAX, &outer, &inner, err);
    if (r < 0)
        return r;
    if (json_field_get(config, key) && inner != outer)
        return err_set(err, EBADMSG, "%s%s: %.17g, but the one beside it says %.17g", where, key,
                       inner, outer);
    rope->original_max_position = inner;
    return 0;
}

static int
parse_yarn(const json_t *object, const char *where, int max_position, struct rope_shape *rope,
           struct err *err)
{
    double ratio = max_position / rope->original_max_position;
    int r = json_field_real(object, where, "factor", 1, FACTOR_MAX, &ratio, &rope->factor, err);
    if (r >= 0)
        r = parse_optional(object, where, "beta_fast", 1e6, 32, &rope->beta_fast, err);
    if (r >= 0)
        r = parse_optional(object, where, "beta_slow", 1e6, 1, &rope->beta_slow, err);
    if (r >= 0)
        r = parse_optional(object, where, "attention_factor", 1e3, 0, &rope->attention_factor, err);
    if (r >= 0)
        r = parse_optional(object, where, "mscale", 1e3, 0, &rope->mscale, err);
    if (r >= 0)
        r = parse_optional(object, where, "mscale_all_dim", 1e3, 0, &rope->mscale_all_dim, err);
    if (r >= 0)
        r = json_field_bool(object, where, "truncate", true, &rope->truncate, err);
    if (r < 0)
        return r;
    if (rope->factor < 1)
        return err_set(err, EBADMSG,
                       "%sfactor is missing and max_position_embeddings is below "
                       "original_max_position_embeddings",
                       where);
    if (rope->beta_fast < rope->beta_slow)
        return err_set(err, EBADMSG, "%sbeta_fast: %.17g is below beta_slow %.17g", where,
                       rope->beta_fast, rope->beta_slow);
    if (rope->theta <= 1)
        return err_set(err, EBADMSG, "%srope_theta: yarn needs more than 1", where);
    return 0;
}

static int
parse_llama3(const json_t *object, const char *where, struct rope_shape *rope, struct err *err)
{
    int r = json_field_real(object, where, "factor", 1, FACTOR_MAX, NULL, &rope->factor, err);
    if (r >= 0)
        r = json_field_real(object, where, "low_freq_factor", 1e-6, 1e6, NULL,
                            &rope->low_freq_factor, err);
    if (r >= 0)
        r = json_field_real(object, where, "high_freq_factor", 1e-6, 1e6, NULL,
                            &rope->high_freq_factor, err);
    if (r >= 0 && rope->high_freq_factor <= rope->low_freq_factor)
        return err_set(err, EBADMSG, "%shigh_freq_factor: %.17g is not above low_freq_factor %.17g",
                       where, rope->high_freq_factor, rope->low_freq_factor);
    return r;
}

int
rope_config_parse(struct rope_shape *ret_rope, const json_t *config, int max_position,
                  struct err *err)
{
    struct rope_shape rope = {.factor = 1, .beta_fast = 32, .beta_slow = 1, .truncate = true};
    const json_t *object = NULL;
    const char *where = "";
    int r = find_object(config, &object, &where, err);
    if (r >= 0)
        r = parse_kind(object, where, &rope.kind, err);
    if (r >= 0)
        r = check_fields(object, where, rope.kind, err);
    if (r >= 0)
        r = parse_theta(config, object, where, &rope, err);
    if (r >= 0)
        r = parse_original(config, object, where, max_position, &rope, err);
    if (r < 0)
        return r;
    static const double one = 1;
    double rotated;
    r = json_field_real(object, where, "partial_rotary_factor", 1, 1, &one, &rotated, err);
    if (r >= 0 && rope.kind == ROPE_LINEAR)
        r = json_field_real(object, where, "factor", 1, FACTOR_MAX, NULL, &rope.factor, err);
    if (r >= 0 && rope.kind == ROPE_YARN)
        r = parse_yarn(object, where, max_position, &rope, err);
    if (r >= 0 && rope.kind == ROPE_LLAMA3)
        r = parse_llama3(object, where, &rope, err);
    if (r >= 0)
        *ret_rope = rope;
    return r;
}
