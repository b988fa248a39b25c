// The exact threshold of every tensor by radix histograms, with a minimum per tensor.
//
// Each tensor's own threshold (the least of the minimum it must keep) and the global one are refined digit by digit.
// Where a tensor's own digit lies below the global digit, its minimum binds and it goes on alone; where it lies above,
// the minimum holds by itself; where both agree, the tensor gives the pool only what its minimum leaves over. So one
// histogram a tensor and round is enough.
#pragma once

#include "prune/scan.h"

namespace pyfast::prune {

// Where the selection stands in one tensor.
template <class Key>
struct Standing {
    Key prefix = 0;       // the digits found
    int64_t forced = 0;   // of the weights with this prefix, how many the minimum still claims
    bool alone = false;   // the minimum binds: the global threshold does not reach this tensor
    bool closed = false;  // alone, and the minimum is zero: nothing is kept
};

struct Digit {
    int shift, width;
};

template <class Key>
std::vector<Digit> digits(const std::vector<Weight>& weights) {
    if constexpr (sizeof(Key) == 8) return {{48, 15}, {32, 16}, {16, 16}, {0, 16}};
    int zeros = 16;
    for (const auto& w : weights)
        zeros = std::min(zeros, with_dtype(w.dtype, [](auto tag) {
                             return static_cast<int>(Format<decltype(tag)::value>::zero_bits);
                         }));
    if (zeros >= 16) return {{16, 15}};
    return {{16, 15}, {zeros, 16 - zeros}};
}

// Adds one to the bin of every weight of a part whose key begins with the prefix.
template <class Key, bool NanAsZero>
void histogram(const Weight& weight, const Part& part, Digit digit, Key prefix, uint32_t* bins) {
    with_dtype(weight.dtype, [&](auto tag) {
        constexpr DType D = decltype(tag)::value;
        using Code = typename Format<D>::Code;
        const auto key = [](Code bits) {
            const Code c = code_of<D>(bits);
            if (NanAsZero && D != DType::i8 && c > Format<D>::largest) return Key(0);
            return key_of<D, Key>(c);
        };
        const Key mask = (Key(1) << digit.width) - 1;
        const bool first = prefix == 0 && digit.shift + digit.width == int(8 * sizeof(Key)) - 1;
        alignas(64) Code buffer[64];
        if (first) {
            for (int64_t w = part.begin; w < part.end; ++w) {
                const Code* x = weight.word<Code>(w, buffer);
                const int n = static_cast<int>(std::min<int64_t>(64, weight.size - 64 * w));
                for (int j = 0; j < n; ++j) ++bins[key(x[j]) >> digit.shift];
            }
            return;
        }
        const Key low = prefix << digit.width << digit.shift;
        const Key high = low | (((Key(1) << digit.width) - 1) << digit.shift) | ((Key(1) << digit.shift) - 1);
        Found unused;
        each_word<D, NanAsZero>(weight, part, Bounds<Key>{low, high}, unused,
                                [&](int64_t, uint64_t above_low, uint64_t above_high, const Code* x) {
                                    for (uint64_t m = above_low & ~above_high; m; m &= m - 1)
                                        ++bins[key(x[std::countr_zero(m)]) >> digit.shift & mask];
                                });
    });
}

// The bin in which the n-th from the top lies, and its rank within the bin (from 1).
template <class Count>
std::pair<int64_t, int64_t> nth_from_top(const Count* bins, int64_t size, int64_t n) {
    int64_t b = size - 1;
    for (; b > 0 && n > static_cast<int64_t>(bins[b]); --b) n -= bins[b];
    return {b, n};
}

template <class Key>
struct Radix {
    const std::vector<Weight>& weights;
    std::vector<Thread<Key>>& threads;
    std::vector<Standing<Key>> standing;
    Key prefix = 0;
    int64_t room;        // how many of the weights with the global prefix, beyond the minima, are kept
    int64_t in_bin = 0;  // how many weights share their tensor's prefix

