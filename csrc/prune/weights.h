// The weights as one long line of 64-bit mask words, and its fair division among threads.
#pragma once

#include <omp.h>

#include <algorithm>
#include <bit>
#include <vector>

#include "prune/keys.h"
#include "tensor.h"

namespace pyfast::prune {

// A tensor of any dtype and strides. Element i is the i-th in C order, whatever the memory order.
struct Weight {
    char* data = nullptr;
    DType dtype = DType::f32;
    int ndim = 0;
    const int64_t *shape = nullptr, *strides = nullptr;
    int64_t size = 1;
    bool contiguous = true;

    template <class Code>
    Code* at(int64_t i) const {
        auto* p = reinterpret_cast<Code*>(data);
        if (contiguous) return p + i;
        for (int d = ndim - 1; d >= 0; --d) {
            p += i % shape[d] * strides[d];
            i /= shape[d];
        }
        return p;
    }

    // Calls f(j, pointer to element start + j) for the next `count` elements.
    template <class Code, class F>
    void walk(int64_t start, int count, F&& f) const {
        int64_t index[64];
        int64_t i = start;
        auto* p = reinterpret_cast<Code*>(data);
        for (int d = ndim - 1; d >= 0; --d) {
            index[d] = i % shape[d];
            p += index[d] * strides[d];
            i /= shape[d];
        }
        for (int j = 0; j < count; ++j) {
            f(j, p);
            for (int d = ndim - 1; d >= 0; --d) {
                p += strides[d];
                if (++index[d] < shape[d]) break;
                p -= shape[d] * strides[d];
                index[d] = 0;
            }
        }
    }

    // The 64 elements of a mask word: in place where they lie together, else gathered into the buffer, zeros at the
    // end.
    template <class Code>
    const Code* word(int64_t w, Code* buffer) const {
        const int count = static_cast<int>(std::min<int64_t>(64, size - 64 * w));
        if (contiguous && count == 64) return reinterpret_cast<const Code*>(data) + 64 * w;
        std::fill_n(buffer, 64, Code(0));
        walk<Code>(64 * w, count, [buffer](int j, const Code* p) { buffer[j] = *p; });
        return buffer;
    }

    int64_t words() const { return (size + 63) / 64; }
    uint64_t valid(int64_t w) const {
        return size - 64 * w >= 64 ? ~uint64_t{0} : (uint64_t{1} << (size - 64 * w)) - 1;
    }
};

// Words [begin, end) of one tensor, which one thread works on; `bit` is where its mask begins.
struct Part {
    int tensor;
    int64_t begin, end, bit;
};

// The parts of every thread, in the order of the weights. No part has more than 2^30, so 32 bits count them.
inline std::vector<std::vector<Part>> divide(const std::vector<Weight>& weights, int threads) {
    int64_t total = 0;
    for (const auto& w : weights) total += w.words();
    std::vector<std::vector<Part>> parts(threads);
    constexpr int64_t longest = int64_t{1} << 24;
    int64_t done = 0;
    int thread = 0;
    for (int t = 0; t < static_cast<int>(weights.size()); ++t) {
        const int64_t n = weights[t].words(), first = done;
        for (int64_t w = 0; w < n;) {
            while (done >= total * (thread + 1) / threads) ++thread;
            const int64_t take = std::min({n - w, total * (thread + 1) / threads - done, longest});
            parts[thread].push_back({t, w, w + take, first + w});
            w += take;
            done += take;
        }
    }
    return parts;
}

inline int threads_for(const std::vector<Weight>& weights) {
    int64_t total = 0;
    for (const auto& w : weights) total += w.size;
    return static_cast<int>(std::clamp<int64_t>(total / 32768, 1, omp_get_max_threads()));
}

// Runs f(thread) on every thread; one thread starts no parallel region, so forked workers are safe.
template <class F>
void parallel(int threads, F&& f) {
    if (threads == 1) return f(0);
#pragma omp parallel for num_threads(threads) schedule(static, 1)
    for (int thread = 0; thread < threads; ++thread) f(thread);
}

}  // namespace pyfast::prune

template <>
struct pybind11::detail::type_caster<pyfast::prune::Weight> {
    PYBIND11_TYPE_CASTER(pyfast::prune::Weight, const_name("torch.Tensor"));
    bool load(handle source, bool) {
        using pyfast::prune::DType;
        const auto* api = pyfast::dlpack::exchange(Py_TYPE(source.ptr()));
        pyfast::dlpack::View view;
        if (!api || api->borrow(source.ptr(), &view)) throw error_already_set();
        if (view.device.type != pyfast::dlpack::cpu) return false;
        const int kind = view.dtype.code << 8 | view.dtype.bits;
        switch (kind) {
            case 2 << 8 | 64:
                value.dtype = DType::f64;
                break;
            case 2 << 8 | 32:
                value.dtype = DType::f32;
                break;
            case 2 << 8 | 16:
                value.dtype = DType::f16;
                break;
            case 4 << 8 | 16:
                value.dtype = DType::bf16;
                break;
            case 10 << 8 | 8:
                value.dtype = DType::e4m3;
                break;
            case 12 << 8 | 8:
                value.dtype = DType::e5m2;
                break;
            case 0 << 8 | 8:
                value.dtype = DType::i8;
                break;
            default:
                return false;
        }
        value.data = static_cast<char*>(view.data) + view.byte_offset;
        value.ndim = view.ndim;
        value.shape = view.shape;
        value.strides = view.strides;
        int64_t expected = 1;
        for (int d = view.ndim - 1; d >= 0; --d) {
            if (view.shape[d] != 1 && view.strides[d] != expected) value.contiguous = false;
            expected *= view.shape[d];
        }
        value.size = expected;
        return view.ndim <= 64;
    }
};
