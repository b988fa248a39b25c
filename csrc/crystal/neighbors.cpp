// Neighbour lists of a batch: one pass counts the edges of every atom, and one writes them where they belong.
#include <atomic>

#include "tensor.h"

#include "crystal/batch.h"
#include "crystal/binned.h"

namespace pyfast::crystal {
namespace {

// -> counts (N,), status (B,)
template <class Real>
void count(Tensor<const Real> positions, Tensor<const double> cell, Tensor<const bool> pbc,
           Tensor<const int64_t> atom_ptr, Tensor<const double> cutoff, Tensor<const int64_t> kinds, bool inclusive,
           bool half, double max_edges, Tensor<int64_t> counts, Tensor<int32_t> status) {
    const Request<Real> request{positions, cell, pbc, atom_ptr, cutoff, kinds, inclusive, half};
    request.check();
    const auto structure = [&](int64_t b, Searches& storage) {
        auto& [s, ghosts, pairs] = storage;
        int64_t* out = counts.data + atom_ptr[b];
        const Lattice lattice = request.lattice(b);
        status[b] = request.load(b, s);
        if (!status[b]) status[b] = check(lattice, s, max_edges);
        std::fill(out, out + s.n, 0);
        if (status[b] || s.n == 0 || !(s.limit > 0)) return;
        bool coincident_atoms = false;
        if (s.n > few) {
            const Bins bins(lattice, s);
            if (bins.usable) {
                count_rows(bins, out, coincident_atoms);
                if (coincident_atoms) status[b] |= coincident;
                return;
            }
        }
        if (ghosts.gather(lattice, s)) {
            ghosts.count(s, out);
            if (ghosts.coincident) status[b] |= coincident;
            return;
        }
        pairs.count(lattice, s, out);
        if (pairs.coincident) status[b] |= coincident;
    };
    each(request, structure);
}

// ptr (N + 1,) -> edge_index (2, E), shift (E, 3), distance (E,), reverse (E,)
template <class Real, class Index>
void fill(Tensor<const Real> positions, Tensor<const double> cell, Tensor<const bool> pbc,
          Tensor<const int64_t> atom_ptr, Tensor<const double> cutoff, Tensor<const int64_t> kinds, bool inclusive,
          bool half, Tensor<const Index> ptr, int64_t edges, Tensor<Index> edge_index, Tensor<int32_t> shift,
          Tensor<Real> distance, Tensor<Index> reverse) {
    const Request<Real> request{positions, cell, pbc, atom_ptr, cutoff, kinds, inclusive, half};
    request.check();
    const int64_t N = positions.size(0);
    if (ptr[0] != 0 || ptr[N] > edges) throw py::value_error("ptr must go from 0 to at most the number of edges");
    for (int64_t i = 0; i < N; ++i)
        if (ptr[i] > ptr[i + 1]) throw py::value_error("ptr must not fall");
    std::atomic<bool> wrong = false;
    const Edges<Index, Real> out{edge_index.data, edge_index.data + edges, shift.data, distance.data, reverse.data};
    const auto structure = [&](int64_t b, Searches& storage) {
        auto& [s, ghosts, pairs] = storage;
        const Index* rows = &ptr[atom_ptr[b]];
        if (rows[0] == rows[atom_ptr[b + 1] - atom_ptr[b]]) return;  // no edges, or none that are wanted
        const Lattice lattice = request.lattice(b);
        request.load(b, s);
        if (s.n > few) {
            const Bins bins(lattice, s);
            if (bins.usable) {
                if (!fill_rows(bins, rows, out)) {
                    wrong = true;
                    return;
                }
                if (half)
                    std::fill(out.reverse + rows[0], out.reverse + rows[s.n], Index(-1));
                else
                    reverse_rows(s, rows, out);
                return;
            }
        }
        const bool filled = ghosts.gather(lattice, s) ? ghosts.fill(s, rows, out) : pairs.fill(lattice, s, rows, out);
        if (!filled) wrong = true;
    };
    each(request, structure);
    if (wrong) throw py::value_error("ptr must come from a count of the same structures");
    for (int64_t e = ptr[N]; e < edges; ++e) {  // what a capacity leaves over
        out.source[e] = out.target[e] = 0;
        out.shift[3 * e] = out.shift[3 * e + 1] = out.shift[3 * e + 2] = 0;
        out.distance[e] = 0, out.reverse[e] = -1;
    }
}

template <class Real, class Index>
void bind_fill(py::module_& m) {
    m.def("fill", &fill<Real, Index>, py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void bind_neighbors(py::module_& m) {
    m.def("count", &count<float>, py::call_guard<py::gil_scoped_release>());
    m.def("count", &count<double>, py::call_guard<py::gil_scoped_release>());
    bind_fill<float, int32_t>(m);
    bind_fill<float, int64_t>(m);
    bind_fill<double, int32_t>(m);
    bind_fill<double, int64_t>(m);
}

}  // namespace pyfast::crystal
