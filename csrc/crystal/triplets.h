// Triplets as tiles: for every atom, the pairs of some edges, its rows, with the edges to it, its columns.
#pragma once

#include "crystal/rows.h"

namespace pyfast::crystal {

// Tile a: the edges row[row_ptr[a]] to row[row_ptr[a + 1]] by the edges ptr[a] to ptr[a + 1], from tile_ptr[a] on. An
// empty `row` says that positions are edges.
struct Tiles {
    const int64_t *row, *row_ptr, *ptr, *first;
    int64_t count, rows;

    Tiles(Ints row_, Ints row_ptr_, Ints ptr_, Ints tile_ptr, int64_t edges, int64_t pairs)
        : row(row_.size(0) ? row_.data : nullptr),
          row_ptr(row_ptr_.data),
          ptr(ptr_.data),
          first(tile_ptr.data),
          count(ptr_.size(0) - 1),
          rows(0) {
        check_pointers("ptr", ptr_, edges);
        check_pointers("row_ptr", row_ptr_, row ? row_.size(0) : edges);
        check_pointers("tile_ptr", tile_ptr, pairs);
        if (row_ptr_.size(0) != count + 1 || tile_ptr.size(0) != count + 1)
            throw std::invalid_argument("row_ptr must hold as many pointers as ptr");
        rows = row_ptr[count];
        if (row) check_indices("row", row_, rows, edges);
        for (int64_t a = 0; a < count; ++a)
            if (first[a + 1] - first[a] != height(a) * width(a))
                refuse("tile_ptr", a + 1, "be " + std::to_string(first[a] + height(a) * width(a)), first[a + 1]);
    }
    int64_t height(int64_t a) const { return row_ptr[a + 1] - row_ptr[a]; }
    int64_t width(int64_t a) const { return ptr[a + 1] - ptr[a]; }
    int64_t edge(int64_t a, int64_t c) const { return row ? row[row_ptr[a] + c] : row_ptr[a] + c; }
};

}  // namespace pyfast::crystal
