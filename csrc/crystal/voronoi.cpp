// Voronoi cells of the atoms of crystals, and CrystalNN's choice among their faces. Reference:
// pyfast/reference/crystal/voronoi.py.
//
// Every atom is on its own, and so are its bits, whatever the number of threads.
#include <algorithm>
#include <cmath>
#include <optional>
#include <tuple>
#include <vector>

#include "checks.h"
#include "images.h"
#include "polyhedron.h"
#include "simd.h"
#include "tensor.h"

namespace pyfast::crystal {
namespace {

constexpr double absent = 1e-10;         // a face of smaller solid angle is rounding
constexpr double coincident = 1e-6;      // atoms as near as this (in Å) have no plane between them
constexpr double most_images = 4194304;  // more in reach of one atom: the cell is a needle or a sheet
constexpr double plenty = 56;            // images to begin with; a cell has about 15 faces

enum Trouble : int32_t { none, singular, too_close, too_many, too_far };  // pyfast/crystal/voronoi.py knows them

struct Found {
    int64_t source;
    std::array<int32_t, 3> shift;
    double distance;
    Polyhedron::Size size;
};

struct Scratch {
    std::vector<Image> shell, seen;
    std::vector<Found> found;
    Polyhedron cell;
};

// Cut the cell of atom i by its images, nearest first, until no farther one can touch it.
Trouble carve(const Images& images, int64_t i, Scratch& s) {
    s.seen.clear();
    s.cell.cube(1.01 * images.lattice().covering());  // all of it is cut away
    double inner = -1, outer = images.radius_of(plenty);
    for (;;) {
        if (!(images.images_in(outer) <= most_images)) return too_many;
        s.shell.clear();
        images.around(i, inner, outer, s.shell);
        std::sort(s.shell.begin(), s.shell.end());
        if (inner < 0 && !s.shell.empty() && s.shell[0].distance2 <= coincident * coincident) return too_close;
        for (const Image& image : s.shell) {
            if (image.distance2 > 4 * s.cell.reach2()) return none;
            s.cell.cut(image.vector, int64_t(s.seen.size()));
            s.seen.push_back(image);
        }
        const double reach = 2 * std::sqrt(s.cell.reach2()) * (1 + 1e-9);
        if (outer >= reach) return none;
        inner = outer, outer = std::min(reach, 1.5 * outer);
    }
}

// The faces of the cell of atom i, sorted by (source, shift), in s.found. False if a shift does not fit.
bool finish(const Images& images, int64_t i, int64_t first, Scratch& s) {
    s.found.clear();
    for (const auto& face : s.cell) {
        const auto size = s.cell.size(face);
        if (face.label < 0 || size.solid_angle < absent) continue;
        const Image& image = s.seen[face.label];
        Found f{first + image.atom, {}, std::sqrt(image.distance2), size};
        if (!images.shift(i, image, f.shift.data())) return false;
        s.found.push_back(f);
    }
    std::sort(s.found.begin(), s.found.end(),
              [](const Found& a, const Found& b) { return std::tie(a.source, a.shift) < std::tie(b.source, b.shift); });
    return true;
}

void write(const std::vector<Found>& found, int64_t* source, int32_t* shift, double* solid_angle, double* area) {
    for (const Found& f : found) {
        *source++ = f.source;
        shift = std::copy(f.shift.begin(), f.shift.end(), shift);
        *solid_angle++ = f.size.solid_angle;
        *area++ = 6 * f.size.volume / f.distance;  // the face is half way
    }
}

// position (n, 3), cell (b, 3, 3), atom_ptr (b + 1,), usable (b,): position and cell are finite -> for each atom,
// sorted by (source, shift), the first of c slots: source (n, c), shift (n, c, 3), solid_angle, area (n, c);
// count (n,), which may exceed c: then nothing is written for that atom; trouble (n,).
void voronoi(Tensor<const double> position, Tensor<const double> cell, Tensor<const int64_t> atom_ptr,
             Tensor<const bool> usable, Tensor<int64_t> source, Tensor<int32_t> shift, Tensor<double> solid_angle,
             Tensor<double> area, Tensor<int64_t> count, Tensor<int32_t> trouble) {
    const int64_t b = cell.size(0), n = position.size(0), capacity = source.size(1);
    check_pointers("atom_ptr", atom_ptr, b, n);
    std::vector<int64_t> crystal(n);
    std::vector<std::optional<Images>> crystals(b);
    for (int64_t k = 0; k < b; ++k) {
        std::fill(crystal.begin() + atom_ptr[k], crystal.begin() + atom_ptr[k + 1], k);
        if (usable[k]) crystals[k].emplace(position.row(atom_ptr[k]), atom_ptr[k + 1] - atom_ptr[k], &cell[9 * k]);
    }
#pragma omp parallel if (parallel(n * 4096))
    {
        Scratch s;
#pragma omp for schedule(dynamic, 8)
        for (int64_t i = 0; i < n; ++i) {
            const int64_t first = atom_ptr[crystal[i]], at = i * capacity;
            const auto& images = crystals[crystal[i]];
            count[i] = 0;
            trouble[i] = none;
            if (!images) continue;
            trouble[i] = images->lattice().sound() ? carve(*images, i - first, s) : singular;
            if (trouble[i] != none) continue;
            if (!finish(*images, i - first, first, s)) {
                trouble[i] = too_far;
                continue;
            }
            count[i] = int64_t(s.found.size());
            if (count[i] <= capacity)
                write(s.found, source.data + at, shift.data + 3 * at, solid_angle.data + at, area.data + at);
        }
    }
}

// ptr (n + 1,), source (e,), shift (e, 3), sorted -> reverse (e,): the edge back, or -1
void reverse(Tensor<const int64_t> ptr, Tensor<const int64_t> source, Tensor<const int32_t> shift,
             Tensor<int64_t> reverse) {
    const int64_t n = ptr.size(0) - 1, e = source.size(0);
    check_pointers("ptr", ptr, n, e);
    check_indices("source", source, n);
    const auto key = [&](int64_t edge) {
        const int32_t* s = shift.row(edge);
        return std::tuple(source[edge], s[0], s[1], s[2]);
    };
#pragma omp parallel for if (parallel(e * 16))
    for (int64_t i = 0; i < n; ++i)
        for (int64_t edge = ptr[i]; edge < ptr[i + 1]; ++edge) {
            const int32_t* s = shift.row(edge);
            const std::tuple back(i, -s[0], -s[1], -s[2]);
            int64_t low = ptr[source[edge]], high = ptr[source[edge] + 1];
            const int64_t last = high;
            while (low < high) {
                const int64_t middle = (low + high) / 2;
                if (key(middle) < back)
                    low = middle + 1;
                else
                    high = middle;
            }
            reverse[edge] = low < last && key(low) == back ? low : -1;
        }
}

}  // namespace

void bind_voronoi(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("voronoi", &voronoi, nogil);
    m.def("reverse", &reverse, nogil);
}

}  // namespace pyfast::crystal
