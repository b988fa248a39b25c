// From the candidates of one pass to the rule of every tensor, and the mask set right.
#pragma once

#include <functional>

#include "prune/radix.h"

namespace pyfast::prune {

enum class Ties { first, keep_all, prune_all };

// The n-th largest of the keys, from 1. Reorders them.
template <class Key>
Key nth_largest(std::vector<Key>& keys, int64_t n) {
    std::nth_element(keys.begin(), keys.begin() + (n - 1), keys.end(), std::greater<Key>());
    return keys[n - 1];
}

// What was decided: a rule and a flag per tensor, and the threshold of the pool.
template <class Key>
struct Decision {
    std::vector<Rule<Key>> rules;
    std::vector<bool> binds;
    Key threshold = last<Key>;
};

// Ties at the pool's threshold, tensor by tensor: `forced` of `equal` belong to the minimum, `room` more may stay.
template <class Key>
int64_t ties_kept(int64_t equal, int64_t forced, int64_t& room, bool split, Ties ties) {
    const int64_t share = std::min(room, equal - forced);
    room -= share;
    if (ties == Ties::keep_all) return equal;
    return forced + (ties == Ties::prune_all && split ? 0 : share);
}

template <class Key>
Decision<Key> decide(const std::vector<Weight>& weights, const std::vector<Thread<Key>>& threads,
                     const std::vector<Standing<Key>>& standing, int64_t room, Ties ties) {
    const size_t n = weights.size();
    std::vector<std::vector<Key>> own(n);  // the candidates of tensors with a minimum among them
    std::vector<Key> pool;
    Decision<Key> result{std::vector<Rule<Key>>(n, {last<Key>, 0}), std::vector<bool>(n, false)};
    const auto each = [&](auto&& f) {
        for (const auto& thread : threads) {
            const Candidate<Key>* c = thread.candidates.get();
            for (size_t i = 0; i < thread.parts.size(); c += thread.found[i++].candidates)
                f(thread.parts[i].tensor, c, thread.found[i].candidates);
        }
    };
    each([&](int l, const Candidate<Key>* c, int64_t count) {
        auto& keys = standing[l].forced > 0 ? own[l] : pool;
        for (int64_t i = 0; i < count; ++i) keys.push_back(c[i].key);
    });
    std::vector<Key> own_key(n, 0);
    std::vector<int64_t> own_ties(n, 0);
    for (size_t l = 0; l < n; ++l) {
        if (own[l].empty()) continue;
        own_key[l] = nth_largest(own[l], standing[l].forced);
        const auto above = std::count_if(own[l].begin(), own[l].end(), [&](Key k) { return k > own_key[l]; });
        own_ties[l] = standing[l].forced - above;
        if (standing[l].alone) continue;
        int64_t skip = own_ties[l];  // the pool gets what the minimum leaves
        for (const Key k : own[l])
            if (k < own_key[l] || (k == own_key[l] && skip-- <= 0)) pool.push_back(k);
    }
    int64_t left = 0;
    bool split = false;
    if (room > 0) {
        result.threshold = nth_largest(pool, room);
        int64_t above = 0, equal = 0;
        for (const Key k : pool) {
            above += k > result.threshold;
            equal += k == result.threshold;
        }
        left = room - above;
        split = left < equal;
    }
    std::vector<int64_t> equal(n, 0);
    each([&](int l, const Candidate<Key>* c, int64_t count) {
        const Key key = standing[l].forced > 0 && own_key[l] < result.threshold ? own_key[l] : result.threshold;
        for (int64_t i = 0; i < count; ++i) equal[l] += c[i].key == key;
    });
    for (size_t l = 0; l < n; ++l) {
        const auto& s = standing[l];
        if (s.closed) continue;
        if (s.forced > 0 && (s.alone || own_key[l] < result.threshold)) {
            result.binds[l] = true;
            result.rules[l] = {own_key[l], ties == Ties::keep_all ? equal[l] : own_ties[l]};
        } else {
            const int64_t forced = s.forced > 0 && own_key[l] == result.threshold ? own_ties[l] : 0;
            result.rules[l] = {result.threshold, ties_kept<Key>(equal[l], forced, left, split, ties)};
        }
    }
    return result;
}

// Clears the candidates that the rules drop.
template <class Key>
void clear_dropped(const std::vector<Thread<Key>>& threads, const std::vector<Rule<Key>>& rules, uint64_t* bits) {
    int64_t seen = 0;
    int tensor = -1;
    for (const auto& thread : threads) {
        const Candidate<Key>* c = thread.candidates.get();
        for (size_t i = 0; i < thread.parts.size(); ++i) {
            const int l = thread.parts[i].tensor;
            if (l != tensor) seen = 0;
            tensor = l;
            for (int64_t k = 0; k < thread.found[i].candidates; ++k, ++c) {
                const bool tie = c->key == rules[l].key;
                const bool keep = c->key > rules[l].key || (tie && seen < rules[l].ties);
                seen += tie;
                const int64_t bit = thread.first_bit() + c->bit;
                bits[bit / 64] &= ~(static_cast<uint64_t>(!keep) << (bit % 64));
            }
        }
    }
}

}  // namespace pyfast::prune
