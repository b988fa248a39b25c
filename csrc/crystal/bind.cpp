#include "tensor.h"

namespace pyfast {
namespace crystal {
void bind_angular(py::module_&);
void bind_coordination(py::module_&);
void bind_gemnet(py::module_&);
void bind_geometry(py::module_&);
void bind_messages(py::module_&);
void bind_nearest(py::module_&);
void bind_neighbors(py::module_&);
void bind_segments(py::module_&);
void bind_table(py::module_&);
void bind_triplets(py::module_&);
void bind_voronoi(py::module_&);
}  // namespace crystal

void bind_crystal(py::module_& m) {
    crystal::bind_angular(m);
    crystal::bind_coordination(m);
    crystal::bind_gemnet(m);
    crystal::bind_geometry(m);
    crystal::bind_messages(m);
    crystal::bind_nearest(m);
    crystal::bind_neighbors(m);
    crystal::bind_segments(m);
    crystal::bind_table(m);
    crystal::bind_triplets(m);
    crystal::bind_voronoi(m);
}

}  // namespace pyfast
