/* Vectors: specs, "Hash" (the paper's Engram) and the Engram of DeepSeek-V4.1 ("Primes",
 * "Multipliers", test vectors), made by independent implementations. Ids are compressed ids. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

#include "model/ngram_hash.h"

enum { DEAD = -1 };

/* The rows of one position, in column order. Everything from the first position before the start,
 * or the first dead one, on is the pad. */
static void
rows_of(const struct engram_shape *engram, int table, const int32_t *ids, int position,
        int64_t *ret)
{
    int32_t window[SHAPE_MAX_ORDER];
    uint64_t mix[SHAPE_MAX_ORDERS];
    int blocked = 0;
    for (int k = 0; k < engram->max_order; k++) {
        blocked |= k > position || ids[position - k] == DEAD;
        window[k] = blocked ? engram->pad_id : ids[position - k];
    }
    ngram_hash_mix(engram, table, window, mix);
    const struct engram_table_shape *t = &engram->table[table];
    for (int order = 0; order < engram->max_order - 1; order++) {
        for (int head = 0; head < engram->heads; head++)
            *ret++ =
                t->row_base[order][head] + (int64_t)(mix[order] % (uint64_t)t->prime[order][head]);
    }
}

static struct engram_shape
shape_of(int compressed_vocab, int max_order, int heads, int layer_a, int layer_b)
{
    struct engram_shape engram = {.n_layers = 2,
                                  .max_order = max_order,
                                  .heads = heads,
                                  .compressed_vocab = compressed_vocab,
                                  .pad_id = 2};
    engram.table[0].layer = layer_a;
    engram.table[1].layer = layer_b;
    return engram;
}

static void
check_rows(const struct engram_shape *engram, int table, const int32_t *ids, int position,
           const int64_t *want)
{
    int64_t got[SHAPE_MAX_ORDERS * SHAPE_MAX_HEADS_PER_NGRAM];
    rows_of(engram, table, ids, position, got);
    for (int c = 0; c < (engram->max_order - 1) * engram->heads; c++)
        assert_int_equal(got[c], want[c]);
}

static void
the_small_model_of_the_paper_is_exact(void **state)
{
    static const int64_t size[] = {5000, 7000};
    static const int64_t multiplier[2][3] = {
        {7593627661414631, 479593001838623, 3563315849468963},
        {2865651367968763, 5551170510236881, 5343936160617101}};
    static const int64_t prime[2][2][4] = {{{5003, 5009, 5011, 5021}, {7001, 7013, 7019, 7027}},
                                           {{5023, 5039, 5051, 5059}, {7039, 7043, 7057, 7069}}};
    static const int32_t ids[] = {5, 999, 17, 17, 0};
    static const struct {
        int table, position;
        int64_t row[8];
    } vector[] = {
        {0, 0, {2500, 5785, 10870, 15168, 24071, 30811, 40312, 44879}},
        {0, 1, {1619, 6197, 11290, 18499, 27029, 31507, 37649, 46033}},
        {0, 2, {4895, 9974, 13950, 19463, 21649, 33377, 36091, 42439}},
        {0, 4, {2000, 9547, 11598, 15643, 21761, 27511, 37720, 46745}},
        {1, 0, {3753, 8106, 10168, 20074, 23925, 28620, 40249, 41406}},
        {1, 1, {111, 9837, 13802, 15417, 25424, 34117, 34827, 44200}},
        {1, 2, {2756, 7526, 13049, 15779, 22025, 27979, 37209, 41762}},
        {1, 4, {4187, 7957, 14761, 16447, 24870, 33833, 38182, 46750}},
    };
    struct engram_shape engram = shape_of(1000, 3, 4, 1, 15);
    assert_int_equal(ngram_hash_derive(&engram, 0, size, NULL), 0);
    for (int t = 0; t < 2; t++) {
        int64_t rows = 0;
        for (int i = 0; i < 3; i++)
            assert_int_equal(engram.table[t].multiplier[i], multiplier[t][i]);
        for (int c = 0; c < 8; c++) {
            assert_int_equal(engram.table[t].prime[c / 4][c % 4], prime[t][c / 4][c % 4]);
            assert_int_equal(engram.table[t].row_base[c / 4][c % 4], rows);
            rows += prime[t][c / 4][c % 4];
        }
        assert_int_equal(engram.table[t].rows, rows);
    }
    for (size_t i = 0; i < sizeof vector / sizeof vector[0]; i++)
        check_rows(&engram, vector[i].table, ids, vector[i].position, vector[i].row);
}

