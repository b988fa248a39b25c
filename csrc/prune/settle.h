// From the candidates of one pass to the rule of every tensor, and the mask set right.
#pragma once

#include "prune/radix.h"

namespace pyfast::prune {

enum class Ties { first, keep_all, prune_all };

// The n-th largest, from 1, of the keys within bounds that some lists hold, by histograms over an ever smaller range.
// each(list, f) calls f(key) for every key of a list; lists are read in parallel.
template <class Key, class Each>
Key nth_largest(int lists, Bounds<Key> bounds, int64_t n, Each&& each) {
    constexpr int bins = 2048;
    constexpr int64_t few = 4096;
    int64_t inside = few + 1;  // at least: not counted yet
    std::vector<uint32_t> counts;
    while (bounds.low < bounds.high) {
        const auto [low, high] = bounds;
        if (inside <= few) {
            std::vector<Key> keys;
            for (int list = 0; list < lists; ++list)
                each(list, [&keys, low = low, high = high](Key k) {
                    if (k >= low && k <= high) keys.push_back(k);
                });
            if (n > static_cast<int64_t>(keys.size())) return low;  // they change under our hands
            std::nth_element(keys.begin(), keys.begin() + (n - 1), keys.end(), std::greater<Key>());
            return keys[n - 1];
        }
        const int shift = std::max(0, static_cast<int>(std::bit_width(static_cast<uint64_t>(high - low))) - 11);
        counts.assign(static_cast<size_t>(bins) * lists, 0);
        parallel(lists, [&](int list) {
            uint32_t* count = counts.data() + static_cast<ptrdiff_t>(list) * bins;
            each(list, [=, low = low, high = high](Key k) {
                if (k >= low && k <= high) ++count[(k - low) >> shift];
            });
        });
        for (int list = 1; list < lists; ++list)
            for (int b = 0; b < bins; ++b) counts[b] += counts[list * bins + b];
        const auto [bin, rank] = nth_from_top(counts.data(), bins, n);
        n = rank;
        inside = counts[bin];
        const Key begin = low + (static_cast<Key>(bin) << shift);
        bounds = {begin, std::min<Key>(high, begin + ((Key(1) << shift) - 1))};
    }
    return bounds.low;
}

// What was decided: a rule and a flag per tensor, and the threshold of the pool.
template <class Key>
struct Decision {
    std::vector<Rule<Key>> rules;
    std::vector<bool> binds;
    Key threshold = last<Key>;
};

// Ties at the pool's threshold, tensor by tensor: `forced` of `equal` belong to the minimum, `room` more may stay.
inline int64_t ties_kept(int64_t equal, int64_t forced, int64_t& room, bool split, Ties ties) {
    const int64_t share = std::min(room, equal - forced);
    room -= share;
    if (ties == Ties::keep_all) return equal;
    return forced + (ties == Ties::prune_all && split ? 0 : share);
}

// Calls f(part, its candidates, how many) for the parts of a thread.
template <class Key, class F>
void each_part(const Thread<Key>& thread, F&& f) {
    const Candidate<Key>* c = thread.candidates.get();
    for (size_t i = 0; i < thread.parts.size(); c += thread.found[i++].candidates) f(i, c, thread.found[i].candidates);
}

// Decides among the candidates, which lie within the bounds, and clears those that are dropped from the mask. `room`:
// how many of them, beyond the minima, are kept.
template <class Key>
Decision<Key> settle(const std::vector<Weight>& weights, const std::vector<Thread<Key>>& threads,
                     const std::vector<Standing<Key>>& standing, Bounds<Key> bounds, int64_t room, Ties ties,
                     uint64_t* bits) {
    const size_t n = weights.size();
    const auto lists = static_cast<int>(threads.size());
    Decision<Key> result{std::vector<Rule<Key>>(n, {last<Key>, 0}), std::vector<bool>(n, false)};

    // The candidates of tensors whose minimum ends among them; the pool gets what the minimum leaves.
    std::vector<std::vector<Key>> own(n);
    for (const auto& thread : threads)
        each_part(thread, [&](size_t i, const Candidate<Key>* c, int64_t count) {
            const int l = thread.parts[i].tensor;
            for (int64_t k = 0; k < count && standing[l].forced > 0; ++k) own[l].push_back(c[k].key);
        });
    std::vector<Key> own_key(n, 0), left_over;
    std::vector<int64_t> own_ties(n, 0);
    for (size_t l = 0; l < n; ++l) {
        if (own[l].empty()) continue;
        own_key[l] = nth_largest<Key>(1, bounds, standing[l].forced, [&](int, auto&& f) {
            for (const Key k : own[l]) f(k);
        });
        own_ties[l] = standing[l].forced;
        for (const Key k : own[l]) own_ties[l] -= k > own_key[l];
        if (standing[l].alone) continue;
        int64_t skip = own_ties[l];
        for (const Key k : own[l])
            if (k < own_key[l] || (k == own_key[l] && skip-- <= 0)) left_over.push_back(k);
    }

    const auto each_pooled = [&](int list, auto&& f) {
        if (list == 0)
            for (const Key k : left_over) f(k);
        each_part(threads[list], [&](size_t i, const Candidate<Key>* c, int64_t count) {
            if (standing[threads[list].parts[i].tensor].forced > 0) return;
            for (int64_t k = 0; k < count; ++k) f(c[k].key);
        });
    };
    std::vector<int64_t> above(lists, 0), pooled(lists, 0);
    if (room > 0) {
        const Key threshold = nth_largest<Key>(lists, bounds, room, each_pooled);
        result.threshold = threshold;
        parallel(lists, [&](int t) {
            each_pooled(t, [threshold, &a = above[t], &p = pooled[t]](Key k) {
                a += k > threshold;
                p += k == threshold;
            });
        });
    }
    int64_t left = room, tied = 0;
    for (int t = 0; t < lists; ++t) left -= above[t], tied += pooled[t];
    const bool split = room > 0 && left < tied;

    for (size_t l = 0; l < n; ++l) {
        result.binds[l] = standing[l].forced > 0 && (standing[l].alone || own_key[l] < result.threshold);
        if (!standing[l].closed) result.rules[l].key = result.binds[l] ? own_key[l] : result.threshold;
    }
    std::vector<std::vector<int64_t>> seen(lists);  // ties of the part, then of its tensor's earlier parts
    parallel(lists, [&](int t) {
        seen[t].assign(threads[t].parts.size(), 0);
        each_part(threads[t], [&](size_t i, const Candidate<Key>* c, int64_t count) {
            const Key key = result.rules[threads[t].parts[i].tensor].key;
            int64_t equal = 0;
            for (int64_t k = 0; k < count; ++k) equal += c[k].key == key;
            seen[t][i] = equal;
        });
    });
    std::vector<int64_t> equal(n, 0);
    for (int t = 0; t < lists; ++t)
        for (size_t i = 0; i < seen[t].size(); ++i) {
            int64_t& before = equal[threads[t].parts[i].tensor];
            before += std::exchange(seen[t][i], before);
        }
    for (size_t l = 0; l < n; ++l) {
        if (standing[l].closed) continue;
        const bool with_pool = standing[l].forced > 0 && own_key[l] == result.threshold;
        result.rules[l].ties = result.binds[l] ? (ties == Ties::keep_all ? equal[l] : own_ties[l])
                                               : ties_kept(equal[l], with_pool ? own_ties[l] : 0, left, split, ties);
    }
    parallel(lists, [&](int t) {
        each_part(threads[t], [&](size_t i, const Candidate<Key>* c, int64_t count) {
            const Rule<Key> rule = result.rules[threads[t].parts[i].tensor];
            const int64_t first = 64 * threads[t].parts[i].bit;
            int64_t before = seen[t][i];
            for (int64_t k = 0; k < count; ++k) {
                const bool tie = c[k].key == rule.key;
                const bool drop = c[k].key < rule.key || (tie && before >= rule.ties);
                before += tie;
                const int64_t bit = first + c[k].bit;
                bits[bit / 64] &= ~(static_cast<uint64_t>(drop) << (bit % 64));
            }
        });
    });
    return result;
}

}  // namespace pyfast::prune
