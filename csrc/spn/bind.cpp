#include "tensor.h"

namespace pyfast {
namespace spn {
void bind_chain(py::module_&);
void bind_complete(py::module_&);
void bind_dense(py::module_&);
void bind_draws(py::module_&);
void bind_gradient(py::module_&);
void bind_implicit(py::module_&);
void bind_sparse(py::module_&);
}  // namespace spn

void bind_spn(py::module_& m) {
    spn::bind_chain(m);
    spn::bind_complete(m);
    spn::bind_dense(m);
    spn::bind_draws(m);
    spn::bind_gradient(m);
    spn::bind_implicit(m);
    spn::bind_sparse(m);
}

}  // namespace pyfast