    Radix(const std::vector<Weight>& w, std::vector<Thread<Key>>& t, const std::vector<int64_t>& min_keep, int64_t keep)
        : weights(w), threads(t), standing(w.size()), room(keep) {
        for (size_t l = 0; l < w.size() && !min_keep.empty(); ++l) {
            standing[l].forced = min_keep[l];
            room -= min_keep[l];
        }
        if (room == 0)
            for (auto& s : standing) s.alone = true, s.closed = s.forced == 0;
    }

    // Refines every prefix by one digit.
    template <bool NanAsZero>
    void refine(Digit digit) {
        const int64_t size = int64_t{1} << digit.width;
        std::vector<std::vector<uint64_t>> pools(threads.size());
        std::vector<std::pair<int64_t, int64_t>> own(weights.size(), {size, 0});  // bin and rank of the minimum's last
        std::vector<uint64_t> in_own(weights.size(), 0);
        std::vector<int> pieces(weights.size(), 0);
        for (const auto& t : threads)
            for (const auto& p : t.parts) ++pieces[p.tensor];
        std::vector<std::vector<std::vector<uint32_t>>> partial(threads.size());  // of tensors in several parts
        const auto settle = [&](int l, auto* bins, std::vector<uint64_t>& pool) {
            const auto& s = standing[l];
            int64_t top = size;
            if (s.forced > 0) {
                own[l] = nth_from_top(bins, size, s.forced);
                top = own[l].first;
                in_own[l] = bins[top];
            }
            if (s.alone) return;
            for (int64_t b = 0; b < std::min(top, size); ++b) pool[b] += bins[b];
            if (top < size) pool[top] += bins[top] - own[l].second;
        };
        parallel(static_cast<int>(threads.size()), [&](int t) {
            pools[t].assign(size, 0);
            partial[t].resize(threads[t].parts.size());
            std::vector<uint32_t> bins(size);
            for (size_t i = 0; i < threads[t].parts.size(); ++i) {
                const Part& part = threads[t].parts[i];
                const auto& s = standing[part.tensor];
                if (s.closed) continue;
                std::fill(bins.begin(), bins.end(), 0);
                histogram<Key, NanAsZero>(weights[part.tensor], part, digit, s.prefix, bins.data());
                if (pieces[part.tensor] == 1)
                    settle(part.tensor, bins.data(), pools[t]);
                else
                    partial[t][i] = bins;
            }
        });
        std::vector<uint64_t> pool(size, 0), whole;
        for (const auto& p : pools)
            for (int64_t b = 0; b < size; ++b) pool[b] += p[b];
        for (size_t l = 0; l < weights.size(); ++l) {
            if (pieces[l] < 2 || standing[l].closed) continue;
            whole.assign(size, 0);
            for (size_t t = 0; t < threads.size(); ++t)
                for (size_t i = 0; i < threads[t].parts.size(); ++i)
                    if (threads[t].parts[i].tensor == static_cast<int>(l))
                        for (int64_t b = 0; b < size; ++b) whole[b] += partial[t][i][b];
            settle(static_cast<int>(l), whole.data(), pool);
        }
        int64_t global = size;
        if (room > 0) std::tie(global, room) = nth_from_top(pool.data(), size, room);
        prefix = prefix << digit.width | static_cast<Key>(global < size ? global : 0);
        in_bin = room > 0 ? static_cast<int64_t>(pool[global]) : 0;
        for (size_t l = 0; l < weights.size(); ++l) {
            auto& s = standing[l];
            if (s.closed) continue;
            const auto [bin, rank] = own[l];
            if (s.alone || bin < global) {
                s.alone = true;
                s.prefix = s.prefix << digit.width | static_cast<Key>(bin);
                s.forced = rank;
                in_bin += static_cast<int64_t>(in_own[l]);
            } else {
                s.prefix = prefix;
                s.forced = bin == global ? rank : 0;
                in_bin += s.forced;
            }
        }
    }
};

}  // namespace pyfast::prune
