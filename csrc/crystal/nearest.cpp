// The k nearest of every atom: sought structure by structure, or chosen among the edges of a graph that holds them.
#include "tensor.h"

#include <numeric>
#include <vector>

#include "crystal/batch.h"
#include "crystal/binned.h"
#include "crystal/select.h"

namespace pyfast::crystal {
namespace {

enum Symmetrize : int64_t { directed, either, both };

// What lies near the atoms of one structure, by rows, and what of it is chosen.
struct Near {
    std::vector<int64_t> counts;
    std::vector<int32_t> ptr, source, target, shift, reverse;
    std::vector<double> distance;
    std::vector<char> selected, again;
    std::vector<int32_t> kept, place;  // edges that are chosen, and of an edge which of those it is, or -1

    Edges<int32_t, double> edges(int64_t n) {
        if (int64_t(source.size()) < n + 8) {
            for (auto* column : {&source, &target, &reverse, &kept, &place}) column->resize(n + n / 2 + 8);
            shift.resize(3 * source.size()), distance.resize(source.size());
            selected.resize(source.size()), again.resize(source.size());
        }
        return {source.data(), target.data(), shift.data(), distance.data(), reverse.data()};
    }

    bool* chosen() { return reinterpret_cast<bool*>(selected.data()); }
};

struct Nearest : Searches {
    Near near;
    Selection selection;
    bool coincident_atoms;

    // Lists all that is within the structure's cutoff; false, with counts alone, where an atom has fewer than k, or
    // there are more than `most`.
    bool list(const Lattice& lattice, int64_t k, bool more, int64_t most) {
        auto& [s, ghosts, pairs] = static_cast<Searches&>(*this);
        near.counts.assign(s.n, 0);
        near.ptr.resize(s.n + 1);
        int64_t* counts = near.counts.data();
        coincident_atoms = false;
        if (s.n > few) {
            const Bins bins(lattice, s);
            if (bins.usable) {
                count_rows(bins, counts, coincident_atoms);
                if (!sum(k, more, most)) return false;
                const auto out = near.edges(near.ptr[s.n]);
                fill_rows(bins, near.ptr.data(), out);
                reverse_rows(s, near.ptr.data(), out);
                return true;
            }
        }
        if (ghosts.gather(lattice, s)) {
            ghosts.find(s, counts);
            coincident_atoms = ghosts.coincident;
            if (!sum(k, more, most)) return false;
            ghosts.fill_found(s, near.ptr.data(), near.edges(near.ptr[s.n]));
            return true;
        }
        pairs.count(lattice, s, counts);
        coincident_atoms = pairs.coincident;
        if (!sum(k, more, most)) return false;
        pairs.fill(lattice, s, near.ptr.data(), near.edges(near.ptr[s.n]));
        return true;
    }

    // Chooses in every row; the farthest k-th, or infinity where an atom has fewer.
    double choose(const Lattice& lattice, int64_t k, int64_t ties, double tolerance) {
        const int64_t n = structure.n;
        double farthest_kth = 0;
        if (n <= many) {
            choose_rows(lattice, 0, n, k, ties, tolerance, selection, farthest_kth);
            return farthest_kth;
        }
#pragma omp parallel reduction(max : farthest_kth) if (parallel(near.ptr[n]))
        {
            Selection own;
#pragma omp for schedule(static)
            for (int64_t i = 0; i < n; ++i) choose_rows(lattice, i, i + 1, k, ties, tolerance, own, farthest_kth);
        }
        return farthest_kth;
    }

    // Edges that are chosen by either end, or by both.
    void symmetrize(int64_t how) {
        const int64_t E = near.ptr[structure.n];
        bool* chosen = near.chosen();
        std::copy(chosen, chosen + E, near.again.begin());
        for (int64_t e = 0; e < E; ++e) {
            const bool back = near.again[near.reverse[e]];
            chosen[e] = how == either ? chosen[e] || back : chosen[e] && back;
        }
    }

    // How many are chosen, and how many by each atom.
    int64_t keep(int64_t* counts) {
        const bool* chosen = near.chosen();
        int32_t n = 0;
        for (int64_t i = 0; i < structure.n; ++i) {
            const int32_t before = n;
            for (int32_t e = near.ptr[i]; e < near.ptr[i + 1]; ++e) {
                near.kept[n] = e;
                near.place[e] = chosen[e] ? n : -1;
                n += chosen[e];
            }
            counts[i] = n - before;
        }
        return n;
    }

  private:
    bool sum(int64_t k, bool more, int64_t most) {
        int64_t sum = 0;
        bool few_found = false;
        for (int64_t i = 0; i < structure.n; ++i) {
            near.ptr[i] = int32_t(sum);
            few_found |= near.counts[i] < k;
            sum += near.counts[i];
            if (sum > most) return false;
        }
        near.ptr[structure.n] = int32_t(sum);
        return !(few_found && more);
    }

