// What a kernel reads through must be within bounds; checked before any parallel region.
#pragma once

#include <cstdint>
#include <string>

#include "tensor.h"

namespace pyfast::crystal {

// Pointers to the rows of e elements in n groups.
inline void check_pointers(const char* name, Tensor<const int64_t> ptr, int64_t n, int64_t e) {
    if (ptr.size(0) != n + 1 || ptr[0] != 0 || ptr[n] != e)
        throw py::value_error(std::string(name) + " must hold " + std::to_string(n + 1) + " numbers from 0 to " +
                              std::to_string(e));
    for (int64_t i = 0; i < n; ++i)
        if (ptr[i] > ptr[i + 1])
            throw py::value_error(std::string(name) + " must not decrease, got " + std::to_string(ptr[i + 1]) +
                                  " after " + std::to_string(ptr[i]));
}

inline void check_indices(const char* name, Tensor<const int64_t> index, int64_t n) {
    for (int64_t e = 0; e < index.size(0); ++e)
        if (index[e] < 0 || index[e] >= n)
            throw py::index_error(std::string(name) + "[" + std::to_string(e) + "] must be in [0, " +
                                  std::to_string(n) + "), got " + std::to_string(index[e]));
}

}  // namespace pyfast::crystal
