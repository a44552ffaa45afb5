/* Every field of POST /v1/completions: what is accepted, what it becomes, what is refused and how
 * it is named. */
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

#include "proto/completion.h"

static const char *const names[] = {"demo", "alias", NULL};
static struct completion_limits limits = {
    .vocab = 1000, .max_prompts = 8, .max_context = 100, .model_names = names};

static struct arena *arena; /* of the request read last */
static struct api_error error;

static struct completion_request *
parse_bytes(const char *body, size_t size)
{
    struct completion_request *request = NULL;
    int status;

    arena_free(arena);
    arena = arena_new(0);
    error = (struct api_error){0};
    status = completion_parse(arena, body, size, &limits, &request, &error);
    assert_int_equal(status, -error.status);
    assert_int_equal(request == NULL, status < 0);
    return request;
}

static struct completion_request *
parse(const char *body)
{
    return parse_bytes(body, strlen(body));
}

/* A request that is right but for `member`. */
static struct completion_request *
with(const char *member)
{
    static char body[8192];

    snprintf(body, sizeof body, "{\"prompt\":\"Hi\",%s}", member);
    return parse(body);
}

static struct completion_request *
good(const char *member)
{
    struct completion_request *request = with(member);

    if (!request)
        fail_msg("%s was refused: %s", member, error.message);
    return request;
}

static void
refused_body(const char *body, int status, const char *code, const char *param)
{
    if (parse(body))
        fail_msg("%s was accepted", body);
    if (error.status != status || strcmp(error.code, code) != 0 || strcmp(error.param, param) != 0)
        fail_msg("%s gave %d %s '%s': %s", body, error.status, error.code, error.param,
                 error.message);
    assert_true(strlen(error.message) > 0);
}

static void
refused(const char *member, const char *code, const char *param)
{
    char body[8192];

    snprintf(body, sizeof body, "{\"prompt\":\"Hi\",%s}", member);
    refused_body(body, strcmp(code, "model_not_found") == 0 ? 404 : 400, code, param);
}

static int
drop_arena(void **state)
{
    arena = arena_free(arena);
    limits.strict = false;
    return 0;
}

static void
a_bare_prompt_gets_the_defaults(void **state)
{
    struct completion_request *r = parse("{\"prompt\":\"Once\"}");

    assert_null(r->model);
    assert_int_equal(r->n_prompts, 1);
    assert_int_equal(r->prompts[0].text_size, 4);
    assert_string_equal(r->prompts[0].text, "Once");
    assert_null(r->prompts[0].ids);
    assert_int_equal(r->max_tokens, -1);
    assert_int_equal(r->min_tokens, 0);
    assert_true(isnan(r->temperature) && isnan(r->top_p) && isnan(r->min_p));
    assert_true(isnan(r->repetition_penalty));
    assert_int_equal(r->top_k, -1);
    assert_true(r->presence_penalty == 0 && r->frequency_penalty == 0);
    assert_false(r->has_seed);
    assert_int_equal(r->n, 1);
    assert_int_equal(r->logprobs, -1);
    assert_false(r->echo || r->stream || r->include_usage || r->continuous_usage);
    assert_false(r->ignore_eos || r->include_stop || r->return_tokens_as_ids || r->engram_off);
    assert_true(r->skip_special_tokens);
    assert_int_equal(r->n_stop + r->n_stop_ids + r->n_bias + r->n_ignored, 0);
    assert_null(r->user);
}

