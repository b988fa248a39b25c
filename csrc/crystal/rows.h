// Edges by rows: those of row i are positions ptr[i] to ptr[i + 1], edge[p] is the edge at position p, and other[p] the
// row at its other end. An empty `edge` says that positions are edges. Columns lie in registers while a row is summed.
#pragma once

#include <string>

#include "tensor.h"
#include "tiles.h"

namespace pyfast::crystal {

using Ints = Tensor<const int64_t>;

inline void refuse(const char* name, int64_t at, const std::string& rule, int64_t got) {
    throw py::index_error(std::string(name) + "[" + std::to_string(at) + "] must " + rule + ", got " +
                          std::to_string(got));
}

inline void check_indices(const char* name, Ints index, int64_t count, int64_t bound) {
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) wrong |= int64_t(uint64_t(index[i]) >= uint64_t(bound));
    for (int64_t i = 0; wrong && i < count; ++i)
        if (index[i] < 0 || index[i] >= bound) refuse(name, i, "be in [0, " + std::to_string(bound) + ")", index[i]);
}

// From 0 up to `bound` at most, never down.
inline void check_pointers(const char* name, Ints ptr, int64_t bound) {
    if (ptr.size(0) < 1) throw std::invalid_argument(std::string(name) + " must hold a first pointer, got none");
    if (ptr[0] != 0) refuse(name, 0, "be 0", ptr[0]);
    for (int64_t i = 1; i < ptr.size(0); ++i) {
        if (ptr[i] < ptr[i - 1]) refuse(name, i, "not be less than the one before", ptr[i]);
        if (ptr[i] > bound) refuse(name, i, "be at most " + std::to_string(bound), ptr[i]);
    }
}

struct Rows {
    const int64_t *other, *edge, *ptr;
    int64_t count, used;

    Rows(Ints other_, Ints edge_, Ints ptr_, int64_t others, int64_t edges)
        : other(other_.data),
          edge(edge_.size(0) ? edge_.data : nullptr),
          ptr(ptr_.data),
          count(ptr_.size(0) - 1),
          used(0) {
        check_pointers("ptr", ptr_, other_.size(0));
        used = ptr_[count];
        check_indices("source", other_, used, others);
        if (edge) {
            check_pointers("ptr", ptr_, edge_.size(0));
            check_indices("edge", edge_, used, edges);
        } else if (used > edges) {
            refuse("ptr", count, "be at most " + std::to_string(edges), used);
        }
    }
    int64_t at(int64_t p) const { return edge ? edge[p] : p; }
};

template <class F>
struct ScalarOf {
    using Type = F;
};

template <class Of>
using In = typename Of::Type;

template <class Of, class F>
[[gnu::always_inline]] inline In<Of>& as(F* p) {
    return *reinterpret_cast<In<Of>*>(p);
}
template <class Of, class F>
[[gnu::always_inline]] inline const In<Of>& as(const F* p) {
    return *reinterpret_cast<const In<Of>*>(p);
}

// Calls f.operator()<Of, N>(column) for blocks of N vectors, and for what is left, column by column.
template <class F, class Function>
[[gnu::always_inline]] inline void for_columns(int64_t columns, Function f) {
    constexpr int64_t one = lanes<F>;
    int64_t c = 0;
    for (; c + 8 * one <= columns; c += 8 * one) f.template operator()<VectorOf<F>, 8>(c);
    if (c + 4 * one <= columns) f.template operator()<VectorOf<F>, 4>(c), c += 4 * one;
    if (c + 2 * one <= columns) f.template operator()<VectorOf<F>, 2>(c), c += 2 * one;
    if (c + one <= columns) f.template operator()<VectorOf<F>, 1>(c), c += one;
    for (; c < columns; ++c) f.template operator()<ScalarOf<F>, 1>(c);
}

template <class F, class Of>
inline constexpr int64_t step = sizeof(In<Of>) / sizeof(F);

template <class V, class F>
[[gnu::always_inline]] inline F total(const V& v) {
    if constexpr (std::is_same_v<V, F>) {
        return v;
    } else {
        F sum = 0;
        for (size_t i = 0; i < sizeof(V) / sizeof(F); ++i) sum += v[i];
        return sum;
    }
}

}  // namespace pyfast::crystal