static void
the_large_model_of_the_paper_is_exact(void **state)
{
    static const int64_t size[] = {646400, 646400};
    static const int64_t multiplier[2][3] = {{76632096046245, 4839876093313, 35959672319349},
                                             {28919099099511, 56020370062535, 53929037264533}};
    static const int32_t ids[] = {5, 99091, 17, 17, 0};
    static const int64_t t2[] = {352732,  724476,  1695768, 1956726, 2943917, 3296254,
                                 4439632, 5129014, 5500135, 6040917, 6881554, 7247993,
                                 8024382, 8595588, 9292487, 9768144};
    static const int64_t t4[] = {543015,  794171,  1855956, 2101022, 3228747, 3421079,
                                 4036791, 4935818, 5457351, 6208084, 6789311, 7394883,
                                 8007265, 8595492, 9230752, 9883994};
    struct engram_shape engram = shape_of(99092, 3, 8, 1, 15);
    assert_int_equal(ngram_hash_derive(&engram, 0, size, NULL), 0);
    for (int t = 0; t < 2; t++) {
        for (int i = 0; i < 3; i++)
            assert_int_equal(engram.table[t].multiplier[i], multiplier[t][i]);
    }
    check_rows(&engram, 0, ids, 2, t2);
    check_rows(&engram, 1, ids, 4, t4);
}

