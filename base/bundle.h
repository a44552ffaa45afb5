/* bundle: what tiering/ tells gpu/ about one (row, order) of one Engram layer: where its bundle is.
 * A bundle is laid out as in base/shape.h: H weight rows, then H scale rows.                      */
#ifndef BASE_BUNDLE_H
#define BASE_BUNDLE_H

struct bundle_address {
    const void *source; /* readable by the device; NULL: the read failed, the gather writes zeros and
                         * the engine discards every result that used them */
    void *promote;      /* HBM slot the gather also writes the bundle to, or NULL */
};

#endif
