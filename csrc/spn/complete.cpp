// What is missing of rows: drawn given what is there, or the most probable. Reference: pyfast/reference/spn.py.
#include <atomic>
#include <optional>

#include "spn/choose.h"
#include "spn/sparse.h"
#include "spn/values.h"

namespace pyfast::spn {
namespace {

// What an induced tree is drawn from, beside the values of nodes: running sums of weights, which choose where nothing
// is known, and the leaves of tables.
template <class F>
class Odds {
  public:
    std::vector<double> running;  // of a sum's weights
    std::vector<F> codes;         // a table's probabilities

    Odds(const Graph& g, const F* weights, const F* leaves)
        : running(g.weights), codes(leaves, leaves + g.parameters), zero_(g.nodes, none), first_(g.nodes + 1) {
#pragma omp simd
        for (int64_t i = 0; i < g.parameters; ++i) codes[i] = F(exp(double(codes[i])));  // of what is no table: unused
        for (int64_t i = 0; i < g.nodes; ++i) {
            first_[i] = int32_t(bits_.size());
            if (g.kind[i] == sum) {
                add_up(weights + g.first_weight[i], g.children(i), &running[g.first_weight[i]]);
            } else if (g.kind[i] == product) {
                for (int64_t e = g.first[i]; e < g.first[i + 1]; ++e)
                    if (const int64_t c = g.child[e]; zero_[c] != none) bits_.push_back({zero_[c], g.variable[c]});
            } else if (g.family[g.variable[i]] == table) {
                const F* p = &codes[g.leaf_first[g.leaf_of[i]]];
                const double both = g.width[g.variable[i]] == 2 ? double(p[0]) + double(p[1]) : 0;
                if (both > 0) zero_[i] = int64_t(std::ceil(double(p[0]) / both * 0x1p53));
            }
        }
        first_[g.nodes] = int32_t(bits_.size());
    }

    // A leaf of two codes shows the first if a random number of 53 bits is less than `zero`.
    struct Bit {
        int64_t zero;
        int32_t variable;
    };
    bool is_bit(int64_t node) const { return zero_[node] != none; }
    Bit bit(const Graph& g, int64_t node) const { return {zero_[node], g.variable[node]}; }
    // Those of a product's children that are such leaves, in one place.
    const Bit* bits(int64_t product) const { return bits_.data() + first_[product]; }
    int64_t bits_of(int64_t product) const { return first_[product + 1] - first_[product]; }

  private:
    static constexpr int64_t none = -1;
    std::vector<int64_t> zero_;
    std::vector<int32_t> first_;
    std::vector<Bit> bits_;

    // Running sums; those of each four by themselves, so that additions need not wait for one another.
    static void add_up(const F* w, int64_t n, double* out) {
        double total = 0;
        for (int64_t j = 0; j < n; j += 4) {
            double four = 0;
            for (int64_t i = j; i < std::min(j + 4, n); ++i) out[i] = total + (four += double(w[i]));
            total += four;
        }
    }
};

// A random number for each variable of a row.
class Draws {
  public:
    Draws(uint64_t seed, uint64_t what, int64_t variables)
        : seed_(seed), what_(what), drawn_((variables + 2 * N - 1) / (2 * N) * (2 * N)) {}

    void begin(uint64_t name) {
        for (size_t first = 0; first < drawn_.size(); first += 2 * N) {  // a block of random words is of two variables
            uint64_t index[N], w[4][N];
            for (int i = 0; i < N; ++i) index[i] = name | (first / 2 + i);
            random::words<N>(seed_, what_, index, w);
            for (int i = 0; i < N; ++i) {
                drawn_[first + 2 * i] = int64_t((w[0][i] << 32 | w[1][i]) >> 11);
                drawn_[first + 2 * i + 1] = int64_t((w[2][i] << 32 | w[3][i]) >> 11);
            }
        }
    }
    int64_t bits(int64_t v) const { return drawn_[v]; }                      // 53 of them
    double uniform(int64_t v) const { return double(drawn_[v]) * 0x1p-53; }  // [0, 1)

