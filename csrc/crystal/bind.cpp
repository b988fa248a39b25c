#include "tensor.h"

namespace pyfast {

void bind_crystal(py::module_&) {}  // each file of the family binds its own functions, and is called here

}  // namespace pyfast