    void choose_rows(const Lattice& lattice, int64_t from, int64_t to, int64_t k, int64_t ties, double tolerance,
                     Selection& selection, double& farthest_kth) {
        for (int64_t i = from; i < to; ++i) {
            const int64_t e = near.ptr[i], m = near.ptr[i + 1] - e;
            const auto vector = [&](int64_t c) {
                const int32_t* t = &near.shift[3 * (e + c)];
                return (structure.at(near.source[e + c]) - structure.at(i)) + lattice.offset(t[0], t[1], t[2]);
            };
            const double minimum = ties == cdvae ? 1e-2 : -1;
            const double last =
                selection.choose(&near.distance[e], m, k, ties, tolerance, minimum, near.chosen() + e, vector);
            farthest_kth = std::max(farthest_kth, last);
        }
    }
};

constexpr int64_t block = 64;  // atoms

void check_start(Tensor<const int64_t> start, int64_t structures, int64_t room) {
    if (start[0] < 0 || start[structures] > room) throw py::value_error("start must lie in [0, room]");
    for (int64_t b = 0; b < structures; ++b)
        if (start[b] > start[b + 1]) throw py::value_error("start must not fall");
}

// How far to look at first: about where as many are found as are wanted; `most` is as far as there is anything.
double first_reach(const Lattice& lattice, const Structure& s, int64_t k, double& most) {
    const Vec span = s.high - s.low;
    double volume = 1;
    bool some = false, all = true;
    for (int a = 0; a < 3; ++a) some = some || lattice.periodic[a], all = all && lattice.periodic[a];
    for (int a = 0; a < 3; ++a)
        volume *= all ? lattice.step[a][a] : a == 0 ? span.x + 2 : a == 1 ? span.y + 2 : span.z + 2;
    if (!some) most = std::min(most, norm(span) * (1 + 1e-9) + 1e-9);
    double reach =
        1.15 * std::cbrt(3 * double(k) * volume / (4 * 3.14159265358979 * double(std::max<int64_t>(s.n, 1))));
    if (!std::isfinite(reach)) reach = 1;
    return std::min(std::clamp(reach, 1e-3, 1e3), most);
}

// cutoff (B,), none beyond which anything is taken if not `limited`; start (B + 1,) where there is room for the edges
// of each structure -> counts (N,) of the k nearest; status (B,), reach (B,), as far as was looked; of structure b,
// from start[b] on if they fit, source, shift, distance and reverse (-1 where it is not chosen), atoms and edges
// counted from the structure's first.
template <class Real>
void nearest(Tensor<const Real> positions, Tensor<const double> cell, Tensor<const bool> pbc,
             Tensor<const int64_t> atom_ptr, Tensor<const double> cutoff, Tensor<const int64_t> kinds, bool inclusive,
             bool limited, int64_t k, int64_t ties, double tolerance, int64_t symmetrize, double max_edges,
             int64_t most, Tensor<const int64_t> start, int64_t room, Tensor<int64_t> counts, Tensor<int32_t> status,
             Tensor<double> reach, Tensor<int32_t> source, Tensor<int32_t> shift, Tensor<double> distance,
             Tensor<int32_t> reverse) {
    const Request<Real> request{positions, cell, pbc, atom_ptr, cutoff, kinds, inclusive, false};
    request.check();
    check_start(start, cell.size(0), room);
    most = std::min<int64_t>(most, std::numeric_limits<int32_t>::max() - 64);
    const auto structure = [&](int64_t b, Nearest& own) {
        Structure& s = own.structure;
        const Lattice lattice = request.lattice(b);
        int64_t* out = counts.data + atom_ptr[b];
        status[b] = request.load(b, s);
        s.first = 0;
        std::fill(out, out + s.n, 0);
        reach[b] = s.cutoff;
        if (!status[b]) status[b] = lattice.status;
        if (status[b]) return;
        double end = limited ? s.cutoff : INFINITY;
        for (double r = first_reach(lattice, s, k, end), next = 0;; r = std::min(next, end)) {
            s.cutoff = reach[b] = r;
            s.limit = limit_of(r, inclusive);
            if ((status[b] = check(lattice, s, max_edges)) || s.n == 0 || !(s.limit > 0)) return;
            next = 1.3 * r;
            if (!own.list(lattice, k, r < end, most)) {
                if (r < end && std::accumulate(own.near.counts.begin(), own.near.counts.end(), 0.0) <= double(most))
                    continue;
                status[b] = too_many;
                return;
            }
            const double last = own.choose(lattice, k, ties, tolerance);
            if (!(r < end)) break;
            if (last == INFINITY) continue;
            next = last * (1 + 1e-12) + (ties == include ? 2 * tolerance : 0);
            if (next <= r) break;
        }
        if (own.coincident_atoms) status[b] |= coincident;
        if (symmetrize) own.symmetrize(symmetrize);
        const int64_t n = own.keep(out);
        if (n > start[b + 1] - start[b]) return;
        const Near& near = own.near;
        for (int64_t q = 0, at = start[b]; q < n; ++q, ++at) {
            const int32_t e = near.kept[q], back = near.reverse[e];
            source[at] = near.source[e];
            std::memcpy(&shift[3 * at], &near.shift[3 * e], 12);
            distance[at] = near.distance[e];
            reverse[at] = near.place[back];
        }
    };
    each<Nearest>(request, structure);
}

// What `nearest` found, moved together: edges of all structures, atoms and edges counted from the first of all.
template <class Real, class Index>
void pack(Tensor<const Real>, Tensor<const int32_t> source, Tensor<const int32_t> shift, Tensor<const double> distance,
          Tensor<const int32_t> reverse, Tensor<const int64_t> start, Tensor<const int64_t> atom_ptr,
          Tensor<const Index> ptr, int64_t edges, Tensor<Index> edge_index, Tensor<int32_t> packed_shift,
          Tensor<Real> packed_distance, Tensor<Index> packed_reverse) {
    const int64_t N = ptr.size(0) - 1, B = atom_ptr.size(0) - 1;
    check_start(start, B, source.size(0));
    if (atom_ptr[0] != 0 || atom_ptr[B] != N) throw py::value_error("atom_ptr must go from 0 to the number of atoms");
    for (int64_t b = 0; b < B; ++b)
        if (atom_ptr[b] > atom_ptr[b + 1]) throw py::value_error("atom_ptr must not fall");
    if (ptr[0] != 0 || ptr[N] != edges) throw py::value_error("ptr must go from 0 to the number of edges");
    for (int64_t i = 0; i < N; ++i)
        if (ptr[i] > ptr[i + 1]) throw py::value_error("ptr must not fall");
    for (int64_t b = 0; b < B; ++b)
        if (ptr[atom_ptr[b + 1]] - ptr[atom_ptr[b]] > start[b + 1] - start[b])
            throw py::value_error("start must leave room for the edges of each structure");
    Index *sources = edge_index.data, *targets = edge_index.data + edges;
#pragma omp parallel for schedule(static) if (parallel(4 * edges))
    for (int64_t i = 0; i < N; i += block) {  // blocks of atoms, whatever structures they are of
        const int64_t end = std::min(i + block, N);
        int64_t b = std::upper_bound(atom_ptr.data, atom_ptr.data + B + 1, i) - atom_ptr.data - 1;
        for (int64_t from = i; from < end; ++b) {
            const int64_t first = atom_ptr[b], to = std::min(end, atom_ptr[b + 1]), base = ptr[first];
            const int64_t e = ptr[from], n = ptr[to] - e, f = start[b] + e - base;
            for (int64_t q = 0; q < n; ++q) sources[e + q] = Index(first) + Index(source[f + q]);
            for (int64_t q = 0; q < n; ++q) packed_distance[e + q] = Real(distance[f + q]);
            for (int64_t q = 0; q < n; ++q)
                packed_reverse[e + q] = reverse[f + q] < 0 ? Index(-1) : Index(base) + Index(reverse[f + q]);
            std::copy(shift.data + 3 * f, shift.data + 3 * (f + n), packed_shift.data + 3 * e);
            for (int64_t j = from; j < to; ++j) std::fill(targets + ptr[j], targets + ptr[j + 1], Index(j));
            from = to;
        }
    }
}

// edge_index (2, E), shift (E, 3), distance (E,), ptr (N + 1,), positions (N, 3), cell (B, 3, 3), pbc (B, 3), atom_ptr
// (B + 1,) -> chosen (E,): whether an edge is chosen by its target, of those longer than the minimum.
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
        Selection selection;
#pragma omp for schedule(static)
        for (int64_t i = 0; i < N; ++i) {
            const int64_t from = ptr[i];
            const auto vector = [&](int64_t c) {
                const int32_t* s = &shift[3 * (from + c)];
                return (load(&positions[3 * edge_index[from + c]]) - load(&positions[3 * i])) +
                       lattices[structure[i]].offset(s[0], s[1], s[2]);
            };
            selection.choose(distance.data + from, ptr[i + 1] - from, k, ties, tolerance, minimum, chosen.data + from,
                             vector);
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

template <class Real>
void bind(py::module_& m) {
    m.def("nearest", &nearest<Real>, py::call_guard<py::gil_scoped_release>());
    m.def("pack", &pack<Real, int32_t>, py::call_guard<py::gil_scoped_release>());
    m.def("pack", &pack<Real, int64_t>, py::call_guard<py::gil_scoped_release>());
}

}  // namespace

void bind_nearest(py::module_& m) {
    bind<float>(m);
    bind<double>(m);
    m.def("choose", &choose, py::call_guard<py::gil_scoped_release>());
    m.def("keep", &keep, py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyfast::crystal
