// CrystalNN's choice among the faces of Voronoi cells: the most probable coordination number. Reference:
// pyfast/reference/crystal/voronoi.py.
#include <algorithm>
#include <cmath>
#include <functional>
#include <vector>

#include "checks.h"
#include "simd.h"
#include "tensor.h"

namespace pyfast::crystal {
namespace {

constexpr int thousandths = 1000;  // weights are rounded to three decimals

// Area under a quarter of the unit circle from 0 to x.
double quarter(int x) {
    const double w = double(x) / thousandths;
    return x == thousandths ? 0.25 * 3.14159265358979323846 : 0.5 * (w * std::sqrt(1 - w * w) + std::asin(w));
}

// Weights of one atom's faces, descending -> the least weight that counts as a neighbour, or more than any. Of equally
// probable coordination numbers the lowest wins.
int threshold(const std::vector<int>& weights) {
    double best = -1, rest = 1;
    int least = thousandths + 1;
    for (size_t k = 0; k < weights.size() && weights[k] > 0; ++k) {
        const int next = k + 1 < weights.size() ? weights[k + 1] : 0;
        if (next == weights[k]) continue;
        const double share = (quarter(weights[k]) - quarter(next)) / quarter(thousandths);
        rest -= share;
        if (share > best) best = share, least = weights[k];
    }
    return rest > best ? thousandths + 1 : least;
}

// ptr (n + 1,), weight (e,) in thousandths, >= 0 -> keep (e,)
void choose(Tensor<const int64_t> ptr, Tensor<const int32_t> weight, Tensor<bool> keep) {
    const int64_t n = ptr.size(0) - 1;
    check_pointers("ptr", ptr, n, weight.size(0));
#pragma omp parallel if (parallel(weight.size(0)))
    {
        std::vector<int> sorted;
#pragma omp for
        for (int64_t i = 0; i < n; ++i) {
            sorted.assign(weight.data + ptr[i], weight.data + ptr[i + 1]);
            std::sort(sorted.begin(), sorted.end(), std::greater<>());
            const int least = threshold(sorted);
            for (int64_t e = ptr[i]; e < ptr[i + 1]; ++e) keep[e] = weight[e] >= least;
        }
    }
}

}  // namespace

void bind_coordination(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("choose", &choose, nogil);
}

}  // namespace pyfast::crystal
