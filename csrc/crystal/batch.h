// A batch of structures: what is given, what is wrong with it, and how threads share it.
#pragma once

#include <algorithm>
#include <string>
#include <vector>

#include "tensor.h"

#include "crystal/ghosts.h"
#include "crystal/pairs.h"
#include "crystal/request.h"

namespace pyfast::crystal {

inline constexpr int64_t few = 96;           // atoms of a structure that are sought pair by pair
inline constexpr int64_t many = grain / 64;  // atoms of a structure that more than one thread seeks

// The arguments that all searches share. positions (N, 3), cell (B, 3, 3), pbc (B, 3), atom_ptr (B + 1,), cutoff (B,)
// or, with kinds (N,), (K, K)
template <class Real>
struct Request {
    Tensor<const Real> positions;
    Tensor<const double> cell;
    Tensor<const bool> pbc;
    Tensor<const int64_t> atom_ptr;
    Tensor<const double> cutoff;
    Tensor<const int64_t> kinds;
    bool inclusive, half;
    bool by_kind = kinds.size(0) > 0;
    std::vector<double> limits = [this] {
        std::vector<double> squares;
        if (by_kind)
            for (int64_t k = 0; k < cutoff.size(0) * cutoff.size(1); ++k)
                squares.push_back(limit_of(cutoff[k], inclusive));
        return squares;
    }();
    double largest = by_kind ? *std::max_element(cutoff.data, cutoff.data + cutoff.size(0) * cutoff.size(1)) : 0;

    int64_t size() const { return cell.size(0); }

    void check() const {
        const int64_t N = positions.size(0), K = cutoff.size(0);
        if (atom_ptr[0] != 0 || atom_ptr[size()] != N)
            throw py::value_error("atom_ptr must go from 0 to the number of atoms");
        for (int64_t b = 0; b < size(); ++b)
            if (atom_ptr[b] > atom_ptr[b + 1]) throw py::value_error("atom_ptr must not fall");
        for (int64_t i = 0; by_kind && i < N; ++i)
            if (kinds[i] < 0 || kinds[i] >= K)
                throw py::index_error("species must lie in [0, " + std::to_string(K) + "), got " +
                                      std::to_string(kinds[i]) + " at atom " + std::to_string(i));
    }

    Lattice lattice(int64_t b) const { return Lattice(&cell[9 * b], &pbc[3 * b]); }

    // Loads a structure; its status is what is wrong with its numbers.
    int32_t load(int64_t b, Structure& s) const {
        s.first = atom_ptr[b], s.n = atom_ptr[b + 1] - s.first;
        s.x.resize(s.n);
        Vec low{INFINITY, INFINITY, INFINITY}, high{-INFINITY, -INFINITY, -INFINITY};
        bool good = true;
        for (int64_t i = 0; i < s.n; ++i) {
            const Real* p = &positions[3 * (s.first + i)];
            const Vec v{double(p[0]), double(p[1]), double(p[2])};
            good = good && finite(v);
            s.x[i] = v;
            low = {std::min(low.x, v.x), std::min(low.y, v.y), std::min(low.z, v.z)};
            high = {std::max(high.x, v.x), std::max(high.y, v.y), std::max(high.z, v.z)};
        }
        s.low = s.n ? low : Vec{0, 0, 0}, s.high = s.n ? high : Vec{0, 0, 0};
        s.cutoff = by_kind ? largest : cutoff[b];
        s.limit = limit_of(s.cutoff, inclusive);
        s.half = half;
        if (by_kind)
            s.kinds = &kinds[s.first], s.radii = cutoff.data, s.limits = limits.data(), s.num_kinds = cutoff.size(0);
        return good && std::isfinite(s.cutoff) && s.cutoff >= 0 ? 0 : int32_t(not_finite);
    }
};

// What keeps a structure with good numbers from being sought.
inline int32_t check(const Lattice& lattice, const Structure& s, double max_edges) {
    if (lattice.status) return lattice.status;
    const Reach reach(lattice, s.cutoff, s.low, s.high);
    double farther = 0;
    for (int k = 0; k < 3; ++k) {
        if (!lattice.periodic[k]) continue;
        const double corner = std::max(norm(s.low), norm(s.high)) * 1.7320508;
        farther = std::max(farther, (2 * corner + reach.radius) / lattice.spacing[k]);
    }
    if (!(farther < farthest) || !std::isfinite(reach.slack)) return too_far;
    // Far beyond, that is: what is expected is not what is found.
    return lattice.expected_edges(double(s.n), s.cutoff, s.low, s.high) > 2 * max_edges + 1e6 ? too_many : 0;
}

// What a thread keeps from one structure to the next.
struct Searches {
    Structure structure;
    Ghosts ghosts;
    Pairs pairs;
};

// Calls f(structure, storage of the thread) for every structure: those of few atoms side by side, others each by all
// threads.
template <class Storage = Searches, class Real, class F>
void each(const Request<Real>& request, F&& f) {
    const auto atoms = [&](int64_t b) { return request.atom_ptr[b + 1] - request.atom_ptr[b]; };
    const int64_t B = request.size();
#pragma omp parallel if (B > 1 && parallel(64 * request.positions.size(0)))
    {
        Storage storage;
#pragma omp for schedule(dynamic, 8)
        for (int64_t b = 0; b < B; ++b)
            if (atoms(b) <= many) f(b, storage);
    }
    Storage storage;
    for (int64_t b = 0; b < B; ++b)
        if (atoms(b) > many) f(b, storage);
}

}  // namespace pyfast::crystal
