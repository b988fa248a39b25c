// Exact global magnitude selection over many tensors, without concatenating them.
//
// Usually one pass: a sample brackets the threshold, the pass writes the mask outside the bracket and lists what lies
// inside, and the list decides. Where the sample misled, or too many weights are equal, radix histograms decide
// instead: always exact, only slower. Minima per tensor take one histogram pass first. Reference:
// pyfast/reference/prune.py.
#include <cmath>
#include <cstring>
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

template <class Key, bool NanAsZero>
void append_keys(const Weight& weight, int64_t start, int count, std::vector<Key>& keys) {
    with_dtype(weight.dtype, [&](auto tag) {
        constexpr DType D = decltype(tag)::value;
        weight.walk<typename Format<D>::Code>(
            start, count, [&keys](int, const auto* p) { keys.push_back(key_of<D, Key, NanAsZero>(code_of<D>(*p))); });
    });
}

// Bounds that very probably hold the keep-th largest of n weights, few enough to list, from a sample in even strata.
template <class Key, bool NanAsZero>
std::optional<Bounds<Key>> sampled_bounds(const std::vector<Weight>& weights, int64_t n, int64_t keep, int64_t room) {
    constexpr double deviations = 4.5;
    const double q = static_cast<double>(keep) / static_cast<double>(n);
    // So many that the bounds, some deviations to each side, hold a third of the room; more where many are equal.
    const double share = static_cast<double>(room) / static_cast<double>(n) / 3;
    const double enough = q * (1 - q) * std::pow(2 * deviations / share, 2);
    for (double size = std::max(enough, 65536.0); size < 32 * std::max(enough, 65536.0); size *= 16) {
        const int64_t groups = std::clamp<int64_t>(static_cast<int64_t>(size), group, n / 8) / group;
        const int64_t stratum = n / groups;
        std::vector<Key> sample;
        sample.reserve(groups * group);
        std::vector<int32_t> end{0};  // where each group ends in the sample
        uint64_t state = 0x9E3779B97F4A7C15;
        size_t tensor = 0;
        int64_t begin = 0;
        for (int64_t g = 0; g < groups; ++g) {
            state ^= state << 13, state ^= state >> 7, state ^= state << 17;
            const int64_t i = g * stratum + static_cast<int64_t>(state % stratum);
            while (begin + weights[tensor].size <= i) begin += weights[tensor++].size;
            const int64_t from = (i - begin) / group * group, to = std::min(from + group, weights[tensor].size);
            append_keys<Key, NanAsZero>(weights[tensor], from, static_cast<int>(to - from), sample);
            end.push_back(static_cast<int32_t>(sample.size()));
        }
        const auto s = static_cast<int64_t>(sample.size());
        const int64_t rank = std::clamp<int64_t>(std::llround(q * static_cast<double>(s)), 1, s);
        const Key middle = nth_largest(sample, rank);
        // Neighbours are alike and so are near strata: the error of the count is that of successive differences.
        double squares = 0, before = 0;
        for (int64_t g = 0; g < groups; ++g) {
            double excess = -q * (end[g + 1] - end[g]);
            for (int32_t j = end[g]; j < end[g + 1]; ++j) excess += sample[j] > middle;
            if (g > 0) squares += (excess - before) * (excess - before) / 2;
            before = excess;
        }
        const auto margin = static_cast<int64_t>(deviations * std::sqrt(squares)) + 4;
        Bounds<Key> bounds{0, last<Key>};
        if (rank + margin <= s) bounds.low = nth_largest(sample, rank + margin);
        if (rank - margin >= 1) bounds.high = nth_largest(sample, rank - margin);
        int64_t inside = 0;
        for (const Key k : sample) inside += bounds.low <= k && k <= bounds.high;
        const auto few = [&] {
            return static_cast<double>(inside) * static_cast<double>(n) < 0.8 * static_cast<double>(room * s);
        };
        if (few()) return bounds;
        if (bounds.low == 0 && middle > 0) {  // pruned before: the zeros go, if the others are enough
            bounds.low = 1;
            inside = 0;
            for (const Key k : sample) inside += bounds.low <= k && k <= bounds.high;
            if (few()) return bounds;
        }
        if (bounds.low == bounds.high) return bounds;  // many equal: no sample can part them
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
            const auto bounds = sampled_bounds<Key, NanAsZero>(weights, n, keep, room());
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
        decision = decide(weights, threads, standing, room, ties);
        clear_dropped(threads, decision.rules, bits);
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
            if (!s.alone) kept = ties_kept<Key>(equal[l], s.forced, left, split, ties);
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
    for (const auto& thread : selection.threads)
        for (const Part& p : thread.parts)
            for (int64_t w = p.bit; w < p.bit + p.end - p.begin; ++w)
                table.row(p.tensor)[0] += std::popcount(static_cast<uint64_t>(bits[w]));
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

// weights: any dtypes and strides -> bits (words,), table (tensors + 1, 4)
void select(const std::vector<Weight>& weights, int64_t prune, const std::vector<int64_t>& min_keep,
            const std::string& ties, bool nan_as_zero, Tensor<int64_t> bits, Tensor<int64_t> table) {
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