  private:
    static constexpr int N = 16;
    uint64_t seed_, what_;
    std::vector<int64_t> drawn_;
};

// The first of n running sums that exceeds u times the last, 0 <= u < 1: without branches that could not be foretold.
inline int64_t search(const double* sums, int64_t n, double u) {
    const double want = u * sums[n - 1], *from = sums;
    for (int64_t left = n; left > 1; left -= left / 2) from += -int64_t(from[left / 2 - 1] <= want) & (left / 2);
    return std::min<int64_t>(from - sums + (*from <= want), n - 1);
}

template <class F>
bool any_there(const F* row, int64_t n) {
    int any = 0;
    for (int64_t v = 0; v < n; ++v) any |= row[v] == row[v];
    return any;
}

// Throws where a value is missing that nobody can tell.
template <class F>
void check_there(const Graph& g, const F* x, int64_t rows, bool maximise) {
    for (int64_t v = 0; v < g.variables; ++v) {
        if (g.family[v] != own || (!maximise && g.owns[v].quantile)) continue;
        for (int64_t n = 0; n < rows; ++n)
            if (x[n * g.variables + v] != x[n * g.variables + v])
                throw py::value_error("X[" + std::to_string(n) + ", " + std::to_string(v) +
                                      "] must be there, as its density has no " +
                                      (maximise ? "mode that is known" : "quantile") + ", got nan");
    }
}

// Fills what is missing of one row after another.
template <class F>
class Completion {
  public:
    using Scratch = typename Nodes<F>::Scratch;
    struct Names {
        uint64_t seed, choices, values;
    };

    // Without `odds` the most probable value is what fills.
    Completion(const Graph& g, const F* leaves, const Odds<F>* odds, Names names)
        : g_(g),
          leaves_(leaves),
          odds_(odds),
          names_(names),
          stack_(g.nodes),
          draws_(names.seed, names.values, g.variables) {
        int64_t widest = 1;
        for (int64_t i = 0; i < g.nodes; ++i) widest = std::max(widest, g.children(i));
        share_.resize(widest);
    }

    // nodes and s: values given the row, which is row b of a block; null where nothing is given.
    void fill(F* row, uint64_t name, const Nodes<F>* nodes, const Scratch* s, int b) {
        if (odds_) draws_.begin(name);
        int32_t* top = stack_.data();  // no node comes twice: a product's factors share no variable
        *top++ = int32_t(g_.nodes - 1);
        while (top != stack_.data()) {
            const int32_t node = *--top;
            const int32_t *child = g_.child + g_.first[node], *end = g_.child + g_.first[node + 1];
            if (g_.kind[node] == product) {
                int64_t bits = 0;
                if (odds_) {
                    const typename Odds<F>::Bit* bit = odds_->bits(node);
                    bits = odds_->bits_of(node);
                    for (int64_t i = 0; i < bits; ++i) fill_bit(row, bit[i]);
                }
                if (bits == end - child) continue;
                for (; child < end; ++child)
                    if (bits == 0 || !odds_->is_bit(*child)) *top++ = *child;
            } else if (g_.kind[node] == sum) {
                *top++ = child[choice(node, name, nodes, s, b)];
            } else {
                fill_leaf(row, node, name);
            }
        }
    }

  private:
    const Graph& g_;
    const F* leaves_;
    const Odds<F>* odds_;
    Names names_;
    std::vector<int32_t> stack_;
    std::vector<F> share_;
    Draws draws_;

    void fill_bit(F* row, const typename Odds<F>::Bit& bit) {
        F& value = row[bit.variable];
        const F drawn = F(1 + ((draws_.bits(bit.variable) - bit.zero) >> 63));  // no branch: none could be foretold
        value = value == value ? value : drawn;
    }