static void
every_field_arrives(void **state)
{
    struct completion_request *r = good(
        "\"model\":\"alias\",\"max_tokens\":7,\"min_tokens\":3,\"temperature\":0.5,\"top_p\":0.25,"
        "\"min_p\":0.125,\"repetition_penalty\":1.5,\"top_k\":40,\"presence_penalty\":-2,"
        "\"frequency_penalty\":2.0,\"seed\":-9223372036854775808,\"n\":3,\"best_of\":3,"
        "\"logprobs\":5,"
        "\"echo\":true,\"stream\":true,\"stream_options\":{\"include_usage\":true,"
        "\"continuous_usage_stats\":true,\"include_obfuscation\":false},\"ignore_eos\":true,"
        "\"include_stop_str_in_output\":true,\"return_tokens_as_token_ids\":true,"
        "\"skip_special_tokens\":false,\"engram\":false,\"stop\":[\"a\",\"b\\u0000c\"],"
        "\"stop_token_ids\":[0,999],\"logit_bias\":{\"7\":-100,\"0\":0.5,\"999\":100},"
        "\"user\":\"u-1\"");

    assert_string_equal(r->model, "alias");
    assert_int_equal(r->max_tokens, 7);
    assert_int_equal(r->min_tokens, 3);
    assert_true(r->temperature == 0.5 && r->top_p == 0.25 && r->min_p == 0.125);
    assert_true(r->repetition_penalty == 1.5);
    assert_int_equal(r->top_k, 40);
    assert_true(r->presence_penalty == -2 && r->frequency_penalty == 2);
    assert_true(r->has_seed && r->seed == INT64_MIN);
    assert_int_equal(r->n, 3);
    assert_int_equal(r->logprobs, 5);
    assert_true(r->echo && r->stream && r->include_usage && r->continuous_usage);
    assert_true(r->ignore_eos && r->include_stop && r->return_tokens_as_ids && r->engram_off);
    assert_false(r->skip_special_tokens);
    assert_int_equal(r->n_stop, 2);
    assert_string_equal(r->stop[0].text, "a");
    assert_int_equal(r->stop[1].size, 3);
    assert_memory_equal(r->stop[1].text, "b\0c", 4);
    assert_int_equal(r->n_stop_ids, 2);
    assert_int_equal(r->stop_ids[0], 0);
    assert_int_equal(r->stop_ids[1], 999);
    assert_int_equal(r->n_bias, 3);
    assert_true(r->bias[0].token == 7 && r->bias[0].bias == -100);
    assert_true(r->bias[1].token == 0 && r->bias[1].bias == 0.5F);
    assert_true(r->bias[2].token == 999 && r->bias[2].bias == 100);
    assert_string_equal(r->user, "u-1");
    assert_int_equal(r->n_ignored, 0);
}

static void
null_is_the_same_as_absent(void **state)
{
    static const char *const all[] = {"model",
                                      "max_tokens",
                                      "temperature",
                                      "top_p",
                                      "n",
                                      "best_of",
                                      "echo",
                                      "logprobs",
                                      "logit_bias",
                                      "presence_penalty",
                                      "frequency_penalty",
                                      "seed",
                                      "stop",
                                      "stream",
                                      "stream_options",
                                      "suffix",
                                      "user",
                                      "top_k",
                                      "min_p",
                                      "repetition_penalty",
                                      "min_tokens",
                                      "ignore_eos",
                                      "stop_token_ids",
                                      "include_stop_str_in_output",
                                      "skip_special_tokens",
                                      "return_tokens_as_token_ids",
                                      "response_format",
                                      "guided_json",
                                      "truncate_prompt_tokens",
                                      "prompt_logprobs",
                                      "allowed_token_ids",
                                      "engram",
                                      "add_special_tokens",
                                      "use_beam_search"};

    for (size_t i = 0; i < sizeof all / sizeof all[0]; i++) {
        char member[80];

        snprintf(member, sizeof member, "\"%s\":null", all[i]);
        assert_int_equal(good(member)->n_ignored, 0);
    }
    refused_body("{\"prompt\":null}", 400, "missing_required_parameter", "prompt");
    good("\"stream\":true,\"stream_options\":{\"include_usage\":null}");
}

static void
what_load_generators_always_send_is_accepted(void **state)
{
    good("\"repetition_penalty\":1.0,\"logprobs\":null,\"ignore_eos\":true,\"stop\":null,"
         "\"stream\":true,\"stream_options\":{\"include_usage\":true,\"continuous_usage_stats\":"
         "true},"
         "\"max_tokens\":null,\"add_special_tokens\":false,\"best_of\":1,\"use_beam_search\":false,"
         "\"length_penalty\":1.0,\"early_stopping\":false,\"response_format\":{\"type\":\"text\"},"
         "\"request_id\":\"x\",\"priority\":0,\"cache_salt\":\"s\",\"metadata\":{\"a\":[1]},"
         "\"spaces_between_special_tokens\":true,\"return_token_ids\":false,\"suffix\":\"\","
         "\"bad_words\":[],\"repeat_penalty\":1.0,\"mirostat\":0,\"typical_p\":1.0,\"tools\":[]");
}

static void
the_four_forms_of_a_prompt_are_read(void **state)
{
    struct completion_request *r = parse("{\"prompt\":[\"a\",\"bc\"]}");

    assert_int_equal(r->n_prompts, 2);
    assert_string_equal(r->prompts[1].text, "bc");
    r = parse("{\"prompt\":[0,999,5]}");
    assert_int_equal(r->n_prompts, 1);
    assert_null(r->prompts[0].text);
    assert_int_equal(r->prompts[0].n_ids, 3);
    assert_int_equal(r->prompts[0].ids[1], 999);
    r = parse("{\"prompt\":[[1],[2,3]]}");
    assert_int_equal(r->n_prompts, 2);
    assert_int_equal(r->prompts[0].n_ids, 1);
    assert_int_equal(r->prompts[1].ids[1], 3);
    r = parse("{\"prompt\":\"a\\u0000b\\u00e9\"}");
    assert_int_equal(r->prompts[0].text_size, 5);
    assert_memory_equal(r->prompts[0].text, "a\0b\xc3\xa9", 6);
}

