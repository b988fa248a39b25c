// Exact global magnitude selection over many tensors, without concatenating them.
//
// Usually one pass: a sample brackets the threshold, the pass writes the mask outside the bracket and lists what lies
// inside, and the list decides. Where the sample misled, or too many weights are equal, radix histograms decide
// instead: always exact, only slower. Minima per tensor take one histogram pass first. Reference:
// pyfast/reference/prune.py.
#include <cmath>
#include <cstring>
#include <numeric>
#include <optional>
#include <stdexcept>
#include <string>

#include <pybind11/stl.h>

#include "prune/settle.h"

namespace pyfast::prune {
namespace {

constexpr int64_t candidate_bytes = int64_t{12} << 20;
constexpr int64_t group = 16;  // sampled weights that lie together: a cache line of floats

enum Path { everything = 0, bracket = 1, radix = 2, histogram_then_bracket = 3, guess = 4 };

// Sampled weights, by groups of neighbours; each list is one thread's.
template <class Key>
struct Sample {
    struct List {
        std::vector<Key> keys;
        std::vector<int> sizes;  // of the groups
    };
    std::vector<List> lists;
    int64_t size = 0;

    Key nth_largest(int64_t n) const {
        return prune::nth_largest<Key>(static_cast<int>(lists.size()), Bounds<Key>{0, last<Key>}, n,
                                       [this](int list, auto&& f) {
                                           for (const Key k : lists[list].keys) f(k);
                                       });
    }
};

// One group from every one of `groups` even strata of the n weights, at places that a hash of the stratum gives.
template <class Key, bool NanAsZero>
Sample<Key> draw(const std::vector<Weight>& weights, int64_t n, int64_t groups, int threads) {
    std::vector<int64_t> ends;
    int64_t end = 0;
    for (const auto& w : weights) ends.push_back(end += w.size);
    Sample<Key> sample;
    sample.lists.resize(threads);
    parallel(threads, [&](int t) {
        auto& [keys, sizes] = sample.lists[t];
        const int64_t first = groups * t / threads, stop = groups * (t + 1) / threads, stratum = n / groups;
        keys.reserve((stop - first) * group);
        sizes.reserve(stop - first);
        for (int64_t g = first; g < stop; ++g) {
            uint64_t hash = static_cast<uint64_t>(g) * 0x9E3779B97F4A7C15;
            hash = (hash ^ hash >> 32) * 0xD6E8FEB86659FD93;
            const int64_t i = g * stratum + static_cast<int64_t>((hash >> 32) * static_cast<uint64_t>(stratum) >> 32);
            const auto tensor = std::upper_bound(ends.begin(), ends.end(), i) - ends.begin();
            const Weight& weight = weights[tensor];
            const int64_t begin = (i - (ends[tensor] - weight.size)) / group * group;
            const int count = static_cast<int>(std::min(group, weight.size - begin));
            with_dtype(weight.dtype, [&](auto tag) {
                constexpr DType D = decltype(tag)::value;
                weight.walk<typename Format<D>::Code>(begin, count, [&keys](int, const auto* p) {
                    keys.push_back(key_of<D, Key, NanAsZero>(code_of<D>(*p)));
                });
            });
            sizes.push_back(count);
        }
    });
    for (const auto& list : sample.lists) sample.size += static_cast<int64_t>(list.keys.size());
    return sample;
}

// Bounds that very probably hold the keep-th largest of n weights, few enough to list. Equal ones: a likely threshold.
template <class Key, bool NanAsZero>
std::optional<Bounds<Key>> sampled_bounds(const std::vector<Weight>& weights, int64_t n, int64_t keep, int64_t room,
                                          int threads) {
    constexpr double deviations = 4;
    const double q = static_cast<double>(keep) / static_cast<double>(n);
    // So many that the bounds, some deviations to each side, hold a third of the room; more where many are equal.
    const double share = static_cast<double>(room) / static_cast<double>(n) / 3;
    const double enough = std::max(q * (1 - q) * std::pow(2 * deviations / share, 2), 65536.0);
    for (const double size : {enough, 16 * enough}) {
        const int64_t groups = std::clamp<int64_t>(static_cast<int64_t>(size), group, n / 8) / group;
        const Sample<Key> sample = draw<Key, NanAsZero>(weights, n, groups, size < 32768 ? 1 : threads);
        const int64_t s = sample.size, rank = std::clamp<int64_t>(std::llround(q * static_cast<double>(s)), 1, s);
        const Key middle = sample.nth_largest(rank);
        // Neighbours are alike and so are near strata: the error of the count is that of successive differences.
        double squares = 0;
        for (const auto& [keys, sizes] : sample.lists) {
            double before = 0;
            const Key* k = keys.data();
            for (size_t g = 0; g < sizes.size(); ++g) {
                double excess = -q * sizes[g];
                for (int j = 0; j < sizes[g]; ++j) excess += *k++ > middle;
                if (g > 0) squares += (excess - before) * (excess - before) / 2;
                before = excess;
            }
        }
        const auto margin = static_cast<int64_t>(deviations * std::sqrt(squares)) + 4;
        Bounds<Key> bounds{0, last<Key>};
        if (rank + margin <= s) bounds.low = sample.nth_largest(rank + margin);
        if (rank - margin >= 1) bounds.high = sample.nth_largest(rank - margin);
        if (bounds.low == bounds.high) return bounds;
        const auto few = [&] {
            int64_t inside = 0;
            for (const auto& list : sample.lists)
                for (const Key k : list.keys) inside += bounds.low <= k && k <= bounds.high;
            return static_cast<double>(inside) * static_cast<double>(n) < 0.8 * static_cast<double>(room * s);
        };
        if (few()) return bounds;
        if (bounds.low == 0 && middle > 0) {  // pruned before: the zeros go, if the others are enough
            bounds.low = 1;
            if (few()) return bounds;
        }
    }
    return std::nullopt;
}

template <class Key, bool NanAsZero>
struct Selection {
    const std::vector<Weight>& weights;
    int64_t keep;
    const std::vector<int64_t>& min_keep;
    Ties ties;
    uint64_t* bits;
    int64_t n = 0, passes = 0;
    Path path = everything;
    std::vector<Thread<Key>> threads{};
    Decision<Key> decision{};

