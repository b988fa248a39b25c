// The exact threshold of every tensor by radix histograms, with a minimum per tensor.
//
// Each tensor's own threshold (the least of the minimum it must keep) and the global one are refined digit by digit.
// Where a tensor's own digit lies below the global digit, its minimum binds and it goes on alone; where it lies above,
// the minimum holds by itself; where both agree, the tensor gives the pool only what its minimum leaves over. So one
// histogram a tensor and round is enough.
#pragma once

#include <functional>
#include <tuple>
#include <utility>

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
        zeros =
            std::min(zeros, with_dtype(w.dtype, [](auto tag) { return int(Format<decltype(tag)::value>::zero_bits); }));
    if (zeros >= 16) return {{16, 15}};
    return {{16, 15}, {zeros, 16 - zeros}};
}

// Calls f(digit, k) for every weight of a part whose key begins with the prefix; k alternates between 0 and 1.
template <class Key, bool NanAsZero, class F>
void each_digit(const Weight& weight, const Part& part, Digit digit, Key prefix, F&& f) {
    with_dtype(weight.dtype, [&](auto tag) {
        constexpr DType D = decltype(tag)::value;
        using Code = typename Format<D>::Code;
        const auto key = [](Code bits) { return key_of<D, Key, NanAsZero>(code_of<D>(bits)); };
        const auto mask = static_cast<Key>((int64_t{1} << digit.width) - 1);
        const bool first = digit.shift + digit.width == int(8 * sizeof(Key)) - 1;
        const Key low = first ? Key(0) : prefix << digit.width << digit.shift;
        const Key high = first ? last<Key> : low | (mask << digit.shift) | ((Key(1) << digit.shift) - 1);
        Found unused;
        if (!first) {
            each_word<D, NanAsZero>(weight, part, Bounds<Key>{low, high}, unused,
                                    [&](int64_t, uint64_t above_low, uint64_t above_high, const Code* x) {
                                        for (uint64_t m = above_low & ~above_high; m; m &= m - 1)
                                            f(key(x[std::countr_zero(m)]) >> digit.shift & mask, 0);
                                    });
            return;
        }
        alignas(64) Code buffer[64];
        alignas(64) uint16_t digits[64];
        for (int64_t w = part.begin; w < part.end; ++w) {
            const Code* x = weight.word<Code>(w, buffer);
            const int n = static_cast<int>(std::min<int64_t>(64, weight.size - 64 * w));
            if (n < 64 || compare<D, false>(x, 0, 0).nan) {
                for (int j = 0; j < n; ++j) f(key(x[j]) >> digit.shift, 0);
                continue;
            }
            // All digits before any use: mixing loads of weights with stores to bins costs four times as much.
            const int shift = digit.shift;
            for (int j = 0; j < 64; ++j)
                digits[j] = static_cast<uint16_t>(number_key<D, Key>(code_of<D>(x[j])) >> shift);
            for (int j = 0; j < 64; j += 2) {
                f(digits[j], 0);
                f(digits[j + 1], 1);
            }
        }
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
        own.assign(weights.size(), {size, 0, 0});
        std::vector<int> pieces(weights.size(), 0);
        bool minima = false;
        for (const auto& s : standing) minima = minima || s.alone || s.forced > 0;
        for (const auto& t : threads)
            for (const auto& p : t.parts) ++pieces[p.tensor];
        std::vector<std::vector<uint64_t>> pools(threads.size());
        std::vector<std::vector<std::vector<uint32_t>>> partial(threads.size());  // of tensors in several parts
        parallel(static_cast<int>(threads.size()), [&](int t) {
            auto& pool = pools[t];
            pool.assign(size, 0);
            partial[t].resize(threads[t].parts.size());
            std::vector<uint32_t> bins(2 * size, 0);  // two sets, or equal neighbours would wait for each other
            const auto count = [&](const Part& part) {
                each_digit<Key, NanAsZero>(weights[part.tensor], part, digit, standing[part.tensor].prefix,
                                           [&](Key bin, int k) { ++bins[bin + k * size]; });
            };
            const auto merge = [&] {
                for (int64_t b = 0; b < size; ++b) bins[b] += bins[b + size];
            };
            const auto empty = [&](auto&& use) {
                merge();
                use();
                std::fill(bins.begin(), bins.end(), 0);
            };
            std::vector<Key> few;
            int64_t counted = 0;
            for (size_t i = 0; i < threads[t].parts.size(); ++i) {
                const Part& part = threads[t].parts[i];
                if (standing[part.tensor].closed) continue;
                const bool whole = pieces[part.tensor] == 1;
                if (!minima) {  // all tensors share the bins
                    count(part);
                    counted += 64 * (part.end - part.begin);
                    if (counted > int64_t{1} << 30 || i + 1 == threads[t].parts.size()) {
                        empty([&] { add(bins.data(), size, pool); });
                        counted = 0;
                    }
                } else if (whole && weights[part.tensor].size < size / 4) {  // fewer weights than bins
                    few.clear();
                    each_digit<Key, NanAsZero>(weights[part.tensor], part, digit, standing[part.tensor].prefix,
                                               [&](Key bin, int) { few.push_back(bin); });
                    settle_few(part.tensor, few, pool);
                } else {
                    count(part);
                    empty([&] {
                        if (whole)
                            settle(part.tensor, bins.data(), size, pool);
                        else
                            partial[t][i].assign(bins.begin(), bins.begin() + size);
                    });
                }
            }
        });
        std::vector<uint64_t> pool(size, 0), whole;
        for (const auto& p : pools) add(p.data(), size, pool);
        for (size_t t = 0; minima && t < threads.size(); ++t)
            for (size_t i = 0; i < threads[t].parts.size(); ++i) {  // the parts of a tensor follow each other
                if (partial[t][i].empty()) continue;
                const int l = threads[t].parts[i].tensor;
                if (whole.empty()) whole.assign(size, 0);
                add(partial[t][i].data(), size, whole);
                if (--pieces[l] == 0) {
                    settle(l, whole.data(), size, pool);
                    whole.clear();
                }
            }
        descend(digit, pool);
    }

  private:
    struct Own {
        int64_t bin, rank, count;  // where the last weight of the minimum lies, its rank there, and how many lie there
    };
    std::vector<Own> own;

    template <class Count>
    static void add(const Count* bins, int64_t size, std::vector<uint64_t>& sum) {
        for (int64_t b = 0; b < size; ++b) sum[b] += bins[b];
    }

    // Finds the tensor's own bin, and gives the pool what its minimum leaves over.
    template <class Count>
    void settle(int l, const Count* bins, int64_t size, std::vector<uint64_t>& pool) {
        const auto& s = standing[l];
        if (s.forced > 0) {
            const auto [bin, rank] = nth_from_top(bins, size, s.forced);
            own[l] = {bin, rank, static_cast<int64_t>(bins[bin])};
        }
        if (s.alone) return;
        add(bins, std::min(own[l].bin, size), pool);
        if (own[l].bin < size) pool[own[l].bin] += own[l].count - own[l].rank;
    }

    void settle_few(int l, std::vector<Key>& bins, std::vector<uint64_t>& pool) {
        auto& s = standing[l];
        s.forced = std::min<int64_t>(s.forced, bins.size());  // fewer only if another thread writes to the weights
        if (s.forced > 0) {
            std::nth_element(bins.begin(), bins.begin() + (s.forced - 1), bins.end(), std::greater<Key>());
            own[l] = {bins[s.forced - 1], s.forced, 0};
            for (const Key b : bins) {
                own[l].rank -= b > own[l].bin;
                own[l].count += b == own[l].bin;
            }
        }
        if (s.alone) return;
        for (const Key b : bins) pool[b] += b < own[l].bin;
        if (s.forced > 0) pool[own[l].bin] += own[l].count - own[l].rank;
    }

    // Takes the bin of the global threshold, and every tensor's own where that lies below.
    void descend(Digit digit, const std::vector<uint64_t>& pool) {
        int64_t global = static_cast<int64_t>(pool.size());
        in_bin = 0;
        if (room > 0) {
            std::tie(global, room) = nth_from_top(pool.data(), global, room);
            prefix = prefix << digit.width | static_cast<Key>(global);
            in_bin = static_cast<int64_t>(pool[global]);
        }
        for (size_t l = 0; l < weights.size(); ++l) {
            auto& s = standing[l];
            if (s.closed) continue;
            if (s.alone || own[l].bin < global) {
                s.alone = true;
                s.prefix = s.prefix << digit.width | static_cast<Key>(own[l].bin);
                s.forced = own[l].rank;
                in_bin += own[l].count;
            } else {
                s.prefix = prefix;
                s.forced = own[l].bin == global ? own[l].rank : 0;
                in_bin += s.forced;
            }
        }
    }
};

}  // namespace pyfast::prune