static void
deepseek_v41_is_exact(void **state)
{
    static const int64_t size[] = {16000000, 16000000, 16000000};
    static const int64_t multiplier[2][4] = {
        {76632096046245, 4839876093313, 35959672319349, 73987337458391},
        {67716810739261, 51510806800915, 30921347202721, 82619226485591}};
    static const int64_t prime[2][3][8] = {
        {{16000057, 16000079, 16000081, 16000097, 16000121, 16000129, 16000133, 16000183},
         {16000189, 16000207, 16000211, 16000253, 16000277, 16000289, 16000307, 16000321},
         {16000339, 16000381, 16000393, 16000399, 16000403, 16000409, 16000447, 16000463}},
        {{16000477, 16000487, 16000499, 16000507, 16000511, 16000573, 16000609, 16000627},
         {16000667, 16000669, 16000693, 16000697, 16000711, 16000729, 16000759, 16000769},
         {16000781, 16000799, 16000813, 16000819, 16000841, 16000877, 16000879, 16000889}}};
    static const int64_t row_base[2][24] = {
        {0,         16000057,  32000136,  48000217,  64000314,  80000435,  96000564,  112000697,
         128000880, 144001069, 160001276, 176001487, 192001740, 208002017, 224002306, 240002613,
         256002934, 272003273, 288003654, 304004047, 320004446, 336004849, 352005258, 368005705},
        {0,         16000477,  32000964,  48001463,  64001970,  80002481,  96003054,  112003663,
         128004290, 144004957, 160005626, 176006319, 192007016, 208007727, 224008456, 240009215,
         256009984, 272010765, 288011564, 304012377, 320013196, 336014037, 352014914, 368015793}};
    static const int64_t rows[2] = {384006168, 384016682};
    static const struct {
        int32_t ids[5];
        int position, table;
        int64_t row[24];
    } vector[] = {
        {{0, 3}, 0, 0, {5702652,   24393184,  39183301,  61503783,  78984481,  90144770,
                        103724983, 121476532, 131476717, 152385926, 164143652, 191599181,
                        198145581, 217419202, 238329687, 247482304, 257520185, 283540304,
                        288689443, 315264704, 322314652, 348890037, 367865216, 380066193}},
        {{0, 3}, 1, 0, {13136173,  17031479,  36294826,  62401242,  69561560,  82615312,
                        105142365, 122730833, 143666100, 156931932, 165213353, 180168542,
                        197858374, 222703855, 235972003, 240958518, 270063682, 283921719,
                        297024305, 319576009, 329277020, 351828750, 355986352, 378790237}},
        {{0, 3}, 0, 1, {14361964,  29977809,  32716444,  61209771,  67456205,  84275051,
                        108494439, 120604547, 132225184, 150270452, 174805952, 178895254,
                        193207923, 211610196, 226280582, 252505246, 261362261, 279862797,
                        301364059, 312864848, 328367036, 349372619, 363873742, 372375971}},
        {{0, 3}, 1, 1, {7976312,   25015455,  32662253,  59094253,  72310297,  85156133,
                        108102275, 119576138, 131069797, 145343601, 172623612, 185170695,
                        205084594, 221545257, 227646200, 251014423, 260231155, 280143022,
                        290296486, 312934632, 326604373, 350427914, 363307643, 379703671}},
        {{0, 1000, 20000, 99091, 5}, 2, 0, {2514504,   25839347,  41338933,  55064078,  73415131,
                                            91735800,  109184371, 127499113, 133634068, 154632427,
                                            175827244, 177968357, 193272727, 219518665, 230128830,
                                            249959752, 262109550, 276404468, 302665412, 316444310,
                                            325870398, 340369764, 362235497, 378313707}},
        {{0, 1000, 20000, 99091, 5}, 3, 0, {15035837,  26275535,  47614490,  50773095,  75670418,
                                            86145336,  108790896, 119055420, 143508559, 155535408,
                                            169680161, 190908561, 194676865, 209241645, 230939290,
                                            246742983, 270254874, 287083224, 294911663, 309996191,
                                            321226659, 339833535, 362751238, 378392587}},
        {{0, 1000, 20000, 99091, 5}, 4, 0, {12391924,  30601786,  32347082,  62848667,  70397898,
                                            94727027,  98981383,  125214817, 128505772, 144846964,
                                            164859147, 183340247, 203037330, 222754386, 238665145,
                                            249422114, 267133723, 286023487, 289467485, 307626287,
                                            335894194, 338537501, 367368163, 375419494}},
        {{0, 1000, 20000, 99091, 5}, 2, 1, {3417556,   19468457,  46503397,  54692211,  75036881,
                                            91660466,  97475251,  113440390, 134322005, 147803648,
                                            168824087, 180910588, 200523480, 219593774, 237535702,
                                            250931151, 268385101, 279521669, 302959202, 313628153,
                                            323950676, 340067670, 360915068, 369771074}},
        {{0, 1000, 20000, 99091, 5}, 3, 1, {12193120,  26332522,  46291179,  52682351,  73004164,
                                            91946818,  109295646, 124764975, 132017753, 144499939,
                                            164900230, 178924741, 193913035, 222107477, 228166535,
                                            255558740, 262613200, 285846712, 303746340, 318800780,
                                            335096704, 337951598, 354113813, 373732862}},
        {{0, 1000, 20000, 99091, 5}, 4, 1, {743092,    18408009,  41668928,  49698968,  70671423,
                                            85309510,  103753309, 124352426, 134918775, 146880199,
                                            160155250, 188835670, 198763412, 219642726, 227488903,
                                            249581638, 260910346, 281339583, 289460730, 313909223,
                                            331980274, 339839171, 358863771, 376663716}},
        {{0, 1000, DEAD, 5, 7}, 2, 0, {4299726,   29253038,  43157972,  58397134,  65256332,
                                       88876378,  100686433, 112312540, 129401291, 144510675,
                                       170979806, 184903880, 199719089, 215127204, 230239700,
                                       250883315, 264341430, 275127613, 298781502, 318608685,
                                       331826823, 351654054, 365224186, 370096053}},
        {{0, 1000, DEAD, 5, 7}, 3, 0, {5412672,   18319159,  35492627,  60880252,  74962984,
                                       95657733,  98005115,  127351390, 143494632, 151789366,
                                       171410756, 185435171, 207165545, 218031260, 226330336,
                                       247008214, 256353435, 276423911, 295874085, 305599364,
                                       322749888, 348475788, 367405771, 372009279}},
        {{0, 1000, DEAD, 5, 7}, 4, 0, {1465117,   16756641,  44328833,  56905956,  67773656,
                                       82063522,  105208692, 122526906, 134353978, 159331905,
                                       168438325, 184058292, 206701466, 218023869, 227008337,
                                       242886156, 264305509, 281276902, 297555591, 313695282,
                                       324455132, 340594991, 362814333, 373855271}},
        {{0, 1000, DEAD, 5, 7}, 2, 1, {6788701,   28249242,  44401659,  55169969,  76554643,
                                       88007614,  104465141, 120694389, 131862336, 159654072,
                                       173141644, 180723153, 199258128, 209374005, 226234010,
                                       253188427, 261869729, 284532797, 296826308, 304380858,
                                       321414036, 350742427, 363928019, 381853422}},
        {{0, 1000, DEAD, 5, 7}, 3, 1, {6939818,   27264717,  45254833,  51915000,  79245924,
                                       86868470,  108849060, 119840903, 131576092, 148509516,
                                       175704205, 177570039, 200101533, 208499118, 238497982,
                                       243164617, 268363546, 274011563, 290850399, 314068096,
                                       324530373, 351836884, 354242998, 382274687}},
        {{0, 1000, DEAD, 5, 7}, 4, 1, {2873305,   19453170,  39349392,  52613772,  75246541,
                                       82049240,  109746948, 123597188, 131762215, 159387696,
                                       170881144, 178130467, 195503169, 220126288, 234499338,
                                       244624601, 258195586, 274498669, 297847010, 319282858,
                                       328545405, 345161350, 357640809, 372035727}},
    };
    struct engram_shape engram = shape_of(99092, 4, 8, 1, 14);
    assert_int_equal(ngram_hash_derive(&engram, 0, size, NULL), 0);
    for (int t = 0; t < 2; t++) {
        assert_int_equal(engram.table[t].rows, rows[t]);
        for (int i = 0; i < 4; i++)
            assert_int_equal(engram.table[t].multiplier[i], multiplier[t][i]);
        for (int c = 0; c < 24; c++) {
            assert_int_equal(engram.table[t].prime[c / 8][c % 8], prime[t][c / 8][c % 8]);
            assert_int_equal(engram.table[t].row_base[c / 8][c % 8], row_base[t][c]);
        }
    }
    for (size_t i = 0; i < sizeof vector / sizeof vector[0]; i++)
        check_rows(&engram, vector[i].table, vector[i].ids, vector[i].position, vector[i].row);
}

