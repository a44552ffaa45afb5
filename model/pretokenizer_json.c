/* pretokenizer_json: the "pre_tokenizer" of tokenizer.json as stages. See pretokenizer.h. */
#include <stdlib.h>
#include <string.h>

#include "model/json_check.h"
#include "model/pretokenizer.h"

/* What ByteLevel splits by when use_regex is true (GPT-2's pattern, in the library's words). */
static const char gpt2_regex[] =
    "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+";

/* How far a description has been read. */
struct stage_list {
    struct pretokenizer *p;
    bool closed; /* a ByteLevel was there: what follows would see the byte alphabet, not the text */
};

static int
stage_add(struct stage_list *list, struct pretoken_stage stage, struct err *err)
{
    if (list->p->n_stages == PRETOKENIZER_MAX_STAGES) {
        stage.pattern = split_pattern_free(stage.pattern);
        return err_set(err, ENOTSUP, "pre_tokenizer: more than %d stages are not supported",
                       PRETOKENIZER_MAX_STAGES);
    }
    list->p->stage[list->p->n_stages++] = stage;
    return 0;
}

static int
parse_behavior(struct json_span json, enum split_behavior *ret_behavior, struct err *err)
{
    static const struct {
        const char *name;
        enum split_behavior behavior;
    } behaviors[] = {
        {"Isolated", SPLIT_ISOLATED},
        {"Removed", SPLIT_REMOVED},
        {"MergedWithPrevious", SPLIT_MERGED_WITH_PREVIOUS},
        {"MergedWithNext", SPLIT_MERGED_WITH_NEXT},
        {"Contiguous", SPLIT_CONTIGUOUS},
    };
    struct json_span value = json_span_member(json, "behavior");
    for (size_t i = 0; i < sizeof behaviors / sizeof *behaviors; i++) {
        if (json_span_is(value, behaviors[i].name)) {
            *ret_behavior = behaviors[i].behavior;
            return 0;
        }
    }
    return err_set(err, EBADMSG, "pre_tokenizer Split: unknown behavior %.*s",
                   value.size_bytes > 60 ? 60 : (int)value.size_bytes,
                   value.text ? value.text : "");
}

static int
parse_split(struct stage_list *list, struct json_span json, struct err *err)
{
    static const char where[] = "pre_tokenizer Split";
    static const char *const names[] = {"type", "pattern", "behavior", "invert", NULL};
    static const char *const kinds[] = {"Regex", "String", NULL};
    struct pretoken_stage stage = {0};
    struct json_span pattern = json_span_member(json, "pattern");
    char *text = NULL;
    size_t size_bytes = 0;
    int r = json_check_members(json, where, names, NULL, err);
    if (r == 0)
        r = json_check_kind(pattern, JSON_OBJECT, "pre_tokenizer Split: \"pattern\"", err);
    if (r == 0)
        r = json_check_members(pattern, "pre_tokenizer Split pattern", kinds, NULL, err);
    if (r == 0)
        r = parse_behavior(json, &stage.behavior, err);
    if (r == 0)
        r = json_check_bool(json, where, "invert", false, &stage.invert, err);
    bool is_regex = json_span_member(pattern, "Regex").text != NULL;
    if (r == 0 && is_regex && json_span_member(pattern, "String").text)
        r = err_set(err, EBADMSG, "%s: the pattern is both a Regex and a String", where);
    if (r == 0)
        r = json_check_string(pattern, where, is_regex ? "Regex" : "String", &text, &size_bytes,
                              err);
    if (r == 0)
        r = is_regex ? split_pattern_regex(&stage.pattern, text, size_bytes, err)
                     : split_pattern_literal(&stage.pattern, text, size_bytes, err);
    if (r < 0 && text)
        (void)err_context(err, "%s, pattern \"%.100s\"", where, text);
    free(text);
    return r < 0 ? r : stage_add(list, stage, err);
}

static int
parse_digits(struct stage_list *list, struct json_span json, struct err *err)
{
    static const char *const names[] = {"type", "individual_digits", NULL};
    struct pretoken_stage stage = {0};
    bool individual = false;
    int r = json_check_members(json, "pre_tokenizer Digits", names, NULL, err);
    if (r == 0)
        r = json_check_bool(json, "pre_tokenizer Digits", "individual_digits", false, &individual,
                            err);
    if (r == 0)
        r = split_pattern_digit(&stage.pattern, err);
    stage.behavior = individual ? SPLIT_ISOLATED : SPLIT_CONTIGUOUS;
    return r < 0 ? r : stage_add(list, stage, err);
}

static int
parse_byte_level(struct stage_list *list, struct json_span json, struct err *err)
{
    static const char where[] = "pre_tokenizer ByteLevel";
    static const char *const names[] = {"type", "add_prefix_space", "trim_offsets", "use_regex",
                                        NULL};
    bool add_prefix_space = false, use_regex = false, trim_offsets; /* the last: offsets only */
    struct pretoken_stage stage = {0};
    int r = json_check_members(json, where, names, NULL, err);
    if (r == 0)
        r = json_check_bool(json, where, "add_prefix_space", true, &add_prefix_space, err);
    if (r == 0)
        r = json_check_bool(json, where, "use_regex", true, &use_regex, err);
    if (r == 0)
        r = json_check_bool(json, where, "trim_offsets", true, &trim_offsets, err);
    if (r == 0 && add_prefix_space)
        r = stage_add(list, (struct pretoken_stage){0}, err);
    if (r == 0 && use_regex) {
        r = split_pattern_regex(&stage.pattern, gpt2_regex, sizeof gpt2_regex - 1, err);
        if (r == 0)
            r = stage_add(list, stage, err);
    }
    list->closed = true;
    return r;
}

static int
parse_one(struct stage_list *list, struct json_span json, int depth, struct err *err)
{
    static const char *const names[] = {"type", "pretokenizers", NULL};
    struct json_span type, key, value;
    int r = json_check_type(json, "pre_tokenizer", &type, err);
    if (r < 0)
        return r;
    if (json_span_is(type, "Sequence")) {
        struct json_span members = json_span_member(json, "pretokenizers");
        r = json_check_members(json, "pre_tokenizer Sequence", names, NULL, err);
        if (r == 0)
            r = json_check_kind(members, JSON_ARRAY, "pre_tokenizer Sequence: \"pretokenizers\"",
                                err);
        if (r == 0 && depth == 0)
            r = err_set(err, ENOTSUP, "pre_tokenizer: Sequences this deep are not supported");
        struct json_walk walk = json_walk(members);
        while (r == 0 && json_walk_next(&walk, &key, &value))
            r = parse_one(list, value, depth - 1, err);
        return r;
    }
    if (list->closed)
        return err_set(err, ENOTSUP, "pre_tokenizer: anything behind ByteLevel is not supported");
    if (json_span_is(type, "Split"))
        return parse_split(list, json, err);
    if (json_span_is(type, "Digits"))
        return parse_digits(list, json, err);
    if (json_span_is(type, "ByteLevel"))
        return parse_byte_level(list, json, err);
    return json_check_refuse(type, "pre_tokenizer", err);
}

int
pretokenizer_parse(struct pretokenizer *p, struct json_span json, struct err *err)
{
    struct stage_list list = {.p = p};
    int r = parse_one(&list, json, 4, err);
    if (r == 0 && !list.closed)
        r = err_set(err, ENOTSUP, "pre_tokenizer: one without ByteLevel is not supported");
    return r;
}
