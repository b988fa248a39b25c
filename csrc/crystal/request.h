// What is asked for, and where the answer goes.
#pragma once

#include <vector>

#include "crystal/lattice.h"

namespace pyfast::crystal {

inline double limit_of(double radius, bool inclusive) {
    const double square = radius * radius;
    return inclusive && square > 0 ? std::nextafter(square, std::numeric_limits<double>::infinity()) : square;
}

// One structure of a batch, its positions in float64.
struct Structure {
    int64_t first, n;  // of its atoms
    std::vector<Vec> x;
    Vec low{0, 0, 0}, high{0, 0, 0};  // their corners
    double cutoff;                    // the largest
    const int64_t* kinds = nullptr;   // of its atoms, or none
    const double* radii = nullptr;    // of two kinds
    const double* limits = nullptr;
    int64_t num_kinds = 1;
    double limit;  // squares below it are near
    bool half;

    Vec at(int64_t i) const { return x[i]; }

    double radius_of(int64_t i, int64_t j) const { return kinds ? radii[kinds[i] * num_kinds + kinds[j]] : cutoff; }

    double limit_of(int64_t i, int64_t j) const { return kinds ? limits[kinds[i] * num_kinds + kinds[j]] : limit; }
};

// Columns of the answer.
template <class Index, class Real>
struct Edges {
    Index *source, *target;
    int32_t* shift;
    Real* distance;
    Index* reverse;
};

}  // namespace pyfast::crystal