    void run() {
        for (const auto& w : weights) n += w.size;
        threads.resize(threads_for(weights));
        auto parts = divide(weights, static_cast<int>(threads.size()));
        for (size_t t = 0; t < threads.size(); ++t) {
            threads[t].parts = std::move(parts[t]);
            threads[t].room = std::min<int64_t>(candidate_bytes / sizeof(Candidate<Key>), n + 64) / threads.size() + 64;
            threads[t].candidates.reset(new Candidate<Key>[threads[t].room]);
        }
        int64_t forced = 0;
        for (const int64_t m : min_keep) forced += m;
        if (n <= 8192) {
            const Radix<Key> start = begin();
            from_candidates(everywhere({0, last<Key>}), start.standing, start.room, false);
            return;
        }
        if (forced == 0 && keep > 0) {
            const auto bounds =
                sampled_bounds<Key, NanAsZero>(weights, n, keep, room(), static_cast<int>(threads.size()));
            if (bounds && bounds->low == bounds->high) {
                path = guess;
                Radix<Key> start = begin();
                for (auto& s : start.standing) s.prefix = bounds->low;
                start.prefix = bounds->low;
                if (from_prefixes(start, 0)) return;
            } else if (bounds) {
                path = bracket;
                if (from_candidates(everywhere(*bounds), begin().standing, keep, true)) return;
            }
        }
        from_radix();
    }