static void
a_missing_or_empty_prompt_is_refused(void **state)
{
    refused_body("{}", 400, "missing_required_parameter", "prompt");
    refused_body("{\"prompt\":\"\"}", 400, "invalid_value", "prompt");
    refused_body("{\"prompt\":[]}", 400, "invalid_value", "prompt");
    refused_body("{\"prompt\":[\"\"]}", 400, "invalid_value", "prompt.0");
    refused_body("{\"prompt\":[\"a\",\"\"]}", 400, "invalid_value", "prompt.1");
    refused_body("{\"prompt\":[[]]}", 400, "invalid_value", "prompt.0");
    refused_body("{\"prompt\":[[1],[]]}", 400, "invalid_value", "prompt.1");
}

static void
a_prompt_of_another_type_is_refused(void **state)
{
    refused_body("{\"prompt\":5}", 400, "invalid_type", "prompt");
    refused_body("{\"prompt\":true}", 400, "invalid_type", "prompt");
    refused_body("{\"prompt\":{}}", 400, "invalid_type", "prompt");
    refused_body("{\"prompt\":[1.0]}", 400, "invalid_type", "prompt.0");
    refused_body("{\"prompt\":[true]}", 400, "invalid_type", "prompt.0");
    refused_body("{\"prompt\":[null]}", 400, "invalid_type", "prompt.0");
    refused_body("{\"prompt\":[{}]}", 400, "invalid_type", "prompt.0");
    refused_body("{\"prompt\":[\"a\",[1]]}", 400, "invalid_type", "prompt.1");
    refused_body("{\"prompt\":[\"a\",1]}", 400, "invalid_type", "prompt.1");
    refused_body("{\"prompt\":[1,\"a\"]}", 400, "invalid_type", "prompt.1");
    refused_body("{\"prompt\":[1,2.0]}", 400, "invalid_type", "prompt.1");
    refused_body("{\"prompt\":[1,true]}", 400, "invalid_type", "prompt.1");
    refused_body("{\"prompt\":[[1],2]}", 400, "invalid_type", "prompt.1");
    refused_body("{\"prompt\":[[1],[2,[3]]]}", 400, "invalid_type", "prompt.1.1");
    refused_body("{\"prompt\":[[1],[2,\"x\"]]}", 400, "invalid_type", "prompt.1.1");
}

static void
an_id_outside_the_vocabulary_is_refused_by_its_path(void **state)
{
    refused_body("{\"prompt\":[1,-1]}", 400, "invalid_value", "prompt.1");
    refused_body("{\"prompt\":[1000]}", 400, "invalid_value", "prompt.0");
    refused_body("{\"prompt\":[[1,2],[1],[3,4,5,6,7,1000]]}", 400, "invalid_value", "prompt.2.5");
    refused_body("{\"prompt\":[[1,2],[1],[3,9223372036854775807]]}", 400, "invalid_value",
                 "prompt.2.1");
    refused_body("{\"prompt\":[4294967296]}", 400, "invalid_value", "prompt.0");
}

static void
a_number_past_64_bits_is_refused_by_its_path(void **state)
{
    refused_body("{\"prompt\":[[1,2],[3,99999999999999999999]]}", 400, "invalid_value",
                 "prompt.1.1");
    refused_body("{\"prompt\":\"x, \\\" [{\",\"seed\":9223372036854775808}", 400, "invalid_value",
                 "seed");
    refused_body("{\"seed\":-9223372036854775809}", 400, "invalid_value", "seed");
    refused_body("{\"temperature\":1e999,\"prompt\":\"x\"}", 400, "invalid_value", "temperature");
    refused_body("{\"logit_bias\":{\"1\":2,\"50256\":-1e400}}", 400, "invalid_value",
                 "logit_bias.50256");
    refused_body("{\"stream_options\":{},\"a\":[{},[1,{\"b\":1e999}]]}", 400, "invalid_value",
                 "a.1.1.b");
    assert_true(good("\"seed\":9223372036854775807")->seed == INT64_MAX);
}

static void
a_list_of_ids_longer_than_the_context_is_refused(void **state)
{
    char body[2000] = "{\"prompt\":[[1],[1";

    for (int i = 1; i < 100; i++)
        strcat(body, ",1");
    strcat(body, "]]}");
    assert_int_equal(parse(body)->prompts[1].n_ids, 100);
    body[strlen(body) - 3] = '\0';
    strcat(body, ",1]]}");
    refused_body(body, 400, "context_length_exceeded", "prompt");
    assert_non_null(strstr(error.message, "maximum context length is 100 tokens"));
    assert_non_null(strstr(error.message, "101"));
}

