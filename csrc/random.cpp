// The random numbers of random.h, one by one, so that tests can hold them against their reference and Triton's.
#include "random.h"

#include "tensor.h"

namespace pyfast {
namespace {

// index (n,) -> out (n, 4), each in [0, 2^32)
void bits(uint64_t seed, uint64_t what, Tensor<const int64_t> index, Tensor<int64_t> out) {
    for (int64_t i = 0; i < index.size(0); ++i) {
        const random::Words words = random::bits(seed, what, uint64_t(index[i]));
        for (int j = 0; j < 4; ++j) out.row(i)[j] = words[j];
    }
}

// index (n,) -> out (n,), from the first word of each
void uniform(uint64_t seed, uint64_t what, Tensor<const int64_t> index, Tensor<float> out) {
    const int64_t n = index.size(0);
#pragma omp parallel for simd if (parallel(n))
    for (int64_t i = 0; i < n; ++i) out[i] = random::uniform(random::bits(seed, what, uint64_t(index[i]))[0]);
}

}  // namespace

void bind_random(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("bits", &bits, nogil);
    m.def("uniform", &uniform, nogil);
}

}  // namespace pyfast
