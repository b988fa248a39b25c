#include "tensor.h"
namespace pyfast {
void bind_prune(py::module_& m) {
    m.def("select", [](py::args) {});
    m.def("apply", [](py::args) {});
}
}  // namespace pyfast