static void
prompts_and_choices_are_bounded(void **state)
{
    parse("{\"prompt\":[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\"]}");
    refused_body("{\"prompt\":[\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\",\"a\"]}", 400,
                 "invalid_value", "prompt");
    assert_int_equal(parse("{\"prompt\":[\"a\",\"a\"],\"n\":4}")->n, 4);
    refused_body("{\"prompt\":[\"a\",\"a\"],\"n\":5}", 400, "invalid_value", "n");
    refused_body("{\"n\":5,\"prompt\":[\"a\",\"a\"]}", 400, "invalid_value", "n");
}

/* {field, least, most, step past either end} */
static void
numbers_are_held_to_their_bounds(void **state)
{
    static const struct {
        const char *field, *good[3], *bad[3];
    } rows[] = {
        {"max_tokens", {"0", "16", "2147483647"}, {"-1", "2147483648", "-2147483649"}},
        {"min_tokens", {"0", "1", "2147483647"}, {"-1", "2147483648", "-5"}},
        {"temperature", {"0", "2", "1.5"}, {"-0.001", "2.001", "3"}},
        {"top_p", {"0", "1", "0.5"}, {"-0.1", "1.1", "2"}},
        {"min_p", {"0", "1", "0.5"}, {"-0.1", "1.1", "2"}},
        {"repetition_penalty", {"0.01", "1", "100"}, {"0", "-1", "100.5"}},
        {"presence_penalty", {"-2", "2", "0"}, {"-2.1", "2.1", "3"}},
        {"frequency_penalty", {"-2", "2", "0"}, {"-2.1", "2.1", "3"}},
        {"n", {"1", "2", "8"}, {"0", "129", "-1"}},
        {"logprobs", {"0", "5", "20"}, {"-1", "21", "100"}},
        {"top_k", {"-1", "0", "2147483647"}, {"-2", "2147483648", "-100"}},
    };

    for (size_t i = 0; i < sizeof rows / sizeof rows[0]; i++)
        for (int j = 0; j < 3; j++) {
            char member[80];

            snprintf(member, sizeof member, "\"%s\":%s", rows[i].field, rows[i].good[j]);
            good(member);
            snprintf(member, sizeof member, "\"%s\":%s", rows[i].field, rows[i].bad[j]);
            refused(member, "invalid_value", rows[i].field);
        }
}

static void
a_value_of_a_wrong_type_is_refused_by_name(void **state)
{
    static const char *const integers[] = {"max_tokens", "min_tokens", "n",   "best_of",
                                           "logprobs",   "top_k",      "seed"};
    static const char *const numbers[] = {
        "temperature",      "top_p", "min_p", "repetition_penalty", "presence_penalty",
        "frequency_penalty"};
    static const char *const bools[] = {"echo",
                                        "stream",
                                        "ignore_eos",
                                        "include_stop_str_in_output",
                                        "skip_special_tokens",
                                        "return_tokens_as_token_ids",
                                        "engram",
                                        "add_special_tokens"};
    static const char *const strings[] = {"model", "user"};
    static const char *const values[] = {"\"1\"", "[]", "{}", "true", "false", "1", "1.0"};
    char member[80];

    for (size_t v = 0; v < sizeof values / sizeof values[0]; v++) {
        bool is_bool = v == 3 || v == 4, is_number = v >= 5, is_int = v == 5, is_string = v == 0;

        for (size_t i = 0; i < sizeof integers / sizeof integers[0] && !is_int; i++) {
            snprintf(member, sizeof member, "\"%s\":%s", integers[i], values[v]);
            refused(member, "invalid_type", integers[i]);
        }
        for (size_t i = 0; i < sizeof numbers / sizeof numbers[0] && !is_number; i++) {
            snprintf(member, sizeof member, "\"%s\":%s", numbers[i], values[v]);
            refused(member, "invalid_type", numbers[i]);
        }
        for (size_t i = 0; i < sizeof bools / sizeof bools[0] && !is_bool; i++) {
            snprintf(member, sizeof member, "\"%s\":%s", bools[i], values[v]);
            refused(member, "invalid_type", bools[i]);
        }
        for (size_t i = 0; i < sizeof strings / sizeof strings[0] && !is_string; i++) {
            snprintf(member, sizeof member, "\"%s\":%s", strings[i], values[v]);
            refused(member, "invalid_type", strings[i]);
        }
    }
}

static void
top_k_of_zero_or_minus_one_switches_it_off(void **state)
{
    assert_int_equal(good("\"top_k\":0")->top_k, 0);
    assert_int_equal(good("\"top_k\":-1")->top_k, 0);
    assert_int_equal(good("\"top_k\":1")->top_k, 1);
}