/* Every product of the largest id with the largest multiplier must fit 63 bits. */
static void
products_stay_below_63_bits(void **state)
{
    static const int64_t size[] = {11, 11, 11, 11, 11};
    static const int vocab[] = {1, 2, 3, 1000, 99092, 1 << 24, INT32_MAX};
    for (size_t v = 0; v < sizeof vocab / sizeof vocab[0]; v++) {
        struct engram_shape engram = shape_of(vocab[v], SHAPE_MAX_ORDER, 2, 0, 255);
        assert_int_equal(ngram_hash_derive(&engram, v, size, NULL), 0);
        for (int t = 0; t < 2; t++) {
            for (int i = 0; i < SHAPE_MAX_ORDER; i++) {
                int64_t product, m = engram.table[t].multiplier[i];
                assert_true(m > 0 && m % 2 == 1);
                assert_false(__builtin_mul_overflow((int64_t)vocab[v] - 1, m, &product));
            }
        }
    }
}

/* 8 layers x 5 orders x 32 heads on one size: 1,280 primes in a row, none dealt twice. */
static void
the_largest_shape_gets_distinct_primes(void **state)
{
    static const int64_t size[] = {(int64_t)1 << 40, (int64_t)1 << 40, (int64_t)1 << 40,
                                   (int64_t)1 << 40, (int64_t)1 << 40};
    struct engram_shape engram = {.n_layers = SHAPE_MAX_ENGRAM_LAYERS,
                                  .max_order = SHAPE_MAX_ORDER,
                                  .heads = SHAPE_MAX_HEADS_PER_NGRAM,
                                  .compressed_vocab = 1000};
    for (int i = 0; i < engram.n_layers; i++)
        engram.table[i].layer = i;
    assert_int_equal(ngram_hash_derive(&engram, INT64_MAX, size, NULL), 0);
    int64_t last = (int64_t)1 << 40;
    for (int t = 0; t < engram.n_layers; t++) {
        int64_t rows = 0;
        for (int order = 0; order < SHAPE_MAX_ORDERS; order++) {
            for (int head = 0; head < SHAPE_MAX_HEADS_PER_NGRAM; head++) {
                assert_true(engram.table[t].prime[order][head] > last);
                last = engram.table[t].prime[order][head];
                rows += last;
            }
        }
        assert_int_equal(engram.table[t].rows, rows);
    }
}

