// What the operators share: the checks of their arguments, and the way to the tokens and the state of one head.
#pragma once

#include <algorithm>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "linear_attention/state.h"
#include "simd.h"
#include "tensor.h"

namespace pyfast::linear_attention {

// The operators can be called by their names, past all that Python checks: nothing may be read that is not there.
inline void check(const char* name, const Strided& x, std::initializer_list<int64_t> shape) {
    const bool real = x.is<float>() || x.is<double>() || x.is<Half>() || x.is<Bfloat>();
    bool fits = x.ndim == int(shape.size()) && real;
    for (int i = 0; fits && i < x.ndim; ++i) fits = shape.begin()[i] < 0 || x.shape[i] == shape.begin()[i];
    if (fits) return;
    std::string want, got;
    for (int64_t n : shape) want += (n < 0 ? "any" : std::to_string(n)) + ", ";
    for (int i = 0; i < x.ndim; ++i) got += std::to_string(x.shape[i]) + ", ";
    throw std::invalid_argument(std::string(name) + " must be floating point of shape (" + want + "), got (" + got +
                                ")" + (real ? "" : " of another dtype"));
}

inline void check_heads(const char* name, int64_t heads, int64_t all) {
    if (heads < 1 ? all > 0 : all % heads != 0)
        throw std::invalid_argument(std::string(name) + " must have a divisor of " + std::to_string(all) +
                                    " heads, got " + std::to_string(heads));
}

inline void check_state(const char* name, const Strided& x, int64_t N, int64_t H, int64_t K, int64_t V) {
    if (!x) return;
    check(name, x, {N, -1, K, V});
    check_heads(name, x.shape[1], H);
    if (!x.is<float>() && !x.is<double>())
        throw std::invalid_argument(std::string(name) + " must be float32 or float64, got 16 bits");
}

// What the buffers of a thread have room for, without overflow of their sizes.
inline void check_sizes(int64_t K, int64_t V) {
    constexpr int64_t most = int64_t{1} << 31;
    for (const auto& [name, n] : {std::pair{"q and k", K}, std::pair{"v", V}})
        if (n > most)
            throw std::invalid_argument(std::string(name) + " must have at most 2^31 dimensions, got " +
                                        std::to_string(n));
}

// Where sequences end, or none is given. A copy: whoever changes the tensor meanwhile changes no bounds.
struct Lengths {
    std::vector<int64_t> ends;

    Lengths() = default;
    Lengths(const Strided& x, int64_t tokens) {
        if (!x) return;
        if (x.ndim != 1 || !x.is<int64_t>() || x.shape[0] < 1 || !x.data)
            throw std::invalid_argument("cu_seqlens must be int64 of shape (N + 1,)");
        const int64_t n = x.shape[0] - 1;
        const auto* from = reinterpret_cast<const int64_t*>(x.data);
        for (int64_t i = 0; i <= n; ++i) ends.push_back(from[i * x.strides[0]]);
        for (int64_t i = 0, before = 0; i <= n; before = ends[i++])
            if (ends[i] < before || ends[i] > tokens || (i == 0 && ends[i] != 0) || (i == n && ends[i] != tokens))
                throw py::value_error("cu_seqlens must rise from 0 to the " + std::to_string(tokens) + " tokens, got " +
                                      std::to_string(ends[i]) + " at " + std::to_string(i));
    }
    explicit operator bool() const { return !ends.empty(); }
    int64_t count() const { return int64_t(ends.size()) - 1; }
};

// Where sequence n begins and ends.
inline std::pair<int64_t, int64_t> span(const Lengths& lengths, int64_t n, int64_t tokens) {
    if (!lengths) return {0, tokens};
    return {lengths.ends[n], lengths.ends[n + 1]};
}

// Sequence n of head h out of `heads`; backwards if `reverse`.
inline Tokens tokens(const Strided& x, const Lengths& ends, int64_t n, int64_t h, int64_t heads, int64_t count,
                     bool reverse) {
    if (!x) return {};
    const auto [begin, end] = span(ends, n, count);
    if (begin == end || !x.data) return {x.data, 0, 1, x.dtype};  // nothing there
    const int64_t* stride = x.strides;
    const int64_t first = (ends ? 0 : n * stride[0]) + (x.shape[2] == heads ? h : h * x.shape[2] / heads) * stride[2] +
                          (reverse ? end - 1 : begin) * stride[1];
    return {x.data + first * (x.dtype.bits / 8), reverse ? -stride[1] : stride[1], x.ndim > 3 ? stride[3] : 1, x.dtype};
}

// state (N, H, K, V), or (N, H, K, V + 1) with the sum of keys last, to and from double
template <class F, class Function>
void each_element(const Strided& x, int64_t n, int64_t h, int64_t heads, Sum& s, int64_t K, int64_t V, int64_t wide,
                  Function f) {
    const auto run = [&](auto* base) {
        if (!base) return;  // a state without elements
        base += n * x.strides[0] + h * x.shape[1] / heads * x.strides[1];
        each_panel<F>(K, wide, [&](int64_t column, int64_t columns, int64_t place) {
            for (int64_t i = 0; i < K; ++i, place += columns)
                for (int64_t j = 0; j < columns && column + j < V; ++j)
                    f(base[i * x.strides[2] + (column + j) * x.strides[3]], s.state[place + j]);
        });
        for (int64_t i = 0; i < s.key_size; ++i) f(base[i * x.strides[2] + V * x.strides[3]], s.keys[i]);
    };
    if (x.is<double>())
        run(reinterpret_cast<double*>(x.data));
    else
        run(reinterpret_cast<float*>(x.data));
}

template <class F>
void load_state(const Strided& x, int64_t n, int64_t h, int64_t heads, State<F>& s, int64_t K, int64_t V,
                int64_t wide) {
    s.whole.zero = s.empty = !x;
    s.up_to_date = true;
    if (!x) return;
    s.whole.clear();
    each_element<F>(x, n, h, heads, s.whole, K, V, wide, [](auto& memory, double& own) { own = double(memory); });
    s.round();
}

template <class F>
void store_state(const Strided& x, int64_t n, int64_t h, int64_t heads, Sum& s, int64_t K, int64_t V, int64_t wide) {
    each_element<F>(x, n, h, heads, s, K, V, wide, [zero = s.zero](auto& memory, double& own) {
        memory = std::decay_t<decltype(memory)>(zero ? 0 : own);
    });
}

// How many threads share tasks that touch so many numbers in all.
inline int team(int64_t tasks, int64_t numbers) {
    return parallel(numbers) ? int(std::min<int64_t>(omp_get_max_threads(), tasks)) : 1;
}

// Calls f(task, thread) for every task.
template <class Function>
void share(int64_t tasks, int threads, Function f) {
    if (threads < 2) {
        for (int64_t task = 0; task < tasks; ++task) f(task, 0);
        return;
    }
#pragma omp parallel for num_threads(threads) schedule(dynamic)
    for (int64_t task = 0; task < tasks; ++task) f(task, omp_get_thread_num());
}

// Calls f with a null pointer to what is computed in when x is in memory.
template <class Function>
void with_wide(const Strided& x, Function f) {
    if (x.is<double>())
        f(static_cast<double*>(nullptr));
    else
        f(static_cast<float*>(nullptr));
}

}  // namespace pyfast::linear_attention