    Radix<Key> begin() { return Radix<Key>(weights, threads, min_keep, keep); }
    std::vector<Bounds<Key>> everywhere(Bounds<Key> bounds) const { return {weights.size(), bounds}; }
    int64_t room() const { return threads[0].room * static_cast<int64_t>(threads.size()); }

    // False where the bounds do not hold the threshold or too much lies between them. `counted`: room counts from the
    // top of all weights; else from the top of the candidates.
    bool from_candidates(const std::vector<Bounds<Key>>& bounds, const std::vector<Standing<Key>>& standing,
                         int64_t room, bool counted) {
        ++passes;
        for (auto& thread : threads) thread.overflowed = false;
        parallel(static_cast<int>(threads.size()),
                 [&](int t) { scan_candidates<Key, NanAsZero>(weights, bounds, threads[t], bits); });
        int64_t above = 0, inside = 0;
        for (const auto& thread : threads) {
            if (thread.overflowed) return false;
            inside += thread.count;
            for (const auto& f : thread.found) above += f.above;
        }
        if (counted) {
            room -= above;
            if (room < 1 || room > inside) return false;
        }
        const auto lower = [](const auto& a, const auto& b) { return a.low < b.low; };
        const auto higher = [](const auto& a, const auto& b) { return a.high < b.high; };
        decision = settle(weights, threads, standing,
                          {std::min_element(bounds.begin(), bounds.end(), lower)->low,
                           std::max_element(bounds.begin(), bounds.end(), higher)->high},
                          room, ties, bits);
        return true;
    }

    void from_radix() {
        path = radix;
        Radix<Key> state = begin();
        const auto rounds = digits<Key>(weights);
        for (size_t r = 0; r < rounds.size(); ++r) {
            ++passes;
            state.template refine<NanAsZero>(rounds[r]);
            // With a few weights left in every tensor's bin, the next pass can be the last.
            if (r + 1 < rounds.size() && state.in_bin * 10 < room() * 7) {
                path = histogram_then_bracket;
                std::vector<Bounds<Key>> bounds;
                const int shift = rounds[r].shift;
                for (const auto& s : state.standing)
                    bounds.push_back(s.closed
                                         ? Bounds<Key>{last<Key>, last<Key>}
                                         : Bounds<Key>{s.prefix << shift, s.prefix << shift | ((Key(1) << shift) - 1)});
                if (from_candidates(bounds, state.standing, state.room, false)) return;
                path = radix;
            }
        }
        from_prefixes(state, rounds.back().shift);
    }