static void
shapes_out_of_bounds_are_refused_and_leave_the_shape_alone(void **state)
{
    static const int64_t size[] = {11, 13, 11, 11, 11}, zero[] = {11, 0, 11, 11, 11},
                         top[] = {INT64_MAX, INT64_MAX, 11, 11, 11};
    static const struct {
        int layers, order, heads, vocab, layer;
        uint64_t seed;
        const int64_t *size;
    } bad[] = {
        {SHAPE_MAX_ENGRAM_LAYERS + 1, 3, 4, 1000, 1, 0, size},
        {-1, 3, 4, 1000, 1, 0, size},
        {2, 1, 4, 1000, 1, 0, size},
        {2, SHAPE_MAX_ORDER + 1, 4, 1000, 1, 0, size},
        {2, 3, 0, 1000, 1, 0, size},
        {2, 3, SHAPE_MAX_HEADS_PER_NGRAM + 1, 1000, 1, 0, size},
        {2, 3, 4, 0, 1, 0, size},
        {2, 3, 4, 1000, -1, 0, size},
        {2, 3, 4, 1000, 1, UINT64_MAX, size},
        {2, 3, 4, 1000, 1, 0, zero},
        {2, 3, 4, 1000, 1, 0, top},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        struct engram_shape engram = {.n_layers = bad[i].layers,
                                      .max_order = bad[i].order,
                                      .heads = bad[i].heads,
                                      .compressed_vocab = bad[i].vocab};
        engram.table[0].layer = bad[i].layer;
        engram.table[1].layer = 2;
        struct engram_shape before = engram;
        struct err err = ERR_INIT;
        assert_int_equal(ngram_hash_derive(&engram, bad[i].seed, bad[i].size, &err), -EINVAL);
        assert_true(err.text[0] != '\0');
        assert_memory_equal(&engram, &before, sizeof engram);
    }
}

int
main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(the_small_model_of_the_paper_is_exact),
        cmocka_unit_test(the_large_model_of_the_paper_is_exact),
        cmocka_unit_test(deepseek_v41_is_exact),
        cmocka_unit_test(products_stay_below_63_bits),
        cmocka_unit_test(the_largest_shape_gets_distinct_primes),
        cmocka_unit_test(shapes_out_of_bounds_are_refused_and_leave_the_shape_alone),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
