// The dense form of a graph: regions of K values each, made of terms, over the same weights and leaves. See
// pyfast/spn/_structure.py for the list of numbers that it is read from.
#pragma once

#include "spn/graph.h"

namespace pyfast::spn {

enum TermKind : int64_t { leaves_term = 0, mixture_term = 1, pairs_term = 2 };

struct Pair {
    int left, right;
    int64_t offset;  // of its first weight in a row
};

struct Term {
    TermKind kind = leaves_term;
    int64_t first_weight = 0, row = 0;          // of the weights: where they begin, and from one output to the next
    int64_t first_sum = 0;                      // node of the sum of output 0
    int region = -1;                            // mixture: of what
    std::vector<Pair> pairs;                    //
    std::vector<std::pair<int, int64_t>> over;  // leaves: variable, leaf of output 0
    int64_t kept = -1;  // a sum in a product: kept values before its own, where derivatives need these
    int kept_number = -1;
};

struct Region {
    int outputs;
    std::vector<Term> terms;
    int64_t panel = 0;  // values of regions before it
};

struct Program {
    std::vector<Region> regions;
    int64_t values = 0;  // of all regions
    int64_t kept = 0;    // of all sums in products
    int num_kept = 0;
    int64_t widest = 0;  // inputs of a sum from one pair or region
    int most = 0;        // outputs of a region

    explicit Program(const Graph& g) : g_(g), next_(g.program), end_(g.program + g.program_size) {
        while (next_ < end_) region();
        demand(!regions.empty(), "have a dense program");
        demand(regions.back().outputs == 1, "have a root of one value");
    }

  private:
    const Graph& g_;
    const int64_t *next_, *end_;

    int64_t number(int64_t low, int64_t high) {
        demand(next_ < end_, "have a program that is whole");
        const int64_t x = *next_++;
        demand(low <= x && x < high, "have a program whose numbers lie in range");
        return x;
    }

    int earlier() { return int(number(0, int64_t(regions.size()))); }

    void region() {
        Region r;
        r.outputs = int(number(1, 1 << 20));
        const int64_t first_node = number(0, g_.nodes - r.outputs + 1);
        const int64_t terms = number(1, 1 << 20);
        for (int64_t t = 0; t < terms; ++t) {
            r.terms.push_back(term(r, first_node));
            if (terms == 1 || r.terms.back().kind == leaves_term) continue;
            r.terms.back().kept = kept;
            r.terms.back().kept_number = num_kept++;
            kept += r.outputs;
        }
        r.panel = values;
        values += r.outputs;
        most = std::max(most, r.outputs);
        regions.push_back(std::move(r));
    }

    Term term(const Region& r, int64_t first_node) {
        Term t;
        t.kind = TermKind(number(0, 3));
        if (t.kind == leaves_term) {
            const int64_t count = number(1, g_.variables + 1);
            for (int64_t i = 0; i < count; ++i) {
                const int v = int(number(0, g_.variables));
                t.over.emplace_back(v, number(0, g_.leaves - r.outputs + 1));
                const int64_t* first = g_.leaf_first + t.over.back().second;
                demand(first[r.outputs] - first[0] == r.outputs * g_.width[v], "have a program of its own leaves");
            }
            return t;
        }
        int64_t inputs = 0;
        if (t.kind == mixture_term) {
            t.region = earlier();
            t.first_weight = number(0, g_.weights);
            t.row = number(1, g_.weights + 1);
            t.first_sum = number(0, g_.nodes - r.outputs + 1);
            inputs = regions[t.region].outputs;
            widest = std::max(widest, inputs);
        } else {
            const int64_t count = number(1, 1 << 20);
            t.first_weight = number(0, g_.weights);
            t.first_sum = first_node;
            for (int64_t p = 0; p < count; ++p) {
                const int left = earlier(), right = earlier();
                t.pairs.push_back({left, right, inputs});
                const int64_t size = int64_t(regions[left].outputs) * regions[right].outputs;
                inputs += size;
                widest = std::max(widest, size);
            }
            t.row = inputs;
        }
        demand(t.first_weight + (r.outputs - 1) * t.row + inputs <= g_.weights, "have weights for its program");
        return t;
    }
};

}  // namespace pyfast::spn
