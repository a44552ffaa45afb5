/* bundle: what tiering/ tells gpu/ about one (row, order) of one Engram layer: where its bundle is.
 * A bundle is laid out as in base/shape.h: H weight rows, then H scale rows.                      */
#ifndef BASE_BUNDLE_H
#define BASE_BUNDLE_H

#include <stdint.h>

struct bundle_address {
    const void *source; /* readable by the device; NULL: the read failed, the gather writes zeros and
                         * the engine discards every result that used them; BUNDLE_IN_PLACE */
    void *promote;      /* HBM slot the gather also writes the bundle to, or NULL */
};

/* The rows are read one by one where the resident table has them: row row_base[h] + mix mod prime[h] of
 * head h. mix is that of the same cell, see struct bundle_source.                                     */
#define BUNDLE_IN_PLACE ((const void *)1)

/* Where the rows of one Engram layer's step are. Cells are [n_rows, orders]. */
struct bundle_source {
    const struct bundle_address *address;
    const uint64_t *mix;         /* read only where an address is BUNDLE_IN_PLACE; may be NULL when none is */
    const void *weights, *scales; /* row 0 of the resident table, readable by the device; NULL: none */
};

#endif
