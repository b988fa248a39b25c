// One pass over the weights: writes the mask between two bounds per tensor and sorts out what lies between them.
#pragma once

#include <atomic>
#include <memory>

#include "prune/compare.h"
#include "prune/weights.h"

namespace pyfast::prune {

// Between the bounds of its tensor: a weight that may or may not be kept. `bit` counts from the part's first,
// whose length 32 bits hold.
template <class Key>
struct Candidate {
    Key key;
    uint32_t bit;
};

// What one pass found in one part.
struct Found {
    int64_t above = 0, nan = 0;
    int64_t candidates = 0;
};

// A tensor keeps its weights above `high`, drops those below `low`, and those between are candidates.
template <class Key>
struct Bounds {
    Key low, high;
};

template <class Key>
struct Thread {
    std::vector<Part> parts;
    std::vector<Found> found;
    std::unique_ptr<Candidate<Key>[]> candidates;
    int64_t count = 0, room = 0;
    bool overflowed = false;
};

inline int64_t count_nan(const Weight& weight, int64_t w, int count) {
    return with_dtype(weight.dtype, [&](auto tag) {
        constexpr DType D = decltype(tag)::value;
        using Code = typename Format<D>::Code;
        int64_t n = 0;
        weight.walk<Code>(64 * w, count, [&n](int, const Code* p) { n += is_nan<D>(code_of<D>(*p)); });
        return n;
    });
}

// Calls f(word, above_low, above_high, codes) for every mask word of a part, and counts what is NaN.
template <DType D, bool NanAsZero, class Key, class F>
void each_word(const Weight& weight, const Part& part, Bounds<Key> bounds, Found& found, F&& f) {
    using Code = typename Format<D>::Code;
    const Code low = code_below<D, Key>(bounds.low);
    const Code high = bounds.high == last<Key> ? std::numeric_limits<Code>::max() : code_below<D, Key>(bounds.high + 1);
    alignas(64) Code buffer[64];
    constexpr int64_t ahead =
        2048 / sizeof(Code);  // the processor alone looks too little ahead of mispredicted branches
    for (int64_t w = part.begin; w < part.end; ++w) {
        const Code* x = weight.word<Code>(w, buffer);
        if (weight.contiguous)
            for (size_t line = 0; line < sizeof(Code); ++line) __builtin_prefetch(x + ahead + line * 64 / sizeof(Code));
        auto [above_low, above_high, nan] = compare<D, NanAsZero>(x, low, high);
        const uint64_t valid = weight.valid(w);
        above_low &= valid;
        above_high &= valid;
        found.above += std::popcount(above_high);
        if (nan) [[unlikely]]
            found.nan += count_nan(weight, w, std::popcount(valid));
        f(w, above_low, above_high, x);
    }
}

// Fills the mask with every weight that is not below its tensor's bounds, and lists the candidates.
template <class Key, bool NanAsZero>
void scan_candidates(const std::vector<Weight>& weights, const std::vector<Bounds<Key>>& bounds, Thread<Key>& thread,
                     uint64_t* bits) {
    thread.found.assign(thread.parts.size(), {});
    thread.count = 0;
    for (size_t i = 0; i < thread.parts.size() && !thread.overflowed; ++i) {
        const Part& part = thread.parts[i];
        const Weight& weight = weights[part.tensor];
        with_dtype(weight.dtype, [&](auto tag) {
            constexpr DType D = decltype(tag)::value;
            using Code = typename Format<D>::Code;
            Found& found = thread.found[i];
            const int64_t before = thread.count;
            uint64_t* out = bits + part.bit - part.begin;
            each_word<D, NanAsZero>(weight, part, bounds[part.tensor], found,
                                    [&](int64_t w, uint64_t above_low, uint64_t above_high, const Code* x) {
                                        out[w] = above_low;
                                        uint64_t between = above_low & ~above_high;
                                        if (thread.count + 64 > thread.room) [[unlikely]] {
                                            thread.overflowed = thread.overflowed || between != 0;
                                            return;
                                        }
                                        for (; between; between &= between - 1) {
                                            const int j = std::countr_zero(between);
                                            const Key key = key_of<D, Key, NanAsZero>(code_of<D>(x[j]));
                                            thread.candidates[thread.count++] = {
                                                key, static_cast<uint32_t>(64 * (w - part.begin) + j)};
                                        }
                                    });
            found.candidates = thread.count - before;
        });
    }
}

// What a tensor keeps: the weights above `key`, and the first `ties` of those equal to it.
template <class Key>
struct Rule {
    Key key;
    int64_t ties;
};

// Fills the mask by rule. `seen[i]`: the ties of part i's tensor that lie in earlier parts.
template <class Key, bool NanAsZero>
void scan_rules(const std::vector<Weight>& weights, const std::vector<Rule<Key>>& rules,
                const std::vector<int64_t>& seen, Thread<Key>& thread, uint64_t* bits) {
    thread.found.assign(thread.parts.size(), {});
    for (size_t i = 0; i < thread.parts.size(); ++i) {
        const Part& part = thread.parts[i];
        const Weight& weight = weights[part.tensor];
        with_dtype(weight.dtype, [&](auto tag) {
            constexpr DType D = decltype(tag)::value;
            using Code = typename Format<D>::Code;
            const Rule<Key> rule = rules[part.tensor];
            int64_t left = rule.ties - seen[i];
            Found& found = thread.found[i];
            uint64_t* out = bits + part.bit - part.begin;
            each_word<D, NanAsZero>(weight, part, Bounds<Key>{rule.key, rule.key}, found,
                                    [&](int64_t w, uint64_t above_low, uint64_t above_high, const Code*) {
                                        uint64_t ties = above_low & ~above_high;
                                        const int n = std::popcount(ties);
                                        if (left < n) {  // keep the first `left`
                                            uint64_t dropped = ties;
                                            for (int64_t k = 0; k < left; ++k) dropped &= dropped - 1;
                                            ties ^= dropped;
                                        }
                                        left -= n;
                                        found.candidates += std::popcount(ties);
                                        out[w] = above_high | ties;
                                    });
        });
    }
}

}  // namespace pyfast::prune
