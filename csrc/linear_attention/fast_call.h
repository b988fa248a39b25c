// Functions called by Python's own convention: pybind11's takes as long as a few tokens do.
#pragma once

#include <new>
#include <optional>

#include "tensor.h"

namespace pyfast::linear_attention {

// Calls f(tensors, numbers) of the first N arguments, tensors or None, and of the rest, numbers or None; without the
// interpreter's lock. Returns what f does, whether it could be done: False too for what has no memory to borrow.
template <int N, int Numbers, class Function>
PyObject* call_fast(PyObject* const* args, Py_ssize_t count, const char* name, Function f) {
    if (count != N + Numbers) return PyErr_Format(PyExc_TypeError, "%s takes %d arguments", name, N + Numbers);
    try {
        py::detail::make_caster<Strided> casters[N];
        Strided tensors[N];
        for (int i = 0; i < N; ++i) {
            if (!casters[i].load(args[i], false)) Py_RETURN_FALSE;
            tensors[i] = static_cast<Strided&>(casters[i]);
        }
        std::optional<double> numbers[Numbers];
        for (int i = 0; i < Numbers; ++i)
            if (args[N + i] != Py_None) numbers[i] = PyFloat_AsDouble(args[N + i]);
        if (PyErr_Occurred()) return nullptr;
        bool done = false;
        {
            const py::gil_scoped_release nogil;
            done = f(tensors, numbers);
        }
        return PyBool_FromLong(done);
    } catch (const py::error_already_set&) {
        Py_RETURN_FALSE;
    } catch (const std::invalid_argument& error) {
        return PyErr_Format(PyExc_ValueError, "%s", error.what());
    } catch (const std::bad_alloc&) {
        return PyErr_NoMemory();
    } catch (const std::exception& error) {
        return PyErr_Format(PyExc_RuntimeError, "%s", error.what());
    }
}

using FastFunction = PyObject* (*)(PyObject*, PyObject* const*, Py_ssize_t);

inline py::object fast_function(PyMethodDef& definition, const char* name, FastFunction f) {
    definition = {name, reinterpret_cast<PyCFunction>(reinterpret_cast<void*>(f)), METH_FASTCALL, nullptr};
    return py::reinterpret_steal<py::object>(PyCFunction_New(&definition, nullptr));
}

}  // namespace pyfast::linear_attention