static void
an_unknown_model_is_404(void **state)
{
    assert_string_equal(good("\"model\":\"demo\"")->model, "demo");
    refused("\"model\":\"gpt-4\"", "model_not_found", "model");
    refused("\"model\":\"\"", "model_not_found", "model");
    refused("\"model\":\"demo\\u0000x\"", "invalid_value", "model");
    limits.model_names = NULL;
    assert_string_equal(good("\"model\":\"anything\"")->model, "anything");
    limits.model_names = names;
}

static void
best_of_must_equal_n(void **state)
{
    good("\"best_of\":1");
    good("\"best_of\":4,\"n\":4");
    refused("\"best_of\":2", "unsupported_parameter", "best_of");
    refused("\"best_of\":1,\"n\":2", "unsupported_parameter", "best_of");
    refused("\"best_of\":0", "unsupported_parameter", "best_of");
}

static void
stop_is_a_string_or_a_few(void **state)
{
    char member[8192] = "\"stop\":[\"x\"";

    assert_int_equal(good("\"stop\":\"END\"")->n_stop, 1);
    assert_int_equal(good("\"stop\":[]")->n_stop, 0);
    refused("\"stop\":\"\"", "invalid_value", "stop");
    refused("\"stop\":[\"a\",\"\"]", "invalid_value", "stop.1");
    refused("\"stop\":5", "invalid_type", "stop");
    refused("\"stop\":[5]", "invalid_type", "stop.0");
    refused("\"stop\":[null]", "invalid_type", "stop.0");
    refused("\"stop\":{}", "invalid_type", "stop");
    for (int i = 1; i < COMPLETION_MAX_STOP; i++)
        strcat(member, ",\"x\"");
    strcat(member, "]");
    assert_int_equal(good(member)->n_stop, COMPLETION_MAX_STOP);
    member[strlen(member) - 1] = '\0';
    strcat(member, ",\"x\"]");
    refused(member, "invalid_value", "stop");
    snprintf(member, sizeof member, "\"stop\":\"%04096d\"", 0);
    assert_int_equal(good(member)->stop[0].size, 4096);
    snprintf(member, sizeof member, "\"stop\":\"%04097d\"", 0);
    refused(member, "invalid_value", "stop");
}

static void
stop_token_ids_are_ids(void **state)
{
    char member[2048] = "\"stop_token_ids\":[1";

    assert_int_equal(good("\"stop_token_ids\":[]")->n_stop_ids, 0);
    refused("\"stop_token_ids\":5", "invalid_type", "stop_token_ids");
    refused("\"stop_token_ids\":[\"a\"]", "invalid_type", "stop_token_ids.0");
    refused("\"stop_token_ids\":[1,1000]", "invalid_value", "stop_token_ids.1");
    refused("\"stop_token_ids\":[1,2,-1]", "invalid_value", "stop_token_ids.2");
    for (int i = 1; i < COMPLETION_MAX_STOP_IDS; i++)
        strcat(member, ",1");
    strcat(member, "]");
    assert_int_equal(good(member)->n_stop_ids, COMPLETION_MAX_STOP_IDS);
    member[strlen(member) - 1] = '\0';
    strcat(member, ",1]");
    refused(member, "invalid_value", "stop_token_ids");
}

static void
logit_bias_maps_ids_to_bounded_numbers(void **state)
{
    assert_int_equal(good("\"logit_bias\":{}")->n_bias, 0);
    refused("\"logit_bias\":[[1,2]]", "invalid_type", "logit_bias");
    refused("\"logit_bias\":{\"5\":\"1\"}", "invalid_type", "logit_bias.5");
    refused("\"logit_bias\":{\"5\":false}", "invalid_type", "logit_bias.5");
    refused("\"logit_bias\":{\"5\":null}", "invalid_type", "logit_bias.5");
    refused("\"logit_bias\":{\"5\":100.01}", "invalid_value", "logit_bias.5");
    refused("\"logit_bias\":{\"5\":-101}", "invalid_value", "logit_bias.5");
    refused("\"logit_bias\":{\"50256\":1}", "invalid_value", "logit_bias.50256");
    refused("\"logit_bias\":{\"1000\":1}", "invalid_value", "logit_bias.1000");
    refused("\"logit_bias\":{\"-1\":1}", "invalid_value", "logit_bias.-1");
    refused("\"logit_bias\":{\"+1\":1}", "invalid_value", "logit_bias.+1");
    refused("\"logit_bias\":{\"01\":1}", "invalid_value", "logit_bias.01");
    refused("\"logit_bias\":{\" 1\":1}", "invalid_value", "logit_bias. 1");
    refused("\"logit_bias\":{\"1e2\":1}", "invalid_value", "logit_bias.1e2");
    refused("\"logit_bias\":{\"hello\":1}", "invalid_value", "logit_bias.hello");
    refused("\"logit_bias\":{\"\":1}", "invalid_value", "logit_bias.");
    refused("\"logit_bias\":{\"99999999999999999999999\":1}", "invalid_value",
            "logit_bias.99999999999999999999999");
}