    // The prefixes are whole keys; ties remain. False where the global one, a guess, is not the threshold.
    bool from_prefixes(Radix<Key>& state, int shift) {
        decision.rules.assign(weights.size(), {last<Key>, 0});
        decision.binds.assign(weights.size(), false);
        if (state.room > 0) decision.threshold = state.prefix << shift;
        for (size_t l = 0; l < weights.size(); ++l) {
            const auto& s = state.standing[l];
            if (s.closed) continue;
            decision.binds[l] = s.alone;
            decision.rules[l] = {s.prefix << shift, std::numeric_limits<int64_t>::max()};
        }
        // First with every tie kept, to count them; then once more where some must go.
        const auto scan = [&](const std::vector<std::vector<int64_t>>& seen) {
            ++passes;
            parallel(static_cast<int>(threads.size()),
                     [&](int t) { scan_rules<Key, NanAsZero>(weights, decision.rules, seen[t], threads[t], bits); });
        };
        std::vector<std::vector<int64_t>> seen(threads.size());
        for (size_t t = 0; t < threads.size(); ++t) seen[t].assign(threads[t].parts.size(), 0);
        scan(seen);
        std::vector<int64_t> equal(weights.size(), 0);
        int64_t pool = 0, above = 0, left = state.room;
        for (size_t t = 0; t < threads.size(); ++t)
            for (size_t i = 0; i < threads[t].parts.size(); ++i) {
                const int l = threads[t].parts[i].tensor;
                seen[t][i] = equal[l];
                equal[l] += threads[t].found[i].candidates;
                above += threads[t].found[i].above;
            }
        for (size_t l = 0; l < weights.size(); ++l)
            if (!state.standing[l].alone) pool += equal[l] - state.standing[l].forced;
        if (path == guess) {
            left -= above;
            if (left < 1 || left > pool) return false;
        }
        const bool split = left < pool;
        bool some = false;
        for (size_t l = 0; l < weights.size(); ++l) {
            const auto& s = state.standing[l];
            if (s.closed) continue;
            int64_t kept = ties == Ties::keep_all ? equal[l] : s.forced;
            if (!s.alone) kept = ties_kept(equal[l], s.forced, left, split, ties);
            decision.rules[l].ties = kept;
            some = some || kept < equal[l];
        }
        if (some) scan(seen);
        return true;
    }
};

template <class Key, bool NanAsZero>
void select_as(const std::vector<Weight>& weights, int64_t prune, const std::vector<int64_t>& min_keep, Ties ties,
               Tensor<int64_t> bits, Tensor<int64_t> table) {
    int64_t n = 0;
    for (const auto& w : weights) n += w.size;
    Selection<Key, NanAsZero> selection{weights, n - prune, min_keep, ties, reinterpret_cast<uint64_t*>(bits.data)};
    selection.run();
    const auto rows = static_cast<int64_t>(weights.size());
    std::fill_n(table.data, 4 * (rows + 1), 0);
    for (const auto& thread : selection.threads)
        for (size_t i = 0; i < thread.parts.size(); ++i) table.row(thread.parts[i].tensor)[3] += thread.found[i].nan;
    // Counted from the mask itself, so that the report cannot disagree with it.
    std::vector<std::vector<int64_t>> kept(selection.threads.size());
    parallel(static_cast<int>(kept.size()), [&](int t) {
        for (const Part& p : selection.threads[t].parts) {
            const auto* words = selection.bits + p.bit;
            kept[t].push_back(std::transform_reduce(words, words + (p.end - p.begin), int64_t{0}, std::plus<>(),
                                                    [](uint64_t w) { return std::popcount(w); }));
        }
    });
    for (size_t t = 0; t < kept.size(); ++t)
        for (size_t i = 0; i < kept[t].size(); ++i) table.row(selection.threads[t].parts[i].tensor)[0] += kept[t][i];
    int64_t* total = table.row(rows);
    for (int64_t l = 0; l < rows; ++l) {
        int64_t* row = table.row(l);
        row[1] = selection.decision.binds[l] ? selection.decision.rules[l].key : selection.decision.threshold;
        row[2] = selection.decision.binds[l];
        total[0] += row[0];
    }
    total[1] = selection.decision.threshold;
    total[2] = selection.path;
    total[3] = selection.passes;
}

void require(bool good, const std::string& rule) {
    if (!good) throw std::invalid_argument(rule);
}

void check_bits(const std::vector<Weight>& weights, int64_t got) {
    int64_t words = 0;
    for (const auto& w : weights) words += w.words();
    require(words == got, "bits must hold " + std::to_string(words) + " words, got " + std::to_string(got));
}

void check_counts(const std::vector<Weight>& weights, int64_t prune, const std::vector<int64_t>& min_keep) {
    int64_t n = 0, forced = 0;
    for (const auto& w : weights) n += w.size;
    require(0 <= prune && prune <= n,
            "prune must lie between 0 and the " + std::to_string(n) + " weights, got " + std::to_string(prune));
    require(min_keep.empty() || min_keep.size() == weights.size(),
            "min_keep must be empty or hold a number for each of " + std::to_string(weights.size()) + " weights, got " +
                std::to_string(min_keep.size()));
    for (size_t l = 0; l < min_keep.size(); ++l) {
        require(0 <= min_keep[l] && min_keep[l] <= weights[l].size,
                "min_keep[" + std::to_string(l) + "] must lie between 0 and " + std::to_string(weights[l].size) +
                    ", got " + std::to_string(min_keep[l]));
        forced += min_keep[l];
    }
    require(forced <= n - prune, "min_keep must sum to at most the " + std::to_string(n - prune) +
                                     " weights that are kept, got " + std::to_string(forced));
}

// weights: any dtypes and strides -> bits (words,), table (tensors + 1, 4)
void select(const std::vector<Weight>& weights, int64_t prune, const std::vector<int64_t>& min_keep,
            const std::string& ties, bool nan_as_zero, Tensor<int64_t> bits, Tensor<int64_t> table) {
    check_counts(weights, prune, min_keep);
    check_bits(weights, bits.size(0));
    require(ties == "first" || ties == "keep_all" || ties == "prune_all",
            "ties must be first, keep_all or prune_all, got " + ties);
    const Ties rule = ties == "keep_all" ? Ties::keep_all : ties == "prune_all" ? Ties::prune_all : Ties::first;
    const bool wide =
        std::any_of(weights.begin(), weights.end(), [](const Weight& w) { return w.dtype == DType::f64; });
    const auto run = wide ? (nan_as_zero ? select_as<int64_t, true> : select_as<int64_t, false>)
                          : (nan_as_zero ? select_as<int32_t, true> : select_as<int32_t, false>);
    run(weights, prune, min_keep, rule, bits, table);
}

// For every byte of a mask, all ones in the lanes that it keeps.
template <class Code>
struct Lanes8 {
    alignas(64) Code table[256][8];
    constexpr Lanes8() : table() {
        for (int byte = 0; byte < 256; ++byte)
            for (int j = 0; j < 8; ++j) table[byte][j] = byte >> j & 1 ? static_cast<Code>(~Code(0)) : Code(0);
    }
    constexpr const Code* operator[](uint64_t byte) const { return table[byte]; }
};
template <class Code>
constexpr Lanes8<Code> lanes;

// Sets every weight whose bit is 0 to +0, by selection: 0 * inf is no zero.
template <class Code>
void apply_part(const Weight& weight, const Part& part, const uint64_t* bits) {
    const uint64_t* mask = bits + part.bit - part.begin;
    for (int64_t w = part.begin; w < part.end; ++w) {
        const uint64_t valid = weight.valid(w), m = mask[w];
        if ((m & valid) == valid) continue;
        if (weight.contiguous && valid == ~uint64_t{0}) {
            Code* x = reinterpret_cast<Code*>(weight.data) + 64 * w;
            if (m == 0) {
                std::memset(x, 0, 64 * sizeof(Code));
                continue;
            }
            for (int i = 0; i < 8; ++i) {
                const Code* keep = lanes<Code>[m >> (8 * i) & 255];
#pragma omp simd
                for (int j = 0; j < 8; ++j) x[8 * i + j] &= keep[j];
            }
        } else {
            weight.walk<Code>(64 * w, std::popcount(valid), [m](int j, Code* p) {
                if (!(m >> j & 1)) *p = 0;
            });
        }
    }
}

// weights, in place; bits (words,)
void apply(const std::vector<Weight>& weights, Tensor<const int64_t> bits) {
    check_bits(weights, bits.size(0));
    const int threads = threads_for(weights);
    const auto parts = divide(weights, threads);
    const auto* mask = reinterpret_cast<const uint64_t*>(bits.data);
    parallel(threads, [&](int t) {
        for (const Part& part : parts[t]) {
            const Weight& weight = weights[part.tensor];
            with_dtype(weight.dtype, [&](auto tag) {
                using Code = typename Format<decltype(tag)::value>::Code;
                apply_part<std::make_unsigned_t<Code>>(weight, part, mask);
            });
        }
    });
}

}  // namespace
}  // namespace pyfast::prune

namespace pyfast {
void bind_prune(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("select", &prune::select, nogil);
    m.def("apply", &prune::apply, nogil);
}
}  // namespace pyfast
