// One submodule per family, and of what they share, in alphabetical order. CMake names the module after the level it
// builds for.
#include "tensor.h"

namespace pyfast {
void bind_crystal(py::module_&);
void bind_linear_attention(py::module_&);
void bind_longtail(py::module_&);
void bind_memory(py::module_&);
void bind_prune(py::module_&);
void bind_random(py::module_&);
void bind_spn(py::module_&);
}  // namespace pyfast

PYBIND11_MODULE(PYFAST_MODULE, m, py::mod_gil_not_used()) {
    const auto family = [&m](const char* name, auto bind) {
        auto submodule = m.def_submodule(name);
        bind(submodule);
    };
    family("crystal", pyfast::bind_crystal);
    family("linear_attention", pyfast::bind_linear_attention);
    family("longtail", pyfast::bind_longtail);
    family("memory", pyfast::bind_memory);
    family("prune", pyfast::bind_prune);
    family("random", pyfast::bind_random);
    family("spn", pyfast::bind_spn);
}