static void
stream_options_need_a_stream(void **state)
{
    refused("\"stream_options\":{\"include_usage\":true}", "invalid_value", "stream_options");
    refused("\"stream\":false,\"stream_options\":{}", "invalid_value", "stream_options");
    refused("\"stream\":true,\"stream_options\":true", "invalid_type", "stream_options");
    refused("\"stream\":true,\"stream_options\":{\"include_usage\":1}", "invalid_type",
            "stream_options.include_usage");
    refused("\"stream\":true,\"stream_options\":{\"continuous_usage_stats\":\"y\"}", "invalid_type",
            "stream_options.continuous_usage_stats");
    refused("\"stream\":true,\"stream_options\":{\"include_obfuscation\":[]}", "invalid_type",
            "stream_options.include_obfuscation");
    assert_true(good("\"stream_options\":{\"include_usage\":true},\"stream\":true")->include_usage);
    assert_string_equal(good("\"stream\":true,\"stream_options\":{\"x\":1}")->ignored[0],
                        "stream_options.x");
}

static void
min_tokens_stay_below_max_tokens(void **state)
{
    good("\"min_tokens\":5,\"max_tokens\":5");
    good("\"min_tokens\":500");
    refused("\"min_tokens\":6,\"max_tokens\":5", "invalid_value", "min_tokens");
}

static void
what_would_change_the_answer_and_is_not_offered_is_refused(void **state)
{
    static const char *const members[] = {
        "\"suffix\":\"x\"",
        "\"response_format\":{\"type\":\"json_object\"}",
        "\"response_format\":\"text\"",
        "\"response_format\":{}",
        "\"guided_json\":{\"type\":\"object\"}",
        "\"guided_regex\":\"a\"",
        "\"guided_choice\":[\"a\"]",
        "\"guided_grammar\":\"g\"",
        "\"structured_outputs\":{\"json\":1}",
        "\"grammar\":\"root ::= x\"",
        "\"truncate_prompt_tokens\":5",
        "\"truncate_prompt_tokens\":-1",
        "\"allowed_token_ids\":[1]",
        "\"bad_words\":[\"x\"]",
        "\"repetition_detection\":{\"max\":1}",
        "\"use_beam_search\":true",
        "\"length_penalty\":0.5",
        "\"early_stopping\":true",
        "\"prompt_logprobs\":0",
        "\"prompt_embeds\":\"AAAA\"",
        "\"lora_path\":\"x\"",
        "\"logits_processors\":[\"x\"]",
        "\"repeat_penalty\":1.1",
        "\"mirostat\":2",
        "\"mirostat\":\"2\"",
        "\"typical_p\":0.9",
        "\"n_predict\":5",
        "\"max_completion_tokens\":5",
        "\"max_new_tokens\":5",
        "\"messages\":[{\"role\":\"user\"}]",
        "\"top_logprobs\":3",
        "\"tools\":[{}]",
        "\"xtc_probability\":0.5",
        "\"dry_multiplier\":0.8",
    };

    for (size_t i = 0; i < sizeof members / sizeof members[0]; i++) {
        char name[64];

        snprintf(name, sizeof name, "%.*s", (int)strcspn(members[i] + 1, "\""), members[i] + 1);
        refused(members[i], "unsupported_parameter", name);
    }
}

static void
unknown_fields_are_listed(void **state)
{
    struct completion_request *r = good("\"foo\":1,\"bar\":{\"baz\":[null]},\"foo.b-r_9\":null");

    assert_int_equal(r->n_ignored, 3);
    assert_string_equal(r->ignored[0], "foo");
    assert_string_equal(r->ignored[1], "bar");
    assert_string_equal(r->ignored[2], "foo.b-r_9");
    assert_string_equal(good("\"return_token_ids\":true")->ignored[0], "return_token_ids");
    assert_int_equal(good("\"timings_per_token\":false")->n_ignored, 0);
}

/* The list becomes a response header. */
static void
names_of_unknown_fields_are_safe_in_a_header(void **state)
{
    struct completion_request *r =
        good("\"a\\r\\nSet-Cookie: b\":1,\"\xc3\xa9, c\":1,\"\":1,"
             "\"0123456789012345678901234567890123456789012345678901234567890123456789\":1");
    char body[8192] = "{\"prompt\":\"x\"";

    assert_string_equal(r->ignored[0], "a??Set-Cookie??b");
    assert_string_equal(r->ignored[1], "????c");
    assert_string_equal(r->ignored[2], "");
    assert_int_equal(strlen(r->ignored[3]), 64);
    for (int i = 0; i < 100; i++)
        snprintf(body + strlen(body), 16, ",\"f%d\":1", i);
    strcat(body, "}");
    assert_int_equal(parse(body)->n_ignored, 32);
}

