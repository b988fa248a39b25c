// The k nearest of every atom, chosen among the edges of a graph that holds them.
#include "tensor.h"

#include <vector>

#include "crystal/lattice.h"

namespace pyfast::crystal {
namespace {

enum Ties : int64_t { canonical, include, cdvae };

// edge_index (2, E), shift (E, 3), distance (E,), ptr (N + 1,), positions (N, 3), cell (B, 3, 3), pbc (B, 3), atom_ptr
// (B + 1,) -> chosen (E,): whether an edge is chosen by its target, of those longer than the minimum.
//
// canonical: k edges, those of one length in the order of their vectors, which does not depend on how atoms are
// numbered. include: also what is farther than the k-th by at most the tolerance. cdvae: k edges, those of one length
// as they stand.
void choose(Tensor<const int64_t> edge_index, Tensor<const int32_t> shift, Tensor<const double> distance,
            Tensor<const int64_t> ptr, Tensor<const double> positions, Tensor<const double> cell,
            Tensor<const bool> pbc, Tensor<const int64_t> atom_ptr, int64_t k, int64_t ties, double tolerance,
            double minimum, Tensor<bool> chosen) {
    const int64_t N = ptr.size(0) - 1, E = distance.size(0), B = cell.size(0);
    if (ptr[0] != 0 || ptr[N] > E) throw py::value_error("ptr must go from 0 to at most the number of edges");
    for (int64_t i = 0; i < N; ++i)
        if (ptr[i] > ptr[i + 1]) throw py::value_error("ptr must not fall");
    for (int64_t e = 0; e < 2 * E; ++e)
        if (edge_index[e] < 0 || edge_index[e] >= N) throw py::index_error("edge_index must lie in [0, N)");
    if (atom_ptr[0] != 0 || atom_ptr[B] != N) throw py::value_error("atom_ptr must go from 0 to the number of atoms");
    std::vector<Lattice> lattices;
    std::vector<int64_t> structure(N);
    for (int64_t b = 0; b < B; ++b) {
        lattices.emplace_back(&cell[9 * b], &pbc[3 * b]);
        if (atom_ptr[b] > atom_ptr[b + 1]) throw py::value_error("atom_ptr must not fall");
        std::fill(structure.begin() + atom_ptr[b], structure.begin() + atom_ptr[b + 1], b);
    }
#pragma omp parallel if (parallel(E))
    {
        std::vector<double> lengths;
        std::vector<std::pair<Vec, int64_t>> equal;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < N; ++i) {
            const int64_t from = ptr[i], to = ptr[i + 1];
            lengths.clear();
            for (int64_t e = from; e < to; ++e) {
                chosen[e] = distance[e] > minimum;
                if (chosen[e]) lengths.push_back(distance[e]);
            }
            if (int64_t(lengths.size()) <= k) continue;
            std::nth_element(lengths.begin(), lengths.begin() + k - 1, lengths.end());
            const double last = lengths[k - 1];
            int64_t left = k;
            equal.clear();
            for (int64_t e = from; e < to; ++e) {
                if (ties == include) {
                    chosen[e] = chosen[e] && distance[e] <= last + tolerance;
                    continue;
                }
                if (distance[e] == last) equal.push_back({{0, 0, 0}, e});
                chosen[e] = chosen[e] && distance[e] < last;
                left -= chosen[e];
            }
            if (ties == include) continue;
            if (ties == canonical && left < int64_t(equal.size())) {
                const Lattice& lattice = lattices[structure[i]];
                for (auto& [v, e] : equal) {
                    const int32_t* s = &shift[3 * e];
                    v = (load(&positions[3 * edge_index[e]]) - load(&positions[3 * i])) +
                        lattice.offset(s[0], s[1], s[2]);
                }
                std::stable_sort(equal.begin(), equal.end(), [](const auto& a, const auto& b) {
                    const Vec &v = a.first, &w = b.first;
                    return v.x != w.x ? v.x < w.x : v.y != w.y ? v.y < w.y : v.z < w.z;
                });
            }
            for (int64_t m = 0; m < left; ++m) chosen[equal[m].second] = true;
        }
    }
    std::fill(chosen.data + ptr[N], chosen.data + E, false);
}

// edge_index (2, E), shift (E, 3), distance (E,), reverse (E,), ptr (N + 1,), chosen (E,) -> the K edges that are
// chosen: edge_index (2, K), shift (K, 3), distance (K,), reverse (K,) among them, or -1, and ptr (N + 1,).
void keep(Tensor<const int64_t> edge_index, Tensor<const int32_t> shift, Tensor<const double> distance,
          Tensor<const int64_t> reverse, Tensor<const int64_t> ptr, Tensor<const bool> chosen, int64_t count,
          Tensor<int64_t> kept_index, Tensor<int32_t> kept_shift, Tensor<double> kept_distance,
          Tensor<int64_t> kept_reverse, Tensor<int64_t> kept_ptr) {
    const int64_t N = ptr.size(0) - 1, E = distance.size(0);
    if (ptr[0] != 0 || ptr[N] > E) throw py::value_error("ptr must go from 0 to at most the number of edges");
    for (int64_t i = 0; i < N; ++i)
        if (ptr[i] > ptr[i + 1]) throw py::value_error("ptr must not fall");
    std::vector<int64_t> place(ptr[N]);  // of an edge among those kept, or -1
    int64_t n = 0;
    for (int64_t i = 0; i < N; ++i) {
        kept_ptr[i] = n;
        for (int64_t e = ptr[i]; e < ptr[i + 1]; ++e) {
            if (reverse[e] < -1 || reverse[e] >= ptr[N]) throw py::index_error("reverse must lie in [-1, E)");
            place[e] = chosen[e] ? n : -1;
            n += chosen[e];
        }
    }
    kept_ptr[N] = n;
    if (n != count) throw py::value_error("count must be how many edges are chosen");
#pragma omp parallel for schedule(static) if (parallel(4 * ptr[N]))
    for (int64_t e = 0; e < ptr[N]; ++e) {
        const int64_t at = place[e];
        if (at < 0) continue;
        kept_index[at] = edge_index[e], kept_index[count + at] = edge_index[E + e];
        for (int k = 0; k < 3; ++k) kept_shift[3 * at + k] = shift[3 * e + k];
        kept_distance[at] = distance[e];
        kept_reverse[at] = reverse[e] < 0 ? -1 : place[reverse[e]];
    }
}

}  // namespace

void bind_nearest(py::module_& m) {
    m.def("choose", &choose, py::call_guard<py::gil_scoped_release>());
    m.def("keep", &keep, py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyfast::crystal