    void fill_leaf(F* row, int32_t node, uint64_t name) {
        const int32_t v = g_.variable[node];
        if (row[v] == row[v]) return;
        if (odds_ && odds_->is_bit(node)) return fill_bit(row, odds_->bit(g_, node));
        const int64_t at = g_.leaf_first[g_.leaf_of[node]];
        if (!odds_) {
            row[v] = mode(g_.family[v], leaves_ + at, g_.width[v]);
        } else if (g_.family[v] == table) {
            row[v] = F(choose(odds_->codes.data() + at, g_.width[v], draws_.uniform(v)));
        } else {
            Stream stream(names_.seed, names_.values, name | uint64_t(v));
            row[v] = F(g_.family[v] == own ? value_draw(g_.owns[v], leaves_ + at, stream)
                                           : value_draw(g_.family[v], leaves_ + at, stream));
        }
    }

    int64_t choice(int32_t node, uint64_t name, const Nodes<F>* nodes, const Scratch* s, int b) {
        const int64_t n = g_.children(node);
        F* share = share_.data();
        if (nodes) nodes->shares(*s, node, b, share);
        if (!odds_) return std::max_element(share, share + n) - share;
        const random::Words w = random::bits(names_.seed, names_.choices, name | uint64_t(node));
        const double u = random::uniform(w[0], w[1]);
        return nodes ? choose(share, n, u) : search(odds_->running.data() + g_.first_weight[node], n, u);
    }
};

// Fills what is missing in X: by a draw given what is there, or by the most probable values.
void complete(const std::vector<Strided>& graph, const Strided& X, const Strided& weights, const Strided& leaves,
              bool maximise, uint64_t seed, uint64_t what, uint64_t what_values, int64_t first_row) {
    const Graph g(graph);
    const int64_t rows = rows_of(g, X);
    with_floats(weights, [&]<class F>(F) {
        F* x = data<F>(X, "X", {rows, g.variables});
        const F *w = data<const F>(weights, "weights", {g.weights}),
                *l = data<const F>(leaves, "leaves", {g.parameters});
        std::vector<uint8_t> given(rows);
        bool any = maximise;
        for (int64_t n = 0; n < rows; ++n) {
            given[n] = any_there(x + n * g.variables, g.variables);
            if (given[n]) check_row(g, x + n * g.variables, n, false);
            any |= given[n];
        }
        check_there(g, x, rows, maximise);
        std::optional<Nodes<F>> nodes;
        std::optional<Odds<F>> odds;
        if (any) nodes.emplace(g, w, l, maximise);
        if (!maximise) odds.emplace(g, w, l);
        constexpr int64_t B = Nodes<F>::B;
        const int64_t blocks = (rows + B - 1) / B;
        std::atomic<int64_t> never = rows;  // a row of probability 0
#pragma omp parallel if (parallel(rows * g.nodes) && blocks > 1)
        {
            Completion<F> mine(g, l, odds ? &*odds : nullptr, {seed, what, what_values});
            std::optional<typename Nodes<F>::Scratch> scratch;
            if (any) scratch.emplace(*nodes);
#pragma omp for schedule(dynamic, 1)
            for (int64_t first = 0; first < rows; first += B) {
                const int64_t last = std::min(first + B, rows);
                const bool known = maximise || std::count(given.data() + first, given.data() + last, 1) > 0;
                if (known) nodes->up(x + first * g.variables, last - first, *scratch);
                for (int64_t n = first; n < last; ++n) {
                    // of the row, not of the block, or its values would depend on its neighbours
                    const bool alone = !maximise && !given[n];
                    if (given[n] && !(nodes->log_value(*scratch, int(n - first)) > -INFINITY)) {
                        never = n;
                        continue;
                    }
                    mine.fill(x + n * g.variables, uint64_t(first_row + n) << 28, alone ? nullptr : &*nodes,
                              alone ? nullptr : &*scratch, int(n - first));
                }
            }
        }
        if (never < rows)
            throw py::value_error("X must have rows of a probability above 0, got 0 in row " + std::to_string(never));
    });
}

}  // namespace

void bind_complete(py::module_& m) {
    m.def("complete", &complete, py::call_guard<py::gil_scoped_release>());
}

}  // namespace pyfast::spn