static void
strict_requests_refuse_unknown_fields(void **state)
{
    limits.strict = true;
    refused("\"foo\":1", "unknown_parameter", "foo");
    refused("\"foo\":null", "unknown_parameter", "foo");
    refused("\"stream\":true,\"stream_options\":{\"foo\":1}", "unknown_parameter",
            "stream_options.foo");
    refused("\"return_token_ids\":true", "unknown_parameter", "return_token_ids");
    good("\"request_id\":\"x\",\"priority\":1");
}

static void
what_is_not_a_json_object_is_invalid_json(void **state)
{
    static const char *const bodies[] = {
        "",
        "null",
        "5",
        "\"x\"",
        "[]",
        "[{\"prompt\":\"x\"}]",
        "{",
        "{\"prompt\":\"x\"",
        "{\"prompt\":\"x\"}}",
        "{\"prompt\":\"x\"} x",
        "{'prompt':'x'}",
        "{\"prompt\":\"x\",}",
        "{\"prompt\":x}",
        "{\"prompt\":\"x\",\"temperature\":NaN}",
        "{\"prompt\":\"x\",\"temperature\":Infinity}",
        "{\"prompt\":\"x\",\"temperature\":-Infinity}",
        "{\"prompt\":\"x\",\"temperature\":nan}",
        "{\"prompt\":\"x\",\"temperature\":01}",
        "{\"prompt\":\"x\",\"temperature\":.5}",
        "{\"prompt\":\"x\",\"temperature\":0x1}",
        "{\"prompt\":\"x\",\"prompt\":\"y\"}",
        "{\"prompt\":\"x\",\"logit_bias\":{\"1\":1,\"1\":2}}",
        "{\"prompt\":\"\xff\"}",
        "{\"prompt\":\"\xc3\"}",
        "{\"prompt\":\"\xed\xa0\x80\"}",
        "{\"prompt\":\"\xc0\x80\"}",
        "{\"prompt\":\"\\ud800\"}",
        "{\"prompt\":\"\\x\"}",
        "{\"prompt\":\"a\nb\"}",
        "{\"a\\u0000b\":1}",
        "\xef\xbb\xbf{\"prompt\":\"x\"}",
        "prompt=x&max_tokens=5",
        "/* c */{\"prompt\":\"x\"}",
    };

    for (size_t i = 0; i < sizeof bodies / sizeof bodies[0]; i++)
        refused_body(bodies[i], 400, "invalid_json", "");
    parse_bytes("{\"prompt\":\"x\"}\0", 15);
    assert_string_equal(error.code, "invalid_json");
}

/* {"prompt":"x","metadata":[[[...]]]} with `depth` brackets, closed or not. */
static struct completion_request *
parse_nested(size_t depth, bool closed)
{
    struct buf body = {0};
    struct completion_request *request;

    buf_text(&body, "{\"prompt\":\"x\",\"metadata\":");
    for (size_t i = 0; i < depth; i++)
        buf_text(&body, i % 3 == 2 ? "{\"a\":" : "[");
    buf_text(&body, "1");
    for (size_t i = depth; i-- > 0 && closed;)
        buf_text(&body, i % 3 == 2 ? "}" : "]");
    if (closed)
        buf_text(&body, "}");
    request = parse_bytes(body.data, body.size_bytes);
    buf_free(&body);
    return request;
}

static void
deep_nesting_is_refused_before_it_is_parsed(void **state)
{
    assert_non_null(parse_nested(63, true)); /* 64 levels with the object around them */
    assert_null(parse_nested(64, true));
    assert_string_equal(error.code, "invalid_json");
    assert_null(parse_nested(500, true));
    assert_non_null(strstr(error.message, "64 levels"));
    assert_null(parse_nested(500000, false));
    assert_non_null(strstr(error.message, "64 levels"));
}

/* jansson needs tens of bytes for a value of two: the count is bounded before it is asked. */
static void
a_flood_of_small_values_is_refused_before_it_is_parsed(void **state)
{
    size_t n = 4 * 1000 * 1000;
    char *body = malloc(2 * n + 64);
    size_t at;

    at = (size_t)sprintf(body, "{\"metadata\":[1");
    for (size_t i = 0; i < n; i++, at += 2)
        memcpy(body + at, ",1", 2);
    assert_null(parse_bytes(body, at));
    assert_int_equal(error.status, 413);
    assert_string_equal(error.code, "request_too_large");
    at = (size_t)sprintf(body, "{\"metadata\":[[]");
    for (size_t i = 0; i < 2000; i++, at += 3)
        memcpy(body + at, ",[]", 3);
    at += (size_t)sprintf(body + at, "]}");
    assert_null(parse_bytes(body, at));
    assert_int_equal(error.status, 413);
    /* Text is no value, whatever it looks like. */
    at = (size_t)sprintf(body, "{\"prompt\":\"");
    for (size_t i = 0; i < n; i += 4, at += 8)
        memcpy(body + at, "[1,{\\\"2,", 8);
    at += (size_t)sprintf(body + at, "\"}");
    assert_non_null(parse_bytes(body, at));
    free(body);
}

static void
an_error_echoes_little_of_the_input(void **state)
{
    char body[8192];

    snprintf(body, sizeof body, "{\"prompt\":\"x\",\"model\":\"%03000d\"}", 0);
    assert_null(parse(body));
    assert_true(strlen(error.message) < 200);
    snprintf(body, sizeof body, "{\"prompt\":\"x\",\"logit_bias\":{\"%03000d\":1}}", 0);
    assert_null(parse(body));
    assert_true(strlen(error.message) < 200 && strlen(error.param) < 96);
    snprintf(body, sizeof body, "{\"prompt\":\"x\",%03000d}", 0);
    assert_null(parse(body));
    assert_true(strlen(error.message) < 300);
    limits.strict = true;
    snprintf(body, sizeof body, "{\"prompt\":\"x\",\"%03000d\":1}", 0);
    assert_null(parse(body));
    assert_true(strlen(error.message) < 200 && strlen(error.param) < 96);
    snprintf(body, sizeof body, "{\"prompt\":\"x\",\"\\u0007\\u001b[31m\\n\":1}");
    assert_null(parse(body));
    assert_string_equal(error.param, "??[31m?");
}

static void
an_arena_that_is_too_small_is_an_error_and_no_crash(void **state)
{
    static const char body[] =
        "{\"prompt\":[[1,2,3],[4]],\"stop\":[\"a\",\"b\"],\"logit_bias\":{\"1\":1},\"user\":\"u\","
        "\"stop_token_ids\":[1],\"foo\":1,\"model\":\"demo\"}";
    bool passed = false;

    for (size_t size = 16; size < 4096; size += 16) {
        struct arena *small = arena_new(size);
        struct completion_request *request = NULL;
        struct api_error failure = {0};

        if (completion_parse(small, body, strlen(body), &limits, &request, &failure) == 0)
            passed = true;
        else
            assert_int_equal(failure.status, 503);
        assert_int_equal(request == NULL, failure.status != 0);
        arena_free(small);
    }
    assert_true(passed);
}

int
main(void)
{
#define TEST(f) cmocka_unit_test_teardown(f, drop_arena)
    const struct CMUnitTest tests[] = {
        TEST(a_bare_prompt_gets_the_defaults),
        TEST(every_field_arrives),
        TEST(null_is_the_same_as_absent),
        TEST(what_load_generators_always_send_is_accepted),
        TEST(the_four_forms_of_a_prompt_are_read),
        TEST(a_missing_or_empty_prompt_is_refused),
        TEST(a_prompt_of_another_type_is_refused),
        TEST(an_id_outside_the_vocabulary_is_refused_by_its_path),
        TEST(a_number_past_64_bits_is_refused_by_its_path),
        TEST(a_list_of_ids_longer_than_the_context_is_refused),
        TEST(prompts_and_choices_are_bounded),
        TEST(numbers_are_held_to_their_bounds),
        TEST(a_value_of_a_wrong_type_is_refused_by_name),
        TEST(top_k_of_zero_or_minus_one_switches_it_off),
        TEST(an_unknown_model_is_404),
        TEST(best_of_must_equal_n),
        TEST(stop_is_a_string_or_a_few),
        TEST(stop_token_ids_are_ids),
        TEST(logit_bias_maps_ids_to_bounded_numbers),
        TEST(stream_options_need_a_stream),
        TEST(min_tokens_stay_below_max_tokens),
        TEST(what_would_change_the_answer_and_is_not_offered_is_refused),
        TEST(unknown_fields_are_listed),
        TEST(names_of_unknown_fields_are_safe_in_a_header),
        TEST(strict_requests_refuse_unknown_fields),
        TEST(what_is_not_a_json_object_is_invalid_json),
        TEST(deep_nesting_is_refused_before_it_is_parsed),
        TEST(a_flood_of_small_values_is_refused_before_it_is_parsed),
        TEST(an_error_echoes_little_of_the_input),
        TEST(an_arena_that_is_too_small_is_an_error_and_no_crash),
    };

    return cmocka_run_group_tests(tests, NULL, NULL);
}
